"""From images in memory to batches that are ready for the network."""

import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tricklab.data.split import corrupt, count, nth_fold, stratified_order
from tricklab.duration import Length, count_batches, to_steps
from tricklab.errors import UserError
from tricklab.mixup import Mixed, identity
from tricklab.randomness import Rand, generator

Batch = tuple[Tensor, ...]
Place = tuple[float, int]  # an epoch, and a batch in it
CLEAN = 2000  # training images that are also evaluated as they are, at most


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


class ImageData(pl.LightningDataModule):
    """Splits a source, and turns its uint8 images into normalised batches on the device.

    Training batches are images [B, C, H, W] and target probabilities [B, K], augmented and mixed; evaluation
    batches are clean images and class indices [B].

    Args:
        source: the images.
        batch_size: images a batch and process.
        val_size: images taken from training for validation: a number, or a share below 1. Stratified.
        folds: take validation as one of so many equal parts instead, to cross-validate.
        fold: which of them, from 0.
        train_size: images left for training after that, likewise; None means all. Stratified.
        split_seed: the seed of these two choices, apart from the seed of the run.
        label_noise: share of the training labels that is made wrong, chosen by `seed`.
        drop_last: leave out the last batch of an epoch when it is not full.
        seed: the seed of the run: order, augmentation, mixing and label noise follow from it.
        augment: by name, each `augment(images, rand)`, see `tricklab.augment`.
        mixup: `mixup(images, targets, generator)`, see `tricklab.mixup`.

    Raises:
        UserError: a size or a fold that the data do not have.
    """

    trainer: pl.Trainer

    def __init__(
        self,
        source: Source,
        batch_size: int = 128,
        val_size: int | float = 0.1,
        folds: int | None = None,
        fold: int = 0,
        train_size: int | float | None = None,
        split_seed: int = 0,
        label_noise: float = 0.0,
        drop_last: bool = False,
        seed: int = 0,
        augment: Mapping[str, Callable[[Tensor, Rand], Tensor]] = MappingProxyType({}),
        mixup: Callable[[Tensor, Tensor, torch.Generator], Mixed] = identity,
    ):
        super().__init__()
        self.source, self.classes = source, source.classes
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self.augment, self.mixup = augment, mixup
        self.mixing: tuple[Place, Place] = (0, 0), (math.inf, 0)
        images, labels = source.train
        train = torch.arange(len(labels))
        self.val = source.val or source.train
        if source.val:
            self.val_rows = torch.arange(len(source.val.labels))
        elif folds:
            self.val_rows, train = nth_fold(stratified_order(labels, split_seed, "val"), folds, fold)
        else:
            taken = count(val_size, len(labels) - 1, "data.val_size")
            self.val_rows, train = stratified_order(labels, split_seed, "val").tensor_split([taken])
        if train_size is not None:
            kept = count(train_size, len(train), "data.train_size")
            train = train[stratified_order(labels[train], split_seed, "train")[:kept]]
        self.train_rows = train
        noisy = labels.clone()
        noisy[train] = corrupt(labels[train], label_noise, len(self.classes), seed)
        self.train = Labelled(images, noisy)
        self.lasting = torch.rand(len(labels), generator=generator(seed, "lasting"))
        self.clean_rows = train[stratified_order(labels[train], split_seed, "clean")[:CLEAN]]
        channels, height, width = images.shape[1:]
        self.adapt(Images((channels, height, width), *moments(images, train)))

    def adapt(self, images: Images) -> None:
        """Make batches of what a network takes.

        Raises:
            UserError: a number of channels that the images can't be given.
        """
        channels, wanted = self.train.images.shape[1], images.shape[0]
        if channels not in (1, wanted):
            raise UserError(f"model.weights take {wanted} channels, the images have {channels}; data.mode may help")
        self.shape, self.mean, self.std = images
        self.prepare = Preparation(images)

    def mix_between(self, begin: Any, end: Any, length: Length, accumulate: int) -> None:
        """Mix from the step `begin` on and before the step `end`.

        Raises:
            UserError: there is no step between them.
        """
        steps = [to_steps(duration, length) for duration in (begin, end)]
        if not 0 <= steps[0] < steps[1] <= length.steps:
            raise UserError(f"mixup.begin={begin} mixup.end={end} of {length.steps} steps; allowed: begin before end")
        first, last = (divmod(step, length.epoch) for step in steps)
        self.mixing = (first[0], first[1] * accumulate), (last[0], last[1] * accumulate)

    @property
    def facts(self) -> dict[str, Any]:
        """What a checkpoint needs to be told about the images; `input` is the shape that the network takes."""
        channels, height, width = self.train.images.shape[1:]
        size = {"channels": channels, "height": height, "width": width, "input": list(self.shape)}
        return {"classes": self.classes, **size, "mean": self.mean, "std": self.std}

    def setup(self, stage: str) -> None:
        self.prepare.to(self.trainer.strategy.root_device)

    def train_dataloader(self) -> Batches:
        return self.training_batches(self._place, self.trainer.global_rank, self.trainer.world_size)

    def training_batches(self, start: Callable[[], tuple[int, int]], rank: int = 0, ranks: int = 1) -> Batches:
        """Batches of uint8 images and labels in the order of training, beginning at `start()`."""
        length = count_batches(len(self.train_rows), self.batch_size, ranks, self.drop_last)
        shared = len(self.train_rows) - len(self.train_rows) % ranks

        def order(epoch: int) -> Tensor:
            source = generator(self.seed, "order", epoch)
            return self.train_rows[torch.randperm(len(self.train_rows), generator=source)[:shared]]

        return Batches((*self.train, self.lasting), order, start, self.batch_size, length, rank, ranks)

    def val_dataloader(self) -> list[Batches]:
        """Validation, and a fixed part of training without augmentation and mixing."""
        return [self._in_order(self.val, self.val_rows), self._in_order(self.train, self.clean_rows)]

    def test_dataloader(self) -> Batches:
        return self._in_order(self.source.test, torch.arange(len(self.source.test.labels)))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if not self.trainer.training:
            return self.prepare(batch[0]), batch[1]
        return self.training_batch(batch, self._place(), self.trainer.global_rank, self.trainer.world_size)

    def training_batch(self, batch: Batch, place: tuple[int, int], rank: int = 0, ranks: int = 1) -> Batch:
        """Augment, normalise and mix images: part `rank` of `ranks` of a batch.

        Args:
            batch: images, uint8 [B, C, H, W], labels [B], and a number for each image [B], see `Rand.lasting`.
            place: its epoch and its number in it, from which the random numbers follow.
            rank: of this process.
            ranks: how many there are.

        Returns:
            Images, float32 [B, C, H, W], and target probabilities [B, K].
        """
        images, labels, lasting = batch
        shared = len(self.train_rows) - len(self.train_rows) % ranks
        in_global_batch = min(self.batch_size * ranks, shared - place[1] * self.batch_size * ranks)
        for name, change in self.augment.items():
            source = generator(self.seed, f"augment {name}", *place, device=images.device)
            images = change(images, Rand(source, in_global_batch, rank, ranks, place[0], lasting))
        images = self.prepare(images)
        targets = F.one_hot(labels, len(self.classes)).float()  # [B, K]
        if not self.mixing[0] <= place < self.mixing[1]:
            return images, targets
        return self.mixup(images, targets, generator(self.seed, "mix", *place, rank))

    def _in_order(self, data: Labelled, rows: Tensor) -> Batches:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        length = math.ceil(len(rows) / (self.batch_size * ranks))
        return Batches(data, lambda epoch: rows, lambda: (0, 0), self.batch_size, length, rank, ranks)

    def _place(self) -> tuple[int, int]:
        """Epoch, and batch of this epoch, that the trainer is at."""
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready


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
