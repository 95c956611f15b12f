"""Where decoded images are kept: in memory, in a file for all runs, or nowhere.

- `memory`: decoded once a run; the default.
- a folder: decoded once, into a file there which later runs map into memory. It may be larger than that.
- `none`: decoded anew for each batch, for what is too large for either.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tricklab.data.batches import Batches, Files
from tricklab.errors import UserError

BLOCK = 64  # images that a worker decodes at once


def kept(files: Files, cache: str) -> Tensor | Files:
    """Decode all images, uint8 [N, C, H, W], into what `cache` says. Raises UserError: they do not fit."""
    if cache == "none":
        return files
    if cache == "memory":
        return into_memory(files)
    path = Path(cache).expanduser() / f"{fingerprint(files)}.uint8"
    if not path.is_file():
        write(files, path)
    return torch.from_file(str(path), shared=False, size=math.prod(files.shape), dtype=torch.uint8).view(files.shape)


def into_memory(files: Files) -> Tensor:
    size, memory = math.prod(files.shape), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        said = f"{files.shape[0]} images take {size / 1e9:.1f} GB, there are {memory / 1e9:.1f} GB"
        allowed = "a smaller data.resize, data.cache=FOLDER or data.cache=none"
        raise UserError(f"data.cache=memory: {said}; allowed: {allowed}")
    images = torch.empty(files.shape, dtype=torch.uint8)
    for part, pixels in zip(images.split(BLOCK), decoded(files), strict=True):
        part.copy_(pixels)
    return images


def write(files: Files, path: Path) -> None:
    """Write the pixels of all images one after the other: the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        with beside.open("wb") as file:
            for pixels in decoded(files):
                file.write(pixels.numpy().tobytes())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def decoded(files: Files) -> Iterator[Tensor]:
    """Decode blocks of images, in order."""
    rows = torch.arange(files.shape[0])
    for (pixels,) in Batches((files,), lambda epoch: rows, lambda: (0, 0), BLOCK, len(rows)):
        yield pixels


def fingerprint(files: Files) -> str:
    """Return 16 hex digits that change with the files, their sizes and times, and how they are decoded."""
    facts = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files.paths]
    return hashlib.sha256(repr((facts, files.shape, files.mode)).encode()).hexdigest()[:16]
