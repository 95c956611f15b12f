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

from tricklab.callbacks import BestCheckpoint, exit_on_signals, ignore_signals
from tricklab.data.module import ImageData
from tricklab.dropout import find_dropout
from tricklab.errors import UserError
from tricklab.fast import skip_overhead
from tricklab.files import read_checkpoint
from tricklab.logger import MLflow, Wandb
from tricklab.metrics import MIN_TEMPERATURE_IMAGES, confusion_matrix
from tricklab.metrics_file import MetricsFile
from tricklab.run.automatic import KEYS, Choice, describe, find_recorded, restore
from tricklab.run.build import build_data_and_net, build_module, build_trainer
from tricklab.run.checkpoint import (
    NO_PROGRESS,
    Progress,
    check_dataset,
    check_fits,
    read_progress,
)
from tricklab.run.confusion import draw_confusion, write_classes
from tricklab.run.figures import draw_calibration
from tricklab.run.first_batch import first_examples
from tricklab.run.folder import find_checkpoint
from tricklab.run.plan import Plan, make_plan
from tricklab.run.ranks import Watch, is_peers_fault, wait_for_reason
from tricklab.run.record import Record
from tricklab.run.teacher import build_teacher
from tricklab.teacher import Teacher
from tricklab.training import ImageClassifier
from tricklab.wandb_run import close_wandb

IGNORED_WARNINGS = (
    "Lazy modules are a new feature",
    ".*LeafSpec.* is deprecated",
    "The number of training batches .* is smaller than the logging interval",
    "Checkpoint directory .* exists and is not empty",
    "The `srun` command is available",  # on a login node, or in a job of a sweep
    "It is recommended to use .*sync_dist",  # the value is the same on every rank already
    # Our batches start at the position of the checkpoint
    "You're resuming from a checkpoint that ended before the epoch",
)


def run(
    cfg: DictConfig,
    folder: Path,
    overrides: Sequence[str] = (),
    choices: Mapping[str, Any] | None = None,
) -> float:
    """Train, test and record one run in `folder`; return the best validation accuracy.

    `overrides` and `choices`, the option of each group, are only recorded. Whatever is raised is
    also recorded in `result.json`. Raises UserError: options or data that do not fit together.
    """
    quiet_lightning()
    record = Record(cfg, folder, overrides, choices)
    watch = Watch(functools.partial(record.finish, "failed"))
    with exit_on_signals():
        try:
            record.start()
            objective = _run(cfg, folder, record, watch)
        except BaseException as error:
            ignore_signals()
            watch.stop()
            shown = as_user_error(error, cfg)
            record_failure(shown, record)
            if shown is not error:
                raise shown from error
            raise
    close_wandb(exit_code=0)
    watch.wait_for_children()
    return objective


def record_failure(error: BaseException, record: Record) -> None:
    """Record the reason for the end of a run; discard a run that was refused before training."""
    status, reason = "failed", f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        status, reason = "interrupted", signal.Signals(error.code - 128).name
        rank_zero_only(print)(f"interrupted by {reason}; run folder {record.folder}")
    record.finish(status, reason)
    close_wandb(exit_code=1)
    if isinstance(error, UserError):
        record.discard()


def _run(cfg: DictConfig, folder: Path, record: Record, watch: Watch) -> float:
    last = find_checkpoint(str(cfg.resume), folder)
    progress = read_progress(last) if last else NO_PROGRESS
    restore(cfg.trainer, find_recorded(progress.content) or record.automatic)
    data, net = build_data_and_net(cfg, record, resumed=last is not None)
    chosen = {key: cfg.trainer[key] for key in KEYS}
    torch.set_num_threads(chosen["threads"])
    trainer = build_trainer(cfg, folder)
    watch.guard(trainer)
    for logger in trainer.loggers:
        logger.log_hyperparams(record.config | record.provenance)
    plan = make_plan(cfg, data, trainer.world_size)
    data.mixup_window = plan.mixup_window
    teacher = build_teacher(cfg.loss, data)
    module = build_module(cfg, data, net, plan, teacher)
    if last:
        check_fits(progress, module.state_dict(), module.configure_optimizers(), last)
        check_dataset(record.dataset, progress, last)
        check_fingerprint(record, data, last)
    module.automatic = chosen
    record.describe(data.metadata, chosen)
    print_run_summary(net, data, plan, chosen)
    log_preview(trainer, cfg, data, teacher)
    resume_metrics(cast(MetricsFile, trainer.logger), cfg.trainer, last, progress, plan)
    record.mark_running()

    gc.freeze()  # objects created so far need not be examined by the garbage collector again
    skip_overhead(trainer, module)
    start = time.time()
    fit(trainer, module, data, last)
    speed = module.images_seen * trainer.world_size / (time.time() - start)
    objective = test_and_record(trainer, module, data, record, round(speed, 1))
    trainer.strategy.barrier()  # no process ends before rank 0 has recorded the results
    watch.stop()
    return objective


@rank_zero_only
def log_preview(
    trainer: pl.Trainer, cfg: DictConfig, data: ImageData, teacher: Teacher | None
) -> None:
    """Log the first training batch where a logger is asked to."""
    for logger in trainer.loggers:
        if isinstance(logger, Wandb) and logger.log_preview:
            logger.log_first_batch(first_examples(cfg.loss, data, teacher))


def check_fingerprint(record: Record, data: ImageData, last: Path) -> None:
    """Raise UserError if the data differ from those that the resumed run was trained on."""
    if record.dataset.get("fingerprint", data.fingerprint) != data.fingerprint:
        message = f"resume: the data differ from those that {last} was trained on"
        raise UserError(f"{message}; use the same data, or start a new run")


def fit(trainer: pl.Trainer, module: ImageClassifier, data: ImageData, last: Path | None) -> None:
    """Train, from a checkpoint if there is one. Raises UserError: Lightning can't restore it."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, UserError) or is_peers_fault(error) or not last or module.started:
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"resume: {last} is damaged ({reason}); start a new run") from error


def test_and_record(
    trainer: pl.Trainer, module: ImageClassifier, data: ImageData, record: Record, speed: float
) -> float:
    """Test the best weights, record and print the results; return the best validation accuracy."""
    # Not the path in the checkpoint: the folder may have been moved since
    best_path = record.folder / "checkpoints" / "best.ckpt"
    module.load_state_dict(read_checkpoint(best_path)["state_dict"])
    best = next(c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)).best
    module.temperature = best["val/temperature"]
    trainer.test(module, datamodule=data, verbose=False)
    metrics = best | module.results
    results = {
        "images": count_images(trainer, data, tested=len(module.labels)),
        "metrics": metrics,
        "objective": metrics["val/acc"],
        "devices": [name_device(trainer)] * trainer.world_size,
        "images_per_second": speed,
    }
    trainer.strategy.barrier()  # from here on only rank 0 can fail
    write_test_files(module, data.classes, record.folder)
    record.finish("done", None, **results)
    for logger in trainer.loggers:
        if isinstance(logger, Wandb | MLflow):
            logger.log_final_results(metrics, best_path)
        if isinstance(logger, Wandb):
            images = data.splits.test.images
            logger.log_predictions(module.logits, module.labels, images, data.classes)
    print_results(record)
    return metrics["val/acc"]


@rank_zero_only
def write_test_files(module: ImageClassifier, classes: Sequence[str], folder: Path) -> None:
    """Write the calibration of the test, its results per class and its confusion matrix."""
    logits, labels = module.logits, module.labels
    draw_calibration(logits, labels, module.temperature, folder / "calibration.png")
    confusion = confusion_matrix(logits, labels, len(classes))
    write_classes(confusion, classes, folder)
    draw_confusion(confusion, classes, folder / "confusion.png")


def name_device(trainer: pl.Trainer) -> str:
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def count_images(trainer: pl.Trainer, data: ImageData, tested: int) -> dict[str, int]:
    """Return the number of training, validation and test images used.

    `limit_val_batches` may exclude some of the validation images.
    """
    size = data.batch_size * trainer.world_size
    limit = trainer.limit_val_batches
    batches = math.ceil(len(data.val_indices) / size)
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    val = min(len(data.val_indices), batches * size)
    return {"train": len(data.train_indices), "val": val, "test": tested}


@rank_zero_only
def print_results(record: Record) -> None:
    metrics, images = record.result["metrics"], record.result["images"]
    test = f"test accuracy {metrics['test/acc']:.4f} on {images['test']} images"
    val = f"validation {metrics['val/acc']:.4f} on {images['val']}"
    print(f"{test} ({val}) in {record.result['seconds']:.1f} s")
    relative = os.path.relpath(record.folder)
    print(f"run folder    {record.folder if relative.startswith('..') else relative}")


def as_user_error(error: BaseException, cfg: DictConfig) -> BaseException:
    """Return the UserError that an exception amounts to, or the exception itself."""
    if is_peers_fault(error):
        return UserError(wait_for_reason())
    if isinstance(error, MisconfigurationException | ModuleNotFoundError):
        return UserError(str(error))
    if is_out_of_memory(error):
        reason = " ".join(str(error).split())[:100]
        message = f"out of memory with data.batch_size={cfg.data.batch_size} ({reason})"
        hint = "lower it, and raise trainer.accumulate_grad_batches to make up for it"
        return UserError(f"{message}; {hint}")
    return error


def is_out_of_memory(error: BaseException) -> bool:
    pattern = "out of memory|(can't|not enough).* memory"
    return isinstance(error, MemoryError) or bool(re.search(pattern, str(error)))


def resume_metrics(
    metrics: MetricsFile, cfg: DictConfig, last: Path | None, progress: Progress, plan: Plan
) -> None:
    """Truncate `metrics.csv` after the checkpoint to resume from, if there is one.

    Raises UserError: the checkpoint was saved in an epoch that `stop_after` shortened.
    """
    steps, epochs = progress.steps, progress.epochs
    if epochs > steps // plan.length.epoch and steps < plan.last_step:
        position = f"{last} was saved at step {steps}, inside an epoch shortened by stop_after"
        raise UserError(f"resume: {position}; resume from a checkpoint at an epoch boundary")
    metrics.resume(steps, epochs, cfg.log_every_n_steps, cfg.check_val_every_n_epoch)
    if last:
        rank_zero_only(print)(f"resume: continues after step {steps}, from {last}")


def quiet_lightning() -> None:
    """Silence the messages that Lightning prints for every run."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)
    # The report of a profiler is a result
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)


@rank_zero_only
def print_run_summary(net: nn.Module, data: ImageData, plan: Plan, chosen: Choice) -> None:
    """Print the size of the run, and warn of settings known to harm it."""
    if layers := find_dropout(net):
        reason = "the statistics differ between training and evaluation (arXiv 1801.05134)"
        message = f"dropout in layer {', '.join(layers)} precedes a batch norm: {reason}"
        print(f"warning: {message}", file=sys.stderr)
    if (val := len(data.val_indices)) < MIN_TEMPERATURE_IMAGES:
        print(f"temperature: 1, as {val} validation images are too few to fit it")
    parameters = sum(p.numel() for p in net.parameters())
    images = f"{len(data.train_indices):,} training images"
    print(f"{parameters:,} parameters, {images}, {plan.last_step:,} steps, {describe(chosen)}")
    if plan.batch_description:
        print(f"{plan.batch_description}; the LR of {plan.lr:g} is for such a step")
