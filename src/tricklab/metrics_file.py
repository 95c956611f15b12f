"""`metrics.csv`, the log of a run, as a logger of Lightning."""

import csv
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from tricklab.files import UnreadableError, read_table, write_text


class MetricsFile(Logger):
    """Writes `metrics.csv`: one row per logged step and per validation, in double precision.

    Rows are appended; the file is only rewritten for a new column. Test results are in
    `result.json`. Callbacks may log here too; without an epoch, as from LearningRateMonitor, that
    cell is empty.
    """

    # Empty, so that Lightning saves checkpoints directly below the folder
    name = version = save_dir = ""

    def __init__(self, folder: str):
        super().__init__()
        self.save_dir = folder
        self.path = Path(folder) / "metrics.csv"
        self.columns: list[str] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the config is in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        values = {name: to_cell(value) for name, value in metrics.items()}
        epoch = values.pop("epoch", None)
        own_step = values.pop("step", None)
        values = {name: value for name, value in values.items() if not name.startswith("test/")}
        if not values:
            return
        row = {"epoch": epoch, "step": own_step if step is None else step, **values}
        self._add_columns(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow(row)

    @rank_zero_only
    def resume(self, steps: int, epochs: int, log_every: int, val_every: int) -> None:
        """Drop the rows after a checkpoint of `steps` steps and `epochs` whole epochs.

        Warns of missing rows: one is expected for every `log_every` steps, and one for the
        validation after every `val_every` epochs.
        """
        try:
            rows = self._read()
        except UnreadableError as error:
            print(f"warning: {error}; it is replaced by a new one", file=sys.stderr)
            rows = []
        rows = [row for row in rows if is_before(row, steps, epochs)]
        self.columns = list(rows[0]) if rows else []
        if self.path.exists():
            self._write(rows)
        validated = range(val_every - 1, epochs, val_every)
        if missing := describe_missing(rows, range(0, steps, log_every), validated):
            print(f"warning: {self.path} lacks the rows of {missing}", file=sys.stderr)

    def _add_columns(self, names: Iterable[str]) -> None:
        new = [name for name in names if name not in self.columns]
        if new:
            rows = self._read() if self.columns else []
            self.columns += new
            self._write(rows)

    def _read(self) -> list[dict[str, str]]:
        return read_table(self.path, growing=True) if self.path.exists() else []

    def _writer(self, file: TextIO) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self.columns, lineterminator="\n")

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


def to_cell(value: Any) -> Any:
    """Return the content of a tensor or array, 1 and 0 for booleans, anything else unchanged."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return int(value) if isinstance(value, bool) else value


def is_before(row: Mapping[str, str], steps: int, epochs: int) -> bool:
    """Whether a row was logged before a checkpoint of `steps` steps and `epochs` whole epochs.

    A row of step `steps` belongs either to the end of an epoch, as an evaluation, or to the next
    step.
    """
    step, epoch = row.get("step", ""), row.get("epoch", "")
    if not step.isdecimal() or int(step) != steps:
        return step.isdecimal() and int(step) < steps
    return bool(row.get("val/loss")) or (epoch.isdecimal() and int(epoch) < epochs)


def describe_missing(rows: Sequence[Mapping[str, str]], steps: range, epochs: range) -> str:
    """Describe which of the steps and of the validations have no row; "" if all have one."""
    logged = {row["step"] for row in rows if row.get("lr")}
    validated = {row["epoch"] for row in rows if row.get("val/loss")}
    missing_steps = [step for step in steps if str(step) not in logged]
    missing_epochs = [epoch for epoch in epochs if str(epoch) not in validated]
    parts = []
    if missing_steps:
        span = f"{missing_steps[0]} to {missing_steps[-1]}"
        parts.append(f"{len(missing_steps)} logged steps ({span})")
    if missing_epochs:
        span = f"{missing_epochs[0]} to {missing_epochs[-1]}"
        parts.append(f"{len(missing_epochs)} validations (epochs {span})")
    return " and ".join(parts)
