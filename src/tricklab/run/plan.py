"""The LR of every step of a run, known before the first one. A pure function of config and data."""

from collections.abc import Sequence
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from tricklab.data.batches import WHOLE_RUN, Window, mixup_window
from tricklab.data.module import ImageData
from tricklab.duration import Batching, Length, divide_epoch, run_length, to_steps
from tricklab.errors import UserError
from tricklab.run.identity import PACKAGE
from tricklab.run.instantiate import build
from tricklab.scheduler import Curve, Multiplier

DECOUPLED = ("AdamW", "Adafactor", "Muon")  # optimizers with decoupled weight decay


class Plan(NamedTuple):
    """The length of a run, its base LR and the multiplier of the LR at each step.

    `backbone_multiplier` is that of the backbone, None if it is the same; training ends after
    `last_step`. `batch_description` describes a step of several batches, "" for a single one. Only
    the batches in `mixup_window` are mixed.
    """

    length: Length
    lr: float
    multiplier: Multiplier
    backbone_multiplier: Curve | None
    last_step: int
    batch_description: str
    batching: Batching
    mixup_window: Window


def make_plan(cfg: DictConfig, data: ImageData, ranks: int) -> Plan:
    """Plan the whole run on `ranks` processes.

    Raises UserError: a run without steps, durations outside of the run, a weight decay that would
    flip the sign of weights, or a decay of the LR over layers that are all frozen.
    """
    trainer, images = cfg.trainer, len(data.train_indices)
    limits = (trainer.limit_train_batches, trainer.accumulate_grad_batches, ranks, data.drop_last)
    length = run_length(images, data.batch_size, trainer.max_epochs, trainer.max_steps, *limits)
    if length.steps < 1:
        raise UserError(f"{describe_size(cfg, data)}: the run would take no step, or never stop")
    multiplier: Multiplier = build(cfg.scheduler)(length)
    last_step = find_last_step(cfg, length)
    window = find_mixup_window(cfg, length)
    batching = divide_epoch(images, data.batch_size, *limits)
    lr = scale_lr(cfg, batching.images_per_step)
    backbone = make_backbone_multiplier(cfg.model, multiplier, length)
    check_layer_decay(cfg, backbone, length)
    check_decay(cfg, lr, [multiplier, backbone] if backbone else [multiplier], last_step)
    description = describe_step(batching)
    return Plan(length, lr, multiplier, backbone, last_step, description, batching, window)


def find_last_step(cfg: DictConfig, length: Length) -> int:
    """Return the step after which training ends. Raises UserError: `stop_after` is too long."""
    stop = to_steps(cfg.stop_after or 0, length) or length.steps
    if stop > length.steps:
        message = f"stop_after={cfg.stop_after} is {stop} steps; the run has {length.steps}"
        raise UserError(message)
    return stop


def find_mixup_window(cfg: DictConfig, length: Length) -> Window:
    """Return the first batch that is mixed, and the first one after the last."""
    if "stop" not in cfg.mixup:
        return WHOLE_RUN
    accumulate = cfg.trainer.accumulate_grad_batches
    return mixup_window(cfg.mixup.start, cfg.mixup.stop, length, accumulate)


def describe_size(cfg: DictConfig, data: ImageData) -> str:
    """Return everything that determines the number of steps, as overrides."""
    values = {"data.batch_size": data.batch_size, "data.drop_last": data.drop_last}
    for key in ("limit_train_batches", "max_epochs", "max_steps"):
        values[f"trainer.{key}"] = cfg.trainer[key]
    settings = ", ".join(f"{key}={value}" for key, value in values.items())
    return f"{len(data.train_indices)} training images, {settings}"


def describe_step(batching: Batching) -> str:
    """Describe the images of a step; nothing if it is a single batch."""
    ranks, accumulate = batching.ranks, batching.accumulate
    if accumulate * ranks == 1:
        return ""
    images = batching.images_per_step
    product = f"{batching.batch // ranks} x {ranks} processes x {accumulate} accumulated"
    whole_epoch = ", all of an epoch" if images < batching.batch * accumulate else ""
    return f"{images} images a step ({product}{whole_epoch})"


def scale_lr(cfg: DictConfig, images: int) -> float:
    """Return lr, or with `lr_base_batch_size` lr * `images` / it. arXiv 1706.02677."""
    lr, base = float(cfg.optimizer.lr), cfg.optimizer.get("lr_base_batch_size")
    if base is None:
        return lr
    scaled = lr * images / base
    message = f"optimizer.lr={lr} per {base} images is {scaled:g} for the {images} of a step"
    rank_zero_only(print)(message)
    return scaled


def check_layer_decay(cfg: DictConfig, backbone: Curve | None, length: Length) -> None:
    """Raise UserError if `layer_decay` has no effect, as the backbone is never trained."""
    decay = cfg.optimizer.get("layer_decay", 1.0)
    if decay == 1 or backbone is None or any(map(backbone, range(length.steps))):
        return
    values = {key: cfg.model.get(key) for key in ("freeze", "backbone_lr_mult")}
    options = " ".join(f"model.{key}={value}" for key, value in values.items())
    problem = "no effect, as only the head is trained"
    raise UserError(f"optimizer.layer_decay={decay} with {options}: {problem}. Expected 1")


def check_decay(cfg: DictConfig, lr: float, curves: Sequence[Curve], steps: int) -> None:
    """Raise UserError if weight decay would flip the sign of weights: peak LR * decay >= 1."""
    decay = total_decay(cfg)
    if decay * lr * max(1.0, cfg.model.get("backbone_lr_mult", 1.0)) < 0.1:
        return  # far below 1, as no schedule rises tenfold: saves evaluating it at every step
    peak = lr * max(curve(step) for curve in curves for step in range(steps))
    if decay * peak >= 1:
        reason = f"a step at the peak LR {peak:g} would multiply weights by {1 - decay * peak:.3g}"
        raise UserError(f"{describe_decay(cfg)}: {reason}; lower one of them")


def total_decay(cfg: DictConfig) -> float:
    """Return the decay d of weights at an LR of 1: without a gradient, a step leaves 1 - lr * d.

    That is `penalty=decay` plus the weight decay of the optimizer. Terms of the gradient, namely
    `penalty=l2` and the weight decay of SGD, are amplified by 1 / (1 - m) with a momentum m. Adam
    and its variants rescale them with the gradient, so there they have no such strength.
    """
    optimizer = cfg.optimizer
    name = optimizer._target_.rpartition(".")[2]
    own = optimizer.get("weight_decay") or 0.0
    if name in ("SGD", "ASGD"):
        momentum = min(optimizer.get("momentum", 0.0), 0.999)
        own = (own + find_strength(cfg, "l2")) / (1 - momentum)
    elif name not in DECOUPLED and not optimizer.get("decoupled_weight_decay"):
        own = 0.0
    return float(own + find_strength(cfg, "decay"))


def find_strength(cfg: DictConfig, penalty: str) -> float:
    """Return the total strength of a penalty, 0 if it is not used."""
    target = f"{PACKAGE}.penalty.{penalty}"
    nodes = [node for node in cfg.penalty.values() if node._target_ == target]
    return sum(node.get("strength", 0.0) for node in nodes)


def describe_decay(cfg: DictConfig) -> str:
    """Return the options that determine the decay of weights, as overrides."""
    keys = [f"optimizer.{key}" for key in ("lr", "lr_base_batch_size", "weight_decay", "momentum")]
    keys += [f"penalty.{name}.strength" for name in ("l2", "decay")]
    keys += ["model.backbone_lr_mult"] if cfg.model.get("backbone_lr_mult", 1.0) > 1 else []
    values = {key: OmegaConf.select(cfg, key) for key in keys}
    return " ".join(f"{key}={value}" for key, value in values.items() if value)


def make_backbone_multiplier(
    model: DictConfig, multiplier: Multiplier, length: Length
) -> Curve | None:
    """Return the LR multiplier of the backbone: 0 while frozen, then a multiple of the head's.

    None if the backbone has the multiplier of the head. Raises UserError: `model.freeze` exceeds
    the run.
    """
    frozen, factor = to_steps(model.get("freeze", 0), length), model.get("backbone_lr_mult", 1.0)
    if frozen > length.steps:
        message = f"model.freeze={model.freeze} is {frozen} steps"
        raise UserError(f"{message}; allowed: 0 to {length.steps}")
    if not frozen and factor == 1:
        return None
    return lambda step: 0.0 if step < frozen else factor * multiplier(step)
