"""Labeled images, the batches that are gathered from them, and the input that a network expects."""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tricklab.data.images import ImageFiles
from tricklab.data.prefetch import prefetch
from tricklab.data.progress import with_progress
from tricklab.duration import Length, to_steps
from tricklab.errors import UserError

Batch = tuple[Tensor, ...]
Position = tuple[float, int]  # an epoch and a batch in it, both counted from 0
Window = tuple[Position, Position]  # the first batch, and the first one after the last
WHOLE_RUN: Window = ((0, 0), (math.inf, 0))


class LabeledImages(NamedTuple):
    """Images, uint8 [N, C, H, W], and their labels, int64 [N]."""

    images: Tensor | ImageFiles
    labels: Tensor


class InputSpec(NamedTuple):
    """Input of a network: shape (C, H, W); mean and std of each channel, for pixels in 0 .. 1."""

    shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]


class DatasetSplits(NamedTuple):
    """The splits that a data set comes with. Without `val`, validation is split off from training.

    Of images that are read from files, `files` is their number, `digest` a hash of names, sizes and
    times, and `size` the side in pixels at which they were decoded, if that was an option.
    `groups`, int64 [N], is the group of each training image, such as its patient: validation that
    is split off from training consists of whole groups. None: each image stands for itself.
    """

    train: LabeledImages
    test: LabeledImages
    classes: list[str]
    val: LabeledImages | None = None
    files: int = 0
    digest: str = ""
    size: int | None = None
    groups: Tensor | None = None

    @property
    def parts(self) -> list[LabeledImages]:
        return [part for part in (self.train, self.test, self.val) if part]


def gather(data: LabeledImages, indices: Tensor) -> Batch:
    """Return images, labels and `indices`, each [B, ...]."""
    # index_select takes a tenth of the time of images[indices]
    images = data.images.index_select(0, indices)
    return images, data.labels.index_select(0, indices), indices


@dataclass(eq=False)
class Batches:
    """A loader whose batches are images [B, C, H, W], labels [B] and their indices [B].

    Stateless, so that training resumes at any batch of any epoch: `order(epoch)` returns the
    indices [N] of an epoch, `start()` the epoch and the batch to begin with. A global batch holds
    `batch_size * ranks` images, which are dealt to the ranks in turn.
    """

    data: LabeledImages
    order: Callable[[int], Tensor]
    start: Callable[[], tuple[int, int]]
    batch_size: int
    length: int
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        # a generator: `start` is called for the first batch, when the trainer knows its position
        epoch, first = self.start()
        images = self.data.images
        indices = self.order(epoch).to(images.device)
        global_batches = indices.split(self.batch_size * self.ranks)[first : self.length]
        batches = [batch[self.rank :: self.ranks] for batch in global_batches]
        workers = images.workers if isinstance(images, ImageFiles) else 0
        yield from prefetch(functools.partial(gather, self.data), batches, workers)


class Preprocess(nn.Module):
    """Resizes and normalises images [B, C, H, W] of 0 .. 255; repeats grey as each channel."""

    def __init__(self, spec: InputSpec):
        super().__init__()
        scale = 1 / (255 * torch.tensor(spec.std, dtype=torch.double))
        shift = -torch.tensor(spec.mean, dtype=torch.double) * 255 * scale
        self.size = list(spec.shape[1:])
        self.scale = nn.Buffer(scale.float().view(1, -1, 1, 1))
        self.shift = nn.Buffer(shift.float().view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if list(images.shape[2:]) != self.size:
            images = F.interpolate(images.float(), self.size, mode="bilinear", antialias=True)
        images = images.expand(-1, self.scale.shape[1], -1, -1)
        # one copy, changed in place: another tensor would take 0.5 ms for 512 images
        images = images.to(torch.float, copy=True)
        return images.mul_(self.scale).add_(self.shift)


def channel_mean_std(
    images: Tensor | ImageFiles, indices: Tensor
) -> tuple[list[float], list[float]]:
    """Return mean and std of each channel over images[indices], for pixels in 0 .. 1.

    The sums are integers, hence exact. The std of a constant channel is one grey level, not 0.
    """
    total = torch.zeros(images.shape[1], dtype=torch.long)
    squares = torch.zeros_like(total)
    images_per_block = max(1, 2**22 // math.prod(images.shape[1:]))
    workers = images.workers if isinstance(images, ImageFiles) else 0
    read = functools.partial(images.index_select, 0)
    blocks = prefetch(read, indices.split(images_per_block), workers)
    for block in with_progress(blocks, len(indices), "mean and std"):
        pixels = block.int()
        total += pixels.sum((0, 2, 3))
        squares += pixels.square().sum((0, 2, 3))
    n = len(indices) * images.shape[2] * images.shape[3]
    mean = total.double() / n
    std = (squares.double() / n - mean.square()).clamp(min=0).sqrt().clamp(min=1.0)
    return (mean / 255).tolist(), (std / 255).tolist()


def mixup_window(start: Any, stop: Any, length: Length, accumulate: int) -> Window:
    """Return the batches from the optimizer step `start` on and before the step `stop`.

    Both are durations; a step has `accumulate` batches. Raises UserError: there is no step between.
    """
    first = to_steps(start, length, most=length.steps - 1)
    last = to_steps(stop, length)
    if not 0 <= first < last <= length.steps:
        raise UserError(
            f"mixup.start={start} (step {first}) must be before mixup.stop={stop} (step {last}), "
            f"both within [0, {length.steps}]"
        )
    return _first_batch(first, length, accumulate), _first_batch(last, length, accumulate)


def _first_batch(step: int, length: Length, accumulate: int) -> Position:
    epoch, step_in_epoch = divmod(step, length.epoch)
    return epoch, step_in_epoch * accumulate
