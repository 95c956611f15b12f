"""Labeled images, and the batches that are gathered from them."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tricklab.data.image_files import ImageFiles
from tricklab.data.kept import KeptImages
from tricklab.data.prefetch import prefetch
from tricklab.data.progress import with_progress
from tricklab.data.shared_memory import prefetch_tensors
from tricklab.duration import Length, to_steps
from tricklab.errors import UserError
from tricklab.randomness import Rand, generator

Batch = tuple[Tensor, ...]
Position = tuple[float, int]  # an epoch and a batch in it, both counted from 0
Window = tuple[Position, Position]  # the first batch, and the first one after the last
LEVELS = 256  # of a pixel
WHOLE_RUN: Window = ((0, 0), (math.inf, 0))

Images = Tensor | ImageFiles | KeptImages
Augmentations = Mapping[str, Callable[[Any, Rand], Tensor]]


class LabeledImages(NamedTuple):
    """Images, uint8 [N, C, H, W] or of several sizes, and their labels, int64 [N]."""

    images: Images
    labels: Tensor


class DatasetSplits(NamedTuple):
    """The splits that a data set comes with. Without `val`, validation is split off from training.

    Of images that are read from files, `files` is their number, and `digest` a hash of names, sizes
    and times. If training images keep their aspect ratio, `fitted(indices)` returns some of them
    as evaluation sees them, all of one size. `groups` [N] are those of the training images, which
    are not divided between training and validation. `left_out` names further classes.
    """

    train: LabeledImages
    test: LabeledImages
    classes: list[str]
    val: LabeledImages | None = None
    files: int = 0
    digest: str = ""
    fitted: Callable[[Tensor], Tensor | ImageFiles] | None = None
    groups: Tensor | None = None
    left_out: Sequence[str] = ()

    @property
    def parts(self) -> list[LabeledImages]:
        return [part for part in (self.train, self.test, self.val) if part]


@dataclass(eq=False)
class Augmenter:
    """Augments the images of a batch, with random numbers that follow from its position.

    Args:
        steps: augmentations by name, in order.
        seed: of the run.
        batch_size: of each rank.
        images: number of images of an epoch.
        per_image: a number for each image that is the same in all epochs [N].
    """

    steps: Augmentations
    seed: int
    batch_size: int
    images: int
    per_image: Tensor

    def __call__(
        self, images: Any, indices: Tensor, position: tuple[int, int], rank: int, ranks: int
    ) -> Tensor:
        """Return the images [B, C, H, W] of `rank`, with random numbers of the global batch."""
        epoch, batch_idx = position
        full_size = self.batch_size * ranks
        remaining = self.images - self.images % ranks - batch_idx * full_size
        global_size = min(full_size, remaining)
        per_image = self.per_image.index_select(0, indices)
        for name, step in self.steps.items():
            rng = generator(self.seed, f"augment {name}", *position, device=indices.device)
            images = step(images, Rand(rng, global_size, rank, ranks, epoch, per_image))
        return images


class Task(NamedTuple):
    """Indices [B] of the images of a batch, and its position."""

    indices: Tensor
    position: tuple[int, int]


def load_images(
    images: Images, augment: Augmenter | None, rank: int, ranks: int, task: Task
) -> Tensor:
    """Return augmented images [B, C, H, W]."""
    # index_select takes a tenth of the time of images[indices]
    batch: Any = images.index_select(0, task.indices)
    if augment and augment.steps:
        batch = augment(batch, task.indices, task.position, rank, ranks)
    return batch


def load_bytes(
    load_task: Callable[[Task], Tensor], task: Task
) -> tuple[list[Tensor], tuple[torch.dtype, torch.Size]]:
    """Return the images of a task as flat bytes, with their type and shape."""
    batch = load_task(task)
    return [batch.flatten().view(torch.uint8)], (batch.dtype, batch.shape)


@dataclass(eq=False)
class Batches:
    """A loader whose batches are images [B, C, H, W], labels [B] and their indices [B].

    Stateless, so that training resumes at any batch of any epoch: `order(epoch)` returns the
    indices [N] of an epoch, `start()` the epoch and the batch to begin with. A global batch holds
    `batch_size * ranks` images, which are dealt to the ranks in turn. `augment` is applied where
    images are loaded. `image_bytes` is the size of an image that is loaded, 1 byte a pixel.
    """

    data: LabeledImages
    order: Callable[[int], Tensor]
    start: Callable[[], tuple[int, int]]
    batch_size: int
    length: int
    rank: int = 0
    ranks: int = 1
    augment: Augmenter | None = None
    image_bytes: int = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        # a generator: `start` is called for the first batch, when the trainer knows its position
        epoch, first = self.start()
        images = self.data.images
        indices = self.order(epoch).to(images.device)
        global_batches = indices.split(self.batch_size * self.ranks)[: self.length]
        tasks = []
        for batch_idx, batch in enumerate(global_batches):
            tasks.append(Task(batch[self.rank :: self.ranks], (epoch, batch_idx)))
        load = functools.partial(load_images, images, self.augment, self.rank, self.ranks)
        labels = self.data.labels
        remaining = tasks[first:]
        for task, batch in zip(remaining, self._prefetch(load, remaining), strict=True):
            yield batch, labels.index_select(0, task.indices), task.indices

    def _prefetch(self, load: Callable[[Task], Tensor], tasks: Sequence[Task]) -> Iterator[Tensor]:
        """Yield the images of each task, loaded by worker processes if they are in files."""
        workers = count_workers(self.data.images)
        if not workers:
            yield from map(load, tasks)
            return
        load_flat = functools.partial(load_bytes, load)
        size = self.batch_size * self.image_bytes
        for flat, (dtype, shape) in prefetch_tensors(load_flat, tasks, workers, size):
            yield flat.view(dtype).view(shape)


def count_workers(images: Images) -> int:
    """Return the number of processes that load images; 0 for a tensor."""
    return 0 if isinstance(images, Tensor) else images.workers


def channel_mean_std(
    images: Tensor | ImageFiles, indices: Tensor
) -> tuple[list[float], list[float]]:
    """Return mean and std of each channel over images[indices], for pixels in 0 .. 1.

    The sums are integers, hence exact. The std of a constant channel is one grey level, not 0.
    """
    counts = torch.zeros(images.shape[1], LEVELS, dtype=torch.long)  # of each grey level
    images_per_block = max(1, 2**22 // math.prod(images.shape[1:]))
    read: Any = functools.partial(images.index_select, 0)
    blocks = prefetch(read, indices.split(images_per_block), count_workers(images))
    for block in with_progress(blocks, len(indices), "mean and std"):
        for channel, pixels in zip(counts, block.unbind(1), strict=True):
            channel += pixels.flatten().bincount(minlength=LEVELS)
    level = torch.arange(LEVELS)
    n = len(indices) * images.shape[2] * images.shape[3]
    mean = (counts * level).sum(1).double() / n
    squares = (counts * level.square()).sum(1).double()
    std = (squares / n - mean.square()).clamp(min=0).sqrt().clamp(min=1.0)
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
