"""Training a finished run again, and comparing both digit by digit."""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from tricklab.analysis.original import Original
from tricklab.analysis.results import read_run
from tricklab.analysis.run_metrics import read_metric
from tricklab.cli.config import CONF
from tricklab.cli.escape import for_terminal
from tricklab.cli.specs import neutral_values
from tricklab.cli.values import show
from tricklab.errors import UserError
from tricklab.files import read_checkpoint, read_table
from tricklab.run.identity import is_excluded_from_hash

ROOT = CONF.parent
CHECKPOINTS = ("best.ckpt", "last.ckpt")
MAX_SHOWN = 5  # metrics or keys
Differences = list[str]  # a line each


class Comparison(NamedTuple):
    """What is the same in both runs, what differs, and what surrounded them differently."""

    same: list[str]
    different: Differences
    circumstances: Differences


def train_again(
    original: Original, folder: Path, threads: str, commit: str, overrides: Sequence[str]
) -> None:
    """Train the run of `original` in a new folder, with the code of a commit unless it is "".

    Raises UserError: training fails.
    """
    environment = dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = threads
    options = [*original.overrides, *overrides, f"hydra.run.dir='{folder.absolute()}'"]
    with checked_out(commit) as code:
        paths = [str(code / "src"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        command = [sys.executable, str(code / "train.py"), *options]
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(explain_failure(original, done.stderr, commit))


def explain_failure(original: Original, messages: str, commit: str) -> str:
    """Return why a run can't be trained again, in one line."""
    lines = [line for line in messages.splitlines() if line.strip()]
    reason = lines[-1].removeprefix("error: ") if lines else "no message"
    recorded = original.circumstances["commit"]
    hint = ""
    if recorded and not commit and recorded != current_commit():
        hint = f" (it was made by commit {recorded[:10]}; commit=recorded trains it with that code)"
    return for_terminal(f"{original.name}: {reason}{hint}")


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yield a worktree of a commit, or this checkout for "". Raises UserError: no such commit."""
    if not commit:
        yield ROOT
        return
    with tempfile.TemporaryDirectory() as parent:
        worktree = Path(parent) / "code"
        git = ["git", "-C", str(ROOT), "worktree"]
        add = [*git, "add", "--detach", str(worktree), commit]
        added = subprocess.run(add, capture_output=True)
        if added.returncode:
            raise UserError(f"commit={commit}: this repository does not have it. Try git fetch")
        try:
            yield worktree
        finally:
            subprocess.run([*git, "remove", "--force", str(worktree)], capture_output=True)


def current_commit() -> str:
    """Return the commit of this checkout, "" outside of a repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def compare(original: Original, again: Original) -> Comparison:
    """Compare a run with the one that was trained again, in the folder of `again`."""
    same: list[str] = []
    different: Differences = []
    checks = [compare_metrics(original, again)]
    if original.folder and again.folder:
        checks.append(compare_tables(original.folder, again.folder))
        checks += [compare_weights(original.folder, again.folder, name) for name in CHECKPOINTS]
    for subject, differences in checks:
        if differences:
            different += differences
        elif subject:
            same.append(subject)
    return Comparison(same, different, compare_circumstances(original, again))


def compare_metrics(original: Original, again: Original) -> tuple[str, Differences]:
    """Return how many metrics were compared, and those that are not equal in every digit.

    Those of a row are rounded there.
    """
    lines = []
    for name, before in original.metrics.items():
        now = find_metric(original, again, name)
        if now != before:
            lines.append(f"{name}: {before} -> {now}")
    more = len(lines) - MAX_SHOWN
    shown = lines[:MAX_SHOWN] + ([f"{more} more metrics"] if more > 0 else [])
    count = len(original.metrics)
    return f"{count} metric{'s' if count != 1 else ''}", shown


def find_metric(original: Original, again: Original, name: str) -> float:
    """Return a metric of the new run, NaN if it has none; rounded as in a row of results."""
    if original.folder:
        return again.metrics.get(name, math.nan)
    assert again.folder
    return round(read_metric(read_run(again.folder), name), 6)


def compare_tables(before: Path, now: Path) -> tuple[str, Differences]:
    """Return the number of rows of `metrics.csv`, and the first difference in their columns.

    Columns that only the new run has are metrics that did not exist before.
    """
    rows = [read_table(folder / "metrics.csv") for folder in (before, now)]
    columns = list(rows[0][0]) if rows[0] else []
    for one, other in zip_longest(*rows, fillvalue={}):
        for column in columns:
            if one.get(column, "") != other.get(column, ""):
                place = f"metrics.csv, first in step {one.get('step', other.get('step'))}"
                values = f"{one.get(column, '')} -> {other.get(column, '')}"
                return "", [f"{place}: {column} {values}"]
    return f"{len(rows[0])} rows of metrics.csv", []


def compare_weights(before: Path, now: Path, name: str) -> tuple[str, Differences]:
    """Return which weights were compared, and their largest difference; "" if one has none."""
    files = [folder / "checkpoints" / name for folder in (before, now)]
    if not all(file.is_file() for file in files):
        return "", []
    one, other = (read_checkpoint(file)["state_dict"] for file in files)
    if {key: value.shape for key, value in one.items()} != {k: v.shape for k, v in other.items()}:
        return "", [f"{name}: other weights, by name or shape"]
    largest = 0.0
    for key, weight in one.items():
        if weight.numel():
            largest = max(largest, float((weight.double() - other[key].double()).abs().max()))
    if largest == 0:
        return f"the weights of {name}", []
    return "", [f"{name}: weights by at most {largest:.3g}"]


def compare_circumstances(original: Original, again: Original) -> Differences:
    """Return what surrounded the runs differently, as far as it was recorded."""
    lines = []
    for name, before in original.circumstances.items():
        now = again.circumstances.get(name, "")
        if not before:
            lines.append(f"{name}: not recorded -> {now}")
        elif name == "data" and len(now) != len(before):
            lines.append("data: the fingerprint is of an older kind, and can't be compared")
        elif now != before and not (name == "commit" and now.startswith(before)):
            lines.append(f"{name}: {before} -> {now}")
    if original.changes != again.changes:
        lines.append("code: other uncommitted changes, see git.diff in the folders")
    return lines + compare_configs(original.config, again.config)


def compare_configs(before: Mapping[str, object], now: Mapping[str, object]) -> Differences:
    """Return the keys of the config that affect the result and have other values."""
    if not before:
        return []
    before = neutral_values() | dict(before)
    now = neutral_values() | dict(now)
    keys = [key for key in sorted({**before, **now}) if not is_excluded_from_hash(key)]
    changed = [key for key in keys if before.get(key) != now.get(key)]
    lines = [f"{key}: {show(before.get(key))} -> {show(now.get(key))}" for key in changed]
    more = len(lines) - MAX_SHOWN
    return lines[:MAX_SHOWN] + ([f"{more} more keys of the config"] if more > 0 else [])


def format_comparison(comparison: Comparison) -> str:
    """Return the result as text: whether both are the same, and what is not."""
    lines = []
    if comparison.different:
        lines.append("NOT THE SAME (before -> now):")
        lines += [f"  {line}" for line in comparison.different]
    else:
        lines.append(f"THE SAME in every digit: {', '.join(comparison.same)}")
    if comparison.different and comparison.same:
        lines.append(f"the same: {', '.join(comparison.same)}")
    if comparison.circumstances:
        lines.append("what was different (before -> now):")
        lines += [f"  {line}" for line in comparison.circumstances]
    elif comparison.different:
        lines.append("nothing that is recorded was different")
    return "\n".join(map(for_terminal, lines))
