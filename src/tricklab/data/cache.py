"""Cache of decoded images: in memory, or in a file that later runs map into memory."""

import fcntl
import hashlib
import math
import os
import secrets
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tricklab.data.file_list import FileList
from tricklab.data.folders import expand_home
from tricklab.data.image_files import ImageFiles
from tricklab.data.images import read_size
from tricklab.data.kept import KeptImages
from tricklab.data.progress import warn, with_progress
from tricklab.devices import free_memory
from tricklab.errors import UserError, nearest

CRC_BYTES = 4
SIZE_BYTES = 8  # height and width of an image
CHUNK = 2**26  # bytes
TOKEN_BYTES = 4  # of the name of a cache file that is being written
SAMPLE = 1000  # files whose size is looked at without a cache


class Decoded(NamedTuple):
    """Images, and the heights and widths [M, 2] of files before their images were resized.

    These are all files, or without a cache a sample.
    """

    images: Tensor | KeptImages | ImageFiles
    files: FileList
    original_sizes: Tensor


def decode_all(files: ImageFiles, cache: str) -> Decoded:
    """Decode all images to `cache`: "memory" or a folder; "none" leaves them.

    Raises UserError: too many images for the memory, a folder that can't be written.
    """
    if cache == "none":
        return sample_sizes(files)
    if cache == "memory":
        return decode_to_memory(files)
    return open_or_write_cache(files, cache_folder(cache))


def sample_sizes(files: ImageFiles) -> Decoded:
    """Read the sizes of at most SAMPLE files, evenly spaced, from their headers."""
    sample = torch.arange(0, len(files), math.ceil(len(files) / SAMPLE))
    sizes = [read_size(file.path) for file in files.files.select(sample)]
    known = [i for i, size in zip(sample.tolist(), sizes, strict=True) if size]
    known_files = files.files.select(torch.tensor(known, dtype=torch.long))
    return Decoded(files, known_files, torch.tensor(list(filter(None, sizes))).view(-1, 2))


def decode_to_memory(files: ImageFiles) -> Decoded:
    """Decode all images. Raises UserError: they don't fit into memory."""
    memory = free_memory()  # what other splits and other processes leave
    check_memory(files, math.prod(files.shape), memory)  # an estimate, if they differ in size
    try:
        buffer = files.buffer()
    except OSError as error:  # a limit of address space, as by ulimit -v
        raise UserError(
            f"data.cache=memory: {error}. Expected data.cache=FOLDER or none"
        ) from error
    blocks = []
    done = 0
    for block in files.blocks(buffer):
        blocks.append(block)
        done += len(block.pixels)
        check_memory(files, done, memory)
    original_sizes = torch.tensor([size for block in blocks for size in block.original_sizes])
    if not files.keeps_aspect:
        images = buffer.parts.flatten()[:done].view(files.shape)
        return Decoded(images, files.files, original_sizes)
    sizes = torch.tensor([size for block in blocks for size in block.sizes])
    kept = KeptImages([block.pixels for block in blocks], sizes, files.channels, files.workers)
    return Decoded(kept, files.files, original_sizes)


def check_memory(files: ImageFiles, size: int, memory: int) -> None:
    """Raise UserError if images of `size` bytes don't fit into `memory`."""
    if size > memory:
        message = (
            f"{len(files)} images take {size / 1e9:.1f} GB, there are {memory / 1e9:.1f} GB free"
        )
        smaller = "data.keep" if files.keeps_aspect else "data.size"
        hint = f"Expected a smaller {smaller}, data.cache=FOLDER or data.cache=none"
        raise UserError(f"data.cache=memory: {message}. {hint}")


def cache_folder(cache: str) -> Path:
    """Return the folder. Raises UserError: it is a misspelt "memory" or "none", or has no home."""
    path = expand_home(cache, "data.cache")
    hint = "" if path.exists() or "/" in cache else nearest(cache.lower(), ("memory", "none"))
    if hint:
        raise UserError(f"data.cache={cache}: no such folder; ./{cache} creates it.{hint}")
    return path


def open_or_write_cache(files: ImageFiles, folder: Path) -> Decoded:
    """Map the decoded images; decode and write them first if their cache is missing or damaged.

    A cache file is named by a hash of the image files, their location and how they are decoded. One
    process writes it, others that need it wait.
    """
    location = files.files[0].path.absolute()
    name = hashlib.sha256(f"{files.digest}{location!r}".encode()).hexdigest()[:16]
    path = folder / f"{name}.uint8"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder) as is_locked:
            if is_locked:
                remove_unfinished(path)
            if path.is_file():
                if decoded := read_cache(path, files):
                    return decoded
                warn(f"data.cache: {path} is damaged; its images are decoded again")
            write_cache(files, path)
            return map_cache(path, files)
    except OSError as error:
        raise UserError(f"data.cache={folder}: {error}") from error


@contextmanager
def lock(folder: Path) -> Iterator[bool]:
    """Wait until no other process holds the lock; yield False where the file system has none."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield _wait_for_lock(descriptor)
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def remove_unfinished(path: Path) -> None:
    """Remove what processes left that were killed while they wrote a cache file."""
    for temporary in path.parent.glob(f"{path.stem}.{'[0-9a-f]' * 2 * TOKEN_BYTES}"):
        temporary.unlink()


def read_cache(path: Path, files: ImageFiles) -> Decoded | None:
    """Map the images of a cache file; None if its size or checksum is wrong."""
    end = path.stat().st_size - CRC_BYTES
    if end < 2 * SIZE_BYTES * len(files):
        return None
    content = np.memmap(path, np.uint8, "r")
    crc = 0
    chunks = [content[start : min(start + CHUNK, end)] for start in range(0, end, CHUNK)]
    for chunk in with_progress(chunks, end, f"checking {path}", "bytes"):
        crc = zlib.crc32(chunk.data, crc)
    if content[end:].tobytes() != crc.to_bytes(CRC_BYTES):
        return None
    return map_cache(path, files)


def map_cache(path: Path, files: ImageFiles) -> Decoded:
    """Map the images of a cache file: their pixels, sizes [N, 2], original sizes [N, 2], CRC-32."""
    content = np.memmap(path, np.uint8, "r")
    end = len(content) - CRC_BYTES - 2 * SIZE_BYTES * len(files)
    sizes = torch.from_numpy(content[end:-CRC_BYTES].copy()).view(torch.int32).view(2, -1, 2)
    with warnings.catch_warnings(action="ignore"):  # nothing writes to the tensor
        pixels = torch.from_numpy(content[:end])
    if not files.keeps_aspect:
        return Decoded(pixels.view(files.shape), files.files, sizes[1])
    images = KeptImages([pixels], sizes[0], files.channels, files.workers)
    return Decoded(images, files.files, sizes[1])


def write_cache(files: ImageFiles, path: Path) -> None:
    """Write a cache file, atomically."""
    temporary = path.with_suffix(f".{secrets.token_hex(TOKEN_BYTES)}")
    sizes, original_sizes = [], []
    crc = 0
    try:
        with temporary.open("xb") as file:
            for block in files.blocks():
                file.write(block.pixels.numpy().data)
                crc = zlib.crc32(block.pixels.numpy().data, crc)
                sizes += block.sizes
                original_sizes += block.original_sizes
            footer = torch.tensor([*sizes, *original_sizes]).int().numpy().tobytes()
            file.write(footer)
            file.write(zlib.crc32(footer, crc).to_bytes(CRC_BYTES))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
