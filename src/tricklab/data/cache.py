"""Where decoded images are kept: in memory, in a file for all runs, or nowhere.

- `memory`: decoded once a run; the default.
- a folder: decoded once, into a file there which later runs map into memory. It may be larger than that.
- `none`: decoded anew for each batch, for what is too large for either.
"""

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor

from tricklab.data.batches import Batches, Files
from tricklab.errors import UserError

BLOCK = 256  # images that a worker decodes at once


def kept(files: Files, cache: str) -> Tensor | Files:
    """Decode all images into what `cache` says.

    Raises:
        UserError: they do not fit.
    """
    size = files.shape[0] * files.shape[1] * files.shape[2] * files.shape[3]
    if cache == "none":
        return files
    if cache == "memory":
        if size > (free := os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
            said = f"data.cache=memory: {files.shape[0]} images take {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            raise UserError(f"{said}; allowed: a smaller data.resize, data.cache=FOLDER or data.cache=none")
        return fill(torch.empty(files.shape, dtype=torch.uint8), files)
    path = Path(cache).expanduser() / f"{fingerprint(files)}.uint8"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        fill(torch.from_file(str(beside), shared=True, size=size, dtype=torch.uint8).view(files.shape), files)
        os.replace(beside, path)
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(files.shape)


def fill(images: Tensor, files: Files) -> Tensor:
    """Decode all files into a tensor, uint8 [N, C, H, W]."""
    rows = torch.arange(len(images))
    blocks = Batches((files, rows), lambda epoch: rows, lambda: (0, 0), BLOCK, len(rows))
    for pixels, places in blocks:
        images[places] = pixels
    return images


def fingerprint(files: Files) -> str:
    """Return 16 hex digits that change with the files, their sizes and times, and how they are decoded."""
    facts = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files.paths]
    return hashlib.sha256(repr((facts, files.shape, files.mode)).encode()).hexdigest()[:16]


def count_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
