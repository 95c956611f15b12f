"""One run from its config: build, train, test, record."""

import logging
import signal
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn

from tricklab.build import build, build_each
from tricklab.callbacks import BestCheckpoint
from tricklab.data.module import ImageData
from tricklab.duration import Length, run_length, to_steps
from tricklab.errors import UserError
from tricklab.logger import MetricsFile, Wandb, close_wandb
from tricklab.mixup import identity
from tricklab.module import ImageClassifier
from tricklab.optimizer import parameter_groups
from tricklab.randomness import seed_default
from tricklab.record import Record
from tricklab.resume import checkpoint

NOT_TRAINER = ("compile", "channels_last")  # stand with the trainer's options, act on the network
NOISE = (
    "Lazy modules are a new feature",
    ".*LeafSpec.* is deprecated",
    "The number of training batches .* is smaller than the logging interval",
    "It is recommended to use .*sync_dist",  # the value is the same on every rank already
)


def run(
    cfg: DictConfig, folder: Path, overrides: Sequence[str] = (), choices: Mapping[str, Any] | None = None
) -> float:
    """Train, test and record one run in `folder`; return the best accuracy on validation.

    `overrides` and `choices`, the option chosen of each group, are recorded alone.

    Raises:
        UserError: options or data that do not fit together. Whatever is raised, `result.json` says so.
    """
    hush()
    record = Record(cfg, folder, overrides, choices)
    try:
        record.start()
        objective = _run(cfg, folder, record)
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        if interrupted := isinstance(error, KeyboardInterrupt | SystemExit):  # Lightning turns the one into the other
            reason = "SIGTERM" if isinstance(error, SIGTERMException) else "Ctrl-C"
            print(f"interrupted by {reason}; run folder {folder}")
        record.finish("interrupted" if interrupted else "failed", reason)
        close_wandb(exit_code=1)
        if isinstance(error, MisconfigurationException):
            raise UserError(str(error)) from error
        if isinstance(error, SIGTERMException):
            raise SystemExit(128 + signal.SIGTERM) from error
        raise
    close_wandb(exit_code=0)
    return objective


def _run(cfg: DictConfig, folder: Path, record: Record) -> float:
    data: ImageData = build(cfg.data, seed=cfg.seed, augment=build(cfg.augment), mixup=build(cfg.mixup))
    net = build_net(cfg, data.shape, len(data.classes))
    trainer = build_trainer(cfg, folder)
    module = build_module(cfg, data, net, plan_length(cfg, data, trainer.world_size))
    channels, height, width = data.shape
    size = {"channels": channels, "height": height, "width": width}
    record.describe({"classes": data.classes, **size, "mean": data.mean, "std": data.std})
    for logger in trainer.loggers:
        logger.log_hyperparams(record.config | record.origin)

    start, last = time.time(), checkpoint(cfg.resume, folder)
    steps = torch.load(last, weights_only=True)["global_step"] if last else 0
    cast(MetricsFile, trainer.logger).cut(steps)
    if last:
        print(f"resume={cfg.resume}: goes on after step {steps}, from {last}")
    trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    seconds = time.time() - start
    best = next(c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
    module.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    trainer.test(module, datamodule=data, verbose=False)

    metrics, speed = best.best | module.results, module.images_seen * trainer.world_size / seconds
    facts = {"metrics": metrics, "objective": metrics["val/acc"], "devices": device_names(trainer)}
    record.finish("done", None, images_per_second=round(speed, 1), **facts)
    for logger in trainer.loggers:
        if isinstance(logger, Wandb):
            logger.conclude(metrics, best.best_model_path)
            logger.show(module.logits, module.labels, data.source.test.images[:: trainer.world_size], data.classes)
    report(metrics, record.result["seconds"], folder)
    return metrics["val/acc"]


def device_names(trainer: pl.Trainer) -> list[str]:
    """Name the device of each process."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return [name] * trainer.world_size


def build_net(cfg: DictConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the network for images of `shape` (channels, height, width); its weights follow from the seed alone.

    Raises:
        UserError: a network that does not turn these images into a logit for each class.
    """
    seed_default(cfg.seed, "init")
    try:
        net: nn.Module = build(cfg.model)(shape[0], classes).eval()
        with torch.no_grad():
            logits = net(torch.zeros(2, *shape))  # lazy layers count their inputs here
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"model: {error} (images of {' x '.join(map(str, shape))})") from error
    if logits.shape != (2, classes):
        raise UserError(f"model: gives {tuple(logits.shape)} for 2 images; allowed: (2, {classes})")
    if cfg.trainer.channels_last:
        net = net.to(memory_format=torch.channels_last)
    if cfg.trainer.compile:
        net.compile()  # in place, so the keys in a checkpoint stay the same
    return net.train()


def build_trainer(cfg: DictConfig, folder: Path) -> pl.Trainer:
    """Build Lightning's trainer with callbacks and loggers; `metrics.csv` is written whatever they are."""
    options = {key: value for key, value in cfg.trainer.items() if key not in NOT_TRAINER}
    metrics = MetricsFile(str(folder))
    loggers = [metrics, *build_each(cfg.logger, save_dir=str(folder)).values()]
    callbacks = list(build_each(cfg.callbacks).values())
    trainer: pl.Trainer = build(DictConfig(options), callbacks=callbacks, logger=loggers, default_root_dir=str(folder))
    return trainer


def plan_length(cfg: DictConfig, data: ImageData, ranks: int) -> Length:
    """Count the optimizer steps of the whole run.

    Raises:
        UserError: a run without a step.
    """
    t = cfg.trainer
    length = run_length(
        images=len(data.train_rows),
        batch_size=data.batch_size,
        max_epochs=t.max_epochs,
        max_steps=t.max_steps,
        limit_batches=t.limit_train_batches,
        accumulate=t.accumulate_grad_batches,
        ranks=ranks,
        drop_last=data.drop_last,
    )
    if length.steps < 1:
        raise UserError(
            f"{len(data.train_rows)} training images, data.batch_size={data.batch_size}, "
            f"data.drop_last={data.drop_last}, trainer.limit_train_batches={t.limit_train_batches}, "
            f"trainer.max_epochs={t.max_epochs}, trainer.max_steps={t.max_steps} make no step, or no end"
        )
    return length


def build_module(cfg: DictConfig, data: ImageData, net: nn.Module, length: Length) -> ImageClassifier:
    """Put network, loss, penalties, optimizer and schedule together.

    Raises:
        UserError: arguments that the optimizer does not take.
    """
    optimizer = build(cfg.optimizer)
    try:
        optimizer(parameter_groups(net))  # Lightning makes another, when it is too late for a plain answer
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer: {error}") from error
    stop = to_steps(cfg.stop_after or 0, length) or length.steps
    mixing = getattr(data.mixup, "func", data.mixup) is not identity
    return ImageClassifier(
        net,
        loss=build(cfg.loss),
        penalties=build_each(cfg.penalty),
        optimizer=optimizer,
        multiplier=build(cfg.scheduler)(length),
        last_step=min(stop, length.steps),
        seed=cfg.seed,
        accuracy="acc_mixed" if mixing else "acc",
        log_every=cfg.trainer.log_every_n_steps,
    )


def hush() -> None:
    """Leave out what Lightning says about every run."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.profilers").setLevel(logging.INFO)  # what a profiler found is a result
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


@rank_zero_only
def report(metrics: dict[str, float], seconds: float, folder: Path) -> None:
    """Print the last lines of a run."""
    print(f"test accuracy {metrics['test/acc']:.4f} (validation {metrics['val/acc']:.4f}) in {seconds:.1f} s")
    print(f"run folder    {folder}")
