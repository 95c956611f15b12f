"""Labels in a table: CSV or Parquet, one image a row."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from tricklab.data.file_list import LabeledFiles, make_list, make_table
from tricklab.data.folders import SPLIT_NAMES
from tricklab.data.listing import stat_file
from tricklab.errors import UserError, nearest

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]

SEPARATORS = ",;\t|"  # of columns in a CSV
LABEL_SEPARATORS = re.compile(r"[|;,/]")
HEADER_LIMIT = 2**20  # characters
EXTENSIONS = (".csv", ".tsv", ".txt", ".parquet", ".pq")


class Columns(NamedTuple):
    """Names of a table's columns, see conf/data/table.yaml.

    None for `split` or `group` is a column of that name, if there is one.
    """

    path: str
    label: str
    split: str | None
    group: str | None


class Row(NamedTuple):
    """A row of a table; `split` and `group` are "" without such a column."""

    path: str
    label: str
    split: str
    group: str


def read_rows(table: Path, columns: Columns) -> list[Row]:
    """Read the rows of a table.

    Raises UserError: the file can't be read, a column or a value is missing, an image has several
    labels or rows.
    """
    frame = read_frame(table)
    values = {}
    for key, name in columns._asdict().items():
        if name is None and key not in frame.columns:
            values[key] = [""] * len(frame)
        else:
            values[key] = read_column(table, frame, key, name or key)
    rows = [Row(*row) for row in zip(*values.values(), strict=True)]
    if not rows:
        raise UserError(f"data.table={table} has no row")
    check_single_labels(table, rows)
    check_unique_paths(table, rows)
    return rows


def read_frame(table: Path) -> "DataFrame":
    """Read a table; the values of a CSV are strings. Raises UserError: it can't be read."""
    import pandas as pd  # half a second

    if not table.is_file():
        raise UserError(f"data.table={table} is not a file. Expected a CSV or Parquet file")
    if table.suffix.lower() not in EXTENSIONS:
        raise UserError(f"data.table={table}; allowed: files that end in {', '.join(EXTENSIONS)}")
    try:
        if table.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(table)
        separator = find_separator(table)
        # names such as NA are labels, too
        options: Any = {"dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
        return pd.read_csv(table, sep=separator, skipinitialspace=True, **options)
    except ImportError as error:
        hint = "pip install 'tricklab[parquet]', or use a CSV"
        raise UserError(f"data.table={table}: reading Parquet needs pyarrow: {hint}") from error
    except Exception as error:  # a reader may fail on a damaged file in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"data.table={table} can't be read: {reason}") from error


def find_separator(table: Path) -> str:
    """Return the separator that occurs most often in the first line of a CSV."""
    with table.open(encoding="utf-8-sig") as file:
        header = file.readline(HEADER_LIMIT)
    return max(SEPARATORS, key=header.count)


def read_column(table: Path, frame: "DataFrame", key: str, name: str) -> list[str]:
    """Return the values of a column. Raises UserError: no such column, or a value is missing."""
    names = [str(column) for column in frame.columns]
    if name not in names:
        hint = nearest(name, names)
        message = f"data.{key}={name}: {table} has no such column"
        raise UserError(f"{message}; allowed: {', '.join(names)}.{hint}")
    values = []
    for number, value in enumerate(frame.iloc[:, names.index(name)], start=1):
        text = to_text(value)
        if not text:
            raise UserError(f"data.table={table}: row {number} has no {name}")
        values.append(text)
    return values


def to_text(value: Any) -> str:
    """Return a value as text: accents composed, whole numbers without a fraction, "" if missing.

    Several values are joined as by `check_single_labels`.
    """
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value.strip())
    if hasattr(value, "__len__"):
        return "|".join(map(to_text, value))
    if value is None or value != value:  # NaN
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def check_single_labels(table: Path, rows: Sequence[Row]) -> None:
    """Raise UserError if a label lists several: its parts are labels of other rows."""
    labels = {row.label for row in rows}
    for number, row in enumerate(rows, start=1):
        parts = [part.strip(" []()'\"") for part in LABEL_SEPARATORS.split(row.label)]
        if len(parts) < 2 or not ("|" in row.label or any(part in labels for part in parts)):
            continue
        message = f"data.table={table}: row {number} has several labels, {row.label!r}"
        raise UserError(f"{message}. Expected one label for each image, multi-label is not offered")


def check_unique_paths(table: Path, rows: Sequence[Row]) -> None:
    """Raise UserError if an image has several rows: it could be in training and in the test."""
    labels: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        first = labels.setdefault(row.path, row.label)
        if first != row.label:
            message = f"data.table={table}: {row.path} has the labels {first} and {row.label}"
            raise UserError(
                f"{message}. Expected one label for each image, multi-label is not offered"
            )
        if len(labels) < number:
            raise UserError(f"data.table={table}: row {number} repeats the image {row.path}")


def split_rows(table: Path, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each split; all are training rows without a column for it.

    Raises UserError: an unknown name of a split.
    """
    splits: dict[str, list[Row]] = {}
    for number, row in enumerate(rows, start=1):
        split = SPLIT_NAMES.get(row.split.lower()) if row.split else "train"
        if split is None:
            allowed = ", ".join(SPLIT_NAMES)
            message = f"data.table={table}: row {number} is of the split {row.split!r}"
            raise UserError(f"{message}; allowed: {allowed}")
        splits.setdefault(split, []).append(row)
    return splits


def sorted_classes(rows: Sequence[Row]) -> list[str]:
    """Return the labels of rows: numbers in numeric order, else in alphabetic order."""
    labels = {row.label for row in rows}
    are_numbers = all(re.fullmatch(r"-?\d+", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label) if are_numbers else 0, label))


def find_files(
    table: Path, root: Path, rows: Sequence[Row], classes: Sequence[str], owner: str
) -> LabeledFiles:
    """Return the images of rows with their labels, sorted by class as those of folders.

    Raises UserError: a label that is not among the `classes` of `owner`, or missing files.
    """
    number_of = {name: number for number, name in enumerate(classes)}
    found = []
    missing = []
    for row in rows:
        if row.label not in number_of:
            message = f"data.table={table} has the class {row.label!r}"
            raise UserError(f"{message}, which {owner} does not have")
        status = stat_file(root / row.path)
        if status is None:
            missing.append(row.path)
            continue
        file = (row.path, status.st_size, status.st_mtime_ns)
        found.append((number_of[row.label], file, row.group))
    if missing:
        message = f"{len(missing):,} of {len(rows):,} images are not found, the first: {missing[0]}"
        raise UserError(f"data.table={table}: {message}; paths start from data.root={root}")
    found.sort(key=lambda item: (item[0], item[1][0]))
    files = make_list(root, [make_table([file for _, file, _ in found])])
    labels = torch.tensor([label for label, _, _ in found], dtype=torch.long)
    return LabeledFiles(files.with_groups([group for _, _, group in found]), labels)
