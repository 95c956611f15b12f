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
from collections.abc import Sequence
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
    """A job as its folder tells it: its words by key, all of them as they were given, and its result."""

    folder: Path
    words: dict[str, str]
    overrides: list[str]
    result: dict[str, Any]

    @property
    def status(self) -> str:
        if self.stopped:
            return "stopped"
        return str(self.result.get("status", "missing"))

    @property
    def replicate(self) -> str:
        """What it shares with a job of another configuration."""
        return ", ".join(self.words.get(key, "0") for key in REPLICATES if key in self.words or key == "seed")

    @property
    def metrics(self) -> dict[str, Any]:
        return dict(self.result.get("metrics") or {})

    @property
    def stopped(self) -> str:
        """The word by which sweep=halving has ended it early."""
        early = [word for word in self.result.get("overrides", []) if word.startswith("stop_after=")]
        return early[-1] if early and "stop_after" not in self.words else ""


Cells = dict[str, dict[str, Job]]  # by configuration and seed


def main() -> None:
    folders = [word for word in sys.argv[1:] if "=" not in word]
    given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    options = {"metric": "test/acc", "baseline": "", "incomplete": "false"}
    if wrong := given.keys() - options.keys():
        raise UserError(cli.unknown(min(wrong), min(wrong), options))
    metric, baseline, incomplete = (options | given).values()
    if not folders:
        raise UserError("no folder; allowed: that of a sweep, as sweeps/NAME")
    for folder in map(Path, folders):
        jobs = read_jobs(folder)
        check_metric(jobs, metric)
        varied, cells = arrange(jobs)
        whole = all(job.status == "done" and job.words.keys() >= set(varied) for job in jobs)
        effects = {key: effect(key, jobs, metric) for key in varied if whole}  # or all else would differ with its value
        sections = report(cells, effects if len(varied) > 1 else {}, metric, baseline, incomplete == "true")
        sections += left_out(folder, jobs)
        text = page.markdown(metric, sections)
        (folder / "report.md").write_text(text, "utf-8")
        with (folder / "report.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(sections[0].body)
        drawn = page.pictures({label: read_runs(cell) for label, cell in cells.items()}, effects, metric)
        (folder / "report.html").write_text(page.html(f"{folder.resolve().name}: {metric}", sections, drawn), "utf-8")
        print(text, end="")


def read_jobs(folder: Path) -> list[Job]:
    """Read the jobs of `sweep.json`, in its order, whatever state they are in; others in the folder are stale.

    Raises UserError: the folder is not that of a sweep.
    """
    try:
        listed = json.loads((folder / "sweep.json").read_text("utf-8"))["jobs"]
        jobs = [(folder / str(job["folder"]), list(job["overrides"])) for job in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no sweep.json there; allowed: the folder of a sweep ({error})") from None
    if not jobs:
        raise UserError(f"{folder}: no jobs in sweep.json")
    return [Job(path, split(words), words, read_result(path)) for path, words in jobs]


def split(words: Sequence[str]) -> dict[str, str]:
    """Return the words that say what is computed, by key."""
    parts = (word.lstrip("+").partition("=") for word in words)
    return {key: value for key, _, value in parts if not is_volatile(key)}


def arrange(jobs: list[Job]) -> tuple[list[str], Cells]:
    """Return the keys that vary, and the jobs by configuration and seed."""
    keys = dict.fromkeys(key for job in jobs for key in job.words if key not in REPLICATES)
    varied = [key for key in keys if len({job.words.get(key) for job in jobs}) > 1]
    cells: Cells = {}
    for job in jobs:
        label = " ".join(f"{key}={job.words[key]}" for key in varied if key in job.words) or "base"
        cells.setdefault(label, {})[job.replicate] = job
    return varied, cells


def report(
    cells: Cells, effects: dict[str, dict[str, Summary]], metric: str, baseline: str, incomplete: bool
) -> list[Section]:
    """Make the sections of a report."""
    values = {label: of_seeds(cell, metric) for label, cell in cells.items()}
    base = baseline or next(iter(cells))
    if base not in cells:
        raise UserError(f"baseline={base}; allowed: {', '.join(cells)}.{nearest(base, cells)}")
    header = ["configuration", "n", "mean", "sd", "95 % interval", "seconds"]
    sections = [Section("", [header, *(row(label, values[label], cells[label]) for label in cells)])]
    if len(cells) > 1:
        sections.append(Section(f"Differences to {base}", compare(values, base, incomplete, cells)))
    for key, of_value in effects.items():
        rows = [[value, str(s.n), number(s.mean), interval(s.mean, s.half)] for value, s in of_value.items()]
        sections.append(Section(f"Effect of {key}", [["value", "n", "mean", "95 % interval"], *rows]))
    return [*sections, *best(values, cells)]


def of_seeds(cell: dict[str, Job], metric: str) -> dict[str, float]:
    """Return the metric of each seed that is done."""
    done = {seed: job.metrics for seed, job in cell.items() if job.status == "done"}
    return {seed: metrics[metric] for seed, metrics in done.items() if metrics.get(metric) is not None}


def check_metric(jobs: list[Job], metric: str) -> None:
    """Refuse a metric that no result has. Raises UserError: as said."""
    known = {name for job in jobs for name in job.metrics}
    if known and metric not in known:
        raise UserError(cli.unknown(f"metric={metric}", metric, known))


def row(label: str, values: dict[str, float], cell: dict[str, Job]) -> list[str]:
    n, mean, deviation, half = summarise(list(values.values()))
    seconds = [job.result.get("seconds") or 0.0 for job in cell.values() if job.status == "done"]
    took = f"{math.fsum(seconds) / len(seconds):.1f}" if seconds else ""
    return [label, f"{n} of {len(cell)}", number(mean), number(deviation), interval(mean, half), took]


def compare(values: dict[str, dict[str, float]], base: str, incomplete: bool, cells: Cells) -> Table:
    """Compare every configuration with the baseline; without all seeds of both only if `incomplete`."""
    others = [label for label in cells if label != base]
    found = {label: paired(values[label], values[base]) for label in others}
    whole = {
        label: len(values[label]) == len(values[base]) == len(cells[base].keys() | cells[label]) for label in others
    }
    judged = [label for label in others if (whole[label] or incomplete) and not math.isnan(found[label].p)]
    corrected = dict(zip(judged, holm([found[label].p for label in judged]), strict=True))
    rows = [["configuration", "pairs", "difference", "95 % interval", "p (Holm)", "verdict"]]
    for label in others:
        (n, mean, deviation, half), p = found[label].summary, corrected.get(label)
        if p is None:
            few = "too few seeds, or no spread"
            verdict = few if whole[label] or incomplete else "seeds are missing: incomplete=true compares the others"
        elif p < 0.05:
            verdict = "higher" if mean > 0 else "lower"
        elif not deviation:
            verdict = "equal"
        else:
            more = needed(found[label].summary, 0.05 / len(judged))
            verdict = f"can't tell; some {more} seeds would" if more else "can't tell"
        rows.append([label, str(n), number(mean, "+"), interval(mean, half), "" if p is None else f"{p:.3g}", verdict])
    return rows


def effect(key: str, jobs: list[Job], metric: str) -> dict[str, Summary]:
    """Average over all else, for each value of a key."""
    of_value: dict[str, dict[str, Job]] = {}
    for i, job in enumerate(jobs):
        of_value.setdefault(job.words.get(key, ""), {})[str(i)] = job
    return {value: summarise(list(of_seeds(cell, metric).values())) for value, cell in of_value.items()}


def best(values: dict[str, dict[str, float]], cells: Cells) -> list[Section]:
    """Name the configuration with the highest validation accuracy, and the command that runs it again."""
    most = max(map(len, values.values()))
    scored = {label: of_seeds(cells[label], "val/acc") for label in cells if len(values[label]) == most > 0}
    if not any(scored.values()):
        return []
    first = max(scored, key=lambda label: summarise(list(scored[label].values())).mean)
    jobs = list(cells[first].values())
    words = [word for word in jobs[0].overrides if word.lstrip("+").split("=")[0] in jobs[0].words.keys() - REPLICATES]
    for key in REPLICATES:
        if several := dict.fromkeys(job.words[key] for job in jobs if key in job.words):
            words.append(f"{key}={','.join(several)}")
    return [Section(f"Best on validation: {first}", f"python train.py -m {shlex.join(words)}")]


def left_out(folder: Path, jobs: list[Job]) -> list[Section]:
    """List what is not done, and why; and other runs in the folder, of an earlier command or config."""
    rows = [
        [j.status, j.stopped or " ".join(str(j.result.get("reason") or "no result").split()), j.folder.name]
        for j in jobs
        if j.status != "done"
    ]
    others = {path.parent.name for path in folder.glob("*/result.json")} - {job.folder.name for job in jobs}
    rows += [["stale", "not of the last command or config", name] for name in sorted(others)]
    return [Section("Left out", [["status", "reason", "folder"], *rows])] if rows else []


def read_runs(cell: dict[str, Job]) -> list[Run]:
    """Read the results of the seeds that are done, what was logged on the way, and how sure they were."""
    done = [job for job in cell.values() if job.status == "done"]
    return [Run(job.metrics, *(read_columns(job.folder / f"{name}.csv") for name in Run._fields[1:])) for job in done]


def read_columns(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(newline="") as file:
            return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError):
        return []


if __name__ == "__main__":
    cli.launch(main, __doc__)
