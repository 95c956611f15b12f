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
from collections.abc import Sequence
from pathlib import Path

from tricklab.analysis.results import Run
from tricklab.cli.config import CONF
from tricklab.errors import UserError
from tricklab.files import read_table


def read_metric(run: Run, name: str) -> float:
    """Return a metric of a finished run by its name, see above. Raises UserError: it has none."""
    if " - " in name:
        first, second = name.split(" - ")
        return read_metric(run, first) - read_metric(run, second)
    if name.startswith("ood/"):
        _, images, column = name.split("/")
        return read_ood(run.folder, images, column)
    if match := re.fullmatch(r"(mc=\d+)/(.+)", name):
        return read_views(run.folder, match[1], match[2])
    if name.endswith("@last"):
        return read_last(run.folder, name.removesuffix("@last"))
    if name not in run.metrics:
        raise UserError(f"{run.folder}: the run has no metric {name}")
    return run.metrics[name]


def read_last(run: Path, name: str) -> float:
    """Return the last value of a metric in the `metrics.csv` of a run."""
    column = [row[name] for row in read_table(run / "metrics.csv")]
    return float([value for value in column if value][-1])


def read_ood(run: Path, images: str, column: str) -> float:
    """Return a number in a run's `ood.csv`, which is made if it does not have the images."""
    table = run / "ood.csv"
    by_images = {}
    if table.is_file():
        by_images = {row["images"]: row for row in read_table(table)}
    if images not in by_images:
        evaluate(run, "suite=ood")
        by_images = {row["images"]: row for row in read_table(table)}
    if images not in by_images:
        known = ", ".join(by_images)
        raise UserError(f"ood/{images}/{column}: no such images; allowed: {known}")
    return float(by_images[images][column])


def read_views(run: Path, views: str, metric: str) -> float:
    """Return a metric of the mean over Monte-Carlo dropout masks."""
    lines = evaluate(run, views, "resamples=0").splitlines()
    values = dict(line.split()[:2] for line in lines)
    return float(values[metric])


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
