"""From images in memory to batches that are ready for the network."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from tricklab.augment import none
from tricklab.data.split import corrupt, count, nth_fold, stratified_order
from tricklab.duration import count_batches
from tricklab.mixup import Mixed, identity
from tricklab.randomness import Rand, generator, per_image

Batch = tuple[Tensor, Tensor]


class Labelled(NamedTuple):
    """Images, uint8 [N, C, H, W], and their labels, int64 [N]."""

    images: Tensor
    labels: Tensor


class Source(NamedTuple):
    """What a data set is read into. Without a validation part of its own it gets one from training."""

    train: Labelled
    test: Labelled
    classes: list[str]
    val: Labelled | None = None


class Batches:
    """Batches by one gather each. Without state: asked to, it starts at any batch of any epoch.

    `order(epoch)` returns the rows [N] to go through, `start()` the epoch and the batch to begin with. A global
    batch is `batch_size * ranks` rows long, which go to the ranks in turn.
    """

    def __init__(
        self,
        data: Labelled,
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
            yield self.data.images[rows], self.data.labels[rows]


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
        augment: `augment(images, rand)`, see `tricklab.augment`.
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
        augment: Callable[[Tensor, Rand], Tensor] = none,
        mixup: Callable[[Tensor, Tensor, torch.Generator], Mixed] = identity,
    ):
        super().__init__()
        self.source, self.classes = source, source.classes
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self.augment, self.mixup = augment, mixup
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
        self.mean, self.std = moments(images, train)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def setup(self, stage: str) -> None:
        device = self.trainer.strategy.root_device
        scale = 1 / (255 * torch.tensor(self.std, dtype=torch.double))
        shift = -torch.tensor(self.mean, dtype=torch.double) * 255 * scale
        self.scale, self.shift = (x.float().view(1, -1, 1, 1).to(device) for x in (scale, shift))

    def train_dataloader(self) -> Batches:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        length = count_batches(len(self.train_rows), self.batch_size, ranks, self.drop_last)
        return Batches(self.train, self._shuffled, self._place, self.batch_size, length, rank, ranks)

    def val_dataloader(self) -> Batches:
        return self._in_order(self.val, self.val_rows)

    def test_dataloader(self) -> Batches:
        return self._in_order(self.source.test, torch.arange(len(self.source.test.labels)))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        images, labels = batch  # uint8 [B, C, H, W], [B]
        if not self.trainer.training:
            return self.normalise(images), labels
        place, rank, ranks = self._place(), self.trainer.global_rank, self.trainer.world_size
        in_global_batch = min(self.batch_size * ranks, self._shared() - place[1] * self.batch_size * ranks)
        source = generator(self.seed, "augment", *place, device=images.device)
        images = self.normalise(self.augment(images, per_image(source, in_global_batch, rank, ranks)))
        targets = F.one_hot(labels, len(self.classes)).float()  # [B, K]
        return self.mixup(images, targets, generator(self.seed, "mix", *place, rank))

    def normalise(self, images: Tensor) -> Tensor:
        """Shift and scale images of 0 .. 255 to mean 0 and standard deviation 1 over the training set."""
        return images.float() * self.scale + self.shift

    def _in_order(self, data: Labelled, rows: Tensor) -> Batches:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        length = math.ceil(len(rows) / (self.batch_size * ranks))
        return Batches(data, lambda epoch: rows, lambda: (0, 0), self.batch_size, length, rank, ranks)

    def _shuffled(self, epoch: int) -> Tensor:
        order = torch.randperm(len(self.train_rows), generator=generator(self.seed, "order", epoch))
        return self.train_rows[order[: self._shared()]]

    def _shared(self) -> int:
        """Training images of an epoch, as many for each rank: the ranks' gradients have the same weight."""
        return len(self.train_rows) - len(self.train_rows) % self.trainer.world_size

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
