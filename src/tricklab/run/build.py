"""The parts of a run, built from its config."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from tricklab.callbacks import CheckpointFiles, average_floats_only
from tricklab.data.balance import find_rarest
from tricklab.data.inputs import InputSpec
from tricklab.data.module import ImageData
from tricklab.data.progress import warn
from tricklab.devices import count_cores, world_size
from tricklab.errors import UserError
from tricklab.loss import balanced_weights
from tricklab.metrics_file import MetricsFile
from tricklab.mixup import identity
from tricklab.optimizer import named_weights, parameter_groups
from tricklab.penalty import Penalty
from tricklab.randomness import Rand, generator, seed_default
from tricklab.run.automatic import restore
from tricklab.run.hardware import choose, flops_per_image
from tricklab.run.inputs import resolve_input
from tricklab.run.instantiate import build, build_each, omit
from tricklab.run.plan import Plan
from tricklab.run.record import Record
from tricklab.run.weights import load_backbone, read_input_spec, read_weights, zero_head
from tricklab.teacher import Teacher
from tricklab.training import ImageClassifier

MAX_SHOWN_CLASSES = 20  # with more, not all names and no balanced class weights are printed
MAX_PROCESSES = 8  # per core: each takes half a gigabyte
OF_TRAINING = (
    "lr_base_batch_size",
    "layer_decay",
    "decay_all",
)  # keys of the optimizer's config, not its own
OWN_KEYS = ("compile", "channels_last", "threads")  # of the trainer's config, not Lightning's


def build_data_and_net(
    cfg: DictConfig, record: Record, resumed: bool
) -> tuple[ImageData, nn.Module]:
    """Build data and network.

    With `model.weights`, images are resized and normalised as the weights expect, also in a resumed
    run.
    """
    weights = None if resumed else read_weights(cfg.model)
    spec = read_input_spec(record.dataset) if resumed else weights and weights.input_spec
    data = build_data(cfg, spec)
    warn_of_rare_class(cfg, data)
    try_augmentation(data)
    show(data.summary)
    show(describe_classes(data))
    if spec and not resumed:
        show(compare_input(spec, data))
    net = build_net(cfg, data.shape, len(data.classes))
    if weights:
        load_backbone(net, weights.state)
        zero_head(net)
        show(f"weights: the backbone starts from {cfg.model.weights}, the head is new, from 0")
    if data.batch_size == 1:
        check_single_image(net, data.shape)
    return data, net


@rank_zero_only
def show(text: str) -> None:
    """Print a text that is not empty."""
    if text:
        print(text)


def describe_classes(data: ImageData) -> str:
    """Return which classes are in use, if some are left out; else ""."""
    if not data.splits.left_out:
        return ""
    used = len(data.classes)
    names = ", ".join(data.classes[:MAX_SHOWN_CLASSES])
    more = ", ..." if used > MAX_SHOWN_CLASSES else ""
    return f"classes: {used} of {used + len(data.splits.left_out)}: {names}{more}"


def compare_input(spec: InputSpec, data: ImageData) -> str:
    """Return in which way the network's input is not what its weights expect; else ""."""
    size = " x ".join(map(str, spec.shape[1:]))
    different = []
    if data.shape[1:] != spec.shape[1:]:
        different.append(f"{size} pixels")
    if (data.mean, data.std) != (spec.mean, spec.std):
        different.append(f"mean {spec.mean} and std {spec.std}")
    if not different:
        return ""
    return f"warning: the weights were trained with {' and '.join(different)}; data options differ"


def try_augmentation(data: ImageData) -> None:
    """Augment two images, so that invalid options are refused before training."""
    images: Any = data.train.images.index_select(0, torch.arange(2))
    for augment in data.augment.values():
        images = augment(images, Rand(generator(0, "try"), 2))


def warn_of_rare_class(cfg: DictConfig, data: ImageData) -> None:
    """Warn of a class with few images, unless that is asked for or corrected."""
    corrected = cfg.data.get("sampler") == "balanced" or cfg.loss.get("class_weights")
    if corrected or cfg.data.get("imbalance", 1) > 1:
        return
    if line := find_rarest(data.train_labels, data.classes):
        warn(f"{line}; data.sampler=balanced or loss.class_weights=balanced helps")


def check_single_image(net: nn.Module, shape: tuple[int, int, int]) -> None:
    """Raise UserError if the network can't train on one image: batch norm needs several values."""
    try:
        copy.deepcopy(net)(torch.zeros(1, *shape))
    except ValueError as error:
        hint = "use 2 or more, or no batch norm"
        raise UserError(f"data.batch_size=1: {error}; {hint}") from error


def build_data(cfg: DictConfig, spec: InputSpec | None = None) -> ImageData:
    """Build the data with their augmentation and mixing, for a network that expects `spec`."""
    input_options = resolve_input(cfg.data, cfg.model, spec)
    augment = build_each(cfg.augment)
    mixup = build(cfg.mixup)
    data: ImageData = build(cfg.data, seed=cfg.seed, augment=augment, mixup=mixup, **input_options)
    return data


def build_net(cfg: DictConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the network for images of `shape` [C, H, W]; its weights depend only on the seed.

    Memory format and threads that are `auto` in the config are replaced by what they stand for.
    Raises UserError: it does not turn such images into one logit per class.
    """
    seed_default(cfg.seed, "init")
    try:
        net: nn.Module = build(cfg.model)(shape[0], classes).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits = net(torch.zeros(2, *shape))  # lazy layers infer their inputs here
    except UserError:
        raise
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"model: {error} (images of {' x '.join(map(str, shape))})") from error
    if logits.shape != (2, classes):
        message = f"model: returns {tuple(logits.shape)} for 2 images"
        raise UserError(f"{message}; expected (2, {classes})")
    restore(cfg.trainer, choose(cfg, net, flops_per_image(counter, images=2)))
    if cfg.trainer.channels_last:
        net = net.to(memory_format=torch.channels_last)
    if cfg.trainer.compile:
        net.compile()  # in place, so that the keys of checkpoints stay the same
    return net.train()


def build_trainer(cfg: DictConfig, folder: Path) -> pl.Trainer:
    """Build Lightning's trainer with callbacks and loggers; `metrics.csv` is always written."""
    options = omit(cfg.trainer, *OWN_KEYS)
    loggers = [MetricsFile(str(folder)), *build_each(cfg.logger, save_dir=str(folder)).values()]
    callbacks = list(build_each(cfg.callbacks).values())
    for callback in callbacks:
        if isinstance(callback, WeightAveraging):
            average_floats_only(callback)
    places = {"logger": loggers, "default_root_dir": str(folder), "plugins": [CheckpointFiles()]}
    try:
        trainer: pl.Trainer = build(options, callbacks=callbacks, **places)
    except UserError as error:
        keys = ("accelerator", "devices", "strategy", "precision")
        settings = " ".join(f"trainer.{key}={options[key]}" for key in keys)
        hint = "this machine may lack it; trainer.accelerator=auto uses what there is"
        raise UserError(f"{settings}: {error}; {hint}") from error
    check_processes(trainer, str(cfg.trainer.devices))
    return trainer


def check_processes(trainer: pl.Trainer, devices: str) -> None:
    """Print a line if there are more processes than cores.

    Raises UserError: far more processes than cores, or another number than were started.
    """
    started, cores = world_size(), count_cores()
    if started > 1 and trainer.world_size != started:
        message = f"{started} processes were started, but trainer.devices={devices} makes"
        raise UserError(f"{message} {trainer.world_size} of them; use as many")
    if trainer.strategy.root_device.type != "cpu" or trainer.num_devices <= cores:
        return
    if trainer.num_devices > MAX_PROCESSES * cores:
        allowed = f"1 to {MAX_PROCESSES * cores}, with {cores} cores"
        raise UserError(f"trainer.devices={devices}; allowed: {allowed}")
    message = f"trainer.devices={devices} processes share {cores} cores"
    rank_zero_only(print)(f"{message}: slower than one core for each")


def build_module(
    cfg: DictConfig,
    data: ImageData,
    net: nn.Module,
    plan: Plan,
    teacher: Teacher | None = None,
) -> ImageClassifier:
    """Build the training of a network: loss, penalties, optimizer and schedule."""
    batching = plan.batching
    several_batches = batching.accumulate * batching.ranks > 1
    return ImageClassifier(
        net,
        loss=build_loss(cfg.loss, len(data.classes), data.train_labels),
        teacher=teacher,
        penalties=build_penalties(cfg.penalty, net),
        optimizer=build_optimizer(cfg, net, plan),
        multiplier=plan.multiplier,
        backbone_multiplier=plan.backbone_multiplier,
        layer_decay=cfg.optimizer.get("layer_decay", 1.0),
        decay_all=cfg.optimizer.get("decay_all", False),
        last_step=plan.last_step,
        seed=cfg.seed,
        accuracy="acc" if data.mixup is identity else "acc_mixed",
        log_every=cfg.trainer.log_every_n_steps,
        batching=batching if several_batches else None,
    )


def build_optimizer(cfg: DictConfig, net: nn.Module, plan: Plan) -> functools.partial[Optimizer]:
    """Return a function that makes an optimizer of parameter groups.

    Raises UserError: the optimizer rejects its arguments, or has no momentum for the schedule; the
    network has no layers for `layer_decay`.
    """
    make_optimizer = build(omit(cfg.optimizer, *OF_TRAINING), lr=plan.lr)
    layer_decay = cfg.optimizer.get("layer_decay", 1.0)
    groups = parameter_groups(net, layer_decay=layer_decay)
    show(describe_layers(groups, layer_decay))
    try:
        # Lightning makes another one, too late for a clear message
        optimizer = make_optimizer(groups)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"optimizer: {error}") from error
    defaults = optimizer.defaults
    if plan.multiplier.momentum and not (defaults.get("momentum") or "betas" in defaults):
        message = f"scheduler={cfg.scheduler._target_}: {cfg.optimizer._target_} has no momentum"
        raise UserError(f"{message} to schedule; set optimizer.momentum above 0, or use betas")
    return make_optimizer


def describe_layers(groups: list[dict[str, Any]], layer_decay: float) -> str:
    """Return the number of layers and the smallest multiplier of the LR; "" without layers."""
    scale = groups[-1].get("lr_scale")
    if scale is None:
        return ""
    layers = f"{groups[0]['layer'] + 1} layers, the LR of the first is {scale:.3g} of the head's"
    return f"optimizer.layer_decay={layer_decay}: {layers}"


def build_loss(cfg: DictConfig, classes: int, labels: Tensor) -> nn.Module:
    """Build the loss, of logits [B, K] and class indices [B] or probabilities [B, K].

    `labels` [N] are those of the training images, for `class_weights=balanced`.
    Raises UserError: the loss does not take both, as batches are mixed or not; it is not a mean
    over the images, on which accumulation rests.
    """
    options = {}
    if cfg.get("class_weights") == "balanced":
        options["class_weights"] = balanced_weights(labels, classes)
        print_class_weights(options["class_weights"])
    loss: nn.Module = build(cfg, **options)
    try:
        values = [try_loss(loss, images, classes) for images in (2, 4)]
    except UserError:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        expected = "class indices [B] and probabilities [B, K]"
        raise UserError(f"loss={cfg._target_} does not take {expected} ({error})") from error
    if values[0].ndim or not torch.isclose(values[0], values[1]):
        raise UserError(f"loss={cfg._target_} is not a mean over the images")
    return loss


@rank_zero_only
def print_class_weights(weights: list[float]) -> None:
    """Print the weights as they would be typed, unless there are many."""
    if len(weights) <= MAX_SHOWN_CLASSES:
        print(f"loss.class_weights=[{','.join(f'{weight:.4g}' for weight in weights)}]")


def try_loss(loss: nn.Module, images: int, classes: int) -> Tensor:
    """Return the loss of equal logits, after trying class indices as targets."""
    logits = torch.zeros(images, classes)
    loss(logits, torch.zeros(images, dtype=torch.long))
    uniform = torch.full((images, classes), 1 / classes)
    return loss(logits, uniform)


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
