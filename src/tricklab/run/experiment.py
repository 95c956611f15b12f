"""One run from its config: build, train, test, record."""

import functools
import gc
import logging
import math
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn

from tricklab.callbacks import BestCheckpoint, ended_by_signals, ignore_signals
from tricklab.data.module import ImageData
from tricklab.errors import UserError
from tricklab.files import read_checkpoint
from tricklab.logger import MetricsFile, Wandb, close_wandb
from tricklab.metrics import LEAST
from tricklab.model import find_dropout
from tricklab.run.build import build_data_and_net, build_module, build_trainer
from tricklab.run.checkpoint import NOTHING, Progress, check_dataset, check_fits, read_progress
from tricklab.run.figures import draw_calibration
from tricklab.run.folder import checkpoint
from tricklab.run.plan import Plan, make_plan
from tricklab.run.ranks import Watch, is_peers_fault, wait_for_reason
from tricklab.run.record import Record
from tricklab.training import ImageClassifier

NOISE = (
    "Lazy modules are a new feature",
    ".*LeafSpec.* is deprecated",
    "The number of training batches .* is smaller than the logging interval",
    "Checkpoint directory .* exists and is not empty",
    "It is recommended to use .*sync_dist",  # the value is the same on every rank already
    "You're resuming from a checkpoint that ended before the epoch",  # our batches begin where they are asked to
)


def run(
    cfg: DictConfig,
    folder: Path,
    overrides: Sequence[str] = (),
    choices: Mapping[str, Any] | None = None,
) -> float:
    """Train, test and record one run in `folder`; return the best accuracy on validation.

    `overrides` and `choices`, the option chosen of each group, are recorded alone. Raises UserError: options or data
    that do not fit together. Whatever is raised, `result.json` says so.
    """
    hush()
    record = Record(cfg, folder, overrides, choices)
    watch = Watch(functools.partial(record.finish, "failed"))
    with ended_by_signals():
        try:
            record.start()
            objective = _run(cfg, folder, record, watch)
        except BaseException as error:
            watch.stop()
            ignore_signals()
            plain = in_plain_words(error, cfg)
            record_failure(plain, record)
            if plain is not error:
                raise plain from error
            raise
    close_wandb(exit_code=0)
    watch.wait_for_children()
    return objective


def record_failure(error: BaseException, record: Record) -> None:
    """Write why a run ends; leave nothing of one that was refused before it trained."""
    status, reason = "failed", f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        status, reason = "interrupted", signal.Signals(error.code - 128).name
        rank_zero_only(print)(f"interrupted by {reason}; run folder {record.folder}")
    record.finish(status, reason)
    close_wandb(exit_code=1)
    if isinstance(error, UserError):
        record.discard()


def _run(cfg: DictConfig, folder: Path, record: Record, watch: Watch) -> float:
    last = checkpoint(str(cfg.resume), folder)
    progress = read_progress(last) if last else NOTHING
    data, net = build_data_and_net(cfg, record, begun=last is not None)
    trainer = build_trainer(cfg, folder)
    watch.guard(trainer)
    for logger in trainer.loggers:
        logger.log_hyperparams(record.config | record.origin)
    plan = make_plan(cfg, data, trainer.world_size)
    module = build_module(cfg, data, net, plan)
    if last:
        check_fits(progress, module.state_dict(), module.configure_optimizers(), last)
        check_dataset(record.dataset, progress, last)
    if last and record.dataset.get("fingerprint", data.fingerprint) != data.fingerprint:
        raise UserError(
            f"resume: the data are not those that {last} was trained on; allowed: the same, or a new run"
        )
    record.describe(data.facts)
    outline(net, data, plan)
    go_on(cast(MetricsFile, trainer.logger), cfg.trainer, last, progress, plan)
    record.train()

    gc.freeze()  # what is there now need not be looked at again
    start = time.time()
    fit(trainer, module, data, last)
    speed = module.images_seen * trainer.world_size / (time.time() - start)
    objective = conclude(trainer, module, data, record, round(speed, 1))
    trainer.strategy.barrier()  # no process is done before rank 0 has recorded the results
    watch.stop()
    return objective


def fit(trainer: pl.Trainer, module: ImageClassifier, data: ImageData, last: Path | None) -> None:
    """Train, from a checkpoint if there is one. Raises UserError: Lightning can't restore that."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, UserError) or is_peers_fault(error) or not last or module.started:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"resume: {last} is damaged ({reason}); start a new run") from error


def conclude(
    trainer: pl.Trainer, module: ImageClassifier, data: ImageData, record: Record, speed: float
) -> float:
    """Test the best weights, record the results and show them; return the best accuracy on validation."""
    kept = (
        record.folder / "checkpoints" / "best.ckpt"
    )  # the path in a checkpoint is that of where the folder was
    module.load_state_dict(read_checkpoint(kept)["state_dict"])
    best = next(c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
    module.temperature = best.best["val/temperature"]
    trainer.test(module, datamodule=data, verbose=False)
    metrics, device = best.best | module.results, trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts = {
        "images": count_images(trainer, data, tested=len(module.labels)),
        "metrics": metrics,
        "objective": metrics["val/acc"],
        "devices": [name] * trainer.world_size,
    }
    trainer.strategy.barrier()  # from here on rank 0 alone can fail
    picture = record.folder / "calibration.png"
    rank_zero_only(draw_calibration)(module.logits, module.labels, module.temperature, picture)
    record.finish("done", None, images_per_second=speed, **facts)
    for logger in trainer.loggers:
        if isinstance(logger, Wandb):
            logger.conclude(metrics, str(kept))
            logger.show(module.logits, module.labels, data.source.test.images, data.classes)
    print_results(record)
    return metrics["val/acc"]


def count_images(trainer: pl.Trainer, data: ImageData, tested: int) -> dict[str, int]:
    """Return how many images were trained on and evaluated; `limit_val_batches` may leave some out."""
    size, part = data.batch_size * trainer.world_size, trainer.limit_val_batches
    batches = math.ceil(len(data.val_rows) / size)
    batches = min(batches, part) if isinstance(part, int) else int(batches * part)
    val = min(len(data.val_rows), batches * size)
    return {"train": len(data.train_rows), "val": val, "test": tested}


@rank_zero_only
def print_results(record: Record) -> None:
    metrics, images, seconds = (record.result[key] for key in ("metrics", "images", "seconds"))
    test = f"test accuracy {metrics['test/acc']:.4f} on {images['test']} images"
    val = f"validation {metrics['val/acc']:.4f} on {images['val']}"
    print(f"{test} ({val}) in {seconds:.1f} s")
    place = os.path.relpath(record.folder)
    print(f"run folder    {record.folder if place.startswith('..') else place}")


def in_plain_words(error: BaseException, cfg: DictConfig) -> BaseException:
    """Return the mistake of the user that an error is, or else itself."""
    if is_peers_fault(error):
        return UserError(wait_for_reason())
    if isinstance(error, MisconfigurationException | ModuleNotFoundError):
        return UserError(str(error))
    if isinstance(error, MemoryError) or re.search(
        "out of memory|(can't|not enough).* memory", str(error)
    ):
        said = f"out of memory with data.batch_size={cfg.data.batch_size} ({' '.join(str(error).split())[:100]})"
        return UserError(
            f"{said}; a lower one takes less, and trainer.accumulate_grad_batches makes up for it"
        )
    return error


def go_on(
    metrics: MetricsFile, cfg: DictConfig, last: Path | None, progress: Progress, plan: Plan
) -> None:
    """Cut what was logged after the checkpoint that training goes on from, if there is one.

    Raises UserError: it is of an epoch that `stop_after` has cut short.
    """
    steps, epochs = progress.steps, progress.epochs
    if epochs > steps // plan.length.epoch and steps < plan.last_step:
        raise UserError(
            f"resume: {last} is of step {steps}, where an epoch was cut short; allowed: one of a whole one"
        )
    metrics.resume(steps, epochs, cfg.log_every_n_steps, cfg.check_val_every_n_epoch)
    if last:
        rank_zero_only(print)(f"resume: goes on after step {steps}, from {last}")


def hush() -> None:
    """Leave out what Lightning says about every run."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(
        logging.INFO
    )  # what a profiler found is a result
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


@rank_zero_only
def outline(net: nn.Module, data: ImageData, plan: Plan) -> None:
    """Print the first lines of a run, and what is known to harm it."""
    if early := find_dropout(net):
        why = (
            "its statistics are of other units than those it meets in evaluation (arXiv 1801.05134)"
        )
        print(
            f"warning: dropout in layer {', '.join(early)} stands before a batch norm: {why}",
            file=sys.stderr,
        )
    if (val := len(data.val_rows)) < LEAST:
        print(f"temperature: 1, as {val} validation images are too few to fit it")
    images = len(data.train_rows)
    print(
        f"{sum(p.numel() for p in net.parameters()):,} parameters, {images:,} training images, {plan.last_step:,} steps"
    )
    if plan.of_step:
        print(f"{plan.of_step}; the rate of {plan.lr:g} is that of such a step")
