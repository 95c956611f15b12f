"""Say what a sweep has found: each configuration over its seeds, and the differences to a baseline.

python scripts/report.py sweeps/NAME [metric=test/acc] [baseline="mixup=off"] [incomplete=true]
    metric      any of result.json's; the baseline is the first configuration unless it is named
    incomplete  compare also where the baseline lacks a seed, on those that both have
    writes report.md, report.csv and report.html, a page with pictures, into the folder
"""

import csv
import io
import math
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import page
from page import Run, Section, Table
from paired import (
    UNBOUNDED,
    Bounds,
    Summary,
    ends,
    holm,
    interval,
    needed,
    number,
    paired,
    seeds_text,
    summarise,
)

from tricklab.cli.escape import for_csv, for_terminal
from tricklab.cli.launch import launch
from tricklab.cli.messages import unknown_name
from tricklab.errors import UserError, nearest
from tricklab.files import UnreadableError, numbers, read_json, read_table, texts, write_text
from tricklab.run.folder import read_result
from tricklab.run.identity import is_excluded_from_hash
from tricklab.sweep import REPLICATES


class Job(NamedTuple):
    """A job as its folder tells it: its words by key, all of them as they were given, and how it ended."""

    folder: Path
    words: dict[str, str]
    overrides: list[str]
    status: str
    reason: str
    metrics: dict[str, float]
    seconds: float
    images: int  # of the test set; 0 where the result does not say


Cells = dict[str, dict[str, Job]]  # by configuration and seed
Values = dict[str, dict[str, float]]
Effects = dict[str, dict[str, Summary]]  # by key and value


def main() -> None:
    folders = [word for word in sys.argv[1:] if "=" not in word]
    given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    options = {"metric": "test/acc", "baseline": "", "incomplete": "false"}
    if wrong := given.keys() - options.keys():
        raise UserError(unknown_name(min(wrong), min(wrong), options))
    if not folders:
        raise UserError("no folder; allowed: that of a sweep, as sweeps/NAME")
    metric, baseline, incomplete = (options | given).values()
    for folder in map(Path, folders):
        jobs = read_jobs(folder)
        known = {name for job in jobs for name in job.metrics}
        if known and metric not in known:
            raise UserError(unknown_name(f"metric={metric}", metric, known))
        varied, cells = arrange(jobs)
        whole = all(job.status == "done" and job.words.keys() >= set(varied) for job in jobs)
        effects = {
            key: effect(key, jobs, metric) for key in varied if whole
        }  # or all else would differ with its value
        sections = report(
            cells, effects if len(varied) > 1 else {}, metric, baseline, incomplete == "true"
        )
        sections += left_out(folder, jobs)
        title = f"{metric}{on_images(jobs)}"
        text = page.markdown(title, sections)
        write_text(folder / "report.md", text)
        write_text(folder / "report.csv", table_as_csv(cells, metric))
        runs = {label: read_runs(cell) for label, cell in cells.items()}
        drawn = page.pictures(runs, effects, metric)
        html = page.html(f"{folder.resolve().name}: {title}", sections, drawn)
        write_text(folder / "report.html", html)
        print(text)
        print(for_terminal(folder / "report.html"))


def on_images(jobs: list[Job]) -> str:
    """Say on how many test images the results are, where all agree."""
    found = {job.images for job in jobs if job.status == "done"}
    return f" on {found.pop():,} test images" if len(found) == 1 and 0 not in found else ""


def table_as_csv(cells: Cells, metric: str) -> str:
    """Return a row of numbers for each configuration, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["configuration", "n", "of", "mean", "sd", "low", "high", "seconds"])
    for label, cell in cells.items():
        summary = summarise(of_seeds(cell, metric).values())
        found = summary.mean, summary.deviation, *ends(summary, bounds_of(metric))
        numbers = ["" if math.isnan(value) else value for value in (*found, mean_seconds(cell))]
        writer.writerow([for_csv(label), summary.n, len(cell), *numbers])
    return text.getvalue()


def mean_seconds(cell: dict[str, Job]) -> float:
    seconds = [job.seconds for job in cell.values() if job.status == "done"]
    return math.fsum(seconds) / len(seconds) if seconds else math.nan


def bounds_of(metric: str) -> Bounds:
    """Return between which values a metric lies: no accuracy is above 1."""
    name = metric.rpartition("/")[2].removesuffix("_t").partition("_")[0]
    return (0.0, 1.0) if name in ("acc", "ece", "aurc", "f1", "balanced") else UNBOUNDED


def read_jobs(folder: Path) -> list[Job]:
    """Read the jobs of `sweep.json`, in its order and whatever state they are in.

    Raises UserError: there is none, or it is damaged.
    """
    try:
        listed = read_json(folder / "sweep.json").get("jobs")
    except UnreadableError as error:
        raise UserError(f"{folder} is not the folder of a sweep: {error}") from None
    jobs = [job for job in listed if isinstance(job, dict)] if isinstance(listed, list) else []
    if not any(is_name(job.get("folder")) for job in jobs):
        raise UserError(f"{folder}: no jobs in sweep.json")
    return [read_job(folder, job) for job in jobs]


def read_job(sweep: Path, job: dict[str, Any]) -> Job:
    """Read what a job has left; "stopped" is one that sweep=halving has ended early."""
    name, overrides = str(job.get("folder")), texts(job.get("overrides"))
    parts = (word.lstrip("+").partition("=") for word in overrides)
    words = {
        key: value for key, _, value in parts if not is_excluded_from_hash(key)
    }  # what is computed
    folder = sweep / name
    if not is_name(job.get("folder")) or folder.is_symlink():
        result: dict[str, Any] = {"status": "refused", "reason": "not a folder of this sweep"}
    else:
        result = {"status": "missing", **read_result(folder)}
    early = [word for word in texts(result.get("overrides")) if word.startswith("stop_after=")]
    if early and "stop_after" not in words:
        result |= {"status": "stopped", "reason": early[-1]}
    reason = " ".join(str(result.get("reason") or "no result").split())[:500]
    metrics, seconds = numbers(result.get("metrics")), numbers(result).get("seconds", 0.0)
    images = int(numbers(result.get("images")).get("test", 0))
    return Job(folder, words, overrides, str(result["status"]), reason, metrics, seconds, images)


def is_name(name: object) -> bool:
    """Whether this is the name of something right below a folder."""
    return isinstance(name, str) and name == Path(name).name not in ("", ".", "..")


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
    bounds = bounds_of(metric)
    for label, cell in cells.items():
        s, seconds = summarise(values[label].values()), mean_seconds(cell)
        took = "" if math.isnan(seconds) else f"{seconds:.1f}"
        shown = [number(s.mean), number(s.deviation), interval(s, bounds)]
        rows.append([label, f"{s.n} of {len(cell)}", *shown, took])
    sections: list[Section] = [("", rows)]
    if len(cells) > 1:
        sections.append((f"Differences to {base}", compare(values, base, incomplete, cells)))
    for key, of_value in effects.items():
        rows = [
            [value, str(s.n), number(s.mean), interval(s, bounds)] for value, s in of_value.items()
        ]
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
            verdict = f"can't tell; {seeds_text(more)} would" if more else "no difference"
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
    """Return the numbers in each row of a table; nothing where there is none, or a damaged one."""
    try:
        return [numbers_in(row) for row in read_table(path)]
    except UnreadableError:
        return []


def numbers_in(row: dict[str, str]) -> dict[str, float]:
    found = {}
    for key, text in row.items():
        with suppress(ValueError):
            found[key] = float(text)
    return found


if __name__ == "__main__":
    launch(main, __doc__)
