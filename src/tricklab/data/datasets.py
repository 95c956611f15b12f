"""Data sets, each read into memory as uint8 tensors. A new one is a function here and a YAML in conf/data."""

import functools
import inspect
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tricklab.data.batches import Labelled, Source
from tricklab.data.files import Files, find_images, kept, read_classes
from tricklab.data.module import ImageData
from tricklab.data.published import read_cifar, read_mnist
from tricklab.data.split import count, stratified_order
from tricklab.errors import UserError
from tricklab.process import count_cores
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


def dataset(read: Callable[..., Source]) -> Callable[..., ImageData]:
    """Turn `read(...) -> Source` into a builder of `ImageData`, which takes all options that `read` does not."""

    @functools.wraps(read)
    def build(**options: Any) -> ImageData:
        own = {
            name: options.pop(name)
            for name in inspect.signature(read).parameters
            if name in options
        }
        options.pop("num_workers", None)  # which images in memory have no use for
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
def mnist(root: str) -> Source:
    """70,000 handwritten digits, 28 x 28 pixels, grey (LeCun et al., Proc. IEEE 86, 1998)."""
    return Source(*read_mnist(Path(root), "MNIST"), list("0123456789"))


@dataset
def fashion_mnist(root: str) -> Source:
    """70,000 articles of clothing, 28 x 28 pixels, grey (arXiv 1708.07747)."""
    return Source(*read_mnist(Path(root), "FashionMNIST"), FASHION)


@dataset
def cifar10(root: str) -> Source:
    """60,000 photographs of 10 classes, 32 x 32 pixels, colour (Krizhevsky, 2009)."""
    return Source(*read_cifar(Path(root), "CIFAR10"))


@dataset
def cifar100(root: str) -> Source:
    """60,000 photographs of 100 classes, 32 x 32 pixels, colour (Krizhevsky, 2009)."""
    return Source(*read_cifar(Path(root), "CIFAR100"))


@dataset
def folder(
    root: str,
    resize: int | None,
    mode: str,
    test_size: float,
    cache: str,
    num_workers: int | None,
    skip_damaged: bool,
) -> Source:
    """Any tree of class folders: `root/train/CLASS/...`, `val` and `test` beside `train` or not; or `root/CLASS/...`.

    Without a test folder a fixed stratified part of training is the test set. Resized images are cut to a square. For
    the options see conf/data/folder.yaml. Raises UserError: classes or images missing, damaged, or of mixed sizes.
    """
    top = Path(root).expanduser()
    split = (top / "train").is_dir()
    classes = read_classes(top / "train" if split else top)
    find = functools.partial(find_images, classes=classes, skip_damaged=skip_damaged)
    found = {"train": find(top / "train" if split else top)}
    if len(present := set(found["train"][1])) < max(len(classes), 2):
        empty = [name for label, name in enumerate(classes) if label not in present]
        raise UserError(
            f"data.root={root}: 2 classes or more, each with images; without: {', '.join(empty) or 'none'}"
        )
    found |= {part: find(top / part) for part in ("val", "test") if split and (top / part).is_dir()}
    if "test" not in found:
        paths, labels = found["train"]
        for part, rows in zip(
            ("train", "test"), set_apart(torch.tensor(labels), test_size), strict=True
        ):
            found[part] = [paths[i] for i in rows], [labels[i] for i in rows]
    workers = count_cores() if num_workers is None else num_workers
    files = {part: Files(paths, resize, mode, workers) for part, (paths, _) in found.items()}
    parts = {
        part: Labelled(kept(files[part], cache), torch.tensor(labels))
        for part, (_, labels) in found.items()
    }
    return Source(parts["train"], parts["test"], classes, parts.get("val"))


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
    """Return the rows of training and of a stratified test set, the same whatever the seed of the run."""
    order = stratified_order(labels, 0, "test")
    size = count(test_size, len(order) - 1, "data.test_size")
    return order[size:].sort().values, order[:size].sort().values
