"""MNIST, Fashion-MNIST and CIFAR as published: a local copy, or torchvision's download."""

import contextlib
import gzip
import hashlib
import io
import pickle
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from tricklab.data.batches import LabeledImages
from tricklab.errors import UserError

# Downloads, checksums and class names are torchvision's, reading is not. torchvision unpickles
# CIFAR without restrictions, from files that it opens again after their check. It reads no gzipped
# idx files, prefers a leftover processed/training.pt to them, and does not name a damaged file.

DEBIAN = Path("/usr/share/datasets")  # Debian's package dataset-fashion-mnist
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MD5 = {  # checksums of CIFAR by file name
    **dict(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list),
    **dict(datasets.CIFAR100.train_list + datasets.CIFAR100.test_list),
    datasets.CIFAR10.meta["filename"]: datasets.CIFAR10.meta["md5"],
    datasets.CIFAR100.meta["filename"]: datasets.CIFAR100.meta["md5"],
}
PICKLE_GLOBALS = {  # all that the published files refer to
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


def read_mnist(root: Path, name: str, download: bool = True) -> tuple[LabeledImages, LabeledImages]:
    """Read training and test set of torchvision's `name`, downloaded to `root` if not found there.

    Raises UserError: no local copy and no download, or a damaged file.
    """
    folder = find_mnist(root, name)
    if folder is None:
        folder = fetch(root, name, MNIST_FILES, download) / name / "raw"
    train_x, train_y, test_x, test_y = (read_idx(folder, file) for file in MNIST_FILES)
    train = LabeledImages(train_x[:, None], train_y.long())
    return train, LabeledImages(test_x[:, None], test_y.long())


def find_mnist(root: Path, name: str) -> Path | None:
    """Return the first folder with the four idx files, plain or gzipped: those of `name` first."""
    debian = DEBIAN / name.replace("MNIST", "-mnist").strip("-").lower()
    for folder in (root / name / "raw", root / name, root / debian.name, root, debian):
        if all(find_idx(folder, file) for file in MNIST_FILES):
            return folder
    return None


def find_idx(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def fetch(root: Path, name: str, files: Sequence[str], download: bool) -> Path:
    """Let torchvision download `name` to `root`, and return `root`. Raises UserError: it can't."""
    expected = f"a folder with {', '.join(files)}"
    if name == "FashionMNIST":
        expected += " or Debian's package dataset-fashion-mnist"
    if not download:
        option = "data=" + name.lower().replace("fashion", "fashion_")
        message = f"data.root={root}: no {name} there"
        raise UserError(f"{message}. Expected {expected}, or {option} to download it")
    folders = (root / name / "raw", root / name, root, *root.parents)
    created = [path for path in folders if not path.exists()]
    try:
        print(f"downloading {name} to {root}")
        getattr(datasets, name)(str(root), download=True)
        return root
    except Exception as error:  # network and disk may fail in any way
        remove_empty(created)
        reason = " ".join(str(error).split())[:200]
        message = f"data.root={root}: no {name} there, and no download ({reason})"
        raise UserError(f"{message}. Expected {expected}") from error


def remove_empty(folders: list[Path]) -> None:
    for path in folders:
        with contextlib.suppress(OSError):  # it holds part of a download
            path.rmdir()


def read_idx(folder: Path, name: str) -> Tensor:
    """Read an idx file of bytes, plain or gzipped.

    Its header: two zeros, 8 for bytes, the number of dimensions D, and D sizes of 4 bytes each.
    """
    path = find_idx(folder, name) or folder / name
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        if not content.startswith(b"\0\0\x08"):
            raise ValueError("it does not begin with 0, 0, 8")
        shape = struct.unpack_from(f">{content[3]}I", content, 4)
        # a bytearray, as tensors are writable
        values = np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * len(shape))
        return torch.from_numpy(values.reshape(shape))
    except (OSError, EOFError, IndexError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is not an idx file: {error}") from error


def read_cifar(
    root: Path, name: str, download: bool = True
) -> tuple[LabeledImages, LabeledImages, list[str]]:
    """Read training set, test set and class names of CIFAR10 or CIFAR100, as `read_mnist` does."""
    published = getattr(datasets, name)
    base, meta_file = published.base_folder, published.meta["filename"]
    files = (*dict(published.train_list + published.test_list), meta_file)
    folder = find_cifar(root, base, files)
    if folder is None:
        folder = fetch(root, name, [f"{base}/{file}" for file in files], download) / base
    *batches, meta = [read_pickle(folder / file) for file in files]
    try:
        classes = list(meta[published.meta["key"]])
        *train, test = [parse_batch(batch, len(classes)) for batch in batches]
        images, labels = zip(*train, strict=True)
        return LabeledImages(torch.cat(images), torch.cat(labels)), test, classes
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder} does not hold {name}: {error!r}") from error


def find_cifar(root: Path, base: str, files: Sequence[str]) -> Path | None:
    for folder in (root / base, root):
        if all((folder / file).is_file() for file in files):
            return folder
    return None


def parse_batch(batch: dict[str, Any], classes: int) -> LabeledImages:
    """Return images [N, 3, 32, 32] and labels [N]. Raises ValueError: they do not match."""
    images = torch.from_numpy(batch["data"]).view(-1, 3, 32, 32)
    labels = torch.tensor(batch["labels"] if "labels" in batch else batch["fine_labels"])
    low, high = labels.min(), labels.max()
    known = 0 <= low <= high < classes
    integers = (images.dtype, labels.dtype) == (torch.uint8, torch.long)
    if not known or not integers or len(images) != len(labels):
        found = f"{len(labels)} labels from {low} to {high}"
        raise ValueError(f"{len(images)} images of {images.dtype}, {found}")
    return LabeledImages(images, labels)


class DataUnpickler(pickle.Unpickler):
    """Reads arrays, numbers, strings and their containers; raises on any other global."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not data")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a dict of arrays and lists. Raises UserError: the file is not the published one."""
    content = path.read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 != MD5[path.name]:
        message = f"{path} is not the published file: its MD5 is {md5}, not {MD5[path.name]}"
        raise UserError(f"{message}; remove its folder to download it again")
    try:
        return dict(DataUnpickler(io.BytesIO(content), encoding="latin1").load())
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} is not a file of CIFAR: {error}") from error
