"""Where the numbers of a run go, besides Lightning's own loggers."""

import csv
import os
import secrets
import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from tricklab.data.images import ImageFiles


class MetricsFile(Logger):
    """Writes `metrics.csv`: a row for each logged step and each evaluation on validation, in double precision.

    Rows are only ever added; the file is written again when a column is new. Test results stand in `result.json` alone.
    """

    name = version = save_dir = (
        ""  # no names, so that Lightning puts the checkpoints right below the folder
    )

    def __init__(self, folder: str):
        super().__init__()
        self.save_dir, self.path = folder, Path(folder) / "metrics.csv"
        self.columns: list[str] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: options are kept in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {k: v for k, v in metrics.items() if not k.startswith("test/")}
        if not row.keys() - {"epoch"}:
            return
        row = {"epoch": row.pop("epoch"), "step": step, **row}
        if new := [column for column in row if column not in self.columns]:
            rows = self._read() if self.columns else []
            self.columns += new
            self._write(rows)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    @rank_zero_only
    def cut(self, step: int) -> None:
        """Keep what was written until `step` steps were taken: training goes on from there."""
        if self.path.is_file():
            rows = self._read()
            self.columns = list(rows[0]) if rows else []
            self._write(
                [
                    r
                    for r in rows
                    if int(r["step"]) < step or (int(r["step"]) == step and not r.get("lr"))
                ]
            )

    def _read(self) -> list[dict[str, str]]:
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, str]]) -> None:
        beside = self.path.with_suffix(".tmp")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(beside, self.path)


class Wandb(WandbLogger):
    """Lightning's W&B logger: online with a key, else offline; never a question, never a long wait.

    `WANDB_MODE`, where it is set, decides. A run that goes on keeps its id. Without a name it has that of its folder,
    `save_dir`. The `options` are those of `wandb.init`.
    """

    def __init__(
        self,
        save_dir: str,
        checkpoint: bool = False,
        mistakes: int = 0,
        confusion: bool = False,
        **options: Any,
    ):
        self.checkpoint, self.mistakes, self.confusion = checkpoint, mistakes, confusion
        options |= {"dir": save_dir, "name": options.get("name") or Path(save_dir).name}
        super().__init__(
            save_dir=save_dir, project=options["project"], experiment=start_wandb(**options)
        )

    @rank_zero_only
    def conclude(self, metrics: dict[str, float], best: str) -> None:
        """Write the results to the summary, beside those of the last epoch, and keep the checkpoint if asked to."""
        self.log_image("test/calibration", [str(Path(best).parents[1] / "calibration.png")])
        self.experiment.summary.update({f"best/{name}": value for name, value in metrics.items()})
        if self.checkpoint:
            self.experiment.log_artifact(best, name=f"best-{self.version}", type="model")

    @rank_zero_only
    def show(
        self, logits: Tensor, labels: Tensor, images: Tensor | ImageFiles, classes: list[str]
    ) -> None:
        """Show what was asked for about the test: logits [N, K] of images [N, C, H, W] with their labels [N]."""
        import wandb

        confidence, predicted = logits.softmax(1).max(1)
        if self.confusion:
            chart = wandb.plot.confusion_matrix(None, labels.tolist(), predicted.tolist(), classes)
            self.experiment.log({"test/confusion": chart})
        wrong = torch.where(predicted == labels, -1.0, confidence)
        if rows := wrong.argsort(descending=True)[
            : min(self.mistakes, int((wrong > 0).sum()))
        ].tolist():
            said = [
                f"{classes[predicted[i]]} ({confidence[i]:.2f}), but is {classes[labels[i]]}"
                for i in rows
            ]
            pixels = (
                images.index_select(0, torch.tensor(rows, device=images.device))
                .permute(0, 2, 3, 1)
                .cpu()
            )
            self.log_image(
                "test/mistakes", [image.squeeze(2).numpy() for image in pixels], caption=said
            )


@rank_zero_only
def start_wandb(**options: Any) -> Any:
    """Start a W&B run, or go on with the one of that folder; offline where there is no key or no network."""
    import wandb  # takes half a second

    earlier = sorted(
        Path(options["dir"]).glob("wandb/*run-*-*"), key=lambda path: path.stat().st_mtime
    )
    if "WANDB_SWEEP_ID" not in os.environ:  # which brings its own
        options["id"] = earlier[-1].name.rpartition("-")[2] if earlier else secrets.token_hex(4)
    mode: Any = os.environ.get("WANDB_MODE")
    why = "as WANDB_MODE says" if mode else "no key"
    try:
        mode = mode or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        run = wandb.init(
            mode=mode, resume="allow", settings=wandb.Settings(init_timeout=10), **options
        )
    except wandb.Error as error:
        mode, why = "offline", "no answer: " + " ".join(str(error).split())[:200]
        wandb.teardown()  # or the id counts as being in use
        run = wandb.init(mode=mode, **options)
    if mode == "offline":
        print(
            f"W&B is offline ({why}); to send this run later: wandb sync {options['dir']}/wandb/offline-run-*"
        )
    return run


def close_wandb(exit_code: int) -> None:
    """End the W&B run, if there is one, as done (0) or failed."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=exit_code)
