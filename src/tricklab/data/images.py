"""Image files: the only module that decodes them, to uint8 tensors [C, H, W]."""

import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tricklab.data.prefetch import prefetch
from tricklab.data.progress import with_progress
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
BLOCK = 64  # images that a worker decodes at once
VERSION = 2  # increment it if the pixels of `decode` change: it invalidates all caches


def decode(
    path: Path, size: tuple[int, int] | None, mode: str, background: str = "white"
) -> Tensor:
    """Decode an image file to uint8 [C, H, W] of `mode` (RGB or L).

    It is rotated upright by its EXIF, composited onto `background`, and with `size` (height,
    width) resized and centre-cropped. Raises UserError with the path: the file is of no format in
    FORMATS, is corrupt, or has values that are not clearly grey levels, see `_to_eight_bits`.
    """
    try:
        image = _upright(_load(path))
        if image.mode == "F" or image.mode.startswith("I"):
            image = _to_eight_bits(image)
        if image.has_transparency_data:
            image = _composite(image.convert("RGBA"), background)
        image = image.convert(mode)
        if size:
            image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
        pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
        return torch.from_numpy(pixels.copy())
    except Exception as error:  # a decoder may fail on a corrupt file in any way
        raise UserError(f"{path} can't be decoded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not a {', '.join(FORMATS)} file"
    return " ".join(str(error).split()) or type(error).__name__


def _load(path: Path) -> Image.Image:
    """Read all pixels of a file. Raises any exception, among them ValueError: corrupt TIFF tags."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(path, formats=list(FORMATS)) as image:
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


class ImageFile(NamedTuple):
    """A file as it was found: path, name below the root, size in bytes, modification time in ns."""

    path: Path
    name: str
    size: int
    time: int


class ImageFiles:
    """Image files as a lazy uint8 tensor [N, C, H, W]: `index_select` decodes the images asked for.

    Raises UserError: an image that can't be decoded, or not of the size of the first one.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        files: Sequence[ImageFile],
        size: int | None,
        mode: str,
        background: str = "white",
        workers: int = 0,
    ):
        self.files = files
        self.options = ((size, size) if size else None, mode, background)
        self.workers = workers
        self.shape = (len(files), *self.decode(0).shape)

    @property
    def digest(self) -> str:
        """A hash of the files' names, sizes and times, and of how they are decoded."""
        files = [(file.name, file.size, file.time) for file in self.files]
        return hashlib.sha256(repr((files, self.options, VERSION)).encode()).hexdigest()[:16]

    def decode(self, index: int) -> Tensor:
        try:
            return decode(self.files[index].path, *self.options)
        except UserError as error:
            raise UserError(f"{error}; data.skip_corrupt=true leaves it out") from error

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        """Decode images[indices], as `Tensor.index_select` with `dim` 0."""
        if not len(indices):
            return torch.empty(0, *self.shape[1:], dtype=torch.uint8)
        images = [self.decode(index) for index in indices.tolist()]
        for index, image in zip(indices.tolist(), images, strict=True):
            if image.shape != self.shape[1:]:
                message = f"{self.files[index].path} is not the size of {self.files[0].path}"
                raise UserError(f"{message}; data.size=32 makes them equal")
        return torch.stack(images)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.index_select(0, indices)

    def blocks(self) -> Iterator[Tensor]:
        """Decode all images in order, BLOCK at a time, and show the progress."""
        indices = torch.arange(len(self.files)).split(BLOCK)
        blocks = prefetch(partial(self.index_select, 0), indices, self.workers)
        return with_progress(blocks, len(self.files), "decoding")


def decode_errors(files: Sequence[ImageFile], workers: int) -> list[str]:
    """Decode all files and return the error message of each; an empty one if it has none."""
    indices = torch.arange(len(files)).split(BLOCK)
    blocks = prefetch(partial(_decode_errors, files), indices, workers)
    return [message for block in with_progress(blocks, len(files), "checking") for message in block]


def _decode_errors(files: Sequence[ImageFile], indices: Tensor) -> list[str]:
    return [_decode_error(files[index].path) for index in indices.tolist()]


def _decode_error(path: Path) -> str:
    try:
        decode(path, None, "RGB")
    except UserError as error:
        return str(error)
    return ""
