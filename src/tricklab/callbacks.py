"""Callbacks that Lightning does not have."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights with the highest val/acc; of equal ones, those with the lower val/loss.

    `best` holds all results of that evaluation, in double precision.
    """

    def __init__(self, **options: Any):
        super().__init__(monitor="val/acc", mode="max", **options)
        self.best: dict[str, float] = {}

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        now: dict[str, float] = trainer.lightning_module.results  # type: ignore[assignment]
        if self.best and (now["val/acc"], -now["val/loss"]) <= (self.best["val/acc"], -self.best["val/loss"]):
            return False
        self.best = dict(now)
        return True

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        super().load_state_dict(state_dict)
