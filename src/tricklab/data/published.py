"""MNIST, Fashion-MNIST and CIFAR as published: a local copy or torchvision's download. UserError: none, or damaged."""

import contextlib
import gzip
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tricklab.data.batches import Labelled
from tricklab.errors import UserError

DEBIAN = Path("/usr/share/datasets")  # where Debian's dataset-fashion-mnist lies
MNIST_FILES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
CIFAR = {  # folder, training files, test file, file with the names of the classes, key of the labels
    "CIFAR10": (
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in "12345"],
        "test_batch",
        "batches.meta",
        "labels",
    ),
    "CIFAR100": ("cifar-100-python", ["train"], "test", "meta", "fine_labels"),
}


def read_mnist(root: Path, name: str) -> tuple[Labelled, Labelled]:
    """Read the training and test set of torchvision's `name`, from a local copy or else downloaded to `root`."""
    folder = find_mnist(root, name) or download(root, name, MNIST_FILES) / name / "raw"
    train_x, train_y, test_x, test_y = (read_idx(folder, file) for file in MNIST_FILES)
    return Labelled(train_x[:, None], train_y.long()), Labelled(test_x[:, None], test_y.long())


def find_mnist(root: Path, name: str) -> Path | None:
    """Return the first folder with the four idx files, plain or gzipped; those named after the data set come first."""
    debian = DEBIAN / name.replace("MNIST", "-mnist").strip("-").lower()
    for folder in (root / name / "raw", root / name, root / debian.name, root, debian):
        if all(
            (folder / file).is_file() or (folder / f"{file}.gz").is_file() for file in MNIST_FILES
        ):
            return folder
    return None


def download(root: Path, name: str, files: list[str]) -> Path:
    """Let torchvision download `name` to `root`, and return that."""
    from torchvision import datasets  # takes a second

    new = [
        path
        for path in (root / name / "raw", root / name, root, *root.parents)
        if not path.exists()
    ]
    try:
        print(f"downloading {name} to {root}")
        getattr(datasets, name)(str(root), download=True)
        return root
    except Exception as error:  # whatever the network or the disk may answer
        for path in new:
            with contextlib.suppress(OSError):  # part of a download is in it
                path.rmdir()
        package = " or Debian's package dataset-fashion-mnist" if name == "FashionMNIST" else ""
        said = f"data.root={root}: no {name} there, and no download ({' '.join(str(error).split())[:200]})"
        raise UserError(f"{said}; allowed: a folder with {', '.join(files)}{package}") from error


def read_idx(folder: Path, name: str) -> Tensor:
    """Read an idx file of bytes, plain or gzipped: two zeros, 8, the number of dimensions, the shape, the data."""
    path = folder / name if (folder / name).is_file() else folder / f"{name}.gz"
    try:
        content = bytearray(
            gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        )
        if not content.startswith(b"\0\0\x08"):
            raise ValueError("it does not begin with 0, 0, 8")
        shape = struct.unpack_from(f">{content[3]}I", content, 4)
        return torch.from_numpy(
            np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
        )
    except (OSError, EOFError, IndexError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is not an idx file: {error}") from error


def read_cifar(root: Path, name: str) -> tuple[Labelled, Labelled, list[str]]:
    """Read the training set, the test set and the names of the classes of CIFAR10 or CIFAR100, as `read_mnist` does."""
    folder, train, test, meta, key = CIFAR[name]
    wanted = (*train, test, meta)
    here = next(
        (f for f in (root / folder, root) if all((f / file).is_file() for file in wanted)), None
    )
    here = here or download(root, name, [f"{folder}/{file}" for file in wanted]) / folder
    parts = [read_pickle(here / file) for file in wanted]
    try:
        names = next(
            value
            for word, value in parts.pop().items()
            if word in ("label_names", "fine_label_names")
        )
        images = [torch.from_numpy(part["data"]).view(-1, 3, 32, 32) for part in parts]
        labels = [torch.tensor(part[key]) for part in parts]
        for x, y in zip(images, labels, strict=True):
            known = 0 <= min(y) <= max(y) < len(names)
            if not known or len(x) != len(y) or (x.dtype, y.dtype) != (torch.uint8, torch.long):
                raise ValueError(
                    f"{len(x)} images of {x.dtype}, {len(y)} labels from {min(y)} to {max(y)}"
                )
    except (
        AttributeError,
        LookupError,
        RuntimeError,
        StopIteration,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{here} does not hold {name}: {error!r}") from error
    return (
        Labelled(torch.cat(images[:-1]), torch.cat(labels[:-1])),
        Labelled(images[-1], labels[-1]),
        list(names),
    )


class Plain(pickle.Unpickler):
    """Reads arrays, numbers, texts and their containers; whatever else a pickle may ask for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        known = name in ("_reconstruct", "_frombuffer", "ndarray", "dtype", "encode")
        if not known or module.split(".")[0] not in ("numpy", "_codecs"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a dict of arrays and lists, pickled by any version of Python."""
    try:
        with path.open("rb") as file:
            return dict(Plain(file, encoding="latin1").load())
    except Exception as error:  # a damaged pickle may end in any
        raise UserError(f"{path} is not a file of CIFAR: {error}") from error
