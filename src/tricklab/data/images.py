"""Image files: the only place that decodes them, to uint8 tensors, and keeps what was decoded."""

import hashlib
import math
import os
import re
import secrets
import traceback
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tricklab.data.progress import warn, with_progress
from tricklab.errors import UserError, nearest

# The formats that are decoded, and the endings by which folders are searched. The content decides which of them it is.
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
ENDINGS = frozenset(ending for endings in FORMATS.values() for ending in endings)
DAMAGED_TIFF = re.compile("corrupt|truncated|larger than file|too large", re.IGNORECASE)
TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BLOCK = 64  # images that a worker decodes at once, for what is kept
VERSION = 2  # of `decode`, in the names of caches: a change of its pixels makes new ones


def decode(
    path: Path, size: tuple[int, int] | None, mode: str, background: str = "white"
) -> Tensor:
    """Decode an image file to uint8 [C, H, W] of `mode` (RGB or L), cut to `size` (height, width) about its middle.

    It is turned upright by its EXIF, and transparent pixels show the `background`. Raises UserError with the path: the
    file is of no format in FORMATS, is damaged, or has values that no grey levels follow from, see `_eight_bits`.
    """
    try:
        image = _upright(_load(path))
        if image.mode == "F" or image.mode.startswith("I"):
            image = _eight_bits(image)
        if image.has_transparency_data:
            image = _on_ground(image.convert("RGBA"), background)
        image = image.convert(mode)
        if size:
            image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
        pixels = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
        return torch.from_numpy(pixels.copy())
    except Exception as error:  # a damaged file may end a decoder in any way
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"it is no {', '.join(FORMATS)}"
        raise UserError(f"{path} can't be decoded: {reason}") from error


def _load(path: Path) -> Image.Image:
    """Read all pixels of a file. Raises any exception: among them ValueError for a TIFF with damaged tags."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        with Image.open(path, formats=list(FORMATS)) as image:
            image.load()
    for warning in noted:  # elsewhere tags are only metadata, as in some images of ImageNet
        if image.format == "TIFF" and DAMAGED_TIFF.search(str(warning.message)):
            raise ValueError(str(warning.message))
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says; one that can't be read says nothing.

    `ImageOps.exif_transpose` also writes the EXIF anew, which fails for many a camera's.
    """
    turn: Image.Transpose | None = None
    with suppress(Exception), warnings.catch_warnings(action="ignore"):
        turn = TURNS[image.getexif()[0x0112]]
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the grey levels of an image of more than 8 bits: integers are 0 .. 65,535, floats 0 .. 1.

    Raises ValueError: values beyond; or all of them in the lowest sixteenth, as those of 8 or 12 bits would be, which
    can't be told from a dark image: so one of these files would turn black.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    full = 1 if image.mode == "F" else 65535
    if not (low >= 0 and (high == 0 or full / 16 <= high <= full)):
        kind = "floats" if image.mode == "F" else "integers"
        raise ValueError(
            f"its {kind} are {low:g} to {high:g}, where 0 to {full} is black to white; "
            "scale them to that, or save 8 bits"
        )
    levels = values.astype(np.float32)
    levels *= 255 / full
    return Image.fromarray(levels.round(out=levels).astype(np.uint8))


def _on_ground(image: Image.Image, background: str) -> Image.Image:
    ground = Image.new("RGBA", image.size, background)
    ground.alpha_composite(image)
    return ground.convert("RGB")


class ImageFile(NamedTuple):
    """A file as it was found: its name below the data set's folder, bytes, time of its last change in ns."""

    path: Path
    name: str
    size: int
    time: int


class ImageFiles:
    """Images in files: like a tensor, uint8 [N, C, H, W], that decodes the rows which are selected.

    Raises UserError: an image that can't be decoded, or is not of the size of the first.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        files: Sequence[ImageFile],
        resize: int | None,
        mode: str,
        background: str = "white",
        workers: int = 0,
    ):
        self.files = files
        self.options = ((resize, resize) if resize else None, mode, background)
        self.workers = workers
        self.shape = (len(files), *self.decode(0).shape)

    @property
    def identity(self) -> str:
        """A hash that changes with any of the files, and with what is made of them."""
        files = [(file.name, file.size, file.time) for file in self.files]
        return hashlib.sha256(repr((files, self.options, VERSION)).encode()).hexdigest()[:16]

    def decode(self, row: int) -> Tensor:
        try:
            return decode(self.files[row].path, *self.options)
        except UserError as error:
            raise UserError(f"{error}; data.skip_damaged=true leaves it out") from error

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        images = [self.decode(row) for row in rows.tolist()]
        for row, image in zip(rows.tolist(), images, strict=True):
            if image.shape != self.shape[1:]:
                message = f"{self.files[row].path} is not the size of {self.files[0].path}"
                raise UserError(f"{message}; data.resize=32 makes them equal")
        return torch.stack(images) if images else torch.empty(0, *self.shape[1:], dtype=torch.uint8)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.index_select(0, rows)

    def blocks(self) -> Iterator[Tensor]:
        """Decode all images, some at a time and in order."""
        rows = torch.arange(len(self.files)).split(BLOCK)
        return with_progress(prefetch(self, rows, self.workers), len(self.files), "decoding")


def prefetch(data: Any, rows: Sequence[Tensor], workers: int) -> Iterator[Any]:
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


class Damage:
    """Why each of some files can't be decoded; an empty text where it can. Selected by rows, as for `prefetch`."""

    def __init__(self, files: Sequence[ImageFile]):
        self.files = files

    def __getitem__(self, rows: Tensor) -> list[str]:
        return [self.find(self.files[row].path) for row in rows.tolist()]

    def find(self, path: Path) -> str:
        try:
            decode(path, None, "RGB")
        except UserError as error:
            return str(error)
        return ""


def decode_errors(files: Sequence[ImageFile], workers: int) -> list[str]:
    """Decode all files; return for each why that fails, or an empty text."""
    blocks = prefetch(Damage(files), torch.arange(len(files)).split(BLOCK), workers)
    return [text for block in with_progress(blocks, len(files), "checking") for text in block]


def keep(files: ImageFiles, cache: str) -> Tensor | ImageFiles:
    """Decode all images, uint8 [N, C, H, W]: into memory, or into a file in the folder `cache` that later runs map.

    "none" decodes each batch anew. Raises UserError: too large for memory, a folder that can't be written.
    """
    if cache == "none":
        return files
    if cache != "memory":
        return cached(files, cache_folder(cache))
    size = math.prod(files.shape)
    if size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        message = (
            f"{files.shape[0]} images take {size / 1e9:.1f} GB, there are {memory / 1e9:.1f} GB"
        )
        allowed = "a smaller data.resize, data.cache=FOLDER or data.cache=none"
        raise UserError(f"data.cache=memory: {message}; allowed: {allowed}")
    images = torch.empty(files.shape, dtype=torch.uint8)
    for part, pixels in zip(images.split(BLOCK), files.blocks(), strict=True):
        part.copy_(pixels)
    return images


def cache_folder(cache: str) -> Path:
    """Return the folder. Raises UserError: it is new, and its name a misspelt "memory" or "none"; no home folder."""
    path = expand_home(cache, "data.cache")
    hint = "" if path.exists() or "/" in cache else nearest(cache.lower(), ("memory", "none"))
    if hint:
        raise UserError(f"data.cache={cache}: there is no such folder; ./{cache} makes it.{hint}")
    return path


def expand_home(path: str, option: str) -> Path:
    """Return a path, `~` at its beginning replaced by the home folder. Raises UserError: nobody has that."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{option}={path}: {error}") from error


def cached(files: ImageFiles, folder: Path) -> Tensor:
    """Map the pixels in a file of the folder; decode and write them where it is missing, cut or changed.

    It is named by what was decoded, and holds the pixels of one image after the other and their CRC-32 (4 bytes).
    """
    place = files.files[0].path.absolute()
    name = hashlib.sha256(f"{files.identity}{place!r}".encode()).hexdigest()[:16]
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
    """Map the images [N, C, H, W] in a cache; None where it has another length or checksum."""
    size = math.prod(shape)
    if path.stat().st_size != size + 4:
        return None
    images, crc = map_cache(path, shape), 0
    block = max(1, 2**22 // math.prod(shape[1:]))
    for part in with_progress(images.split(block), shape[0], f"checking {path}"):
        crc = zlib.crc32(part.numpy().data, crc)
    with path.open("rb") as file:
        file.seek(size)
        return images if file.read() == crc.to_bytes(4) else None


def map_cache(path: Path, shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape)
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).view(shape)


def write_cache(files: ImageFiles, path: Path) -> None:
    """Write the pixels of all images and their checksum: the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{secrets.token_hex(4)}")
    crc = 0
    try:
        with beside.open("xb") as file:
            for pixels in files.blocks():
                file.write(pixels.numpy().data)
                crc = zlib.crc32(pixels.numpy().data, crc)
            file.write(crc.to_bytes(4))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
