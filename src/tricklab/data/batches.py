"""Images, the batches they are read in, and what makes a network's input of them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tricklab.data.images import ImageFiles, prefetch
from tricklab.data.progress import with_progress

Batch = tuple[Tensor, ...]


class LabeledImages(NamedTuple):
    """Images, uint8 [N, C, H, W], and their labels, int64 [N]."""

    images: Tensor | ImageFiles
    labels: Tensor


class InputSpec(NamedTuple):
    """What a network takes: channels, height, width; mean and deviation of each channel, for pixels in 0 .. 1."""

    shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]


class DatasetSplits(NamedTuple):
    """What a data set is read into. Without a validation part of its own it gets one from training.

    `files` is their number and `identity` tells whether they are the same, both where images come from files; `resize`
    is the side that these were decoded at, where it was an option.
    """

    train: LabeledImages
    test: LabeledImages
    classes: list[str]
    val: LabeledImages | None = None
    files: int = 0
    identity: str = ""
    resize: int | None = None

    @property
    def parts(self) -> list[LabeledImages]:
        return [part for part in (self.train, self.test, self.val) if part]


class Rows:
    """Tensors [N, ...] of which so many rows are taken at once, and the numbers [B] of these rows."""

    def __init__(self, data: tuple[Tensor | ImageFiles, ...]):
        self.data = data

    def __getitem__(self, rows: Tensor) -> Batch:
        return *(
            part.index_select(0, rows) for part in self.data
        ), rows  # part[rows] takes ten times as long


@dataclass(eq=False)
class Batches:
    """Batches by one gather each of tensors [N, ...], with the numbers of their rows behind.

    Without state: asked to, it starts at any batch of any epoch.

    `order(epoch)` returns the rows [N] to go through, `start()` the epoch and the batch to begin with. A global
    batch is `batch_size * ranks` rows long, which go to the ranks in turn.
    """

    data: tuple[Tensor | ImageFiles, ...]
    order: Callable[[int], Tensor]
    start: Callable[[], tuple[int, int]]
    batch_size: int
    length: int
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = (
            self.start()
        )  # not before the first batch is asked for, when the trainer knows its place
        blocks = (
            self.order(epoch)
            .to(self.data[0].device)
            .split(self.batch_size * self.ranks)[first : self.length]
        )
        rows = [block[self.rank :: self.ranks] for block in blocks]
        yield from prefetch(Rows(self.data), rows, getattr(self.data[0], "workers", 0))


class Preprocess(nn.Module):
    """Images [B, C, H, W] of 0 .. 255 to what a network takes: resized, normalised, one channel repeated as needed."""

    def __init__(self, images: InputSpec):
        super().__init__()
        scale = 1 / (255 * torch.tensor(images.std, dtype=torch.double))
        shift = -torch.tensor(images.mean, dtype=torch.double) * 255 * scale
        self.size = list(images.shape[1:])
        self.scale = nn.Buffer(scale.float().view(1, -1, 1, 1))
        self.shift = nn.Buffer(shift.float().view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if list(images.shape[2:]) != self.size:
            images = F.interpolate(images.float(), self.size, mode="bilinear", antialias=True)
        images = images.expand(-1, self.scale.shape[1], -1, -1).to(
            torch.float, copy=True
        )  # which is changed in place:
        return images.mul_(self.scale).add_(
            self.shift
        )  # one tensor more would take 0.5 ms of 512 images


def channel_mean_std(images: Tensor | ImageFiles, rows: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over images[rows], for pixels in 0 .. 1.

    The sums are integers, hence exact. A channel without any contrast gets the deviation of one grey level.
    """
    total = squares = torch.zeros(images.shape[1], dtype=torch.long)
    block = max(1, 2**22 // math.prod(images.shape[1:]))  # images at a time
    batches = Batches((images,), lambda epoch: rows, lambda: (0, 0), block, len(rows))
    parts = (part for part, _ in batches)
    for part in with_progress(parts, len(rows), "mean and standard deviation"):
        pixels = part.int()
        total, squares = total + pixels.sum((0, 2, 3)), squares + pixels.square().sum((0, 2, 3))
    n = len(rows) * images.shape[2] * images.shape[3]
    mean = total.double() / n
    std = (squares.double() / n - mean.square()).clamp(min=0).sqrt().clamp(min=1.0)
    return (mean / 255).tolist(), (std / 255).tolist()
