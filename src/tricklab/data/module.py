"""The data module: from labeled images to batches that are ready for the network."""

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from tricklab.data.balance import SAMPLERS
from tricklab.data.batches import (
    WHOLE_RUN,
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
from tricklab.data.splits import VAL_SIZE, Subsets, check_labels, hash_splits, split_dataset
from tricklab.duration import count_batches
from tricklab.errors import UserError
from tricklab.mixup import Mixed, identity
from tricklab.randomness import Rand, generator

MAX_UPSCALING = 2  # from the side of decoded files to that which weights expect


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
        seed: int = 0,
        augment: Mapping[str, Callable[[Tensor, Rand], Tensor]] = {},
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
        self.augment = augment
        self.mixup = mixup
        # First mixed position (epoch, batch), and the first after; run/experiment.py sets it
        self.mixup_window = WHOLE_RUN
        subsets = split_dataset(
            splits, val_size, folds, fold, train_size, split_seed, label_noise, seed, imbalance
        )
        self._set_subsets(subsets)
        self.one_hot = torch.eye(len(self.classes))
        # A number in [0, 1) for each image, the same in all epochs (augment=alternating_flip)
        self.per_image = torch.rand(len(self.train.labels), generator=generator(seed, "lasting"))
        self.digest = hash_splits(splits)
        self.warn_of_missing_classes()

    def _set_subsets(self, subsets: Subsets) -> None:
        """Set images and indices of training and validation, and the input spec that follows."""
        images = self.splits.train.images
        self.train = LabeledImages(images, subsets.labels)
        self.train_indices = subsets.train
        self.train_labels = subsets.labels[subsets.train]  # in use, with noise; stay on the CPU
        self.clean_indices = subsets.clean  # also evaluated without augmentation (train/acc_clean)
        self.val = self.splits.val or self.splits.train  # labels without noise
        self.val_indices = subsets.val
        channels, height, width = images.shape[1:]
        mean, std = channel_mean_std(images, subsets.for_stats)
        self.match_input_spec(InputSpec((channels, height, width), mean, std))

    @property
    def classes(self) -> list[str]:
        return self.splits.classes

    @property
    def fingerprint(self) -> str:
        """A hash of all images and labels, of training labels with noise, and of the input spec."""
        spec = [list(self.shape), list(map(float, self.mean)), list(map(float, self.std))]
        labels = zlib.crc32(self.train.labels.cpu().numpy().data)
        return hashlib.sha256(repr((self.digest, labels, spec)).encode()).hexdigest()[:16]

    @property
    def summary(self) -> str:
        """Size of the images and of the network's input; empty for arrays that are not resized."""
        channels, height, width = self.train.images.shape[1:]
        summary = f"images {height} x {width} x {channels}"
        resized = tuple(self.shape) != (channels, height, width)
        if not self.splits.files and not resized:
            return ""
        if self.splits.files:
            summary += f" from {self.splits.files:,} files"
        if resized:
            channels, height, width = self.shape
            summary += f", {height} x {width} x {channels} for the network"
        return summary

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata for checkpoints and config.yaml; `input` is the input shape of the network."""
        channels, height, width = self.train.images.shape[1:]
        return {
            "classes": self.classes,
            "channels": channels,
            "height": height,
            "width": width,
            "input": list(self.shape),
            "mean": self.mean,
            "std": self.std,
            "fingerprint": self.fingerprint,
        }

    def warn_of_missing_classes(self) -> None:
        """Warn of classes without a training image, as in a fold or with a small `train_size`."""
        present = set(self.splits.train.labels[self.train_indices].tolist())
        missing = [name for label, name in enumerate(self.classes) if label not in present]
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            count = f"{len(missing)} of {len(self.classes)}"
            warn(f"{count} classes have no training image: {names}")

    def check_upscaling(self, side: int) -> None:
        """Raise UserError if weights expect images of more than twice the side of decoded files."""
        size = self.splits.size
        if size and side > MAX_UPSCALING * size:
            least = math.ceil(side / MAX_UPSCALING)
            raise UserError(
                f"data.size={size}: model.weights expect images of {side} pixels a side. "
                f"Expected data.size={least} or more, best {side}, or null for images of one size"
            )

    def match_input_spec(self, spec: InputSpec) -> None:
        """Preprocess images to a spec. Raises UserError: the images can't have its channels."""
        channels = self.train.images.shape[1]
        expected = spec.shape[0]
        if channels not in (1, expected):
            message = f"model.weights take {expected} channels, the images have {channels}"
            raise UserError(f"{message}; data.mode may help")
        self.shape, self.mean, self.std = spec
        self.preprocess = Preprocess(spec)

    def setup(self, stage: str) -> None:
        """Move constants to the device, and all images if they fit into half of its free memory."""
        device = self.trainer.strategy.root_device
        self.preprocess = self.preprocess.to(device)
        self.one_hot = self.one_hot.to(device)
        self.per_image = self.per_image.to(device)
        if device.type != "cuda":
            return
        data = [self.train, self.val, self.splits.test]
        free_bytes, _ = torch.cuda.mem_get_info(device)
        if fits_in_memory(data, free_bytes / 2):
            self.train, self.val, test = to_device(data, device)
            self.splits = self.splits._replace(test=test)

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
        return Batches(self.train, order, start, self.batch_size, length, rank, ranks)

    def val_dataloader(self) -> list[Batches]:
        """Validation, and a fixed part of training without augmentation, with its noisy labels."""
        validation = self._in_order(self.val, self.val_indices, self.batch_size)
        return [validation, self._in_order(self.train, self.clean_indices, self._clean_size())]

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
        return Batches(data, lambda epoch: indices, lambda: (0, 0), batch_size, length, rank, ranks)

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
        images = self.preprocess(self._augment(images, indices, position, rank, ranks))
        first, end = self.mixup_window
        if self.mixup is identity or not first <= position < end:
            return images, labels
        targets = self.one_hot.index_select(0, labels)  # [B, K]
        return self.mixup(images, targets, generator(self.seed, "mix", *position, rank))

    def _augment(
        self, images: Tensor, indices: Tensor, position: tuple[int, int], rank: int, ranks: int
    ) -> Tensor:
        """Augment uint8 images [B, C, H, W], with random numbers of the whole global batch."""
        if not self.augment:
            return images
        epoch, batch_idx = position
        n = len(self.train_indices)
        full_size = self.batch_size * ranks
        remaining = n - n % ranks - batch_idx * full_size  # images of this epoch
        global_size = min(full_size, remaining)
        per_image = self.per_image.index_select(0, indices)
        for name, augment in self.augment.items():
            rng = generator(self.seed, f"augment {name}", *position, device=images.device)
            images = augment(images, Rand(rng, global_size, rank, ranks, epoch, per_image))
        return images

    def _position(self) -> tuple[int, int]:
        """Return the epoch and the batch in it that the trainer is at."""
        # Lightning counts a batch as ready after its transfer, so until then this is its index
        batch_progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return self.trainer.current_epoch, batch_progress.current.ready


def fits_in_memory(data: Sequence[LabeledImages], memory: float) -> bool:
    """Whether all images are tensors, of at most `memory` bytes in all; shared ones count once."""
    images = {id(part.images): part.images for part in data}.values()
    if any(isinstance(part, ImageFiles) for part in images):
        return False
    return sum(math.prod(part.shape) for part in images) <= memory


def to_device(data: Sequence[LabeledImages], device: torch.device) -> list[LabeledImages]:
    """Return the data on a device; tensors that several of them share are still shared there."""
    moved = {}
    for part in data:
        for tensor in part:
            if isinstance(tensor, Tensor) and id(tensor) not in moved:
                moved[id(tensor)] = tensor.to(device)
    return [LabeledImages(moved[id(part.images)], moved[id(part.labels)]) for part in data]
