"""Say what a sweep has found: each configuration over its seeds, and the differences to a baseline.

python scripts/report.py sweeps/NAME [metric=test/acc] [baseline="mixup=off"] [incomplete=true]
    metric      any of result.json's; the baseline is the first configuration unless it is named
    incomplete  compare also where the baseline lacks a seed, on those that both have
    writes report.md, report.csv and report.html, a page with pictures, into the folder
"""

import csv
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any, NamedTuple

import page
from page import Run, Section, Table
from paired import Summary, holm, interval, needed, number, paired, summarise

from tricklab import cli
from tricklab.errors import UserError, nearest
from tricklab.resume import is_volatile, read_result
from tricklab.sweep import REPLICATES


class Job(NamedTuple):
    """A job as its folder tells it: its words by key, all of them as they were given, and how it ended."""

    folder: Path
    words: dict[str, str]
    overrides: list[str]
    status: str
    reason: str
    metrics: dict[str, Any]
    seconds: float


Cells = dict[str, dict[str, Job]]  # by configuration and seed
Values = dict[str, dict[str, float]]
Effects = dict[str, dict[str, Summary]]  # by key and value


def main() -> None:
    folders = [word for word in sys.argv[1:] if "=" not in word]
    given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    options = {"metric": "test/acc", "baseline": "", "incomplete": "false"}
    if wrong := given.keys() - options.keys():
        raise UserError(cli.unknown(min(wrong), min(wrong), options))
    if not folders:
        raise UserError("no folder; allowed: that of a sweep, as sweeps/NAME")
    metric, baseline, incomplete = (options | given).values()
    for folder in map(Path, folders):
        jobs = read_jobs(folder)
        known = {name for job in jobs for name in job.metrics}
        if known and metric not in known:
            raise UserError(cli.unknown(f"metric={metric}", metric, known))
        varied, cells = arrange(jobs)
        whole = all(job.status == "done" and job.words.keys() >= set(varied) for job in jobs)
        effects = {
            key: effect(key, jobs, metric) for key in varied if whole
        }  # or all else would differ with its value
        sections = report(
            cells, effects if len(varied) > 1 else {}, metric, baseline, incomplete == "true"
        )
        sections += left_out(folder, jobs)
        text = page.markdown(metric, sections)
        (folder / "report.md").write_text(text, "utf-8")
        with (folder / "report.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(sections[0][1])
        drawn = page.pictures(
            {label: read_runs(cell) for label, cell in cells.items()}, effects, metric
        )
        (folder / "report.html").write_text(
            page.html(f"{folder.resolve().name}: {metric}", sections, drawn), "utf-8"
        )
        print(text, end="")


def read_jobs(folder: Path) -> list[Job]:
    """Read the jobs of `sweep.json`, in its order and whatever state they are in. Raises UserError: it is not whole."""
    try:
        listed = json.loads((folder / "sweep.json").read_text("utf-8"))["jobs"]
        jobs = [(folder / str(job["folder"]), list(job["overrides"])) for job in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: no sweep.json there; allowed: the folder of a sweep ({error})"
        ) from None
    if not jobs:
        raise UserError(f"{folder}: no jobs in sweep.json")
    return [read_job(path, words) for path, words in jobs]


def read_job(folder: Path, overrides: list[str]) -> Job:
    """Read what a job has left; "stopped" is one that sweep=halving has ended early."""
    parts = (word.lstrip("+").partition("=") for word in overrides)
    words = {
        key: value for key, _, value in parts if not is_volatile(key)
    }  # those that say what is computed
    result = {"status": "missing", **read_result(folder)}
    early = [word for word in result.get("overrides", []) if word.startswith("stop_after=")]
    if early and "stop_after" not in words:
        result |= {"status": "stopped", "reason": early[-1]}
    reason = " ".join(str(result.get("reason") or "no result").split())
    metrics, seconds = dict(result.get("metrics") or {}), result.get("seconds") or 0.0
    return Job(folder, words, overrides, str(result["status"]), reason, metrics, seconds)


def arrange(jobs: list[Job]) -> tuple[list[str], Cells]:
    """Return the keys that vary, and the jobs by configuration and by what they share with those of another one."""
    keys = dict.fromkeys(key for job in jobs for key in job.words if key not in REPLICATES)
    varied = [key for key in keys if len({job.words.get(key) for job in jobs}) > 1]
    cells: Cells = {}
    for job in jobs:
        label = " ".join(f"{key}={job.words[key]}" for key in varied if key in job.words) or "base"
        replicate = ", ".join(
            job.words.get(key, "0") for key in REPLICATES if key in job.words or key == "seed"
        )
        cells.setdefault(label, {})[replicate] = job
    return varied, cells


def report(
    cells: Cells, effects: Effects, metric: str, baseline: str, incomplete: bool
) -> list[Section]:
    """Make the sections of a report."""
    values = {label: of_seeds(cell, metric) for label, cell in cells.items()}
    base = baseline or next(iter(cells))
    if base not in cells:
        raise UserError(f"baseline={base}; allowed: {', '.join(cells)}.{nearest(base, cells)}")
    rows = [["configuration", "n", "mean", "sd", "95 % interval", "seconds"]]
    for label, cell in cells.items():
        s, seconds = (
            summarise(values[label].values()),
            [job.seconds for job in cell.values() if job.status == "done"],
        )
        took = f"{math.fsum(seconds) / len(seconds):.1f}" if seconds else ""
        rows.append(
            [label, f"{s.n} of {len(cell)}", number(s.mean), number(s.deviation), interval(s), took]
        )
    sections: list[Section] = [("", rows)]
    if len(cells) > 1:
        sections.append((f"Differences to {base}", compare(values, base, incomplete, cells)))
    for key, of_value in effects.items():
        rows = [[value, str(s.n), number(s.mean), interval(s)] for value, s in of_value.items()]
        sections.append((f"Effect of {key}", [["value", "n", "mean", "95 % interval"], *rows]))
    return [*sections, *best(values, cells)]


def of_seeds(cell: dict[str, Job], metric: str) -> dict[str, float]:
    """Return the metric of each seed that is done."""
    done = {seed: job.metrics.get(metric) for seed, job in cell.items() if job.status == "done"}
    return {seed: value for seed, value in done.items() if value is not None}


def compare(values: Values, base: str, incomplete: bool, cells: Cells) -> Table:
    """Compare every configuration with the baseline; without all seeds of both only if `incomplete`."""
    found = {label: paired(values[label], values[base]) for label in cells if label != base}
    seeds = {label: len(cells[base].keys() | cells[label]) for label in found}
    able = {n for n in found if incomplete or len(values[n]) == len(values[base]) == seeds[n]}
    judged = [label for label in found if label in able and not math.isnan(found[label].p)]
    corrected = dict(zip(judged, holm([found[label].p for label in judged]), strict=True))
    rows = [["configuration", "pairs", "difference", "95 % interval", "p (Holm)", "verdict"]]
    for label, s in found.items():
        p = corrected.get(label)
        if p is None:
            few = "too few seeds, or no spread"
            verdict = (
                few if label in able else "seeds are missing: incomplete=true compares the others"
            )
        elif p < 0.05:
            verdict = "higher" if s.mean > 0 else "lower"
        elif not s.deviation:
            verdict = "equal"
        else:
            more = needed(s, 0.05 / len(judged))
            verdict = f"can't tell; some {more} seeds would" if more else "can't tell"
        rows.append(
            [
                label,
                str(s.n),
                number(s.mean, "+"),
                interval(s),
                "" if p is None else f"{p:.3g}",
                verdict,
            ]
        )
    return rows


def effect(key: str, jobs: list[Job], metric: str) -> dict[str, Summary]:
    """Average over all else, for each value of a key."""
    of_value: dict[str, dict[str, Job]] = {}
    for i, job in enumerate(jobs):
        of_value.setdefault(job.words.get(key, ""), {})[str(i)] = job
    return {value: summarise(of_seeds(cell, metric).values()) for value, cell in of_value.items()}


def best(values: Values, cells: Cells) -> list[Section]:
    """Name the configuration with the highest validation accuracy, and the command that runs it again."""
    most = max(map(len, values.values()))
    scored = {
        label: of_seeds(cells[label], "val/acc")
        for label in cells
        if len(values[label]) == most > 0
    }
    if not any(scored.values()):
        return []
    first = max(scored, key=lambda label: summarise(scored[label].values()).mean)
    jobs = list(cells[first].values())
    words = [
        word
        for word in jobs[0].overrides
        if word.lstrip("+").split("=")[0] in jobs[0].words.keys() - REPLICATES
    ]
    for key in REPLICATES:
        if several := dict.fromkeys(job.words[key] for job in jobs if key in job.words):
            words.append(f"{key}={','.join(several)}")
    return [(f"Best on validation: {first}", f"python train.py -m {shlex.join(words)}")]


def left_out(folder: Path, jobs: list[Job]) -> list[Section]:
    """List what is not done, and why; and other runs in the folder, of an earlier command or config."""
    rows = [[job.status, job.reason, job.folder.name] for job in jobs if job.status != "done"]
    others = {path.parent.name for path in folder.glob("*/result.json")} - {
        job.folder.name for job in jobs
    }
    rows += [["stale", "not of the last command or config", name] for name in sorted(others)]
    return [("Left out", [["status", "reason", "folder"], *rows])] if rows else []


def read_runs(cell: dict[str, Job]) -> list[Run]:
    """Read the results of the seeds that are done, what was logged on the way, and how sure they were."""
    done = [job for job in cell.values() if job.status == "done"]
    return [
        Run(job.metrics, *(read_columns(job.folder / f"{name}.csv") for name in Run._fields[1:]))
        for job in done
    ]


def read_columns(path: Path) -> list[dict[str, float]]:
    try:
        lines = path.read_text("utf-8").splitlines()
        return [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(lines)
        ]
    except (OSError, ValueError, TypeError):
        return []


if __name__ == "__main__":
    cli.launch(main, __doc__)
