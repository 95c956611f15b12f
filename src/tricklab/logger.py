"""Loggers of experiments: Weights & Biases and MLflow. `metrics.csv` is always written, too."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from numpy import ndarray
from pytorch_lightning.loggers import MLFlowLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from tricklab.data.batches import Images
from tricklab.errors import UserError
from tricklab.files import UnreadableError, read_table, read_text, write_text
from tricklab.wandb_run import start_wandb

MAX_PREVIEW = 32  # images of a batch
MLFLOW_ID = "mlflow_run_id"  # file in the run folder
Example = tuple[ndarray, str]  # an image [H, W, C] of 0 .. 1, and its caption


class Wandb(WandbLogger):
    """Lightning's W&B logger, online with an API key and else offline; never prompts, never blocks.

    The environment variable WANDB_MODE takes precedence. A resumed run keeps its id.

    Args:
        save_dir: the folder of the run; its name is that of the run unless `name` is given.
        log_checkpoint: upload the best checkpoint as an artifact.
        log_mistakes: number of misclassified test images to log, the most confident first.
        log_confusion_matrix: log the confusion matrix of the test.
        log_classes: log precision, recall and F1 of each class on the test set.
        log_preview: log the first training batch as the network gets it.
        options: of `wandb.init`.
    """

    def __init__(
        self,
        save_dir: str,
        log_checkpoint: bool = False,
        log_mistakes: int = 0,
        log_confusion_matrix: bool = False,
        log_classes: bool = False,
        log_preview: bool = False,
        **options: Any,
    ):
        self.log_checkpoint = log_checkpoint
        self.log_mistakes = log_mistakes
        self.log_confusion_matrix = log_confusion_matrix
        self.log_classes = log_classes
        self.log_preview = log_preview
        options |= {"dir": save_dir, "name": options.get("name") or Path(save_dir).name}
        run = start_wandb(**options)
        super().__init__(save_dir=save_dir, project=options["project"], experiment=run)

    @rank_zero_only
    def log_final_results(self, metrics: Mapping[str, float], best: Path) -> None:
        """Log `metrics` as `best/...`, the reliability diagram, and what else is asked for."""
        folder = best.parents[1]
        self.log_image("test/calibration", [str(folder / "calibration.png")])
        if self.log_classes:
            rows = read_table(folder / "classes.csv")
            table = [[to_number(cell) for cell in row.values()] for row in rows]
            self.log_table("test/classes", columns=list(rows[0]), data=table)
        self.experiment.summary.update({f"best/{name}": value for name, value in metrics.items()})
        if self.log_checkpoint:
            self.experiment.log_artifact(str(best), name=f"best-{self.version}", type="model")

    @rank_zero_only
    def log_first_batch(self, examples: Sequence[Example]) -> None:
        """Log the first images of a training batch with their targets, if asked for."""
        if self.log_preview:
            images = [to_eight_bits(image) for image, _ in examples[:MAX_PREVIEW]]
            captions = [caption for _, caption in examples[:MAX_PREVIEW]]
            self.log_image("train/first_batch", images, caption=captions)

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


def to_eight_bits(image: ndarray) -> ndarray:
    """Return an image [H, W, C] of 0 .. 1 as W&B takes it: uint8, [H, W] if it is grey.

    W&B would show floats as black.
    """
    pixels = (255 * image).round().astype("uint8")
    return pixels[..., 0] if pixels.shape[2] == 1 else pixels


def to_number(cell: str) -> float | str | None:
    """Return a cell of a table as a number if it is one, None if it is empty."""
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


class MLflow(MLFlowLogger):
    """Lightning's MLflow logger, by default in a database of the working directory.

    A resumed run continues its run in MLflow.

    Args:
        save_dir: the folder of the run; its name is that of the run unless `run_name` is given.
        tracking_uri: of the server or database, by default MLFLOW_TRACKING_URI, or `mlflow.db`.
        log_checkpoint: upload the best checkpoint.
        options: of Lightning's logger.
    """

    def __init__(
        self,
        save_dir: str,
        tracking_uri: str | None = None,
        run_name: str | None = None,
        log_checkpoint: bool = False,
        **options: Any,
    ):
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
        self.id_file = Path(save_dir) / MLFLOW_ID
        self.log_checkpoint = log_checkpoint
        options |= {"tracking_uri": uri, "run_name": run_name or Path(save_dir).name}
        try:
            known = self._read_id()
            self.is_resumed = known is not None
            super().__init__(run_id=known, **options)
            self._keep_id()
        except ModuleNotFoundError as error:
            message = f"logger=mlflow needs mlflow: pip install 'tricklab[mlflow]' ({error})"
            raise UserError(message) from error
        except Exception as error:  # of its server or its database, of many kinds
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"logger.mlflow.tracking_uri={uri}: {reason}") from error

    def _read_id(self) -> str | None:
        try:
            return read_text(self.id_file).strip() or None
        except UnreadableError:
            return None

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log a config. MLflow refuses other values, so a resumed run keeps those of its start."""
        if not self.is_resumed:
            super().log_hyperparams(params)

    @rank_zero_only
    def _keep_id(self) -> None:
        write_text(self.id_file, f"{self.run_id}\n")

    @rank_zero_only
    def log_final_results(self, metrics: Mapping[str, float], best: Path) -> None:
        """Log `metrics` as `best/...`, figures and tables of the test, and the checkpoint."""
        self.log_metrics({f"best/{name}": value for name, value in metrics.items()})
        folder = best.parents[1]
        for name in ("calibration.png", "confusion.png", "classes.csv", "config.yaml"):
            if (folder / name).is_file():
                self.experiment.log_artifact(self.run_id, str(folder / name))
        if self.log_checkpoint:
            self.experiment.log_artifact(self.run_id, str(best), "checkpoints")
