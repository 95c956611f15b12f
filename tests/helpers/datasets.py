"""Small data sets of random images, in the files of the real ones."""

import gzip
import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tricklab.data import published


def write_mnist(folder: Path, suffix: str = "") -> dict[int, Any]:
    """Write the four files of MNIST, gzipped with the suffix ".gz".

    Returns the random pixels by their number of images, 40 for training and 20 for test.
    """
    random = np.random.default_rng(0)
    pixels = {}
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", 40), ("t10k", 20)):
        pixels[n] = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for name, array in (("images-idx3", pixels[n]), ("labels-idx1", labels)):
            content = idx_header(array) + array.tobytes()
            path = folder / f"{part}-{name}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    return pixels


def idx_header(array: Any) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)


CIFAR_FILES = {
    10: ("cifar-10-batches-py", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]),
    100: ("cifar-100-python", ["train", "test"]),
}


def write_cifar(folder: Path, classes: int = 10) -> dict[str, Any]:
    """Write CIFAR's pickles, byte for byte as Python 2 did, with random images.

    CIFAR-10 gets 20 images in each file, CIFAR-100 100. Returns the pixels by the file's name.
    """
    random = np.random.default_rng(0)
    name, files = CIFAR_FILES[classes]
    (folder / name).mkdir(parents=True, exist_ok=True)
    pixels = {}
    for file in files:
        images = 20 if classes == 10 else 100
        pixels[file] = random.integers(0, 256, (images, 3072), dtype=np.uint8)
        content = cifar_batch(pixels[file], classes)
        (folder / name / file).write_bytes(content)
    meta = "batches.meta" if classes == 10 else "meta"
    (folder / name / meta).write_bytes(cifar_meta(classes))
    return pixels


def cifar_batch(pixels: Any, classes: int) -> bytes:
    labels = [i % classes for i in range(len(pixels))]
    key = "labels" if classes == 10 else "fine_labels"
    items = python2_text(key) + python2_list(labels)
    items += python2_text("data") + python2_array(pixels)
    return b"\x80\x02}(" + items + b"u."


def cifar_meta(classes: int) -> bytes:
    key = "label_names" if classes == 10 else "fine_label_names"
    names = b"".join(python2_text(f"thing {i}") for i in range(classes))
    return b"\x80\x02}(" + python2_text(key) + b"](" + names + b"e" + b"u."


def python2_text(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def python2_list(numbers: list[int]) -> bytes:
    return b"](" + b"".join(b"K" + bytes([number]) for number in numbers) + b"e"


def python2_array(array: Any) -> bytes:
    """Pickle a uint8 array as NumPy did in Python 2: reconstruct, shape, dtype, bytes."""
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
    reconstruct += python2_text("b") + b"\x87R"
    shape = b"".join(b"J" + struct.pack("<i", size) for size in array.shape) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + python2_text("u1") + b"K\x00K\x01\x87R(K\x03"
    dtype += python2_text("|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    content = b"\x89T" + struct.pack("<i", array.size) + array.tobytes()
    return reconstruct + b"(K\x01" + shape + dtype + content + b"tb"


def trust_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the files of CIFAR-10 and CIFAR-100 below a folder for the published ones."""
    for path in folder.glob("cifar-10*/*"):
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(published.MD5, path.name, md5)


def write_class_folders(
    root: Path,
    images: dict[str, int],
    classes: tuple[str, ...] = ("cat", "dog"),
    size: int = 12,
) -> None:
    """Write PNG files of random pixels into `root/SPLIT/CLASS`, so many for each class of a split.

    Image i is `size` pixels high and `size + i` wide.
    """
    random = np.random.default_rng(0)
    for split, n in images.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                pixels = random.integers(0, 256, (size, size + i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def write_photographs(
    root: Path, images: int, classes: tuple[str, ...] = ("cat", "dog"), smallest: int = 20
) -> None:
    """Write smooth pictures into `root/CLASS`, JPEG and PNG in turn.

    Their sides are `smallest` pixels to three times that; classes differ in colour.
    """
    random = np.random.default_rng(0)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(images):
            height, width = random.integers(smallest, 3 * smallest, 2)
            noise = random.integers(0, 120, (4, 4, 3), dtype=np.uint8)
            noise[..., number % 3] += 100
            image = Image.fromarray(noise).resize((int(width), int(height)))
            image.save(root / name / f"{i}.{('jpg', 'png')[i % 2]}")
