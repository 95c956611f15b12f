"""The length of a run and of its parts: everything is converted to optimizer steps."""

import math
import re
from typing import NamedTuple

from tricklab.errors import UserError


class Length(NamedTuple):
    """The optimizer steps of a run, and those of an epoch."""

    steps: int
    epoch: int


class Batching(NamedTuple):
    """How the images of an epoch become batches and optimizer steps."""

    images: int  # used in an epoch
    batch: int  # images of a batch on all ranks together
    batches: int  # in an epoch
    accumulate: int = 1  # batches of an optimizer step; the last of an epoch may have fewer
    ranks: int = 1

    @property
    def images_per_step(self) -> int:
        """Images of each optimizer step except the last of an epoch, which may have fewer."""
        return min(self.batch * self.accumulate, self.images)

    def weights(self, batch_idx: int, images: int) -> tuple[float, float]:
        """Return two weights of a batch: of its mean loss over `images` on a rank, of all terms.

        Lightning divides by `accumulate`, and DDP takes the mean over the ranks, as if all batches
        had the same size. With the first weight the gradient is that of sum_i n_i L_i / sum_i n_i
        over the batches of n_i images in a step; with the second a step of fewer batches has full
        weight. Both are exactly 1 if all batches have the same size.
        """
        first = batch_idx - batch_idx % self.accumulate
        end = min(first + self.accumulate, self.batches)
        images_of_step = min(end * self.batch, self.images) - first * self.batch
        loss_weight = images * self.ranks * (end - first) / images_of_step
        return loss_weight, self.accumulate / (end - first)


def divide_epoch(
    images: int,
    batch_size: int,
    limit_batches: int | float = 1.0,
    accumulate: int = 1,
    ranks: int = 1,
    drop_last: bool = False,
) -> Batching:
    """Divide an epoch into batches of `batch_size` per rank.

    `limit_batches` as in Lightning: a number of batches, or as a float a fraction of them.
    """
    batches = count_batches(images, batch_size, ranks, drop_last)
    limit = limit_batches if isinstance(limit_batches, int) else int(batches * limit_batches)
    batches = min(batches, limit)
    batch = batch_size * ranks
    divisible = images - images % ranks  # each rank has the same number of images
    return Batching(min(batches * batch, divisible), batch, batches, accumulate, ranks)


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
    """Return the length of training with `batch_size` per rank; the limits as in Lightning."""
    batching = divide_epoch(images, batch_size, limit_batches, accumulate, ranks, drop_last)
    epoch = math.ceil(batching.batches / accumulate)  # the last step may have fewer batches
    limits = [limit for limit in (max_epochs * epoch, max_steps) if limit >= 0]
    return Length(steps=min(limits, default=0), epoch=epoch)


def count_batches(images: int, batch_size: int, ranks: int = 1, drop_last: bool = False) -> int:
    """Return the batches of an epoch on each rank.

    A final batch with fewer than two images per rank is dropped: batch norm has no statistics of a
    single image.
    """
    full, remainder = divmod(images, batch_size * ranks)
    if drop_last or remainder < 2 * ranks:
        return full
    return full + 1


def parse(duration: int | float | str, option: str = "") -> tuple[float, str]:
    """Split "5ep" into (5.0, "ep"); 0 is (0.0, "it").

    Raises UserError, with the prefix `option`: anything else.
    """
    if duration in (0, "0") and duration is not False:
        return 0.0, "it"
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)(ep|it|%)", str(duration)):
        return float(match[1]), match[2]
    allowed = "0, or a number with a unit: 5ep (epochs), 300it (steps) or 10% (of the run)"
    raise UserError(f"{option}{duration!r} is not a duration; allowed: {allowed}")


def to_steps(duration: int | float | str, length: Length, most: int | None = None) -> int:
    """Return the optimizer steps of a duration, rounded; at least 1 unless it is 0.

    A percentage below 100 is at most `most` steps.
    """
    number, unit = parse(duration)
    steps_of_unit = {"it": 1.0, "ep": float(length.epoch), "%": length.steps / 100}
    steps = max(1, round(number * steps_of_unit[unit]))
    if unit == "%" and number < 100 and most is not None:
        steps = min(steps, most)
    return steps if number > 0 else 0
