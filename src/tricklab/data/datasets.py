"""Data sets as uint8 tensors. A new one is a function here and a YAML in conf/data."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST

from tricklab.data.batches import DatasetSplits, LabeledImages
from tricklab.data.cache import decode_all
from tricklab.data.folders import expand_home, find_splits, training_classes, warn_of_unused
from tricklab.data.images import ImageFiles
from tricklab.data.module import ImageData
from tricklab.data.published import read_cifar, read_mnist
from tricklab.data.search import LabeledFiles, Search
from tricklab.data.splits import split_off_test
from tricklab.devices import count_cores
from tricklab.errors import UserError
from tricklab.randomness import generator

TEST_SIZE = 0.2  # the default in conf/data/folder.yaml: an explicit 0.2 looks the same


def dataset(read: Callable[..., DatasetSplits]) -> Callable[..., ImageData]:
    """Turn `read(...) -> DatasetSplits` into a builder of `ImageData`, with the options of both."""

    @functools.wraps(read)
    def build(**options: Any) -> ImageData:
        own_names = [name for name in inspect.signature(read).parameters if name in options]
        own = {name: options.pop(name) for name in own_names}
        options.pop("num_workers", None)  # arrays need no workers
        options.pop("download", None)  # evaluation passes it to every data set
        if "root" in own:
            own["root"] = expand_home(own["root"], "data.root")
        return ImageData(read(**own), **options)

    return build


@dataset
def digits() -> DatasetSplits:
    """1,797 handwritten digits of 8 x 8 pixels from scikit-learn.

    A fixed stratified fifth is the test set.
    """
    # read from its file: importing sklearn.datasets takes a second
    (home,) = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr, misc]
    path = Path(home) / "datasets" / "data" / "digits.csv.gz"
    table = torch.from_numpy(np.loadtxt(path, delimiter=","))  # [N, 65]: pixels of 0 .. 16, label
    images = (table[:, :64] * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    labels = table[:, 64].long()
    train, test = split_off_test(labels, 0.2)
    return DatasetSplits(
        LabeledImages(images[train], labels[train]),
        LabeledImages(images[test], labels[test]),
        classes=list("0123456789"),
    )


@dataset
def mnist(root: Path, download: bool = True) -> DatasetSplits:
    """70,000 handwritten digits, 28 x 28 pixels, grey (LeCun et al., Proc. IEEE 86, 1998)."""
    return DatasetSplits(*read_mnist(root, "MNIST", download), list("0123456789"))


@dataset
def fashion_mnist(root: Path, download: bool = True) -> DatasetSplits:
    """70,000 articles of clothing, 28 x 28 pixels, grey (arXiv 1708.07747)."""
    return DatasetSplits(*read_mnist(root, "FashionMNIST", download), FashionMNIST.classes)


@dataset
def cifar10(root: Path, download: bool = True) -> DatasetSplits:
    """60,000 photographs of 10 classes, 32 x 32 pixels, colour (Krizhevsky, 2009)."""
    return DatasetSplits(*read_cifar(root, "CIFAR10", download))


@dataset
def cifar100(root: Path, download: bool = True) -> DatasetSplits:
    """60,000 photographs of 100 classes, 32 x 32 pixels, colour (Krizhevsky, 2009)."""
    return DatasetSplits(*read_cifar(root, "CIFAR100", download))


@dataset
def folder(
    root: Path,
    size: int | None,
    mode: str,
    test_size: int | float,
    cache: str,
    num_workers: int | None,
    skip_corrupt: bool,
    background: str = "white",
) -> DatasetSplits:
    """Class folders: `root/train/CLASS/...`, maybe with `val` and `test`; or `root/CLASS/...`.

    Without a test folder, a fixed stratified part of training is the test set. For the options see
    conf/data/folder.yaml. Raises UserError: classes or images that are missing, corrupt images, or
    images of several sizes without `size`.
    """
    folders = find_splits(root) or {"train": root}
    warn_of_unused(root, folders)
    check_split_folders(root, folders, test_size)
    classes = training_classes(root, folders["train"])
    decoding = Decoding(size, mode, background, cache, resolve_workers(num_workers))
    search = Search(root, skip_corrupt, decoding.workers)
    files = {split: search.find_classes(path, classes) for split, path in folders.items()}
    check_no_class_is_empty(root, classes, files["train"], search)
    if "test" not in files:
        files |= split_off_test_files(files["train"], test_size)
    search.warn()
    return read_splits(files, classes, decoding)


def folder_to_evaluate(
    root: str,
    classes: Sequence[str],
    size: int | None,
    mode: str,
    cache: str,
    num_workers: int | None,
    skip_corrupt: bool,
    background: str = "white",
    batch_size: int = 128,
    seed: int = 0,
    **training_options: Any,
) -> ImageData:
    """Data to evaluate on: the folder `test` in `root`, or all images of `root/CLASS/...`.

    The test set stands for training and validation too; `training_options` are ignored. Raises
    UserError: other splits without `test`, a class that is not in `classes`, a missing or corrupt
    image.
    """
    path = expand_home(root, "data.root")
    folders = find_splits(path) or {"test": path}
    if "test" not in folders:
        expected = " or ".join(f"data.root={folder}" for folder in folders.values())
        raise UserError(f"data.root={path} has no test folder. Expected {expected}")
    decoding = Decoding(size, mode, background, cache, resolve_workers(num_workers))
    search = Search(path, skip_corrupt, decoding.workers)
    files = search.find_classes(folders["test"], classes, owner="the checkpoint")
    search.warn()
    splits = read_splits({"test": files}, list(classes), decoding)
    return ImageData(splits, batch_size, seed=seed)


class Decoding(NamedTuple):
    """How the images of a folder are decoded and cached, see conf/data/folder.yaml."""

    size: int | None
    mode: str
    background: str
    cache: str
    workers: int

    def image_files(self, files: LabeledFiles) -> ImageFiles:
        paths = [file for file, _ in files]
        return ImageFiles(paths, self.size, self.mode, self.background, self.workers)


def read_splits(
    files: Mapping[str, LabeledFiles], classes: list[str], decoding: Decoding
) -> DatasetSplits:
    """Decode the images of each split; a test split alone stands for all of them."""
    images = {split: decoding.image_files(labeled) for split, labeled in files.items()}
    data = {}
    for split, labeled in files.items():
        labels = torch.tensor([label for _, label in labeled])
        data[split] = LabeledImages(decode_all(images[split], decoding.cache), labels)
    test = data["test"]
    return DatasetSplits(
        train=data.get("train", test),
        test=test,
        classes=classes,
        val=data.get("val") if "train" in data else test,
        files=sum(map(len, files.values())),
        digest=" ".join(images[split].digest for split in sorted(images)),
        size=decoding.size,
    )


def split_off_test_files(files: LabeledFiles, test_size: int | float) -> dict[str, LabeledFiles]:
    train, test = split_off_test(torch.tensor([label for _, label in files]), test_size)
    return {"train": [files[i] for i in train], "test": [files[i] for i in test]}


def check_split_folders(root: Path, folders: Mapping[str, Path], test_size: int | float) -> None:
    if "train" not in folders:
        message = f"data.root={root} has {', '.join(folders)}, but no train"
        raise UserError(f"{message}; evaluate.py takes such a folder, training does not")
    if "test" in folders and test_size != TEST_SIZE:
        message = f"data.test_size={test_size}: {folders['test']} is the test set"
        raise UserError(f"{message}; leave test_size out")


def check_no_class_is_empty(
    root: Path, classes: Sequence[str], files: LabeledFiles, search: Search
) -> None:
    present = {label for _, label in files}
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty:
        message = f"need at least 2 classes with images; empty: {', '.join(empty)}"
        raise UserError(f"data.root={root}: {message}{search.parenthesis}")


def resolve_workers(num_workers: int | None) -> int:
    return count_cores() if num_workers is None else num_workers


@dataset
def fake(
    images: int, test_images: int, channels: int, height: int, width: int, classes: int
) -> DatasetSplits:
    """Noise on a pattern per class, easy to learn; any number, shape and size of images."""
    rng = generator(0, "fake")
    shape = (channels, height, width)
    patterns = torch.randint(128, (classes, *shape), dtype=torch.uint8, generator=rng)
    train = fake_split(images, patterns, rng)
    test = fake_split(test_images, patterns, rng)
    return DatasetSplits(train, test, [str(label) for label in range(classes)])


def fake_split(n: int, patterns: Tensor, rng: torch.Generator) -> LabeledImages:
    labels = torch.arange(n) % len(patterns)
    images = torch.randint(128, (n, *patterns.shape[1:]), dtype=torch.uint8, generator=rng)
    for indices in torch.arange(n).split(4096):  # bounds the memory of patterns[labels]
        images[indices] += patterns[labels[indices]]
    return LabeledImages(images, labels)
