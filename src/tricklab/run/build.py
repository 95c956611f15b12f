"""The parts of a run, from its config."""

import copy
import math
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from tricklab.callbacks import CheckpointFiles, NoProfiler
from tricklab.data.module import ImageData
from tricklab.devices import count_cores, world_size
from tricklab.errors import UserError
from tricklab.logger import MetricsFile
from tricklab.mixup import identity
from tricklab.model import pretrained_side
from tricklab.optimizer import named_weights, parameter_groups
from tricklab.penalty import Penalty
from tricklab.randomness import Rand, generator, seed_default
from tricklab.run.instantiate import build, build_each, omit
from tricklab.run.plan import Plan
from tricklab.run.record import Record
from tricklab.run.weights import load_backbone, read_input_spec, read_weights
from tricklab.training import ImageClassifier

MOST = 8  # processes a core: each takes half a gigabyte


NOT_TRAINER = ("compile", "channels_last")  # stand with the trainer's options, act on the network


PLAIN = {
    "_target_": "torch.nn.CrossEntropyLoss",
    "label_smoothing": 0.0,
    "weight": None,
}  # neither smooths nor weighs


def build_data_and_net(
    cfg: DictConfig, record: Record, resumed: bool
) -> tuple[ImageData, nn.Module]:
    """Build both; with `model.weights` the data are made what these take, also in a run that is `resumed`."""
    weights = None if resumed else read_weights(cfg.model)
    images = read_input_spec(record.dataset) if resumed else weights and weights.input_spec
    data = build_data(cfg)
    first = data.train.images.index_select(0, torch.arange(2))
    for change in data.augment.values():
        change(first, Rand(generator(0, "try"), 2))  # so that what it refuses is said now
    if weights:
        data.check_enlarged(
            max(weights.input_spec.shape[1:]) if weights.input_spec else pretrained_side(cfg.model)
        )
    if images:
        data.adapt(images)
    if data.summary:
        rank_zero_only(print)(data.summary)
    net = build_net(cfg, data.shape, len(data.classes))
    if weights:
        load_backbone(net, weights.state)
        rank_zero_only(print)(
            f"weights: begins anew from those in {cfg.model.weights}, with a classifier of its own"
        )
    if data.batch_size == 1:
        check_lone_image(net, data.shape)
    return data, net


def check_lone_image(net: nn.Module, shape: tuple[int, int, int]) -> None:
    """Raise UserError where the network can't be trained on one image: batch norm without pixels has no statistics."""
    try:
        copy.deepcopy(net)(torch.zeros(1, *shape))
    except ValueError as error:
        raise UserError(
            f"data.batch_size=1: {error}; allowed: 2 or more, or no batch norm"
        ) from error


def build_data(cfg: DictConfig) -> ImageData:
    """Build the data with their augmentation and mixing.

    Unless images are mixed, plain cross-entropy gets class indices: it has the gradients of one-hot targets, on a CPU
    bit for bit, in half the time.
    """
    parts = {"augment": build_each(cfg.augment), "mixup": build(cfg.mixup)}
    data: ImageData = build(cfg.data, seed=cfg.seed, by_index=cfg.loss == PLAIN, **parts)
    return data


def build_trainer(cfg: DictConfig, folder: Path) -> pl.Trainer:
    """Build Lightning's trainer with callbacks and loggers; `metrics.csv` is written whatever they are."""
    options = omit(cfg.trainer, *NOT_TRAINER)
    loggers = [MetricsFile(str(folder)), *build_each(cfg.logger, save_dir=str(folder)).values()]
    callbacks = list(build_each(cfg.callbacks).values())
    profiler = options.pop("profiler") or NoProfiler()
    places = {"logger": loggers, "default_root_dir": str(folder), "plugins": [CheckpointFiles()]}
    try:
        trainer: pl.Trainer = build(options, callbacks=callbacks, profiler=profiler, **places)
    except UserError as error:
        asked = " ".join(
            f"trainer.{key}={options[key]}"
            for key in ("accelerator", "devices", "strategy", "precision")
        )
        raise UserError(
            f"{asked}: {error}; allowed: what this machine has, as trainer.accelerator=auto"
        ) from error
    check_processes(trainer, str(cfg.trainer.devices))
    return trainer


def check_processes(trainer: pl.Trainer, devices: str) -> None:
    """Warn of more processes than cores. Raises UserError: far more; others than were started."""
    started, cores = world_size(), count_cores()
    if started > 1 and trainer.world_size != started:
        count = f"trainer.devices={devices} makes {trainer.world_size} of them"
        raise UserError(f"{started} processes were started, and {count}; use as many")
    if trainer.strategy.root_device.type != "cpu" or trainer.num_devices <= cores:
        return
    if trainer.num_devices > MOST * cores:
        raise UserError(
            f"trainer.devices={devices}; allowed: 1 to {MOST * cores}, with {cores} cores"
        )
    message = (
        f"trainer.devices={devices} processes share {cores} cores: slower than a core for each"
    )
    rank_zero_only(print)(message)


def build_module(cfg: DictConfig, data: ImageData, net: nn.Module, plan: Plan) -> ImageClassifier:
    """Put network, loss, penalties, optimizer and schedule together.

    Raises UserError: an optimizer that does not take its arguments or has no momentum to move.
    """
    optimizer = build(omit(cfg.optimizer, "lr_per"), lr=plan.lr)
    try:
        made = optimizer(
            parameter_groups(net)
        )  # Lightning makes another, when it is too late for a plain answer
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"optimizer: {error}") from error
    if plan.multiplier.momentum and not (made.defaults.get("momentum") or "betas" in made.defaults):
        said = (
            f"scheduler={cfg.scheduler._target_}: {cfg.optimizer._target_} has no momentum to move"
        )
        raise UserError(f"{said}; allowed: optimizer.momentum of more than 0, or betas")
    mixing = data.mixup is not identity
    return ImageClassifier(
        net,
        loss=build_loss(cfg.loss, len(data.classes)),
        penalties=build_penalties(cfg.penalty, net),
        optimizer=optimizer,
        multiplier=plan.multiplier,
        backbone_multiplier=plan.backbone_multiplier,
        last_step=plan.last_step,
        seed=cfg.seed,
        accuracy="acc_mixed" if mixing else "acc",
        log_every=cfg.trainer.log_every_n_steps,
        batching=plan.batching if plan.batching.accumulate * plan.batching.ranks > 1 else None,
    )


def build_loss(cfg: DictConfig, classes: int) -> nn.Module:
    """Build a loss of logits and target probabilities [B, K], with a weight for each class where that is given.

    Raises UserError: it does not take probabilities, as mixing and smoothing make them; it is no mean over the images,
    on which accumulation rests; weights that are none; targets smoothed to nothing.
    """
    if (smoothing := cfg.get("label_smoothing") or 0.0) >= 1:
        message = f"loss.label_smoothing={smoothing} leaves nothing of the targets"
        raise UserError(f"{message}; allowed: 0 or more, less than 1")
    options: dict[str, Tensor] = {}
    if (weight := cfg.get("weight")) is not None:
        plain = all(isinstance(w, int | float) and 0 <= w < math.inf for w in weight)
        if len(weight) != classes or not plain or not sum(weight):
            raise UserError(
                f"loss.weight={weight}; allowed: {classes} numbers of 0 or more, not all of them 0"
            )
        options["weight"] = torch.tensor(weight, dtype=torch.float)
    loss: nn.Module = build(omit(cfg, "weight"), **options)
    try:
        values = [
            loss(torch.zeros(n, classes), torch.full((n, classes), 1 / classes)) for n in (2, 4)
        ]
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        said = f"loss={cfg._target_} does not take target probabilities [B, K] ({error})"
        raise UserError(
            f"{said}; allowed: a loss of probabilities, not of class indices"
        ) from error
    if values[0].ndim or not torch.isclose(*values):
        raise UserError(
            f"loss={cfg._target_} is not a mean over the images, as loss.reduction=mean"
        )
    return loss


def build_penalties(cfg: DictConfig, net: nn.Module) -> dict[str, Penalty]:
    """Build each penalty. Raises UserError: its pattern matches no weight, or an invalid option."""
    weights = named_weights(net)
    penalties = {}
    for name, node in cfg.items():
        option = build(node)
        try:
            penalty = option(weights)
            penalty.try_on_copy()
        except UserError as error:
            raise UserError(f"penalty.{name!s}.{error}") from None
        penalties[str(name)] = penalty
    return penalties


def build_net(cfg: DictConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the network for images of `shape` (channels, height, width); its weights follow from the seed alone.

    Raises UserError where it does not turn these images into a logit for each class.
    """
    seed_default(cfg.seed, "init")
    try:
        net: nn.Module = build(cfg.model)(shape[0], classes).eval()
        with torch.no_grad():
            logits = net(torch.zeros(2, *shape))  # lazy layers count their inputs here
    except UserError:
        raise
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"model: {error} (images of {' x '.join(map(str, shape))})") from error
    if logits.shape != (2, classes):
        raise UserError(f"model: gives {tuple(logits.shape)} for 2 images; allowed: (2, {classes})")
    if cfg.trainer.channels_last:
        net = net.to(memory_format=torch.channels_last)
    if cfg.trainer.compile:
        net.compile()  # in place, so the keys in a checkpoint stay the same
    return net.train()
