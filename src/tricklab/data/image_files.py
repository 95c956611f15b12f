"""Image files as a data set: each is decoded when it is asked for."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tricklab.data.file_list import FileList
from tricklab.data.fit import Keep
from tricklab.data.images import VERSION, Resize, decode, decode_with_size
from tricklab.data.prefetch import prefetch
from tricklab.data.progress import with_progress
from tricklab.data.shared_memory import SharedBuffer, prefetch_tensors
from tricklab.errors import UserError

BLOCK = 32  # images that a worker decodes at once
Size = tuple[int, int]  # height and width


@dataclass
class Block:
    """Decoded images in order.

    `pixels` is flat, each image [C, H, W], or [H, W, C] if it keeps its aspect ratio. `sizes` are
    the heights and widths of the images, `original_sizes` those before they were resized.
    """

    pixels: Tensor
    sizes: list[Size]
    original_sizes: list[Size]

    def __len__(self) -> int:
        return len(self.sizes)


class ImageFiles:
    """Image files as lazy uint8 images: `index_select` decodes those asked for.

    With `resize=Keep(...)` they differ in size, else all must have that of the first one. Raises
    UserError: an image that can't be decoded, or of another size.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        files: FileList,
        resize: Resize,
        mode: str,
        background: str = "white",
        workers: int = 0,
    ):
        self.files = files
        self.resize = resize
        self.mode = mode
        self.background = background
        self.workers = workers
        self.channels, height, width = self.decode(0).shape
        self.shape = (len(files), self.channels, height, width)  # of a tensor of all images

    def __len__(self) -> int:
        return len(self.files)

    @property
    def keeps_aspect(self) -> bool:
        """Whether the images differ in size."""
        return isinstance(self.resize, Keep)

    @property
    def digest(self) -> str:
        """A hash of the files' names, sizes and times, and of how they are decoded."""
        options = (self.resize, self.mode, self.background, VERSION)
        # that of repr((list(entries), options)), which would take a gigabyte for ImageNet
        digest = hashlib.sha256(b"([")
        separator = ""
        for entry in self.files.entries():
            digest.update(f"{separator}{entry!r}".encode())
            separator = ", "
        digest.update(f"], {options!r})".encode())
        return digest.hexdigest()[:16]

    def subset(self, indices: Tensor, resize: Resize) -> "ImageFiles":
        """Return the files with these indices, resized in another way."""
        files = self.files.select(indices)
        return ImageFiles(files, resize, self.mode, self.background, self.workers)

    def decode(self, index: int) -> Tensor:
        return self._decode_with_size(index)[0]

    def _decode_with_size(self, index: int) -> tuple[Tensor, Size]:
        path = self.files[index].path
        try:
            return decode_with_size(path, self.resize, self.mode, self.background)
        except UserError as error:
            raise UserError(f"{error}; data.skip_corrupt=true leaves it out") from error

    def index_select(self, dim: int, indices: Tensor) -> Tensor | list[Tensor]:
        """Decode images[indices], as `Tensor.index_select` with `dim` 0.

        Return [B, C, H, W], or a list of [C, H, W] if the images keep their aspect ratio.
        """
        images = [self.decode(index) for index in indices.tolist()]
        if self.keeps_aspect:
            return images
        for index, image in zip(indices.tolist(), images, strict=True):
            self._check_size(index, image)
        return torch.stack(images) if images else torch.empty(0, *self.shape[1:], dtype=torch.uint8)

    def __getitem__(self, indices: Tensor) -> Tensor | list[Tensor]:
        return self.index_select(0, indices)

    def _check_size(self, index: int, image: Tensor) -> None:
        if image.shape != self.shape[1:]:
            message = f"{self.files[index].path} is not the size of {self.files[0].path}"
            raise UserError(f"data.fit=none: {message}; data.fit=crop makes them equal")

    def blocks(self, kept: SharedBuffer | None = None) -> Iterator[Block]:
        """Decode all images in order, BLOCK at a time, and show the progress.

        Their pixels stay in `kept`, a `buffer()`, if it is given.
        """
        return with_progress(self._blocks(kept), len(self.files), "decoding")

    def _blocks(self, kept: SharedBuffer | None) -> Iterator[Block]:
        tasks = torch.arange(len(self.files)).split(BLOCK)
        size = BLOCK * self._most_bytes
        for pixels, sizes in prefetch_tensors(self._decode_block, tasks, self.workers, size, kept):
            yield Block(pixels, *sizes)

    def buffer(self) -> SharedBuffer:
        """Return a buffer for all blocks, those of images of one size without gaps."""
        return SharedBuffer(BLOCK * self._most_bytes, math.ceil(len(self.files) / BLOCK))

    @property
    def _most_bytes(self) -> int:
        """Bytes of an image; where they differ, of one that is twice as long as it is high."""
        if isinstance(self.resize, Keep):
            return self.channels * 2 * self.resize.short_side**2
        return math.prod(self.shape[1:])

    def _decode_block(self, indices: Tensor) -> tuple[list[Tensor], tuple[list[Size], list[Size]]]:
        """Return the flat pixels of images, and their sizes now and before they were resized."""
        pixels, sizes, original_sizes = [], [], []
        for index in indices.tolist():
            image, original_size = self._decode_with_size(index)
            if self.keeps_aspect:
                pixels.append(image.permute(1, 2, 0).flatten())
            else:
                self._check_size(index, image)
                pixels.append(image.flatten())
            sizes.append((image.shape[1], image.shape[2]))
            original_sizes.append(original_size)
        return pixels, (sizes, original_sizes)


def decode_errors(files: FileList, workers: int) -> list[str]:
    """Decode all files and return the error message of each; an empty one if it has none."""
    indices = torch.arange(len(files)).split(BLOCK)
    blocks = prefetch(partial(_decode_errors, files), indices, workers)
    return [message for block in with_progress(blocks, len(files), "checking") for message in block]


def _decode_errors(files: FileList, indices: Tensor) -> list[str]:
    return [_decode_error(files[index].path) for index in indices.tolist()]


def _decode_error(path: Path) -> str:
    try:
        decode(path, None, "RGB")
    except UserError as error:
        return str(error)
    return ""
