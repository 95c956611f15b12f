"""The data module: from labeled images to batches that are ready for the network."""

import dataclasses
import functools
import hashlib
import math
import zlib
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from tricklab.augment import takes_originals, works_on_each
from tricklab.data.balance import SAMPLERS
from tricklab.data.batches import (
    WHOLE_RUN,
    Augmentations,
    Augmenter,
    Batch,
    Batches,
    DatasetSplits,
    LabeledImages,
    channel_mean_std,
)
from tricklab.data.inputs import InputSpec, Preprocess
from tricklab.data.progress import warn
from tricklab.data.splits import VAL_SIZE, Subsets, check_labels, hash_splits, split_dataset
from tricklab.duration import count_batches
from tricklab.errors import UserError
from tricklab.mixup import Mixed, identity
from tricklab.randomness import generator


class ImageData(pl.LightningDataModule):
    """Splits a data set, and turns its uint8 images into normalised batches on the device.

    Training batches are augmented images [B, C, H, W] and class indices [B], or target
    probabilities [B, K] if the batch is mixed; evaluation batches are clean images and class
    indices. For the options see conf/data/_options.yaml. Order, augmentation, mixing and label
    noise follow from `seed`. Raises UserError: a size or fold that the data do not have, labels
    without a class.
    """

    trainer: pl.Trainer

    def __init__(
        self,
        splits: DatasetSplits,
        batch_size: int = 128,
        val_size: int | float = VAL_SIZE,
        folds: int | None = None,
        fold: int = 0,
        train_size: int | float | None = None,
        split_seed: int = 0,
        label_noise: float = 0.0,
        drop_last: bool = False,
        input_channels: int | None = None,
        size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        fit: str | None = None,
        crop_fraction: float | None = None,
        interpolation: str | None = None,
        seed: int = 0,
        augment: Augmentations = MappingProxyType({}),
        mixup: Callable[[Tensor, Tensor, torch.Generator], Mixed] = identity,
        imbalance: float = 1,
        sampler: str = "shuffle",
    ):
        super().__init__()
        check_labels(splits)
        self.splits = splits
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.seed = seed
        self.sample = SAMPLERS[sampler]
        self.mixup = mixup
        # First mixed position (epoch, batch), and the first after; run/experiment.py sets it
        self.mixup_window = WHOLE_RUN
        subsets = split_dataset(
            splits, val_size, folds, fold, train_size, split_seed, label_noise, seed, imbalance
        )
        self._set_subsets(subsets)
        own_channels, *own_size = self.image_shape
        height, width = size or own_size
        shape = (input_channels or own_channels, height, width)
        mean, std = self._resolve_mean_std(subsets, mean, std, shape[0])
        resizing = (fit or "crop", crop_fraction or 1.0, interpolation or "bilinear")
        self._set_input(InputSpec(shape, mean, std, *resizing))
        self._set_augmentation(augment)
        self.one_hot = torch.eye(len(self.classes))
        self.digest = hash_splits(splits)
        self.warn_of_missing_classes()

    def _set_subsets(self, subsets: Subsets) -> None:
        """Set images and indices of training, of its clean part, and of validation."""
        self.train = LabeledImages(self.splits.train.images, subsets.labels)
        self.train_indices = subsets.train
        self.train_labels = subsets.labels[subsets.train]  # in use, with noise; stay on the CPU
        self.val = self.splits.val or self.splits.train  # labels without noise
        self.val_indices = subsets.val
        self.clean = self.train  # also evaluated without augmentation (train/acc_clean)
        self.clean_indices = subsets.clean
        if self.splits.fitted is None:
            return
        # Training images keep their aspect ratio: decode those that are evaluated once more
        if not self.splits.val:
            images = self.splits.fitted(subsets.val)
            self.val = LabeledImages(images, self.splits.train.labels[subsets.val])
            self.val_indices = torch.arange(len(subsets.val))
        images = self.splits.fitted(subsets.clean)
        self.clean = LabeledImages(images, subsets.labels[subsets.clean])
        self.clean_indices = torch.arange(len(subsets.clean))

    def _resolve_mean_std(
        self,
        subsets: Subsets,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        channels: int,
    ) -> tuple[list[float], list[float]]:
        """Return mean and std of each channel: those given, or else of the training images."""
        if mean is None or std is None:
            indices = self.clean_indices if self.splits.files else subsets.for_stats
            images: Any = self.clean.images
            own_mean, own_std = channel_mean_std(images, indices)
            mean = own_mean if mean is None else mean
            std = own_std if std is None else std
        for name, values in {"mean": mean, "std": std}.items():
            if len(values) not in (1, channels):
                numbers = f"one number, or one for each of the {channels} channels"
                raise UserError(f"data.{name}={list(values)}: expected {numbers}")
        return _repeat(mean, channels), _repeat(std, channels)

    def _set_augmentation(self, augment: Augmentations) -> None:
        """Divide the augmentations into those in the loader and those on the device.

        Those of original images come first. Whatever works image by image is left to the processes
        that load files, with all that precedes it.
        """
        size = self.shape[1:]
        originals = {}
        for name, step in augment.items():
            if takes_originals(step):
                originals[name] = functools.partial(cast(Any, step), size=size)
        others = {name: step for name, step in augment.items() if name not in originals}
        self.augment: Augmentations = originals | others
        loaded = len(originals)
        for number, step in enumerate(self.augment.values(), start=1):
            if works_on_each(step) and self.splits.files:
                loaded = max(loaded, number)
        steps = list(self.augment.items())
        # A number in [0, 1) for each image, the same in all epochs (augment=alternating_flip)
        per_image = torch.rand(len(self.train.labels), generator=generator(self.seed, "lasting"))
        options = (self.seed, self.batch_size, len(self.train_indices), per_image)
        self.augment_in_loader = Augmenter(dict(steps[:loaded]), *options)
        self.augment_on_device = Augmenter(dict(steps[loaded:]), *options)

    def _set_input(self, spec: InputSpec) -> None:
        """Preprocess images to a spec. Raises UserError: the images can't have its channels."""
        channels = self.image_shape[0]
        expected = spec.shape[0]
        if channels not in (1, expected):
            message = f"the network takes {expected} channels, the images have {channels}"
            raise UserError(f"{message}; data.mode may help")
        self.spec = spec
        self.shape, self.mean, self.std = spec[:3]
        self.preprocess = Preprocess(spec)

    @property
    def classes(self) -> list[str]:
        return self.splits.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape [C, H, W] of the images that are evaluated, before they are preprocessed."""
        images: Any = self.clean.images
        channels, height, width = images.shape[1:]
        return channels, height, width

    @property
    def fingerprint(self) -> str:
        """A hash of all images and labels, of training labels with noise, and of the input spec."""
        spec = [list(self.shape), list(map(float, self.mean)), list(map(float, self.std))]
        labels = zlib.crc32(self.train.labels.cpu().numpy().data)
        return hashlib.sha256(repr((self.digest, labels, spec)).encode()).hexdigest()[:16]

    @property
    def summary(self) -> str:
        """Number and size of images from files, and the network's input; else only if resized."""
        channels, height, width = self.shape
        size = f"{height} x {width} x {channels}"
        if self.splits.files:
            return f"images: {self.splits.files:,} files, {size} for the network"
        if self.shape != self.image_shape:
            own = " x ".join(map(str, (*self.image_shape[1:], self.image_shape[0])))
            return f"images {own}, {size} for the network"
        return ""

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata for checkpoints and config.yaml; `input` is the input shape of the network."""
        channels, height, width = self.image_shape
        return {
            "classes": self.classes,
            "channels": channels,
            "height": height,
            "width": width,
            "input": list(self.shape),
            "mean": self.mean,
            "std": self.std,
            "fit": self.spec.fit,
            "crop_fraction": self.spec.crop_fraction,
            "interpolation": self.spec.interpolation,
            "fingerprint": self.fingerprint,
        }

    def warn_of_missing_classes(self) -> None:
        """Warn of classes without a training image, as in a fold or with a small `train_size`."""
        present = set(self.splits.train.labels[self.train_indices].unique().tolist())
        missing = [name for label, name in enumerate(self.classes) if label not in present]
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            count = f"{len(missing)} of {len(self.classes)}"
            warn(f"{count} classes have no training image: {names}")

    def setup(self, stage: str) -> None:
        """Move constants to the device, and all images if they fit into half of its free memory."""
        device = self.trainer.strategy.root_device
        self.preprocess = self.preprocess.to(device)
        self.one_hot = self.one_hot.to(device)
        on_device = self.augment_on_device
        per_image = on_device.per_image.to(device)
        self.augment_on_device = dataclasses.replace(on_device, per_image=per_image)
        if device.type != "cuda":
            return
        data = [self.train, self.clean, self.val, self.splits.test]
        free_bytes, _ = torch.cuda.mem_get_info(device)
        if fits_in_memory(data, free_bytes / 2):
            self.train, self.clean, self.val, test = to_device(data, device)
            self.splits = self.splits._replace(test=test)
            self.augment_in_loader = dataclasses.replace(
                self.augment_in_loader, per_image=per_image
            )

    def train_dataloader(self) -> Batches:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        return self.training_batches(self._position, rank, ranks)

    def training_batches(
        self, start: Callable[[], tuple[int, int]], rank: int = 0, ranks: int = 1
    ) -> Batches:
        """Return the batches of an epoch in training order, from the position `start()` on."""
        n = len(self.train_indices)

        def order(epoch: int) -> Tensor:
            positions = self.sample(self.train_labels, generator(self.seed, "order", epoch))
            return self.train_indices[positions[: n - n % ranks]]  # the same number on each rank

        length = count_batches(n, self.batch_size, ranks, self.drop_last)
        augment = self.augment_in_loader
        options = (self.batch_size, length, rank, ranks, augment, self._image_bytes)
        return Batches(self.train, order, start, *options)

    def val_dataloader(self) -> list[Batches]:
        """Validation, and a fixed part of training without augmentation, with its noisy labels."""
        validation = self._in_order(self.val, self.val_indices, self.batch_size)
        return [validation, self._in_order(self.clean, self.clean_indices, self._clean_size())]

    def _clean_size(self) -> int:
        """Batch size of the clean training images.

        It is so small that a fraction `limit_val_batches` of their batches is at least one.
        """
        images = len(self.clean_indices)
        limit = self.trainer.limit_val_batches
        if isinstance(limit, float):
            images = max(1, int(images * limit / self.trainer.world_size))
        return min(self.batch_size, images)

    def test_dataloader(self) -> Batches:
        test = self.splits.test
        return self._in_order(test, torch.arange(len(test.labels)), self.batch_size)

    def _in_order(self, data: LabeledImages, indices: Tensor, batch_size: int) -> Batches:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        length = math.ceil(len(indices) / (batch_size * ranks))
        options = (batch_size, length, rank, ranks, None, self._image_bytes)
        return Batches(data, lambda epoch: indices, lambda: (0, 0), *options)

    @property
    def _image_bytes(self) -> int:
        """Bytes of an image that is loaded: of the data, or cropped for the network."""
        return max(math.prod(self.image_shape), math.prod(self.shape))

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        if batch[0].device == device:
            return batch
        return tuple(part.to(device, non_blocking=device.type == "cuda") for part in batch)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """From (images, labels, indices) of the loader to (images, targets) of the network."""
        if not self.trainer.training:
            images, labels, _indices = batch
            return self.preprocess(images), labels
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        return self.training_batch(batch, self._position(), rank, ranks)

    def training_batch(
        self, batch: Batch, position: tuple[int, int], rank: int = 0, ranks: int = 1
    ) -> Batch:
        """Augment, normalise and mix the part of `rank` of the batch at (epoch, batch)."""
        images, labels, indices = batch  # uint8 [B, C, H, W], [B], [B]
        images = self.augment_on_device(images, indices, position, rank, ranks)
        images = self.preprocess(images)
        first, end = self.mixup_window
        if self.mixup is identity or not first <= position < end:
            return images, labels
        targets = self.one_hot.index_select(0, labels)  # [B, K]
        return self.mixup(images, targets, generator(self.seed, "mix", *position, rank))

    def _position(self) -> tuple[int, int]:
        """Return the epoch and the batch in it that the trainer is at."""
        # Lightning counts a batch as ready after its transfer, so until then this is its index
        batch_progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return self.trainer.current_epoch, batch_progress.current.ready


def fits_in_memory(data: Sequence[LabeledImages], memory: float) -> bool:
    """Whether all images are tensors, of at most `memory` bytes in all; shared ones count once."""
    size = 0
    for images in {id(part.images): part.images for part in data}.values():
        if not isinstance(images, Tensor):
            return False
        size += images.numel()
    return size <= memory


def to_device(data: Sequence[LabeledImages], device: torch.device) -> list[LabeledImages]:
    """Return the data on a device; tensors that several of them share are still shared there."""
    moved = {}
    for part in data:
        for tensor in part:
            if isinstance(tensor, Tensor) and id(tensor) not in moved:
                moved[id(tensor)] = tensor.to(device)
    return [LabeledImages(moved[id(part.images)], moved[id(part.labels)]) for part in data]


def _repeat(values: Sequence[float], channels: int) -> list[float]:
    return list(values) if len(values) == channels else [float(values[0])] * channels
