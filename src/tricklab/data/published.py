"""MNIST, Fashion-MNIST and CIFAR as published: a local copy or torchvision's download. UserError: none, or damaged."""

import contextlib
import gzip
import hashlib
import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tricklab.data.batches import LabeledImages
from tricklab.errors import UserError

DEBIAN = Path("/usr/share/datasets")  # where Debian's dataset-fashion-mnist lies
MNIST_FILES = [
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
]
MD5 = {  # of the published files, which are the only ones that are unpickled (as in torchvision.datasets)
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
NUMPY = {  # all that the published files ask for
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
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


def read_mnist(root: Path, name: str, download: bool = True) -> tuple[LabeledImages, LabeledImages]:
    """Read the training and test set of torchvision's `name`, from a local copy or else downloaded to `root`."""
    folder = find_mnist(root, name) or fetch(root, name, MNIST_FILES, download) / name / "raw"
    train_x, train_y, test_x, test_y = (read_idx(folder, file) for file in MNIST_FILES)
    return LabeledImages(train_x[:, None], train_y.long()), LabeledImages(
        test_x[:, None], test_y.long()
    )


def find_mnist(root: Path, name: str) -> Path | None:
    """Return the first folder with the four idx files, plain or gzipped; those named after the data set come first."""
    debian = DEBIAN / name.replace("MNIST", "-mnist").strip("-").lower()
    for folder in (root / name / "raw", root / name, root / debian.name, root, debian):
        if all(
            (folder / file).is_file() or (folder / f"{file}.gz").is_file() for file in MNIST_FILES
        ):
            return folder
    return None


def fetch(root: Path, name: str, files: list[str], download: bool) -> Path:
    """Let torchvision download `name` to `root`, and return that. Raises UserError: it can't or may not."""
    package = " or Debian's package dataset-fashion-mnist" if name == "FashionMNIST" else ""
    expected = f"expected a folder with {', '.join(files)}{package}"
    if not download:
        option = "data=" + name.lower().replace("fashion", "fashion_")
        raise UserError(
            f"data.root={root}: no {name} there; {expected}, or {option} to download it"
        )
    from torchvision import datasets  # takes a second

    places = (root / name / "raw", root / name, root, *root.parents)
    new = [path for path in places if not path.exists()]
    try:
        print(f"downloading {name} to {root}")
        getattr(datasets, name)(str(root), download=True)
        return root
    except Exception as error:  # whatever the network or the disk may answer
        for path in new:
            with contextlib.suppress(OSError):  # part of a download is in it
                path.rmdir()
        reason = " ".join(str(error).split())[:200]
        message = f"data.root={root}: no {name} there, and no download ({reason}); {expected}"
        raise UserError(message) from error


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


def read_cifar(
    root: Path, name: str, download: bool = True
) -> tuple[LabeledImages, LabeledImages, list[str]]:
    """Read the training set, the test set and the names of the classes of CIFAR10 or CIFAR100, as `read_mnist` does."""
    folder, train, test, meta, key = CIFAR[name]
    wanted = (*train, test, meta)
    here = next(
        (f for f in (root / folder, root) if all((f / file).is_file() for file in wanted)), None
    )
    here = here or fetch(root, name, [f"{folder}/{file}" for file in wanted], download) / folder
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
        LabeledImages(torch.cat(images[:-1]), torch.cat(labels[:-1])),
        LabeledImages(images[-1], labels[-1]),
        list(names),
    )


class Plain(pickle.Unpickler):
    """Reads arrays, numbers, texts and their containers; whatever else a pickle may ask for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in NUMPY:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a dict of arrays and lists. Raises UserError: the file is not the published one."""
    content = path.read_bytes()
    if (md5 := hashlib.md5(content, usedforsecurity=False).hexdigest()) != MD5[path.name]:
        message = f"{path} is not the published file: its MD5 is {md5}, not {MD5[path.name]}"
        raise UserError(f"{message}; remove its folder, and it is downloaded again")
    try:
        return dict(Plain(io.BytesIO(content), encoding="latin1").load())
    except Exception as error:  # a damaged pickle may end in any
        raise UserError(f"{path} is not a file of CIFAR: {error}") from error
