"""Evaluation of a checkpoint on a test set, with bootstrap intervals and over several views."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torchvision.transforms import v2

from tricklab.analysis.trained import LoadedCheckpoint
from tricklab.analysis.views import ViewEnsemble
from tricklab.callbacks import ProgressBar
from tricklab.data.module import ImageData
from tricklab.devices import count_cores
from tricklab.errors import UserError
from tricklab.metrics import evaluate
from tricklab.run.instantiate import build_each
from tricklab.training import ImageClassifier

Interval = tuple[float, float]


class Evaluation(NamedTuple):
    """The number of test images, results by name, and the 95 % intervals of some of them."""

    images: int
    results: dict[str, float]
    intervals: dict[str, Interval]


def evaluate_checkpoint(
    checkpoint: LoadedCheckpoint, data: ImageData, mc: int, tta: int, resamples: int
) -> Evaluation:
    """Evaluate a checkpoint; with `mc` or `tta` views, the mean probability over these."""
    net = ensemble_views(checkpoint, mc, tta) if mc or tta else checkpoint.net()
    module = evaluate_on(checkpoint, net, data)
    results = dict(module.results)
    if isinstance(net, ViewEnsemble):
        for name in ("entropy", "mutual_information"):
            per_image = torch.cat(getattr(net, name))
            results[f"test/{name}"] = per_image.double().mean().item()
    intervals: dict[str, Interval] = {}
    if resamples:
        intervals = bootstrap_intervals(module.logits, module.labels, module.temperature, resamples)
    return Evaluation(len(module.labels), results, intervals)


def format_results(evaluation: Evaluation) -> str:
    """Return the number of images, and a line for each result with its interval."""
    lines = [f"images {evaluation.images}"]
    for name, value in evaluation.results.items():
        interval = ""
        if name in evaluation.intervals:
            low, high = evaluation.intervals[name]
            interval = f" ({low:.4g} to {high:.4g})"
        lines.append(f"{name} {value}{interval}")
    return "\n".join(lines)


def ensemble_views(checkpoint: LoadedCheckpoint, mc: int, tta: int) -> ViewEnsemble:
    """Return a network that averages over `mc` dropout masks, `tta` augmentations, or both."""
    return ViewEnsemble(
        checkpoint.net(),
        checkpoint.preprocess(),
        views=mc or tta,
        dropout=mc > 0,
        augment=build_each(checkpoint.config.augment) if tta else {},
        seed=checkpoint.config.seed,
    )


def evaluate_on(
    checkpoint: LoadedCheckpoint,
    net: nn.Module,
    data: ImageData,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> ImageClassifier:
    """Evaluate a network on a test set; `transform` is applied to images [B, C, H, W] of 0 .. 255.

    Return the module, with results, logits and labels.
    """
    trainer = make_trainer(checkpoint.config.trainer)
    module = ImageClassifier(net)
    module.temperature = checkpoint.temperature
    preprocess = data.preprocess
    steps: list[nn.Module] = [v2.Lambda(transform)] if transform else []
    if isinstance(net, ViewEnsemble):  # it augments the raw images first
        net.preprocess = [preprocess.to(trainer.strategy.root_device)]
    else:
        steps.append(preprocess)
    data.preprocess = nn.Sequential(*steps)  # type: ignore[assignment]
    trainer.test(module, datamodule=data, verbose=False)
    data.preprocess = preprocess
    return module


def make_trainer(config: DictConfig) -> pl.Trainer:
    """Return a trainer with a run's accelerator, precision and threads that writes no files.

    Raises UserError: this machine does not have them.
    """
    options = {key: config[key] for key in ("accelerator", "precision", "limit_test_batches")}
    torch.set_num_threads(min(config.threads, count_cores()))
    disabled: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_model_summary"), False
    )
    bar = ProgressBar(refresh_rate=10, console_kwargs={"stderr": True})
    try:
        return pl.Trainer(devices=1, callbacks=[bar], **options, **disabled)
    except (MisconfigurationException, ImportError, ValueError) as error:
        settings = " ".join(f"trainer.{key}={value}" for key, value in options.items())
        raise UserError(f"{settings}: {error}") from error


def bootstrap_intervals(
    logits: Tensor, labels: Tensor, temperature: float, resamples: int
) -> dict[str, Interval]:
    """Return 95 % intervals from images resampled with replacement (Efron, 1979), by metric.

    They are percentile intervals, except for calibration errors: resampling adds noise, which
    biases a metric without a sign upwards, so those are mirrored at the result (basic bootstrap).
    """
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(resamples):
        indices = rng.integers(len(labels), size=len(labels))
        samples.append(evaluate(logits[indices], labels[indices], temperature))
    intervals = {}
    for name, value in evaluate(logits, labels, temperature).items():
        low, high = np.quantile([sample[name] for sample in samples], (0.025, 0.975))
        if "ece" in name:
            low, high = max(0.0, 2 * value - high), max(0.0, 2 * value - low)
        if name != "temperature":
            intervals[f"test/{name}"] = (low, high)
    return intervals
