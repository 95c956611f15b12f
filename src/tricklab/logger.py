"""Where the numbers of a run go, besides Lightning's own loggers."""

import csv
import io
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from tricklab.data.images import ImageFiles
from tricklab.errors import UserError
from tricklab.files import UnreadableError, read_table, write_text


class MetricsFile(Logger):
    """Writes `metrics.csv`: a row for each logged step and each evaluation on validation, in double precision.

    Rows are only ever added; the file is written again when a column is new. Test results stand in `result.json` alone.
    Callbacks may log here too; what they log without an epoch, as LearningRateMonitor, has an empty one.
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
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        values = {name: to_cell(value) for name, value in metrics.items()}
        epoch, own_step = values.pop("epoch", None), values.pop("step", None)
        values = {name: value for name, value in values.items() if not name.startswith("test/")}
        if not values:
            return
        row = {"epoch": epoch, "step": own_step if step is None else step, **values}
        if new := [column for column in row if column not in self.columns]:
            rows = read_table(self.path, growing=True) if self.columns else []
            self.columns += new
            self._write(rows)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow(row)

    @rank_zero_only
    def resume(self, steps: int, epochs: int, log_every: int, val_every: int) -> None:
        """Keep the rows up to a checkpoint of so many steps and whole epochs; warn of those that are missing.

        There should be one of every `log_every` steps, and of the validation after every `val_every` epochs.
        """
        try:
            rows = read_table(self.path, growing=True) if self.path.exists() else []
        except UnreadableError as error:
            print(f"warning: {error}; it begins anew", file=sys.stderr)
            rows = []
        rows = [row for row in rows if is_before(row, steps, epochs)]
        self.columns = list(rows[0]) if rows else []
        if self.path.exists():
            self._write(rows)
        validated = range(val_every - 1, epochs, val_every)
        if missing := find_missing(rows, range(0, steps, log_every), validated):
            print(f"warning: {self.path} has lost its rows of {missing}", file=sys.stderr)

    def _writer(self, file: TextIO) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, self.columns, lineterminator="\n")

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = self._writer(text)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())


def to_cell(value: Any) -> Any:
    """Return what a tensor or an array holds; true and false as 1 and 0, all else as it is."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return int(value) if isinstance(value, bool) else value


def is_before(row: Mapping[str, str], steps: int, epochs: int) -> bool:
    """Whether a row was logged before a checkpoint of so many steps and whole epochs.

    A row of step `steps` is either of the end of an epoch, as an evaluation, or of the coming step.
    """
    step, epoch = row.get("step", ""), row.get("epoch", "")
    if not step.isdecimal() or int(step) != steps:
        return step.isdecimal() and int(step) < steps
    return bool(row.get("val/loss")) or (epoch.isdecimal() and int(epoch) < epochs)


def find_missing(rows: Sequence[Mapping[str, str]], steps: range, epochs: range) -> str:
    """Say which of the steps and of the validations after these epochs no row is of; nothing if all have one."""
    trained = {row["step"] for row in rows if row.get("lr")}
    validated = {row["epoch"] for row in rows if row.get("val/loss")}
    lost_steps = [step for step in steps if str(step) not in trained]
    lost_epochs = [epoch for epoch in epochs if str(epoch) not in validated]
    parts = []
    if lost_steps:
        parts.append(f"{len(lost_steps)} logged steps ({lost_steps[0]} to {lost_steps[-1]})")
    if lost_epochs:
        parts.append(
            f"{len(lost_epochs)} validations (epochs {lost_epochs[0]} to {lost_epochs[-1]})"
        )
    return " and ".join(parts)


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
        confidence, predicted = logits.softmax(1).max(1)
        if self.confusion:
            chart = draw_confusion(labels, predicted, classes)
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


def draw_confusion(labels: Tensor, predicted: Tensor, classes: list[str]) -> Any:
    """Return W&B's confusion matrix of labels and predictions [N]; above its limit, 100 classes, a table.

    The table has a row for each pair of classes that occurs, the most frequent first, up to the limit.
    """
    import wandb

    limit = wandb.Table.MAX_ROWS
    if len(classes) ** 2 <= limit:
        return wandb.plot.confusion_matrix(None, labels.tolist(), predicted.tolist(), classes)
    pairs, counts = torch.stack([labels, predicted]).unique(dim=1, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:limit]
    if len(counts) > limit:
        print(f"W&B: test/confusion has the {limit:,} most frequent of {len(counts):,} pairs")
    rows = zip(*pairs[:, order].tolist(), counts[order].tolist(), strict=True)
    data = [[classes[label], classes[other], count] for label, other, count in rows]
    return wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=data)


@rank_zero_only
def start_wandb(**options: Any) -> Any:
    """Start a W&B run, or go on with the one of that folder; offline where there is no key or no network.

    Raises UserError: options that W&B does not take.
    """
    import wandb  # takes half a second

    earlier = sorted(
        Path(options["dir"]).glob("wandb/*run-*-*"), key=lambda path: path.stat().st_mtime
    )
    if "WANDB_SWEEP_ID" not in os.environ and not options.get("id"):  # which bring their own
        options["id"] = earlier[-1].name.rpartition("-")[2] if earlier else secrets.token_hex(4)
    mode: Any = os.environ.get("WANDB_MODE")
    why = "as WANDB_MODE says" if mode else "no key"
    try:
        mode = mode or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        try:
            run = wandb.init(
                mode=mode, resume="allow", settings=wandb.Settings(init_timeout=10), **options
            )
        except wandb.Error as error:
            mode, why = "offline", "no answer: " + " ".join(str(error).split())[:200]
            wandb.teardown()  # or the id counts as being in use
            run = wandb.init(mode=mode, **options)
    except (wandb.errors.UsageError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"logger.wandb: W&B does not take its options: {reason}") from error
    if mode == "offline":
        print(
            f"W&B is offline ({why}); to send this run later: wandb sync {options['dir']}/wandb/offline-run-*"
        )
    return run


def close_wandb(exit_code: int) -> None:
    """End the W&B run, if there is one, as done (0) or failed."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=exit_code)
