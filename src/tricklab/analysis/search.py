"""Finds runs by their options and status, and deletes them."""

import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tricklab.cli.config import flatten
from tricklab.errors import UserError, nearest
from tricklab.files import UnreadableError, numbers, read_yaml
from tricklab.run.folder import find_runs, read_result, status

STATUSES = ("done", "failed", "interrupted", "unfinished", "running", "unreadable")
NEVER_DELETED = {"running"}
DELETED_BY_STATUS_ONLY = {"unfinished", "unreadable"}

Options = dict[str, Any]  # by dotted key, with the chosen options by group, and `status`


def find_matching(root: Path, filters: Mapping[str, str]) -> dict[Path, str]:
    """Return the status of the runs below `root` that match all filters, the newest first.

    A filter is the value of an option (`optimizer.lr`), of a group (`scheduler`) or of `status`.
    Values are compared as text and as YAML: 1e-1 finds 0.1. Raises UserError: no run has it.
    """
    runs = {folder: read_options(folder) for folder in find_runs(root)}
    known = {"status"}.union(*runs.values())
    unknown_keys = [key for key in filters if key not in known]
    if runs and unknown_keys:
        key = unknown_keys[0]
        hint = nearest(key, known)
        raise UserError(f"{key}={filters[key]}: no run below {root} has this option.{hint}")
    allowed = {key: (text, parse_value(text)) for key, text in filters.items()}
    return {
        folder: str(options["status"])
        for folder, options in runs.items()
        if matches(options, allowed)
    }


def matches(options: Options, allowed: Mapping[str, Iterable[Any]]) -> bool:
    return all(key in options and options[key] in values for key, values in allowed.items())


def parse_value(text: str) -> Any:
    """Return a value as Hydra would read it from an override."""
    return OmegaConf.from_dotlist([f"value={text}"]).value


def read_options(folder: Path) -> Options:
    """Read the options of a run by dotted key, the chosen options by group, and its status."""
    try:
        config = read_yaml(folder / "config.yaml")
    except UnreadableError:
        return {"status": "unreadable"}
    choices = config.get("choices")
    if not isinstance(choices, dict):
        choices = {}
    return {**flatten(config), **choices, "status": status(folder)}


def find_deletable(runs: Mapping[Path, str], root: Path, by_status: bool) -> list[Path]:
    """Return the runs that may be deleted: none that is running.

    Unfinished runs (they may be resumed) and unreadable ones only if searched `by_status`.
    Raises UserError: a run is reached through a link that leads out of `root`.
    """
    spared = NEVER_DELETED if by_status else NEVER_DELETED | DELETED_BY_STATUS_ONLY
    folders = [folder for folder, ended in runs.items() if ended not in spared]
    for folder in folders:
        if not is_below(folder, root):
            raise UserError(f"delete=true: {folder} is a link that leads out of {root}")
    return folders


def is_below(folder: Path, root: Path) -> bool:
    """Return whether a folder lies below the root; a link right in it may lead anywhere."""
    return folder.parent.resolve().is_relative_to(root.resolve())


def delete_run(folder: Path) -> None:
    """Delete a run folder; of a link, the link alone."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def format_run(folder: Path, ended: str) -> str:
    """Return a line with status, accuracies, seconds and folder of a run."""
    result = read_result(folder)
    metrics = numbers(result.get("metrics"))
    val, test = (f"{metrics.get(f'{split}/acc', math.nan):.4f}" for split in ("val", "test"))
    seconds = numbers(result).get("seconds", 0.0)
    return f"{ended:11}  val {val:6}  test {test:6}  {seconds:8.1f} s  {folder}"
