"""Rows of measured runs: a CSV file beside a recipe, a row per run, with what the run was made of.

A row counts as long as the run's config is the same, known by its hash. Rows of seeds from
`FIRST_SEED` on are published: no strength was tuned with them, and no number of seeds chosen. Those
of smaller seeds are pilots, which serve both.
"""

import csv
import io
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tricklab.analysis.results import Run, read_numbers
from tricklab.analysis.run_metrics import read_metric
from tricklab.errors import UserError
from tricklab.files import read_table, write_text
from tricklab.run.folder import read_config, read_result
from tricklab.run.identity import is_excluded_from_hash

Row = dict[str, str]

FIRST_SEED = 1000
CONTROL = "control"  # images/s of a plain loop, see `tricklab.analysis.control`
CONTROL_FILE = "control.csv"  # in the folder of a recipe's runs
CONTROL_SECONDS = 3600  # between a control and the start of a run that it belongs to
COMMIT_LENGTH = 10


def is_published(row: Mapping[str, str]) -> bool:
    """Whether a row is evidence, and not a pilot."""
    return int(row["seed"]) >= FIRST_SEED


def published_seeds(number: int) -> range:
    return range(FIRST_SEED, FIRST_SEED + number)


def make_row(run: Run, metrics: Sequence[str], has_arms: bool) -> Row:
    """Return the row of a finished run.

    `has_arms`: with the overrides of its arm. Raises UserError: a metric is missing, or it is not
    known which code ran.
    """
    row: dict[str, Any] = {"config_hash": run.config_hash}
    if has_arms:
        row["overrides"] = " ".join(arm_overrides(run))
    row |= {"seed": run.options["seed"], "seconds": run.seconds}
    if control := find_control(run):
        row[CONTROL] = control
    row |= {name: round(read_metric(run, name), 6) for name in metrics}
    row |= describe_origin(run)
    return {column: str(value) for column, value in row.items()}


def arm_overrides(run: Run) -> list[str]:
    """Return the overrides that make a run's arm, the last one of each key."""
    by_key = {override.partition("=")[0]: override for override in run.overrides}
    return [
        override
        for key, override in by_key.items()
        if key not in ("experiment", "seed") and not is_excluded_from_hash(key)
    ]


def describe_origin(run: Run) -> dict[str, Any]:
    """Return code, versions, data and machine of a run. Raises UserError: its code is unknown."""
    result = read_result(run.folder)
    git = mapping(result.get("git"))
    if not run.commit or git.get("dirty") is not False:
        message = f"{run.folder}: the code was not that of a commit"
        raise UserError(f"{message}; commit, and run it again")
    versions = mapping(result.get("versions"))
    machine = mapping(result.get("machine"))
    dataset = mapping(read_config(run.folder).get("dataset"))
    return {
        "commit": run.commit[:COMMIT_LENGTH],
        "python": versions.get("python", ""),
        "torch": run.torch,
        "pytorch-lightning": versions.get("pytorch-lightning", ""),
        "data": dataset.get("fingerprint", ""),
        "processor": machine.get("processor", ""),
        "cores": machine.get("cores", ""),
        "threads": machine.get("threads", ""),
        "date": run.started[:10],
    }


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def find_control(run: Run) -> float:
    """Return the control nearest in time to the start of a run; 0 if there is none in the hour."""
    started = datetime.fromisoformat(run.started).timestamp()
    by_distance = {
        abs(values["time"] - started): values["images_per_second"]
        for values in read_numbers(run.folder.parent / CONTROL_FILE)
        if len(values) == 2
    }
    nearest = min(by_distance, default=math.inf)
    return by_distance[nearest] if nearest < CONTROL_SECONDS else 0.0


def is_complete(row: Mapping[str, str], metrics: Iterable[str]) -> bool:
    """Whether a row has all of these metrics."""
    return all(row.get(name) for name in metrics)


def read_rows(path: Path) -> dict[str, Row]:
    """Return the rows of a CSV file by config hash; none where there is no file."""
    return {row["config_hash"]: row for row in read_table(path)} if path.is_file() else {}


def write_rows(path: Path, rows: Collection[Row]) -> None:
    write_text(path, format_rows(sorted(rows, key=row_order)))


def row_order(row: Row) -> tuple[bool, str, int]:
    return is_published(row), row.get("overrides", ""), int(row["seed"])


def format_rows(rows: Sequence[Row]) -> str:
    """Return rows as CSV, with all columns that any of them has."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
