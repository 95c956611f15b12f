"""Cache of decoded images: in memory, or in a file that later runs map into memory."""

import hashlib
import math
import os
import secrets
import zlib
from pathlib import Path

import torch
from torch import Tensor

from tricklab.data.folders import expand_home
from tricklab.data.images import ImageFiles
from tricklab.data.progress import warn, with_progress
from tricklab.errors import UserError, nearest

CRC_BYTES = 4


def decode_all(files: ImageFiles, cache: str) -> Tensor | ImageFiles:
    """Decode all images, uint8 [N, C, H, W], to `cache`: "memory" or a folder; "none" leaves them.

    Raises UserError: too many images for the memory, a folder that can't be written.
    """
    if cache == "none":
        return files
    if cache == "memory":
        return decode_to_memory(files)
    return open_or_write_cache(files, cache_folder(cache))


def decode_to_memory(files: ImageFiles) -> Tensor:
    size = math.prod(files.shape)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        message = (
            f"{files.shape[0]} images take {size / 1e9:.1f} GB, there are {memory / 1e9:.1f} GB"
        )
        hint = "Expected a smaller data.size, data.cache=FOLDER or data.cache=none"
        raise UserError(f"data.cache=memory: {message}. {hint}")
    images = torch.empty(files.shape, dtype=torch.uint8)
    done = 0
    for pixels in files.blocks():
        images[done : done + len(pixels)] = pixels
        done += len(pixels)
    return images


def cache_folder(cache: str) -> Path:
    """Return the folder. Raises UserError: it is a misspelt "memory" or "none", or has no home."""
    path = expand_home(cache, "data.cache")
    hint = "" if path.exists() or "/" in cache else nearest(cache.lower(), ("memory", "none"))
    if hint:
        raise UserError(f"data.cache={cache}: no such folder; ./{cache} creates it.{hint}")
    return path


def open_or_write_cache(files: ImageFiles, folder: Path) -> Tensor:
    """Map the decoded images; decode and write them first if their cache is missing or damaged.

    A cache file is named by a hash of the image files, their location and the decoding options. It
    holds the pixels of all images in order, and their CRC-32.
    """
    location = files.files[0].path.absolute()
    name = hashlib.sha256(f"{files.digest}{location!r}".encode()).hexdigest()[:16]
    path = folder / f"{name}.uint8"
    try:
        if path.is_file():
            if (images := read_cache(path, files.shape)) is not None:
                return images
            warn(f"data.cache: {path} is damaged; its images are decoded again")
        write_cache(files, path)
    except OSError as error:
        raise UserError(f"data.cache={folder}: {error}") from error
    return map_cache(path, files.shape)


def read_cache(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """Map the images [N, C, H, W] of a cache file; None if its size or checksum is wrong."""
    size = math.prod(shape)
    if path.stat().st_size != size + CRC_BYTES:
        return None
    images = map_cache(path, shape)
    images_per_block = max(1, 2**22 // math.prod(shape[1:]))
    crc = 0
    for block in with_progress(images.split(images_per_block), shape[0], f"checking {path}"):
        crc = zlib.crc32(block.numpy().data, crc)
    with path.open("rb") as file:
        file.seek(size)
        return images if file.read() == crc.to_bytes(CRC_BYTES) else None


def map_cache(path: Path, shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape)
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(shape)


def write_cache(files: ImageFiles, path: Path) -> None:
    """Write the pixels of all images and their checksum, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{secrets.token_hex(4)}")
    crc = 0
    try:
        with temporary.open("xb") as file:
            for pixels in files.blocks():
                file.write(pixels.numpy().data)
                crc = zlib.crc32(pixels.numpy().data, crc)
            file.write(crc.to_bytes(CRC_BYTES))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
