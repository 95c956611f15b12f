"""Data sets, each read into memory as uint8 tensors. A new one is a function here and a YAML in conf/data."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tricklab.data.batches import Labelled, Source
from tricklab.data.folders import (
    LabelledFiles,
    Search,
    find_parts,
    read_classes,
    subfolders,
    warn_of_unused,
)
from tricklab.data.images import ENDINGS, ImageFiles, expand_home, keep
from tricklab.data.module import ImageData
from tricklab.data.published import read_cifar, read_mnist
from tricklab.data.split import count, split_off, stratified_order
from tricklab.devices import count_cores
from tricklab.errors import UserError
from tricklab.randomness import generator

FASHION = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
TEST_SIZE = (
    0.2  # the default in conf/data/folder.yaml, which can't be told from a value that was given
)
TRAIN = ("train", "Train", "TRAIN", "training", "Training")


def dataset(read: Callable[..., Source]) -> Callable[..., ImageData]:
    """Turn `read(...) -> Source` into a builder of `ImageData`, which takes all options that `read` does not."""

    @functools.wraps(read)
    def build(**options: Any) -> ImageData:
        own = {
            name: options.pop(name)
            for name in inspect.signature(read).parameters
            if name in options
        }
        options.pop("num_workers", None)  # images in memory have no use for it
        options.pop("download", None)  # nor data that are never downloaded
        if "root" in own:
            own["root"] = expand_home(own["root"], "data.root")
        return ImageData(read(**own), **options)

    return build


@dataset
def digits() -> Source:
    """1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn; a fixed stratified fifth is for testing."""
    (home,) = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr, misc]  # importing takes a second
    table = torch.from_numpy(
        np.loadtxt(Path(home) / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    )
    images = (
        (table[:, :64] * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    )  # pixels were 0 .. 16
    labels = table[:, 64].long()
    train, test = (Labelled(images[rows], labels[rows]) for rows in set_apart(labels, 0.2))
    return Source(train, test, list("0123456789"))


@dataset
def mnist(root: Path, download: bool = True) -> Source:
    """70,000 handwritten digits, 28 x 28 pixels, grey (LeCun et al., Proc. IEEE 86, 1998)."""
    return Source(*read_mnist(root, "MNIST", download), list("0123456789"))


@dataset
def fashion_mnist(root: Path, download: bool = True) -> Source:
    """70,000 articles of clothing, 28 x 28 pixels, grey (arXiv 1708.07747)."""
    return Source(*read_mnist(root, "FashionMNIST", download), FASHION)


@dataset
def cifar10(root: Path, download: bool = True) -> Source:
    """60,000 photographs of 10 classes, 32 x 32 pixels, colour (Krizhevsky, 2009)."""
    return Source(*read_cifar(root, "CIFAR10", download))


@dataset
def cifar100(root: Path, download: bool = True) -> Source:
    """60,000 photographs of 100 classes, 32 x 32 pixels, colour (Krizhevsky, 2009)."""
    return Source(*read_cifar(root, "CIFAR100", download))


@dataset
def folder(
    root: Path,
    resize: int | None,
    mode: str,
    test_size: int | float,
    cache: str,
    num_workers: int | None,
    skip_damaged: bool,
    background: str = "white",
) -> Source:
    """Any tree of class folders: `root/train/CLASS/...`, `val` and `test` beside `train` or not; or `root/CLASS/...`.

    Without a test folder a fixed stratified part of training is the test set. Resized images are cut to a square. For
    the options see conf/data/folder.yaml. Raises UserError: classes or images missing, damaged, or of mixed sizes.
    """
    parts = find_parts(root) or {"train": root}
    warn_of_unused(root, parts)
    if "train" not in parts:
        message = f"data.root={root} has {', '.join(parts)}, but no train"
        raise UserError(f"{message}; evaluate.py takes such a folder, training does not")
    if "test" in parts and test_size != TEST_SIZE:
        message = f"data.test_size={test_size}: {parts['test']} is the test set"
        raise UserError(f"{message}; leave it out")
    classes = training_classes(root, parts["train"])
    decoding = Decoding(resize, mode, background, cache, count_workers(num_workers))
    search = Search(root, skip_damaged, decoding.workers)
    found = {part: search.find_classes(path, classes) for part, path in parts.items()}
    check_no_class_is_empty(root, classes, found["train"], search)
    if "test" not in found:
        images = found["train"]
        rest, part = set_apart(torch.tensor([label for _, label in images]), test_size)
        found |= {"train": [images[i] for i in rest], "test": [images[i] for i in part]}
    search.warn()
    return read_parts(found, classes, decoding)


def folder_to_evaluate(
    root: str,
    classes: Sequence[str],
    resize: int | None,
    mode: str,
    cache: str,
    num_workers: int | None,
    skip_damaged: bool,
    background: str = "white",
    batch_size: int = 128,
    seed: int = 0,
    **of_training: Any,
) -> ImageData:
    """Data whose test set is the folder `test` in `root`, or all images of `root/CLASS/...`, for these `classes`.

    It stands for training and validation too: what is said of them has no meaning here. Raises UserError: parts without
    `test`, a class that is not one of `classes`, no image, a damaged one.
    """
    top = expand_home(root, "data.root")
    parts = find_parts(top) or {"test": top}
    if "test" not in parts:
        places = " or ".join(f"data.root={path}" for path in parts.values())
        raise UserError(f"data.root={top} has no test folder; allowed: {places}")
    decoding = Decoding(resize, mode, background, cache, count_workers(num_workers))
    search = Search(top, skip_damaged, decoding.workers)
    images = search.find_classes(parts["test"], classes, whose="the checkpoint")
    search.warn()
    source = read_parts({"test": images}, list(classes), decoding)
    return ImageData(source, batch_size, seed=seed)


class Decoding(NamedTuple):
    """How the images of a folder are decoded and kept; see conf/data/folder.yaml."""

    resize: int | None
    mode: str
    background: str
    cache: str
    workers: int


def read_parts(
    found: Mapping[str, LabelledFiles], classes: list[str], decoding: Decoding
) -> Source:
    """Decode the images of each part; where there is only a test part, it also stands for the others."""
    resize, mode, background, cache, workers = decoding
    files = {
        part: ImageFiles([file for file, _ in images], resize, mode, background, workers)
        for part, images in found.items()
    }
    parts = {
        part: Labelled(keep(files[part], cache), torch.tensor([label for _, label in images]))
        for part, images in found.items()
    }
    test = parts["test"]
    return Source(
        parts.get("train", test),
        test,
        classes,
        parts.get("val") if "train" in parts else test,
        files=sum(map(len, found.values())),
        identity=" ".join(files[part].identity for part in sorted(files)),
        resize=resize,
    )


def training_classes(root: Path, top: Path) -> list[str]:
    """Return the classes in the training folder `top`. Raises UserError: fewer than two, or they lie further down."""
    folders = read_classes(top)
    if lower := find_lower(folders, top == root):
        places = " or ".join(f"data.root={path}" for path in lower)
        raise UserError(f"data.root={root}: the classes lie further down; allowed: {places}")
    if len(folders) == 1:
        message = f"2 classes or more, each with images; there is {', '.join(folders)}"
        raise UserError(f"data.root={root}: {message}")
    if not folders and (flat := sum(path.suffix.lower() in ENDINGS for path in top.iterdir())):
        message = f"{top} has {flat:,} images, but no class folders"
        raise UserError(f"{message}; allowed: {top}/CLASS/... for each class")
    return list(folders)


def find_lower(folders: Mapping[str, Path], plain: bool) -> list[Path]:
    """Return those of the folders that seem to be data sets and no classes: with parts, or one alone with folders."""
    lower = [path for path in folders.values() if any((path / name).is_dir() for name in TRAIN)]
    lower = [path for path in lower if "train" in find_parts(path)]  # which reads a whole folder
    if not lower and plain and len(folders) == 1:
        lower = [path for path in folders.values() if len(subfolders(path)) > 1]
    return lower


def check_no_class_is_empty(
    root: Path, classes: Sequence[str], images: LabelledFiles, search: Search
) -> None:
    present = {label for _, label in images}
    if empty := [name for label, name in enumerate(classes) if label not in present]:
        message = f"2 classes or more, each with images; without: {', '.join(empty)}"
        raise UserError(f"data.root={root}: {message}{search.in_brackets}")


def count_workers(num_workers: int | None) -> int:
    return count_cores() if num_workers is None else num_workers


@dataset
def fake(
    images: int, test_images: int, channels: int, height: int, width: int, classes: int
) -> Source:
    """Noise on a pattern for each class: of any number, shape and size, and easy to learn."""
    source, shape = generator(0, "fake"), (channels, height, width)
    patterns = torch.randint(128, (classes, *shape), dtype=torch.uint8, generator=source)

    def draw(n: int) -> Labelled:
        labels = torch.arange(n) % classes
        pixels = torch.randint(128, (n, *shape), dtype=torch.uint8, generator=source)
        for rows in torch.arange(n).split(4096):
            pixels[rows] += patterns[labels[rows]]
        return Labelled(pixels, labels)

    return Source(draw(images), draw(test_images), [str(k) for k in range(classes)])


def set_apart(labels: Tensor, test_size: int | float) -> tuple[Tensor, Tensor]:
    """Return the rows of training and of a stratified test set, the same whatever the seed of the run.

    A class of one image stays in training.
    """
    order = stratified_order(labels, 0, "test")
    size = count(test_size, len(order) - 1, "data.test_size")
    rest, part = split_off(order, labels, size)
    return rest.sort().values, part.sort().values
