"""Which values an option takes: its type is that of its default, its range stands here."""

import math
import re
from typing import Any, NamedTuple

from tricklab import scheduler
from tricklab.duration import parse
from tricklab.errors import UserError, nearest

DURATIONS = (
    *scheduler.DURATIONS,
    "warmup",
    "hold",
    "milestones",
    "begin",
    "end",
    "stop_after",
    "freeze",
)


SEVERAL_TYPES = ("trainer.devices", "resume")  # a number, a text or a list


MAY_BE_NULL = ("resize",)  # though its default is a value


MAY_BE_EMPTY = ("model.widths",)  # of an mlp; a convnet refuses it


NUMBER = (int, float)


TYPES: dict[str, tuple[type, ...]] = {  # by the last word of a key whose default is null
    **dict.fromkeys(("name", "weights", "entity", "group", "notes", "profiler", "only"), (str,)),
    **dict.fromkeys(
        ("lr_per", "folds", "slots", "job_timeout", "num_workers", "every_n_steps"), (int,)
    ),
    **dict.fromkeys(("gradient_clip_val", "train_size"), NUMBER),
    "weight": (list,),
}


CHOICES = {
    "scheduler.shape": " ".join(scheduler.FALLS),
    "scheduler.warmup_shape": " ".join([*scheduler.RAMPS, "constant"]),
    "mixup.per": "batch image",
    "data.mode": "RGB L",
    "data.background": "white black",
    "callbacks.early_stopping.mode": "min max",
    "loss.reduction": "mean",  # over images, on which accumulation and the learning rate rest
    "trainer.accelerator": "auto cpu gpu cuda mps tpu",
    "trainer.gradient_clip_algorithm": "norm value",
    "trainer.precision": "32-true 32 16-mixed 16 bf16-mixed bf16 16-true bf16-true 64-true 64 "
    "transformer-engine transformer-engine-float16",
    "trainer.profiler": "simple advanced pytorch",
    # others shard or flatten the weights, in which penalties and weight decay would not find theirs
    "trainer.strategy": "auto ddp ddp_find_unused_parameters_true ddp_find_unused_parameters_false",
}


LARGEST = 2**31 - 1  # of an integer, but for seeds


SEEDS = ("seed", "split_seed")


class Range(NamedTuple):
    """The numbers from `low` to `high`; an end that is `open` is not one of them."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int | float)
        above = number > self.low if self.low_open else number >= self.low
        return above and (number < self.high if self.high_open else number <= self.high)

    def __str__(self) -> str:
        low = f"more than {self.low}" if self.low_open else f"{self.low} or more"
        if self.high == math.inf:
            return low
        if not self.low_open and not self.high_open:
            return f"{self.low} to {self.high}"
        return f"{low}, {'less than' if self.high_open else 'at most'} {self.high}"


RANGES = {  # by the last word of a key
    word: bounds
    for bounds, words in (
        (
            Range(0, 1, high_open=True),
            "dropout input_dropout spatial_dropout drop_path label_smoothing momentum betas "
            "momentum_low momentum_high",
        ),
        (Range(0, 1), "label_noise floor threshold probability horizontal vertical translate"),
        (Range(0, 1), "smallest largest brightness contrast"),
        (
            Range(0, math.inf),
            "val_size train_size test_size alpha cutmix_alpha strength lr body_lr weight_decay power "
            "patience padding operations seed split_seed num_workers gradient_clip_val mistakes "
            "fold eps min_delta refresh_rate",
        ),
        (Range(0, math.inf, low_open=True), "norm"),
        # without validation there is no best.ckpt
        (Range(0.001, math.inf), "limit_train_batches limit_val_batches limit_test_batches"),
        (
            Range(1, math.inf),
            "slots job_timeout trials replicates rounds batch batch_size lr_per mult test_images "
            "channels height width widths depth resize num_nodes accumulate_grad_batches "
            "check_val_every_n_epoch every_n_steps log_every_n_steps",
        ),
        (Range(2, math.inf), "images classes factor folds"),
        (Range(-1, math.inf), "max_epochs max_steps num_sanity_val_steps"),
        (Range(1e-6, 1), "gamma start warmup_share"),  # an LR of 0 would be a step without a step
        (Range(0, 1, high_open=True), "decay"),
    )
    for word in words.split()
} | {
    "scale": Range(0, 0.99),
    "magnitude": Range(0, 30),
    "shear": Range(0, 89),
    "degrees": Range(0, 180),
    "value": Range(0, 255),
}


def check_value(key: str, value: Any, default: Any) -> None:
    """Refuse a value that is not of its default's type, or out of range."""
    word = key.rpartition(".")[2]
    if value is None and (default is None or word in MAY_BE_NULL):
        return
    check_finite(key, value)
    if value == "" != default and not key.startswith("logger."):  # as of KEY=$UNSET
        raise UserError(f"{key}= is empty; expected a value")
    if key == "trainer.devices":
        check_devices(value)
    if word in DURATIONS:
        check_duration(key, value, default)
    elif key not in SEVERAL_TYPES and key not in CHOICES:
        check_type(key, value, default)
    choices = CHOICES.get(key, "").split()
    if choices and str(value) not in choices:
        hint = nearest(str(value), choices)
        raise UserError(f"{key}={value}; allowed: {', '.join(choices)}.{hint}")
    check_range(key, value)


def check_finite(key: str, value: Any) -> None:
    """Refuse NaN and infinities, at any depth, and integers that are no number of anything."""
    if isinstance(value, list):
        for part in value:
            check_finite(key, part)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{key}={value}: expected a finite number")
    largest = 2**63 - 1 if key.rpartition(".")[2] in SEEDS else LARGEST
    if isinstance(value, int) and abs(value) > largest:
        raise UserError(f"{key}={value}; allowed: integers up to {largest}")


def check_devices(value: Any) -> None:
    """Refuse what names no devices: neither a number of them, -1 and auto being all, nor a list."""
    listed = value if isinstance(value, list) else str(value).split(",")
    number = type(value) is int and (value == -1 or value > 0)
    several = value and type(value) in (list, str) and all(str(n).isdecimal() for n in listed)
    if value != "auto" and not number and not several:
        raise UserError(
            f"trainer.devices={show(value)}: expected a number, auto for all, or a list, as [0,1]"
        )


def check_duration(key: str, value: Any, default: Any) -> None:
    """Refuse what is no duration, a percentage above 100, and one duration for a list of them."""
    if isinstance(value, list) != isinstance(default, list) or value == []:
        one = "one duration, as 10%"
        raise UserError(
            f"{key}={value}: expected {'a list of durations, as [50%,75%]' if isinstance(default, list) else one}"
        )
    for duration in value if isinstance(value, list) else [value]:
        number, unit = parse(duration, f"{key}=")
        if unit == "%" and number > 100:
            raise UserError(f"{key}={value}; allowed: 0% to 100%")
        if number == 0 and key == "stop_after":
            raise UserError(f"{key}={value}; allowed: more than 0")


def check_type(key: str, value: Any, default: Any) -> None:
    """Refuse a value of another type than its default's, or, if that is null, than its word's."""
    types = TYPES.get(key.rpartition(".")[2]) if default is None else (type(default),)
    if types is not None and not same_type(value, types):
        names = " or ".join(kind.__name__ for kind in types)
        null = " or null" if default is None else ""
        raise UserError(f"{key}={show(value)}: expected {names}{null}, got {type(value).__name__}")
    if isinstance(value, list) and default:
        kind = type(default[0])
        is_empty = not value and key not in MAY_BE_EMPTY
        if is_empty or not all(same_type(part, (kind,)) for part in value):
            raise UserError(f"{key}={value}: expected a non-empty list of {kind.__name__}")


def same_type(value: Any, types: tuple[type, ...]) -> bool:
    """Whether a value is of one of the types; an int may stand for a float, a bool for none of them."""
    return type(value) in types or (type(value) is int and float in types)


def show(value: Any) -> str:
    """Return a value as it would be typed."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_range(key: str, value: Any) -> None:
    """Refuse numbers out of the range of the key's last word."""
    word = key.rpartition(".")[2]
    numbers = [
        n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int | float)
    ]
    if word in RANGES and not all(number in RANGES[word] for number in numbers):
        raise UserError(f"{key}={value}; allowed: {RANGES[word]}")
    if word == "betas" and len(numbers) != 2:
        raise UserError(f"{key}={value}: expected two numbers")
    if re.fullmatch("limit_(train|val|test)_batches", word) and type(value) is float and value > 1:
        raise UserError(
            f"{key}={value}: expected a fraction up to 1.0 or a whole number of batches"
        )
