"""Reading images of any kind from class folders."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tricklab.errors import UserError


def read_classes(root: Path) -> list[str]:
    """Return the names of the class folders in `root`, sorted."""
    if not root.is_dir():
        raise UserError(f"data.root={root} is not a folder; allowed: a folder with one folder a class")
    return sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def find_images(root: Path, classes: Sequence[str], skip_damaged: bool = False) -> tuple[list[Path], list[int]]:
    """Return the images below `root/CLASS`, and the label of each; without those that are damaged, if asked to."""
    unknown = set(read_classes(root)) - set(classes)
    if unknown:
        raise UserError(f"{root} has the class {min(unknown)!r}, which the training folder does not have")
    files = [(path, label) for label, name in enumerate(classes) for path in image_files(root / name)]
    if skip_damaged:
        files = without_damaged(files)
    if not files:
        raise UserError(f"{root} has no image in its class folders")
    return [path for path, _ in files], [label for _, label in files]


def without_damaged(files: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """Leave out what can't be decoded, and say how many that are."""
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda file: damage(file[0]), files))
    if damages := [said for said in found if said]:
        print(f"data.skip_damaged: {len(damages)} of {len(files)} images are left out, the first: {damages[0]}")
    return [file for file, said in zip(files, found, strict=True) if not said]


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
    hidden = re.compile(r"(^|/)\.")
    files = (path for path in root.rglob("*") if path.suffix.lower() in known)
    return sorted(path for path in files if not hidden.search(path.relative_to(root).as_posix()))


def decode(path: Path, size: tuple[int, int] | None, mode: str) -> Tensor:
    """Decode an image of any mode to uint8 [C, H, W], cut about the middle and resized to `size` (height, width).

    Raises UserError: the file is damaged, or no image.
    """
    own = Image.registered_extensions().get(path.suffix.lower())
    try:
        with Image.open(path, formats=sorted(Image.ID, key=lambda name: name != own)) as image:  # its own first
            upright = ImageOps.exif_transpose(_eight_bits(image)).convert(mode)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} can't be decoded: {error}") from error
    if size:
        upright = ImageOps.fit(upright, size[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(upright)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1).copy())


def _eight_bits(image: Image.Image) -> Image.Image:
    """Pillow clips where it should scale: 16-bit greys would all turn white."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    return image
