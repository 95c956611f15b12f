"""Say what a sweep has found: each configuration over its seeds, and the differences to a baseline.

python scripts/report.py sweeps/NAME [metric=test/acc] [baseline="mixup=off"] [incomplete=true]
    metric      any of result.json's; the baseline is the first configuration unless it is named
    incomplete  compare also where the baseline lacks a seed, on those that both have
    writes report.md and report.csv into the folder
"""

import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tricklab import cli
from tricklab.errors import UserError, nearest
from tricklab.resume import VOLATILE, read_result

Table = list[list[str]]


class Job(NamedTuple):
    """A job as its folder tells it: its words by key, how it ended, and its result."""

    folder: Path
    words: dict[str, str]
    result: dict[str, Any]

    @property
    def status(self) -> str:
        return str(self.result.get("status", "missing"))


class Summary(NamedTuple):
    """Of values: how many, mean, standard deviation, and half the width of the 95 % interval of the mean."""

    n: int
    mean: float
    deviation: float
    half: float


class Difference(NamedTuple):
    """Of two configurations, seed by seed: its summary, and p of Student's paired t-test."""

    summary: Summary
    p: float


def main() -> None:
    folders = [word for word in sys.argv[1:] if "=" not in word]
    given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    options = {"metric": "test/acc", "baseline": "", "incomplete": "false"}
    if wrong := given.keys() - options.keys():
        raise UserError(cli.unknown(min(wrong), min(wrong), options))
    options |= given
    if not folders:
        raise UserError("no folder; allowed: that of a sweep, as sweeps/NAME")
    for name in folders:
        jobs = read_jobs(Path(name))
        text, rows = report(jobs, options["metric"], options["baseline"], options["incomplete"] == "true")
        (Path(name) / "report.md").write_text(text, "utf-8")
        with (Path(name) / "report.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
        print(text, end="")


def read_jobs(folder: Path) -> list[Job]:
    """Read the jobs of `sweep.json`, in its order, whatever state they are in; others in the folder are stale.

    Raises:
        UserError: the folder is not that of a sweep.
    """
    try:
        listed = json.loads((folder / "sweep.json").read_text("utf-8"))["jobs"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: no sweep.json there; allowed: the folder of a sweep ({error})") from None
    return [Job(folder / job["folder"], split(job["overrides"]), read_result(folder / job["folder"])) for job in listed]


def split(words: Sequence[str]) -> dict[str, str]:
    """Return the words that say what is computed, by key."""
    parts = (word.lstrip("+").partition("=") for word in words)
    return {key: value for key, _, value in parts if key not in VOLATILE and not key.startswith("hydra")}


def report(jobs: list[Job], metric: str, baseline: str, incomplete: bool) -> tuple[str, Table]:
    """Make the text and the rows of a report."""
    varied = [k for k in jobs[0].words if k != "seed" and len({job.words.get(k) for job in jobs}) > 1]
    cells: dict[str, dict[str, Job]] = {}
    for job in jobs:
        label = " ".join(f"{key}={job.words.get(key)}" for key in varied) or "all"
        cells.setdefault(label, {})[job.words.get("seed", "0")] = job
    values = {label: of_seeds(cell, metric) for label, cell in cells.items()}
    base = baseline or next(iter(cells))
    if base not in cells:
        raise UserError(f"baseline={base}; allowed: {', '.join(cells)}.{nearest(base, cells)}")
    header = ["configuration", "n", "mean", "sd", "95 % interval", "seconds"]
    rows = [header, *(row(label, values[label], cells[label]) for label in cells)]
    parts = [f"# {metric}", markdown(rows)]
    if len(cells) > 1:
        parts += [f"## Differences to {base}", markdown(compare(values, base, incomplete, cells))]
    parts += [f"## Effect of {key}\n\n{markdown(effect(key, jobs, metric))}" for key in varied if len(varied) > 1]
    parts += [best(values, cells), *unfinished(jobs)]
    return "\n\n".join(part for part in parts if part) + "\n", rows


def of_seeds(cell: dict[str, Job], metric: str) -> dict[str, float]:
    """Return the metric of each seed that is done.

    Raises:
        UserError: a metric that the results do not have.
    """
    done = {seed: job.result["metrics"] for seed, job in cell.items() if job.status == "done"}
    for metrics in done.values():
        if metric not in metrics:
            raise UserError(cli.unknown(f"metric={metric}", metric, metrics))
    return {seed: metrics[metric] for seed, metrics in done.items() if metrics[metric] is not None}


def summarise(values: Sequence[float]) -> Summary:
    """Return the mean with Student's interval; of a single value there is no deviation."""
    from scipy import stats

    n, mean = len(values), math.fsum(values) / len(values) if values else math.nan
    if n < 2:
        return Summary(n, mean, math.nan, math.nan)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Summary(n, mean, deviation, float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n))


def row(label: str, values: dict[str, float], cell: dict[str, Job]) -> list[str]:
    n, mean, deviation, half = summarise(list(values.values()))
    seconds = [job.result["seconds"] for job in cell.values() if job.status == "done"]
    took = f"{math.fsum(seconds) / len(seconds):.1f}" if seconds else ""
    return [label, f"{n} of {len(cell)}", number(mean), number(deviation), interval(mean, half), took]


def paired(ours: dict[str, float], theirs: dict[str, float]) -> Difference:
    """Compare seed by seed, with Student's t-test of the differences."""
    from scipy import stats

    summary = summarise([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    if not summary.deviation > 0:  # equal differences, or less than two
        return Difference(summary, 1.0 if summary.mean == 0 else math.nan)
    t = summary.mean / (summary.deviation / math.sqrt(summary.n))
    return Difference(summary, float(2 * stats.t.sf(abs(t), summary.n - 1)))


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, Scand. J. Statist. 6, 1979)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = highest
    return corrected


def needed(summary: Summary) -> int:
    """Return the seeds that would show this difference in four of five cases: 7.85 (deviation / difference)^2."""
    return max(3, math.ceil(7.85 * (summary.deviation / summary.mean) ** 2)) if summary.mean else 0


def compare(
    values: dict[str, dict[str, float]], base: str, incomplete: bool, cells: dict[str, dict[str, Job]]
) -> Table:
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
        (n, mean, _, half), p = found[label].summary, corrected.get(label)
        if p is None:
            few = "too few seeds, or no spread"
            verdict = few if whole[label] or incomplete else "seeds are missing: incomplete=true compares the others"
        elif p < 0.05:
            verdict = "higher" if mean > 0 else "lower"
        else:
            verdict = f"can't tell; some {needed(found[label].summary)} seeds would" if mean else "equal"
        rows.append([label, str(n), number(mean, "+"), interval(mean, half), "" if p is None else f"{p:.3g}", verdict])
    return rows


def effect(key: str, jobs: list[Job], metric: str) -> Table:
    """Average over all else, for each value of a key."""
    rows = [["value", "n", "mean", "95 % interval"]]
    for value in dict.fromkeys(job.words.get(key, "") for job in jobs):
        of_value = {str(i): job for i, job in enumerate(jobs) if job.words.get(key, "") == value}
        n, mean, _, half = summarise(list(of_seeds(of_value, metric).values()))
        rows.append([value, str(n), number(mean), interval(mean, half)])
    return rows


def best(values: dict[str, dict[str, float]], cells: dict[str, dict[str, Job]]) -> str:
    """Name the configuration with the highest validation accuracy, and the command that runs it again."""
    scored = {label: of_seeds(cells[label], "val/acc") for label in cells if values[label]}
    if not scored:
        return ""
    first = max(scored, key=lambda label: summarise(list(scored[label].values())).mean)
    job = next(iter(cells[first].values()))
    words = " ".join(f"{key}={value}" for key, value in job.words.items() if key != "seed")
    seeds = ",".join(cells[first])
    return f"Best on validation: {first}\n\n    python train.py -m {words} seed={seeds}"


def unfinished(jobs: list[Job]) -> list[str]:
    """List what is not done, and why."""
    lines = [
        f"- {j.status}: {j.result.get('reason') or 'no result'}: {j.folder.name}" for j in jobs if j.status != "done"
    ]
    return ["## Not done", "\n".join(lines)] if lines else []


def markdown(rows: Table) -> str:
    """Lay out rows as a Markdown table that can be read as it is."""
    widths = [max(len(line[i]) for line in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) + " |" for line in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def number(value: float, sign: str = "") -> str:
    return "" if math.isnan(value) else f"{value:{sign}.4f}"


def interval(mean: float, half: float) -> str:
    return "" if math.isnan(half) else f"{mean - half:.4f} to {mean + half:.4f}"


if __name__ == "__main__":
    cli.launch(main, __doc__)
