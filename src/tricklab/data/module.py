"""From images in memory to batches that are ready for the network."""

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from tricklab.data.batches import (
    Batch,
    Batches,
    DatasetSplits,
    ImageFiles,
    InputSpec,
    LabeledImages,
    Preprocess,
    channel_mean_std,
)
from tricklab.data.progress import warn
from tricklab.data.splits import add_label_noise, resolve_size, split_rows, stratified_order
from tricklab.duration import Length, count_batches, to_steps
from tricklab.errors import UserError
from tricklab.mixup import Mixed, identity
from tricklab.randomness import Rand, generator

STATS_IMAGES = 100_000  # training images whose mean and deviation are taken, at most


class ImageData(pl.LightningDataModule):
    """Splits a source, and turns its uint8 images into normalised batches on the device.

    Training batches are images [B, C, H, W], augmented and mixed, and target probabilities [B, K], or with
    `integer_targets` class indices [B] where nothing is mixed; evaluation batches are clean images and class indices. For the options see
    conf/data/_options.yaml. Order, augmentation, mixing and label noise follow from `seed`. Raises UserError: a size or
    fold that there is not, labels without a class.
    """

    trainer: pl.Trainer

    def __init__(
        self,
        source: DatasetSplits,
        batch_size: int = 128,
        val_size: int | float = 0.1,
        folds: int | None = None,
        fold: int = 0,
        train_size: int | float | None = None,
        split_seed: int = 0,
        label_noise: float = 0.0,
        drop_last: bool = False,
        seed: int = 0,
        augment: Mapping[str, Callable[[Tensor, Rand], Tensor]] = {},
        mixup: Callable[[Tensor, Tensor, torch.Generator], Mixed] = identity,
        integer_targets: bool = False,
    ):
        super().__init__()
        self.splits, self.classes, self.seed = source, source.classes, seed
        self.batch_size, self.drop_last, self.augment, self.mixup = (
            batch_size,
            drop_last,
            augment,
            mixup,
        )
        self.integer_targets = integer_targets
        self.mixup_window: tuple[tuple[float, int], ...] = (
            (0, 0),
            (math.inf, 0),
        )  # first epoch and batch, and those after it
        check_labels(source)
        images, labels = source.train
        self.val = source.val or source.train
        train, self.val_indices = split_rows(source, val_size, folds, fold, split_seed)
        if train_size is not None:
            kept = resolve_size(train_size, len(train), "data.train_size")
            train = train[stratified_order(labels[train], split_seed, "train")[:kept]]
        self.train_indices = train
        noisy = labels.index_copy(
            0, train, add_label_noise(labels[train], label_noise, len(self.classes), seed)
        )
        self.train = LabeledImages(images, noisy)
        self.one_hot = torch.eye(len(self.classes))
        self.lasting = torch.rand(len(labels), generator=generator(seed, "lasting"))
        spread = train[stratified_order(labels[train], split_seed, "clean")]
        self.clean_indices = spread[:2000]  # which are also evaluated as they are
        channels, height, width = images.shape[1:]
        own = InputSpec((channels, height, width), *channel_mean_std(images, spread[:STATS_IMAGES]))
        self.identity = identify(source)
        self.match_input_spec(own)
        self.warn_of_missing_classes()

    @property
    def fingerprint(self) -> str:
        """A hash of all images and labels, of the labels that are learned, and of what the network takes."""
        network = [list(self.shape), list(map(float, self.mean)), list(map(float, self.std))]
        facts = (self.identity, zlib.crc32(self.train.labels.cpu().numpy().data), network)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    @property
    def summary(self) -> str:
        """The size of the images, and that for the network; empty where they are arrays and stay as they are."""
        channels, height, width = self.train.images.shape[1:]
        files = f" from {self.splits.files:,} files" if self.splits.files else ""
        other = [*self.shape] != [channels, height, width]
        network = f", {' x '.join(map(str, (*self.shape[1:], self.shape[0])))} for the network"
        summary = f"images {height} x {width} x {channels}{files}{network if other else ''}"
        return summary if files or other else ""

    def warn_of_missing_classes(self) -> None:
        """Name the classes without a training image, as in a fold or a small `train_size`."""
        present = set(self.splits.train.labels[self.train_indices].tolist())
        if names := [name for label, name in enumerate(self.classes) if label not in present]:
            some = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            warn(f"{len(names)} of {len(self.classes)} classes have no training image: {some}")

    def check_upscaling(self, side: int) -> None:
        """Raise UserError: files are decoded at less than half of the side that the weights of a network expect."""
        resize = self.splits.resize
        if resize and side > 2 * resize:
            raise UserError(
                f"data.resize={resize}: model.weights expect images of {side} pixels a side; allowed: "
                f"data.resize={side}, {math.ceil(side / 2)} or more, or null for images of one size as they are"
            )

    def match_input_spec(self, images: InputSpec) -> None:
        """Make batches of what a network takes. Raises UserError: channels that the images can't be given."""
        channels, wanted = self.train.images.shape[1], images.shape[0]
        if channels not in (1, wanted):
            raise UserError(
                f"model.weights take {wanted} channels, the images have {channels}; data.mode may help"
            )
        self.shape, self.mean, self.std = images
        self.preprocess = Preprocess(images)

    def set_mixup_window(self, begin: Any, end: Any, length: Length, accumulate: int) -> None:
        """Mix from the step `begin` on and before the step `end`. Raises UserError: there is no step between them."""
        steps = to_steps(begin, length, most=length.steps - 1), to_steps(end, length)
        if not 0 <= steps[0] < steps[1] <= length.steps:
            said = f"mixup.begin={begin} mixup.end={end} are the steps {steps[0]} and {steps[1]}"
            raise UserError(f"{said}; allowed: the one before the other, in 0 to {length.steps}")
        self.mixup_window = tuple(
            (step // length.epoch, step % length.epoch * accumulate) for step in steps
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """What a checkpoint needs to be told about the images; `input` is the shape that the network takes."""
        size = dict(zip(("channels", "height", "width"), self.train.images.shape[1:], strict=True))
        network = {"input": list(self.shape), "mean": self.mean, "std": self.std}
        return {"classes": self.classes, **size, **network, "fingerprint": self.fingerprint}

    def setup(self, stage: str) -> None:
        """Move what each step needs to the device; all images too, where they fit into half of what a GPU has free."""
        device = self.trainer.strategy.root_device
        self.preprocess, self.one_hot = self.preprocess.to(device), self.one_hot.to(device)
        self.lasting = self.lasting.to(device)
        parts = [self.train, self.val, self.splits.test]
        if device.type == "cuda" and fit(parts, torch.cuda.mem_get_info(device)[0] / 2):
            self.train, self.val, test = moved(parts, device)
            self.splits = self.splits._replace(test=test)

    def train_dataloader(self) -> Batches:
        return self.training_batches(
            self._position, self.trainer.global_rank, self.trainer.world_size
        )

    def training_batches(
        self, start: Callable[[], tuple[int, int]], rank: int = 0, ranks: int = 1
    ) -> Batches:
        """Batches of uint8 images, labels and numbers of rows in the order of training, beginning at `start()`."""
        rows, n = self.train_indices, len(self.train_indices)
        length = count_batches(n, self.batch_size, ranks, self.drop_last)

        def order(epoch: int) -> Tensor:
            return rows[
                torch.randperm(n, generator=generator(self.seed, "order", epoch))[: n - n % ranks]
            ]

        return Batches(self.train, order, start, self.batch_size, length, rank, ranks)

    def val_dataloader(self) -> list[Batches]:
        """Validation, and a fixed part of training without augmentation and mixing, labels as they are learned."""
        part, rows = self.trainer.limit_val_batches, len(self.clean_indices)
        few = (
            max(1, int(rows * part / self.trainer.world_size)) if isinstance(part, float) else rows
        )
        clean = self._in_order(
            self.train, self.clean_indices, min(self.batch_size, few)
        )  # `part` of them is one at least
        return [self._in_order(self.val, self.val_indices, self.batch_size), clean]

    def test_dataloader(self) -> Batches:
        return self._in_order(
            self.splits.test, torch.arange(len(self.splits.test.labels)), self.batch_size
        )

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        if batch[0].device == device:
            return batch
        return tuple(part.to(device, non_blocking=device.type == "cuda") for part in batch)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if not self.trainer.training:
            return self.preprocess(batch[0]), batch[1]
        return self.training_batch(
            batch, self._position(), self.trainer.global_rank, self.trainer.world_size
        )

    def training_batch(
        self, batch: Batch, place: tuple[int, int], rank: int = 0, ranks: int = 1
    ) -> Batch:
        """Augment, normalise and mix part `rank` of `ranks` of the batch at `place`: an epoch, and a number in it."""
        images, labels, rows = batch  # uint8 [B, C, H, W], [B], [B]
        size, n = self.batch_size * ranks, len(self.train_indices)
        size = min(size, n - n % ranks - place[1] * size)
        lasting = self.lasting.index_select(0, rows) if self.augment else None
        for name, change in self.augment.items():
            source = generator(self.seed, f"augment {name}", *place, device=images.device)
            images = change(images, Rand(source, size, rank, ranks, place[0], lasting))
        images = self.preprocess(images)  # float32 [B, C, H, W]
        mixed = self.mixup is not identity and self.mixup_window[0] <= place < self.mixup_window[1]
        if self.integer_targets and not mixed:
            return images, labels
        targets = self.one_hot.index_select(0, labels)  # [B, K]
        return (
            self.mixup(images, targets, generator(self.seed, "mix", *place, rank))
            if mixed
            else (images, targets)
        )

    def _in_order(self, data: LabeledImages, rows: Tensor, batch_size: int) -> Batches:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        length = math.ceil(len(rows) / (batch_size * ranks))
        return Batches(data, lambda epoch: rows, lambda: (0, 0), batch_size, length, rank, ranks)

    def _position(self) -> tuple[int, int]:
        """Epoch, and batch of this epoch, that the trainer is at."""
        return (
            self.trainer.current_epoch,
            self.trainer.fit_loop.epoch_loop.batch_progress.current.ready,
        )


def identify(source: DatasetSplits) -> str:
    """Return a hash that changes with any pixel or label, or with the files that they come from."""
    labels = [zlib.crc32(part.labels.numpy().data) for part in source.parts]
    images = [identify_images(part.images) for part in ([] if source.identity else source.parts)]
    return repr((source.identity, labels, images))


def identify_images(images: Tensor | ImageFiles) -> str:
    if isinstance(images, ImageFiles):
        return images.identity
    return f"{zlib.crc32(images.contiguous().numpy().data):08x}"


def check_labels(source: DatasetSplits) -> None:
    """See that each label is that of a class, of which there are several. Raises UserError: one is not."""
    classes = len(source.classes)
    if classes < 2:
        raise UserError(f"data: {classes} class ({', '.join(source.classes)}); allowed: 2 or more")
    for part, data in zip(
        ("training", "test", "validation"), (source.train, source.test, source.val), strict=True
    ):
        if data and not (
            len(data.labels) and 0 <= data.labels.min() <= data.labels.max() < classes
        ):
            said = (
                f"from {data.labels.min()} to {data.labels.max()}" if len(data.labels) else "none"
            )
            raise UserError(
                f"data: {part} labels: {said}; allowed: from 0 to {classes - 1}, that of each image"
            )


def fit(parts: Sequence[LabeledImages], memory: float) -> bool:
    """Whether their images are no files, and take no more than so many bytes."""
    images = {id(part.images): part.images for part in parts}.values()
    return (
        not any(isinstance(i, ImageFiles) for i in images)
        and sum(math.prod(i.shape) for i in images) <= memory
    )


def moved(parts: Sequence[LabeledImages], device: torch.device) -> list[LabeledImages]:
    """Return them on a device; what several share is there once."""
    there = {
        id(tensor): tensor.to(device)
        for part in parts
        for tensor in part
        if isinstance(tensor, Tensor)
    }
    return [LabeledImages(*(there[id(tensor)] for tensor in part)) for part in parts]
