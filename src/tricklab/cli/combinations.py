"""Options that contradict each other, or have no effect together."""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from tricklab.duration import parse
from tricklab.errors import UserError


def check_combinations(config: DictConfig) -> None:
    """Raise UserError for options that contradict each other."""
    check_stop(config)
    check_pairs(config)
    check_prox(config)
    check_fused(config)
    freeze = config.model.get("freeze")
    if freeze and not config.model.get("weights"):
        problem = "needs model.weights (it would freeze random weights)"
        raise UserError(f"model.freeze={freeze} {problem}")
    if config.optimizer.get("decay_all") and not config.optimizer.get("weight_decay"):
        problem = "no effect, as nothing decays"
        raise UserError(f"optimizer.decay_all=true with optimizer.weight_decay=0: {problem}")
    dropout = config.model.get("dropout")
    is_none = not any(dropout) if isinstance(dropout, Sequence) else not dropout
    if config.model.get("dropout_kind") == "gaussian" and is_none:
        raise UserError("model.dropout_kind=gaussian with model.dropout=0: nothing is dropped")
    weight = config.loss.get("class_weights")
    if weight and config.mixup._target_ != "tricklab.mixup.identity":
        problem = "a mixed image has two classes, but would get the weight of neither"
        raise UserError(f"loss.class_weights={weight} with mixing: {problem}. Expected mixup=off")
    if weight == config.data.get("sampler") == "balanced":
        options = "data.sampler=balanced loss.class_weights=balanced"
        raise UserError(f"{options}: rare classes would count twice. Expected one of the two")
    check_files(config)


def check_files(config: DictConfig) -> None:
    """Raise UserError for options of image files without an effect."""
    data = config.data
    if "fit" not in data:
        return
    crops = "resized_crop" in config.augment
    if data.fit == "none" and crops:
        problem = "images that keep their size are not cropped to another"
        raise UserError(
            f"data.fit=none with augment=resized_crop: {problem}. Expected data.fit=crop"
        )
    if data.fit == "none" and data.crop_fraction is not None:
        raise UserError("data.fit=none with data.crop_fraction: nothing is cropped. Leave one out")
    for key in ("keep", "jpeg_scaling"):
        if data[key] and not crops:
            problem = "only augment=resized_crop keeps more than the network takes"
            raise UserError(f"data.{key}={data[key]} has no effect: {problem}")


def check_prox(config: DictConfig) -> None:
    if "l1_prox" not in config.penalty:
        return
    for name, node in config.callbacks.items():
        if str(node.get("_target_")).endswith("WeightAveraging"):
            problem = "averaged weights are hardly ever exactly 0. Expected one of the two"
            raise UserError(f"penalty=l1_prox with callbacks={name}: {problem}")


def check_fused(config: DictConfig) -> None:
    trainer = config.trainer
    precision = trainer.precision
    clip = trainer.gradient_clip_val
    if config.optimizer.get("fused") and precision in ("16-mixed", 16, "16") and clip:
        options = f"trainer.precision={precision} trainer.gradient_clip_val={clip}"
        problem = "a fused step unscales the gradients itself, after clipping"
        raise UserError(f"{options}: {problem}. Expected optimizer.fused=false")


def check_pairs(config: DictConfig) -> None:
    for key in ("erase.scale", "resized_crop.scale", "resized_crop.ratio"):
        low, high = OmegaConf.select(config.augment, key) or (0, 1)
        if low > high:
            message = f"augment.{key}=[{low}, {high}]: low is above high"
            raise UserError(f"{message}; swap them")


def check_stop(config: DictConfig) -> None:
    """Raise UserError for a run without steps or without an end, or a wrong `stop_after`."""
    trainer = config.trainer
    limits = (trainer.max_epochs, trainer.max_steps)
    if 0 in limits or limits == (-1, -1):
        options = f"trainer.max_epochs={limits[0]} trainer.max_steps={limits[1]}"
        raise UserError(f"{options}: the run would take no optimizer step, or never stop")
    stop_after = str(config.stop_after)
    if stop_after.endswith("ep"):
        check_stop_limit(stop_after, "trainer.max_epochs", trainer.max_epochs)
        check_stop_validation(stop_after, trainer.check_val_every_n_epoch)
    if stop_after.endswith("it"):
        check_stop_limit(stop_after, "trainer.max_steps", trainer.max_steps)


def check_stop_limit(stop_after: str, key: str, limit: int) -> None:
    """Raise UserError if the run ends before `stop_after`; a `limit` of -1 is none."""
    if parse(stop_after)[0] > limit > -1:
        raise UserError(f"stop_after={stop_after} is after the end of the run: {key}={limit}")


def check_stop_validation(stop_after: str, every: int) -> None:
    """Raise UserError if `stop_after` is between two validations, `every` epochs apart."""
    if parse(stop_after)[0] % every:
        expected = f"must be a multiple of trainer.check_val_every_n_epoch={every}"
        raise UserError(f"stop_after={stop_after} {expected}, or resuming would not be exact")
