"""How long a run is, and how long a part of it: everything ends in optimizer steps."""

import math
import re
from typing import NamedTuple

from tricklab.errors import UserError


class Length(NamedTuple):
    """The length of a run: all its optimizer steps, and those of one epoch."""

    steps: int
    epoch: int


class Batching(NamedTuple):
    """How the images of an epoch become batches and optimizer steps.

    `images` are those trained on in an epoch, `batch` those in a batch of all `ranks` together, of
    which there are `batches`; `accumulate` of them make an optimizer step, at its end maybe fewer.
    """

    images: int
    batch: int
    batches: int
    accumulate: int = 1
    ranks: int = 1

    @property
    def images_per_step(self) -> int:
        """Images in each optimizer step but the last of an epoch, which may have fewer."""
        return min(self.batch * self.accumulate, self.images)

    def weights(self, batch_idx: int, images: int) -> tuple[float, float]:
        """Return the weight of a batch's mean loss over the `images` of a rank, and that of all its terms.

        Lightning divides by `accumulate` and DDP takes the mean over the ranks, as if all batches
        were of one size. With the first weight the gradient is that of sum_i n_i L_i / sum_i n_i
        over the batches of n_i images in a step; with the second a step of fewer batches counts in
        full. Both are exactly 1 where there is nothing to make up for.
        """
        first = batch_idx - batch_idx % self.accumulate
        end = min(first + self.accumulate, self.batches)
        in_step = min(end * self.batch, self.images) - first * self.batch
        return images * self.ranks * (end - first) / in_step, self.accumulate / (end - first)


def divide_epoch(
    images: int,
    batch_size: int,
    limit_batches: int | float = 1.0,
    accumulate: int = 1,
    ranks: int = 1,
    drop_last: bool = False,
) -> Batching:
    """Divide `images` into batches of `batch_size` a process; `limit_batches` as Lightning reads it."""
    batches = count_batches(images, batch_size, ranks, drop_last)
    batches = (
        min(batches, limit_batches)
        if isinstance(limit_batches, int)
        else int(batches * limit_batches)
    )
    batch = batch_size * ranks
    used = min(batches * batch, images - images % ranks)  # each rank has as many as the others
    return Batching(used, batch, batches, accumulate, ranks)


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
    batching = divide_epoch(images, batch_size, limit_batches, accumulate, ranks, drop_last)
    epoch = math.ceil(batching.batches / accumulate)  # the last step may have fewer batches
    limits = [n for n in (max_epochs * epoch, max_steps) if n >= 0]
    return Length(steps=min(limits, default=0), epoch=epoch)


def count_batches(images: int, batch_size: int, ranks: int = 1, drop_last: bool = False) -> int:
    """Batches that each of `ranks` processes sees in an epoch; a rest below two images a process is left out."""
    full, rest = divmod(images, batch_size * ranks)
    if drop_last or rest < 2 * ranks:  # batch norm has no statistics of a single image
        return full
    return full + 1


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
