"""Where the numbers of a run go, besides Lightning's own loggers."""

import csv
import os
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only


class MetricsFile(Logger):
    """Writes `metrics.csv`: a row for each logged step and each evaluation on validation, in double precision.

    Rows are only ever added; the file is written again only when a column is new. Test results are not part of
    the history: they stand in `result.json`.
    """

    name = version = ""  # so that Lightning puts the checkpoints right below the folder

    def __init__(self, folder: str):
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.columns: list[str] = []

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: options are kept in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {k: v for k, v in metrics.items() if not k.startswith("test/")}
        if not row.keys() - {"epoch"}:
            return
        row = {"epoch": row.pop("epoch"), "step": step, **row}
        if new := [column for column in row if column not in self.columns]:
            self._add_columns(new)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _add_columns(self, new: list[str]) -> None:
        rows: list[dict[str, str]] = []
        if self.columns:
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        self.columns += new
        beside = self.path.with_suffix(".tmp")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(beside, self.path)


def wandb(save_dir: str, name: str | None = None, **options: Any) -> WandbLogger:
    """Return Lightning's W&B logger: online with a key, else offline; never a question.

    `WANDB_MODE`, where it is set, decides. Without a name the run has that of its folder.
    """
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    if mode == "offline":
        print(f"W&B is offline; to send this run later: wandb sync {save_dir}/wandb/offline-run-*")
    return WandbLogger(save_dir=save_dir, name=name or Path(save_dir).name, mode=mode, **options)


def _has_key() -> bool:
    import wandb  # takes half a second

    return bool(wandb.login(prompt=False, verify=False))


def close_wandb(exit_code: int) -> None:
    """End the W&B run, if there is one, as done (0) or failed."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=exit_code)
