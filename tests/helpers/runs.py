"""A run, read from its folder."""

import csv
import json
from pathlib import Path
from typing import Any


class Run:
    """The files of a run: result.json, metrics.csv and checkpoints."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text("utf-8"))

    @property
    def metrics_text(self) -> str:
        return (self.folder / "metrics.csv").read_text("utf-8")

    def column(self, name: str) -> list[float]:
        """Return the values of a column of metrics.csv, without the rows that have none."""
        with (self.folder / "metrics.csv").open(newline="") as file:
            return [float(row[name]) for row in csv.DictReader(file) if row[name]]

    def checkpoint(self, name: str = "last.ckpt") -> dict[str, Any]:
        import torch

        return torch.load(self.folder / "checkpoints" / name, weights_only=True)


def max_difference(run: Run, other: Run) -> float:
    """Return the largest absolute difference of a weight of two runs."""
    weights, others = (one.checkpoint()["state_dict"] for one in (run, other))
    return max((weights[key] - others[key]).abs().max().item() for key in weights)
