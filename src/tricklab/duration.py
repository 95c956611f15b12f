"""How long a run is, and how long a part of it: everything ends in optimizer steps."""

import math
import re
from typing import NamedTuple

from tricklab.errors import UserError


class Length(NamedTuple):
    """The length of a run: all its optimizer steps, and those of one epoch."""

    steps: int
    epoch: int


def run_length(
    images: int,
    batch_size: int,
    max_epochs: int,
    max_steps: int = -1,
    limit_batches: int | float = 1.0,
    accumulate: int = 1,
    ranks: int = 1,
    drop_last: bool = False,
) -> Length:
    """Length of a training on `images` images with `batch_size` a process, `limit_batches` as Lightning reads it."""
    batches = limit(count_batches(images, batch_size, ranks, drop_last), limit_batches)
    epoch = math.ceil(batches / accumulate)  # also the last, incomplete window makes a step
    limits = [n for n in (max_epochs * epoch, max_steps) if n >= 0]
    return Length(steps=min(limits, default=0), epoch=epoch)


def count_batches(images: int, batch_size: int, ranks: int = 1, drop_last: bool = False) -> int:
    """Batches that each of `ranks` processes sees in an epoch; a rest below two images a process is left out."""
    full, rest = divmod(images, batch_size * ranks)
    if drop_last or rest < 2 * ranks:  # batch norm has no statistics of a single image
        return full
    return full + 1


def batch_images(
    index: int, images: int, batch_size: int, ranks: int = 1, drop_last: bool = False
) -> int:
    """Images that each of `ranks` processes has in batch `index` of an epoch; the last may be smaller."""
    if index >= count_batches(images, batch_size, ranks, drop_last):
        return 0
    return min(batch_size, images // ranks - index * batch_size)


def epoch_images(
    images: int,
    batch_size: int,
    limit_batches: int | float = 1.0,
    ranks: int = 1,
    drop_last: bool = False,
) -> int:
    """Images that all processes together train on in an epoch."""
    sizes = images, batch_size, ranks, drop_last
    batches = limit(count_batches(*sizes), limit_batches)
    return ranks * min(images // ranks, batches * batch_size)


def limit(batches: int, most: int | float) -> int:
    """Return how many of an epoch's batches are used, `most` as Lightning reads it."""
    return min(batches, most) if isinstance(most, int) else int(batches * most)


def parse(duration: int | float | str, option: str = "") -> tuple[float, str]:
    """Split "5ep" into (5.0, "ep"); 0 is (0.0, "it"). Raises UserError, which begins with `option`: anything else."""
    if duration in (0, "0"):
        return 0.0, "it"
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)(ep|it|%)", str(duration)):
        return float(match[1]), match[2]
    allowed = "0, or a number with a unit: 5ep (epochs), 300it (steps) or 10% (of the run)"
    raise UserError(f"{option}{duration!r} is not a duration; allowed: {allowed}")


def to_steps(duration: int | float | str, length: Length, most: int | None = None) -> int:
    """Optimizer steps in `duration`, rounded, but one at least where it is not 0; a part, as 90%, `most` at most."""
    number, unit = parse(duration)
    steps = max(
        1, round(number * {"it": 1.0, "ep": float(length.epoch), "%": length.steps / 100}[unit])
    )
    if unit == "%" and number < 100 and most is not None:
        steps = min(steps, most)
    return steps if number > 0 else 0
