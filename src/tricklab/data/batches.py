"""Images, the batches they are read in, and what makes a network's input of them."""

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tricklab.data.files import decode
from tricklab.errors import UserError

Batch = tuple[Tensor, ...]


class Files:
    """Images in files: like a tensor, uint8 [N, C, H, W], that decodes the rows which are selected.

    Batches of them are decoded by so many `workers`, on which nothing else depends. Raises UserError: an image that
    can't be decoded, or is not of the size of the first.
    """

    device = torch.device("cpu")

    def __init__(self, paths: list[Path], resize: int | None, mode: str, workers: int = 0):
        self.paths, self.mode, self.workers, self.size = paths, mode, workers, (resize, resize) if resize else None
        self.shape = (len(paths), *self.decode(0).shape)

    def decode(self, row: int) -> Tensor:
        try:
            return decode(self.paths[row], self.size, self.mode)
        except UserError as error:
            raise UserError(f"{error}; data.skip_damaged=true leaves it out") from error

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        images = [self.decode(row) for row in rows.tolist()]
        if (mixed := next((i for i, image in enumerate(images) if image.shape != self.shape[1:]), None)) is not None:
            of = f"{self.paths[int(rows[mixed])]} is not the size of {self.paths[0]}"
            raise UserError(f"{of}; data.resize=32 makes them equal")
        return torch.stack(images) if images else torch.empty(0, *self.shape[1:], dtype=torch.uint8)


class Labelled(NamedTuple):
    """Images, uint8 [N, C, H, W], and their labels, int64 [N]."""

    images: Tensor | Files
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


class Rows:
    """Tensors [N, ...] of which so many rows are taken at once."""

    def __init__(self, data: tuple[Tensor | Files, ...]):
        self.data = data

    def __getitem__(self, rows: Tensor) -> Batch:
        return tuple(part.index_select(0, rows) for part in self.data)  # part[rows] takes ten times as long


class Batches:
    """Batches by one gather each of tensors [N, ...]. Without state: asked to, it starts at any batch of any epoch.

    `order(epoch)` returns the rows [N] to go through, `start()` the epoch and the batch to begin with. A global
    batch is `batch_size * ranks` rows long, which go to the ranks in turn.
    """

    def __init__(
        self,
        data: tuple[Tensor | Files, ...],
        order: Callable[[int], Tensor],
        start: Callable[[], tuple[int, int]],
        batch_size: int,
        length: int,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.rows, self.order, self.start = Rows(data), order, start
        self.workers = data[0].workers if isinstance(data[0], Files) else 0
        self.global_batch, self.length, self.rank, self.ranks = batch_size * ranks, length, rank, ranks

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self.start()  # not before the first batch is asked for, when the trainer knows its place
        blocks = self.order(epoch).to(self.rows.data[0].device).split(self.global_batch)[first : self.length]
        rows = [block[self.rank :: self.ranks] for block in blocks]
        workers = min(self.workers, len(rows)) if len(rows) > 1 else 0
        yield from fetched(self.rows, rows, workers) if workers else map(self.rows.__getitem__, rows)


def fetched(data: Rows, rows: list[Tensor], workers: int) -> Iterator[Batch]:
    """Take the rows of each batch in processes of their own, some batches ahead.

    Raises UserError: what one of them met.
    """
    options: dict[str, Any] = {"num_workers": workers, "generator": torch.Generator()}  # the default one stays as it is
    try:
        yield from torch.utils.data.DataLoader(data, batch_size=None, sampler=rows, **options)  # type: ignore[arg-type]
    except UserError as error:  # with the traceback of the worker
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
    except RuntimeError as error:
        if not re.search("exited unexpectedly|killed by signal", str(error)):
            raise
        raise UserError(f"data.num_workers={workers}: one has died ({error}); fewer take less memory") from error


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
        return (images * self.scale).add_(self.shift)


def moments(images: Tensor | Files, rows: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over images[rows], for pixels in 0 .. 1.

    The sums are integers, hence exact. A channel without any contrast gets the deviation of one grey level.
    """
    total = squares = torch.zeros(images.shape[1], dtype=torch.long)
    block = max(1, 2**24 // math.prod(images.shape[1:]))  # images at a time
    for (part,) in Batches((images,), lambda epoch: rows, lambda: (0, 0), block, len(rows)):
        pixels = part.int()
        total, squares = total + pixels.sum((0, 2, 3)), squares + pixels.square().sum((0, 2, 3))
    n = len(rows) * images.shape[2] * images.shape[3]
    mean = total.double() / n
    std = (squares.double() / n - mean.square()).clamp(min=0).sqrt().clamp(min=1.0)
    return (mean / 255).tolist(), (std / 255).tolist()
