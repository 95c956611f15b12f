"""The rate of every step of a run, known before its first one."""

from typing import NamedTuple

from omegaconf import DictConfig
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from tricklab.build import build
from tricklab.data.module import ImageData
from tricklab.duration import Length, run_length, to_steps
from tricklab.errors import UserError
from tricklab.scheduler import Curve, Multiplier


class Plan(NamedTuple):
    """The first rate, by what it is multiplied at each step, and the step after which training ends.

    `body_multiplier` is that of all but the classifier, or None where it is the same; `of_step` says how many images
    a step has, if it is not a single batch.
    """

    length: Length
    lr: float
    multiplier: Multiplier
    body_multiplier: Curve | None
    last_step: int
    of_step: str


def make_plan(cfg: DictConfig, data: ImageData, ranks: int) -> Plan:
    """Plan the whole run on `ranks` processes; tell the data when to mix.

    Raises UserError: a run without a step, or durations that do not lie in it.
    """
    t, images = cfg.trainer, len(data.train_rows)
    limits = (t.max_epochs, t.max_steps, t.limit_train_batches, t.accumulate_grad_batches)
    length = run_length(images, data.batch_size, *limits, ranks, data.drop_last)
    if length.steps < 1:
        raise UserError(
            f"{images} training images, data.batch_size={data.batch_size}, data.drop_last={data.drop_last}, "
            f"trainer.limit_train_batches={t.limit_train_batches}, trainer.max_epochs={t.max_epochs}, "
            f"trainer.max_steps={t.max_steps} make no step, or no end"
        )
    multiplier: Multiplier = build(cfg.scheduler)(length)
    stop = to_steps(cfg.stop_after or 0, length) or length.steps
    body = for_body(cfg.model, multiplier, length)
    if "end" in cfg.mixup:
        data.mix_between(cfg.mixup.begin, cfg.mixup.end, length, t.accumulate_grad_batches)
    several = t.accumulate_grad_batches * ranks
    product = f"{data.batch_size} x {ranks} processes x {t.accumulate_grad_batches} accumulated"
    of_step = f"{data.batch_size * several} images a step ({product})" if several > 1 else ""
    return Plan(length, scale_lr(cfg, ranks), multiplier, body, min(stop, length.steps), of_step)


def scale_lr(cfg: DictConfig, ranks: int) -> float:
    """Return lr, or lr * images a step / lr_per where that is given (linear scaling, arXiv 1706.02677)."""
    lr, per = float(cfg.optimizer.lr), cfg.optimizer.get("lr_per")
    images = cfg.data.batch_size * ranks * cfg.trainer.accumulate_grad_batches
    if per is None:
        return lr
    rank_zero_only(print)(
        f"optimizer.lr={lr} per {per} images is {lr * images / per:g} for the {images} of a step"
    )
    return lr * images / per


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
