"""Loggers besides Lightning's own: `metrics.csv` and Weights & Biases."""

import csv
import io
import os
import secrets
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from tricklab.data.batches import Images
from tricklab.errors import UserError
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


class Wandb(WandbLogger):
    """Lightning's W&B logger, online with an API key and else offline; never prompts, never blocks.

    The environment variable WANDB_MODE takes precedence. A resumed run keeps its id.

    Args:
        save_dir: the folder of the run; its name is that of the run unless `name` is given.
        log_checkpoint: upload the best checkpoint as an artifact.
        log_mistakes: number of misclassified test images to log, the most confident first.
        log_confusion_matrix: log the confusion matrix of the test.
        options: of `wandb.init`.
    """

    def __init__(
        self,
        save_dir: str,
        log_checkpoint: bool = False,
        log_mistakes: int = 0,
        log_confusion_matrix: bool = False,
        **options: Any,
    ):
        self.log_checkpoint = log_checkpoint
        self.log_mistakes = log_mistakes
        self.log_confusion_matrix = log_confusion_matrix
        options |= {"dir": save_dir, "name": options.get("name") or Path(save_dir).name}
        run = start_wandb(**options)
        super().__init__(save_dir=save_dir, project=options["project"], experiment=run)

    @rank_zero_only
    def log_final_results(self, metrics: Mapping[str, float], best: Path) -> None:
        """Log `metrics` as `best/...`, the reliability diagram, and if asked for the checkpoint."""
        self.log_image("test/calibration", [str(best.parents[1] / "calibration.png")])
        self.experiment.summary.update({f"best/{name}": value for name, value in metrics.items()})
        if self.log_checkpoint:
            self.experiment.log_artifact(str(best), name=f"best-{self.version}", type="model")

    @rank_zero_only
    def log_predictions(
        self, logits: Tensor, labels: Tensor, images: Images, classes: Sequence[str]
    ) -> None:
        """Log confusion matrix and mistakes of the test, if asked for.

        `logits` [N, K] and `labels` [N] are those of the first N of `images` [M, C, H, W], uint8.
        """
        confidence, predicted = logits.softmax(1).max(1)
        if self.log_confusion_matrix:
            chart = confusion_chart(labels, predicted, classes)
            self.experiment.log({"test/confusion": chart})
        indices = most_confident_mistakes(confidence, predicted == labels)[: self.log_mistakes]
        if not indices:
            return
        captions = []
        for i in indices:
            prediction = f"{classes[int(predicted[i])]} ({confidence[i]:.2f})"
            captions.append(f"{prediction}, true: {classes[int(labels[i])]}")
        selected: Any = images.index_select(0, torch.tensor(indices, device=images.device))
        pixels = selected.permute(0, 2, 3, 1).cpu()  # [n, H, W, C]
        arrays = [image.squeeze(2).numpy() for image in pixels]
        self.log_image("test/mistakes", arrays, caption=captions)


def most_confident_mistakes(confidence: Tensor, correct: Tensor) -> list[int]:
    """Return the indices of wrong predictions, the most confident first. Both arguments are [N]."""
    ranked = torch.where(correct, -1.0, confidence).argsort(descending=True)
    wrong = len(correct) - int(correct.sum())
    indices: list[int] = ranked[:wrong].tolist()
    return indices


def confusion_chart(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> Any:
    """Return W&B's confusion matrix of labels and predictions [N], or for many classes a table.

    Above 100 classes, W&B's limit, the table has a row for each pair of classes that occurs, the
    most frequent first, up to the limit of rows.
    """
    import wandb

    limit = wandb.Table.MAX_ROWS
    if len(classes) ** 2 <= limit:
        matrix = wandb.plot.confusion_matrix
        return matrix(None, labels.tolist(), predicted.tolist(), list(classes))
    pairs, counts = torch.stack([labels, predicted]).unique(dim=1, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:limit]
    if len(counts) > limit:
        print(f"W&B: test/confusion has the {limit:,} most frequent of {len(counts):,} pairs")
    actual, other = pairs[:, order].tolist()
    rows = zip(actual, other, counts[order].tolist(), strict=True)
    data = [[classes[a], classes[b], count] for a, b, count in rows]
    return wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=data)


@rank_zero_only
def start_wandb(**options: Any) -> Any:
    """Start a W&B run, or resume the one in `dir`; offline without an API key or a connection.

    Raises UserError: W&B rejects the options.
    """
    import wandb  # half a second

    is_agent = "WANDB_SWEEP_ID" in os.environ  # sets an id itself
    if not is_agent and not options.get("id"):
        options["id"] = find_run_id(Path(options["dir"])) or secrets.token_hex(4)
    try:
        return connect_wandb(**options)
    except (wandb.errors.UsageError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"logger.wandb: W&B rejects its options: {reason}") from error


def find_run_id(folder: Path) -> str | None:
    """Return the id of the last W&B run in a folder, None if there is none."""
    runs = list(folder.glob("wandb/*run-*-*"))
    if not runs:
        return None
    return max(runs, key=lambda path: path.stat().st_mtime).name.rpartition("-")[2]


def connect_wandb(**options: Any) -> Any:
    """Call `wandb.init`, offline if it can't connect. The environment's WANDB_MODE is respected."""
    import wandb

    mode: Any = os.environ.get("WANDB_MODE")
    reason = f"WANDB_MODE={mode}" if mode else "no API key"
    if not mode:
        mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
    settings = wandb.Settings(init_timeout=10)  # seconds
    try:
        run = wandb.init(mode=mode, resume="allow", settings=settings, **options)
    except wandb.Error as error:
        mode = "offline"
        reason = "no connection: " + " ".join(str(error).split())[:200]
        wandb.teardown()  # else the id counts as in use
        run = wandb.init(mode=mode, **options)
    if mode == "offline":
        command = f"wandb sync {options['dir']}/wandb/offline-run-*"
        print(f"W&B is offline ({reason}); to upload this run later: {command}")
    return run


def close_wandb(exit_code: int) -> None:
    """Finish the W&B run, if there is one, as successful (0) or failed."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=exit_code)
