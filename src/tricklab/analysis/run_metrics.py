"""Metrics of a finished run, among them those that `scripts/evaluate.py` makes of it.

test/acc               of the best epoch
val/acc@last           the last value in metrics.csv
ood/noise/auroc        a set and a column of evaluate.py suite=ood
mc=50/test/acc         of evaluate.py mc=50
test/ece_t - test/ece  the difference of two of them
"""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tricklab.analysis.results import Run
from tricklab.cli.config import CONF
from tricklab.errors import UserError
from tricklab.files import read_table


def read_metric(run: Run, name: str) -> float:
    """Return a metric of a finished run by its name, see above. Raises UserError: it has none."""
    if name.count(" - ") == 1:
        first, second = name.split(" - ")
        return read_metric(run, first) - read_metric(run, second)
    if match := re.fullmatch("ood/([^/]+)/([^/]+)", name):
        return read_ood(run.folder, match[1], match[2])
    if match := re.fullmatch(r"(mc=\d+)/(.+)", name):
        return find(read_views(run.folder, match[1]), match[2], run.folder)
    if name.endswith("@last"):
        return read_last(run.folder, name.removesuffix("@last"))
    return find(run.metrics, name, run.folder)


def find(values: Mapping[str, float], name: str, run: Path) -> float:
    """Return a value by name. Raises UserError: there is none."""
    if name not in values:
        raise UserError(f"{run}: no metric {name}; allowed: {', '.join(values)}")
    return values[name]


def read_last(run: Path, name: str) -> float:
    """Return the last value of a metric in the `metrics.csv` of a run. Raises UserError: none."""
    values = [row[name] for row in read_table(run / "metrics.csv") if row.get(name)]
    if not values:
        raise UserError(f"{run}: metrics.csv has no {name}")
    return float(values[-1])


def read_ood(run: Path, images: str, column: str) -> float:
    """Return a number in a run's `ood.csv`, which is made if it does not have the images.

    It is that of the network as it is tested, whose rows stand first. Raises UserError: there is
    none.
    """
    table = run / "ood.csv"
    rows = read_table(table) if table.is_file() else []
    if images not in {row["images"] for row in rows}:
        evaluate(run, "suite=ood")
        rows = read_table(table)
    first = {row["images"]: row for row in reversed(rows)}
    if images not in first or not first[images].get(column):
        known = ", ".join(f"ood/{name}/auroc" for name in first)
        raise UserError(f"{run}: no metric ood/{images}/{column}; allowed: {known}, ...")
    return float(first[images][column])


def read_views(run: Path, views: str) -> dict[str, float]:
    """Return the metrics of the mean over Monte-Carlo dropout masks."""
    lines = evaluate(run, views, "resamples=0").splitlines()
    return {name: float(value) for name, value in (line.split()[:2] for line in lines)}


def evaluate(run: Path, *options: str) -> str:
    """Return what `scripts/evaluate.py` prints of a run. Raises UserError: it fails."""
    return run_command(["scripts/evaluate.py", str(run), *options])


def run_command(arguments: Sequence[str]) -> str:
    """Return the output of a Python script in the project's folder. Raises UserError: it fails."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=CONF.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(arguments)} failed: {reason.removeprefix('error: ')}")
    return done.stdout
