"""Images in memory, the batches they are read in, and what makes a network's input of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, ...]


class Labelled(NamedTuple):
    """Images, uint8 [N, C, H, W], and their labels, int64 [N]."""

    images: Tensor
    labels: Tensor


class Images(NamedTuple):
    """What a network takes: channels, height, width; mean and deviation of each channel, for pixels in 0 .. 1."""

    shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]


class Source(NamedTuple):
    """What a data set is read into. Without a validation part of its own it gets one from training."""

    train: Labelled
    test: Labelled
    classes: list[str]
    val: Labelled | None = None


class Batches:
    """Batches by one gather each of tensors [N, ...]. Without state: asked to, it starts at any batch of any epoch.

    `order(epoch)` returns the rows [N] to go through, `start()` the epoch and the batch to begin with. A global
    batch is `batch_size * ranks` rows long, which go to the ranks in turn.
    """

    def __init__(
        self,
        data: Batch,
        order: Callable[[int], Tensor],
        start: Callable[[], tuple[int, int]],
        batch_size: int,
        length: int,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.data, self.order, self.start = data, order, start
        self.global_batch, self.length, self.rank, self.ranks = batch_size * ranks, length, rank, ranks

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self.start()
        blocks = self.order(epoch).split(self.global_batch)
        for block in blocks[first : self.length]:
            rows = block[self.rank :: self.ranks]
            yield tuple(part[rows] for part in self.data)


class Preparation(nn.Module):
    """Images [B, C, H, W] of 0 .. 255 to what a network takes: resized and normalised.

    Images of one channel are given as many as there are means.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, images: Images):
        super().__init__()
        scale = 1 / (255 * torch.tensor(images.std, dtype=torch.double))
        shift = -torch.tensor(images.mean, dtype=torch.double) * 255 * scale
        self.size = list(images.shape[1:])
        self.register_buffer("scale", scale.float().view(1, -1, 1, 1))
        self.register_buffer("shift", shift.float().view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        images = images.float()
        if list(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return images * self.scale + self.shift


def moments(images: Tensor, rows: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over images[rows], for pixels in 0 .. 1.

    The sums are integers, hence exact. A channel without any contrast gets the deviation of one grey level.
    """
    total = squares = torch.zeros(images.shape[1], dtype=torch.long)
    for part in rows.split(4096):
        pixels = images[part].int()
        total, squares = total + pixels.sum((0, 2, 3)), squares + pixels.square().sum((0, 2, 3))
    n = len(rows) * images[0, 0].numel()
    mean = total.double() / n
    std = (squares.double() / n - mean.square()).clamp(min=0).sqrt().clamp(min=1.0)
    return (mean / 255).tolist(), (std / 255).tolist()
