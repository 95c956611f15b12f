"""Images of any kind in class folders: found, decoded, and kept."""

import hashlib
import math
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tricklab.errors import UserError

BLOCK = 64  # images that a worker decodes at once, for what is kept


class Files:
    """Images in files: like a tensor, uint8 [N, C, H, W], that decodes the rows which are selected.

    Raises UserError: an image that can't be decoded, or is not of the size of the first.
    """

    device = torch.device("cpu")

    def __init__(self, paths: list[Path], resize: int | None, mode: str, workers: int = 0):
        self.paths, self.mode, self.workers, self.size = (
            paths,
            mode,
            workers,
            (resize, resize) if resize else None,
        )
        self.shape = (len(paths), *self.decode(0).shape)

    def decode(self, row: int) -> Tensor:
        try:
            return decode(self.paths[row], self.size, self.mode)
        except UserError as error:
            raise UserError(f"{error}; data.skip_damaged=true leaves it out") from error

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        images = [self.decode(row) for row in rows.tolist()]
        if mixed := [
            row
            for row, image in zip(rows.tolist(), images, strict=True)
            if image.shape != self.shape[1:]
        ]:
            said = f"{self.paths[mixed[0]]} is not the size of {self.paths[0]}"
            raise UserError(f"{said}; data.resize=32 makes them equal")
        return torch.stack(images) if images else torch.empty(0, *self.shape[1:], dtype=torch.uint8)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.index_select(0, rows)

    def blocks(self) -> Iterator[Tensor]:
        """Decode all images, some at a time and in order."""
        return fetched(self, torch.arange(len(self.paths)).split(BLOCK), self.workers)


def fetched(data: Any, rows: Sequence[Tensor], workers: int) -> Iterator[Any]:
    """Yield `data[rows]` for each batch's rows; `workers` do so some batches ahead. Raises UserError: what one met."""
    workers = min(workers, len(rows)) if len(rows) > 1 else 0
    if not workers:
        yield from map(data.__getitem__, rows)
        return
    options: dict[str, Any] = {
        "num_workers": workers,
        "generator": torch.Generator(),
    }  # the default one stays as it is
    try:
        yield from torch.utils.data.DataLoader(data, batch_size=None, sampler=rows, **options)
    except UserError as error:  # with the traceback of the worker
        traceback.clear_frames(
            error.__traceback__
        )  # or the loader stays, and then waits 5 s for each worker
        raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
    except RuntimeError as error:
        if not re.search("exited unexpectedly|killed by signal", str(error)):
            raise
        raise UserError(
            f"data.num_workers={workers}: one has died ({error}); fewer take less memory"
        ) from error


def kept(files: Files, cache: str) -> Tensor | Files:
    """Decode all images, uint8 [N, C, H, W]: into memory, or into a file in the folder `cache` that later runs map.

    Its name changes with them and their size. "none" decodes each batch anew. Raises UserError: too large for memory.
    """
    if cache == "none":
        return files
    size = math.prod(files.shape)
    if cache != "memory":
        facts = [
            (str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns)
            for path in files.paths
        ]
        name = hashlib.sha256(repr((facts, files.shape, files.mode)).encode()).hexdigest()[:16]
        path = Path(cache).expanduser() / f"{name}.uint8"
        if not path.is_file():
            write(files, path)
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(
            files.shape
        )
    if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        said = f"{files.shape[0]} images take {size / 1e9:.1f} GB, there are {memory / 1e9:.1f} GB"
        allowed = "a smaller data.resize, data.cache=FOLDER or data.cache=none"
        raise UserError(f"data.cache=memory: {said}; allowed: {allowed}")
    images = torch.empty(files.shape, dtype=torch.uint8)
    for part, pixels in zip(images.split(BLOCK), files.blocks(), strict=True):
        part.copy_(pixels)
    return images


def write(files: Files, path: Path) -> None:
    """Write the pixels of all images one after the other: the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.writelines(pixels.numpy().data for pixels in files.blocks())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_classes(root: Path) -> list[str]:
    """Return the names of the class folders in `root`, sorted."""
    if not root.is_dir():
        raise UserError(
            f"data.root={root} is not a folder; allowed: a folder with one folder a class"
        )
    return sorted(
        path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def find_images(
    root: Path, classes: Sequence[str], skip_damaged: bool
) -> tuple[list[Path], list[int]]:
    """Return the images below `root/CLASS`, and the label of each; without those that are damaged, if asked to."""
    if unknown := set(read_classes(root)) - set(classes):
        raise UserError(
            f"{root} has the class {min(unknown)!r}, which the training folder does not have"
        )
    files = [
        (path, label) for label, name in enumerate(classes) for path in image_files(root / name)
    ]
    if skip_damaged:
        with ThreadPoolExecutor() as pool:
            damages = list(pool.map(damage, [path for path, _ in files]))
        if said := [text for text in damages if text]:
            print(
                f"data.skip_damaged: {len(said)} of {len(files)} images are left out, the first: {said[0]}"
            )
        files = [file for file, text in zip(files, damages, strict=True) if not text]
    if not files:
        raise UserError(f"{root} has no image in its class folders")
    return [path for path, _ in files], [label for _, label in files]


def damage(path: Path) -> str:
    """Say why an image can't be decoded; nothing if it can."""
    try:
        decode(path, None, "RGB")
    except UserError as error:
        return str(error)
    return ""


def image_files(root: Path) -> list[Path]:
    """Find the images below a folder, in order, without those in or behind a name that begins with a dot."""
    known = Image.registered_extensions()
    files = (path for path in root.rglob("*") if path.suffix.lower() in known)
    return sorted(path for path in files if "/." not in f"/{path.relative_to(root).as_posix()}")


def decode(path: Path, size: tuple[int, int] | None, mode: str) -> Tensor:
    """Decode an image of any mode to uint8 [C, H, W], of `size` (height, width). Raises UserError: it is damaged."""
    own = Image.registered_extensions().get(path.suffix.lower())
    try:
        with Image.open(
            path, formats=sorted(Image.ID, key=lambda name: name != own)
        ) as image:  # its own first
            upright = ImageOps.exif_transpose(_eight_bits(image)).convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} can't be decoded: {error}") from error
    if size:
        upright = ImageOps.fit(
            upright, size[::-1], Image.Resampling.BILINEAR
        )  # cut about the middle
    return torch.from_numpy(np.atleast_3d(np.asarray(upright)).transpose(2, 0, 1).copy())


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow clips where it should scale: 16-bit greys would all turn white."""
    if image.mode.startswith("I"):
        return Image.fromarray(
            (np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8)
        )
    return image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
