"""The rate of every step of a run, known before its first one."""

from collections.abc import Sequence
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from tricklab.data.module import ImageData
from tricklab.duration import Batching, Length, divide_epoch, run_length, to_steps
from tricklab.errors import UserError
from tricklab.run.identity import PACKAGE
from tricklab.run.instantiate import build
from tricklab.scheduler import Curve, Multiplier

DECOUPLED = ("AdamW", "Adafactor", "Muon")  # optimizers that shrink the weights themselves


class Plan(NamedTuple):
    """The first rate, by what it is multiplied at each step, and the step after which training ends.

    `body_multiplier` is that of all but the classifier, or None where it is the same; `of_step` says how many images
    a step has, if it is not a single batch; `batching` how batches make a step.
    """

    length: Length
    lr: float
    multiplier: Multiplier
    body_multiplier: Curve | None
    last_step: int
    of_step: str
    batching: Batching


def make_plan(cfg: DictConfig, data: ImageData, ranks: int) -> Plan:
    """Plan the whole run on `ranks` processes; tell the data when to mix.

    Raises UserError: a run without a step, durations that do not lie in it, or a weight decay that
    would turn the sign of weights.
    """
    t, images = cfg.trainer, len(data.train_rows)
    parts = (t.limit_train_batches, t.accumulate_grad_batches, ranks, data.drop_last)
    length = run_length(images, data.batch_size, t.max_epochs, t.max_steps, *parts)
    if length.steps < 1:
        raise UserError(
            f"{images} training images, data.batch_size={data.batch_size}, data.drop_last={data.drop_last}, "
            f"trainer.limit_train_batches={t.limit_train_batches}, trainer.max_epochs={t.max_epochs}, "
            f"trainer.max_steps={t.max_steps} make no step, or no end"
        )
    multiplier: Multiplier = build(cfg.scheduler)(length)
    stop = to_steps(cfg.stop_after or 0, length) or length.steps
    if stop > length.steps:
        message = f"stop_after={cfg.stop_after} is {stop} steps; the run has {length.steps}"
        raise UserError(message)
    if "end" in cfg.mixup:
        data.mix_between(cfg.mixup.begin, cfg.mixup.end, length, t.accumulate_grad_batches)
    batching = divide_epoch(images, data.batch_size, *parts)
    lr = scale_lr(cfg, batching.images_per_step)
    body = for_body(cfg.model, multiplier, length)
    check_decay(cfg, lr, [multiplier, body] if body else [multiplier], stop)
    return Plan(
        length,
        lr,
        multiplier,
        body,
        last_step=stop,
        of_step=describe_step(batching),
        batching=batching,
    )


def describe_step(batching: Batching) -> str:
    """Say of what the images of a step are made; nothing where that is a batch."""
    ranks, accumulate, images = batching.ranks, batching.accumulate, batching.images_per_step
    if accumulate * ranks == 1:
        return ""
    product = f"{batching.batch // ranks} x {ranks} processes x {accumulate} accumulated"
    whole = ", all of an epoch" if images < batching.batch * accumulate else ""
    return f"{images} images a step ({product}{whole})"


def scale_lr(cfg: DictConfig, images: int) -> float:
    """Return lr, or lr * `images` / lr_per where that is given (linear scaling, arXiv 1706.02677)."""
    lr, per = float(cfg.optimizer.lr), cfg.optimizer.get("lr_per")
    if per is None:
        return lr
    rank_zero_only(print)(
        f"optimizer.lr={lr} per {per} images is {lr * images / per:g} for the {images} of a step"
    )
    return lr * images / per


def check_decay(cfg: DictConfig, lr: float, curves: Sequence[Curve], steps: int) -> None:
    """Raise UserError where weight decay would turn the sign of weights: peak LR * decay of 1 or more."""
    decay = total_decay(cfg)
    if decay * lr * max(1.0, cfg.model.get("body_lr", 1.0)) < 0.1:
        return  # no schedule rises tenfold: the usual run is not looked through
    peak = lr * max(curve(step) for curve in curves for step in range(steps))
    if decay * peak >= 1:
        reason = f"a step at the peak LR {peak:g} would multiply weights by {1 - decay * peak:.3g}"
        raise UserError(f"{describe_decay(cfg)}: {reason}; lower one of them")


def total_decay(cfg: DictConfig) -> float:
    """Return the decay d of weights at an LR of 1: without a gradient, a step leaves 1 - lr * d of them.

    That is `penalty=decay` and what the optimizer decays itself. What is added to the gradient,
    which is `penalty=l2` and the weight decay of SGD, is 1 / (1 - m) times as strong with a
    momentum m; Adam and its like scale it with the gradient, so that it has no such strength.
    """
    optimizer = cfg.optimizer
    name, own = optimizer._target_.rpartition(".")[2], optimizer.get("weight_decay") or 0.0
    if name in ("SGD", "ASGD"):
        momentum = min(optimizer.get("momentum", 0.0), 0.999)
        own = (own + strength(cfg, "l2")) / (1 - momentum)
    elif name not in DECOUPLED and not optimizer.get("decoupled_weight_decay"):
        own = 0.0
    return float(own + strength(cfg, "decay"))


def strength(cfg: DictConfig, penalty: str) -> float:
    """Return the strength of a penalty, 0 where there is none."""
    return sum(
        node.get("strength", 0.0)
        for node in cfg.penalty.values()
        if node._target_ == f"{PACKAGE}.penalty.{penalty}"
    )


def describe_decay(cfg: DictConfig) -> str:
    """Return the options that the decay of weights follows from, as they would be typed."""
    keys = [f"optimizer.{key}" for key in ("lr", "lr_per", "weight_decay", "momentum")]
    keys += [f"penalty.{name}.strength" for name in ("l2", "decay")]
    keys += ["model.body_lr"] if cfg.model.get("body_lr", 1.0) > 1 else []
    values = {key: OmegaConf.select(cfg, key) for key in keys}
    return " ".join(f"{key}={value}" for key, value in values.items() if value)


def for_body(model: DictConfig, multiplier: Multiplier, length: Length) -> Curve | None:
    """Return the multiplier of all but the classifier: 0 while it is frozen, then `model.body_lr` of the others'.

    Raises UserError: it would be frozen for longer than the run.
    """
    frozen, share = to_steps(model.get("freeze", 0), length), model.get("body_lr", 1.0)
    if frozen > length.steps:
        raise UserError(
            f"model.freeze={model.freeze} is {frozen} steps; allowed: 0 to {length.steps}"
        )
    if not frozen and share == 1:
        return None
    return lambda step: 0.0 if step < frozen else share * multiplier(step)
