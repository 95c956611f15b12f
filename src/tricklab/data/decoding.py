"""From labeled image files to the splits of a data set."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tricklab.augment import takes_originals
from tricklab.data.batches import DatasetSplits, LabeledImages
from tricklab.data.cache import Decoded, decode_all
from tricklab.data.classes import Chosen, keep_files
from tricklab.data.file_list import LabeledFiles
from tricklab.data.fit import Fit, Keep
from tricklab.data.groups import check_groups_apart
from tricklab.data.image_files import ImageFiles
from tricklab.data.images import Resize
from tricklab.data.kept import KeptImages
from tricklab.data.progress import warn
from tricklab.data.search import Search
from tricklab.devices import count_cores

KEEP = 2  # times the size: the short side that training images keep at most by default
MAX_ENLARGEMENT = 2  # by which an image is enlarged without a warning


class Decoding(NamedTuple):
    """Which image files are used, and how they are decoded and cached, see conf/data/_files.yaml.

    `size` is the height and width for the network; with `originals`, training images keep their
    aspect ratio, as an augmentation crops them. With `only_test` no other split is decoded.
    """

    size: Sequence[int] | None = None
    fit: str = "crop"
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"
    mode: str = "RGB"
    background: str = "white"
    keep: int | None = None
    jpeg_scaling: bool = False
    cache: str = "memory"
    num_workers: int | None = None
    skip_corrupt: bool = False
    originals: bool = False
    classes: Chosen | None = None
    only_test: bool = False

    @property
    def workers(self) -> int:
        return count_cores() if self.num_workers is None else self.num_workers

    @property
    def evaluation(self) -> Resize:
        """How images are resized that are not augmented."""
        if self.fit == "none" or self.size is None:
            return None
        height, width = self.size
        return Fit((height, width), self.fit, self.crop_fraction, self.interpolation)

    @property
    def training(self) -> Resize:
        """How training images are resized."""
        if not self.originals:
            return self.evaluation
        assert self.size is not None  # `originals` with fit=none is refused
        short_side = self.keep or KEEP * min(self.size)
        return Keep(short_side, self.interpolation, self.jpeg_scaling)

    def drop_corrupt(self, files: LabeledFiles, root: Path) -> LabeledFiles:
        """Return the images that can be decoded, with `skip_corrupt`, else all of them."""
        if not self.skip_corrupt:
            return files
        return Search(root, workers=self.workers).drop_corrupt(files)

    def image_files(self, files: LabeledFiles, resize: Resize) -> ImageFiles:
        return ImageFiles(files.files, resize, self.mode, self.background, self.workers)


def make_decoding(options: Mapping[str, Any]) -> Decoding:
    """Return how files are decoded, from the options of a data set."""
    own = {}
    for name, value in options.items():
        if name in Decoding._fields and value is not None:
            own[name] = value
    originals = any(map(takes_originals, options.get("augment", {}).values()))
    return Decoding(**own, originals=originals)


def find_groups(files: LabeledFiles) -> Tensor | None:
    """Return the number of each file's group [N], None without groups."""
    if files.files.groups is None:
        return None
    return torch.from_numpy(files.files.groups).unique(return_inverse=True)[1]


class Enlargement(NamedTuple):
    """The factor by which an image is enlarged for evaluation, its name, height and width."""

    factor: float
    name: str
    height: int
    width: int


class DecodedSplit(NamedTuple):
    """The images of a split, a hash of their files, and by how much they are enlarged."""

    data: LabeledImages
    digest: str
    enlargements: list[Enlargement]


def read_splits(
    files: Mapping[str, LabeledFiles], classes: list[str], decoding: Decoding
) -> DatasetSplits:
    """Decode the images of each split; a test split alone stands for all of them.

    Raises UserError: a group is in two splits, or a chosen class does not exist.
    """
    if decoding.only_test:
        files = {"test": files["test"]}
    all_classes = classes
    files, classes = keep_files(files, all_classes, decoding.classes)
    check_groups_apart({name: part.files.group_of_each() for name, part in files.items()})
    decoded = {}
    for split, labeled in files.items():
        resize = decoding.training if split == "train" else decoding.evaluation
        decoded[split] = decode_split(labeled, resize, decoding)
    warn_of_enlargement([one for split in decoded.values() for one in split.enlargements], decoding)
    data = {name: split.data for name, split in decoded.items()}
    test = data["test"]
    return DatasetSplits(
        train=data.get("train", test),
        test=test,
        classes=classes,
        val=data.get("val") if "train" in data else test,
        files=sum(len(part.labels) for part in files.values()),
        digest=" ".join(decoded[split].digest for split in sorted(decoded)),
        fitted=find_fitted(files, decoding),
        groups=find_groups(files["train"]) if "train" in files else None,
        left_out=[name for name in all_classes if name not in classes],
    )


def decode_split(files: LabeledFiles, resize: Resize, decoding: Decoding) -> DecodedSplit:
    image_files = decoding.image_files(files, resize)
    decoded = decode_all(image_files, decoding.cache)
    enlargements = measure_enlargements(decoded, decoding.evaluation)
    return DecodedSplit(
        LabeledImages(decoded.images, files.labels), image_files.digest, enlargements
    )


def find_fitted(
    files: Mapping[str, LabeledFiles], decoding: Decoding
) -> Callable[[Tensor], Tensor | ImageFiles] | None:
    """Return `DatasetSplits.fitted`."""
    if not decoding.originals or "train" not in files:
        return None
    originals = decoding.image_files(files["train"], decoding.training)

    def fitted(indices: Tensor) -> Tensor | ImageFiles:
        images = decode_all(originals.subset(indices, decoding.evaluation), decoding.cache).images
        assert not isinstance(images, KeptImages)
        return images

    return fitted


def measure_enlargements(decoded: Decoded, resize: Resize) -> list[Enlargement]:
    """Return the enlargement of each image whose size is known."""
    if not isinstance(resize, Fit):
        return []
    enlargements = []
    for file, (height, width) in zip(decoded.files, decoded.original_sizes.tolist(), strict=True):
        factor = resize.enlargement(width, height)
        enlargements.append(Enlargement(factor, file.name, height, width))
    return enlargements


def warn_of_enlargement(enlargements: Sequence[Enlargement], decoding: Decoding) -> None:
    """Warn of images of whose pixels most are interpolated."""
    enlarged = [image for image in enlargements if image.factor > MAX_ENLARGEMENT]
    if not enlarged:
        return
    most = max(enlarged)
    assert decoding.size is not None
    warn(
        f"data.size={decoding.size[0]}: {len(enlarged):,} of {len(enlargements):,} images are "
        f"enlarged by more than {MAX_ENLARGEMENT}, most of all {most.name} "
        f"({most.height} x {most.width} pixels) by {most.factor:.3g}; a smaller data.size may help"
    )
