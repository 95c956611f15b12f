"""Decoding of image files: the only module that does it, to uint8 tensors [C, H, W]."""

import re
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from tricklab.data.fit import Fit, Keep
from tricklab.data.jpeg import read_plain_sides
from tricklab.errors import UserError

# Formats that are decoded, whatever a file's extension; folders are searched by extension
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
}
EXTENSIONS = frozenset(extension for group in FORMATS.values() for extension in group)
CORRUPT_TIFF = re.compile("corrupt|truncated|larger than file|too large", re.IGNORECASE)
ORIENTATION_TAG = 0x0112  # EXIF
TRANSPOSES = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
VERSION = 3  # increment it if the pixels of `decode` change: it invalidates all caches

Resize = Fit | Keep | None  # None: an image keeps its size


def decode(path: Path, resize: Resize, mode: str, background: str = "white") -> Tensor:
    """Decode an image file to uint8 [C, H, W] of `mode` (RGB or L), channels last in memory.

    It is rotated upright by its EXIF, composited onto `background`, and resized. Raises UserError
    with the path: the file is of no format in FORMATS, is corrupt, or has values that are not
    clearly grey levels, see `_to_eight_bits`.
    """
    return decode_with_size(path, resize, mode, background)[0]


def decode_with_size(
    path: Path, resize: Resize, mode: str, background: str = "white"
) -> tuple[Tensor, tuple[int, int]]:
    """Decode an image file, see `decode`; return its height and width before it is resized too."""
    try:
        if isinstance(resize, Keep) and mode == "RGB":
            pixels = decode_whole_jpeg(path, resize.short_side)
            if pixels is not None:
                return pixels, (pixels.shape[1], pixels.shape[2])
        image = load(path, mode, background, resize)
        width, height = image.size
        if resize:
            image = resize(image)
        pixels = torch.from_numpy(np.array(image))  # [H, W], or [H, W, C]
        return torch.atleast_3d(pixels).permute(2, 0, 1), (height, width)
    except Exception as error:  # a decoder may fail on a corrupt file in any way
        raise UserError(f"{path} can't be decoded: {_reason(error)}") from error


def decode_whole_jpeg(path: Path, short_side: int) -> Tensor | None:
    """Decode a plain JPEG that need not be resized, with torchvision to RGB [3, H, W].

    It takes half of Pillow's time, for the same pixels. None: another image, or one that is
    damaged.
    """
    content = bytearray(path.read_bytes())
    sides = read_plain_sides(content)
    if sides is None or min(sides) > short_side:
        return None
    with suppress(RuntimeError):
        data = torch.frombuffer(content, dtype=torch.uint8)
        pixels: Tensor = decode_jpeg(data, ImageReadMode.RGB)
        return pixels
    return None


def load(path: Path, mode: str, background: str, resize: Resize = None) -> Image.Image:
    """Read an image upright, without transparency. Raises any exception.

    JPEGs are decoded at a reduced scale if `resize` allows it.
    """
    reduce = resize.short_side if isinstance(resize, Keep) and resize.jpeg_scaling else None
    image = _upright(_load(path, reduce))
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = _composite(image.convert("RGBA"), background)
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def read_size(path: Path) -> tuple[int, int] | None:
    """Return height and width of an image from its header, before EXIF rotates it; None without."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=[*FORMATS]) as file:
            return file.height, file.width
    except Exception:  # a decoder may fail on a corrupt file in any way
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not a {', '.join(FORMATS)} file"
    return " ".join(str(error).split()) or type(error).__name__


def _load(path: Path, reduce: int | None) -> Image.Image:
    """Read all pixels of a file; of a JPEG as few as keep the short side at `reduce` or more.

    Raises any exception, among them ValueError: corrupt TIFF tags.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(path, formats=list(FORMATS)) as image:
            if reduce:
                image.draft(None, (reduce, reduce))
            image.load()
    if image.format != "TIFF":  # elsewhere tags are only metadata, and corrupt in parts of ImageNet
        return image
    for warning in caught:
        if CORRUPT_TIFF.search(str(warning.message)):
            raise ValueError(str(warning.message))
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Rotate or mirror an image by its EXIF orientation; unreadable EXIF is ignored.

    `ImageOps.exif_transpose` also writes the EXIF back, which fails for that of many cameras.
    """
    transpose: Image.Transpose | None = None
    with suppress(Exception), warnings.catch_warnings(action="ignore"):
        transpose = TRANSPOSES[image.getexif()[ORIENTATION_TAG]]
    return image if transpose is None else image.transpose(transpose)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale more than 8 bits to 0 .. 255: integers from 0 .. 65,535, floats from 0 .. 1.

    Raises ValueError: values out of that range, or all of them in its lowest sixteenth. These may
    be a dark image, or 8 or 12 bits in a 16-bit file, which would turn black.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    white = 1 if image.mode == "F" else 65535
    if not (low >= 0 and (high == 0 or white / 16 <= high <= white)):
        kind = "floats" if image.mode == "F" else "integers"
        raise ValueError(
            f"its {kind} are {low:g} to {high:g}, where 0 to {white} is black to white; "
            "scale them to that, or save 8 bits"
        )
    levels = values.astype(np.float32)
    levels *= 255 / white
    return Image.fromarray(levels.round(out=levels).astype(np.uint8))


def _composite(image: Image.Image, background: str) -> Image.Image:
    canvas = Image.new("RGBA", image.size, background)
    canvas.alpha_composite(image)
    return canvas.convert("RGB")
