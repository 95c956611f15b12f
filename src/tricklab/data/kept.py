"""Decoded images that keep their aspect ratio."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class KeptImages:
    """uint8 images of different sizes, in memory or in a mapped file.

    Args:
        pixels: of the images in order, each [H, W, C], in flat tensors of whole images.
        sizes: height and width of each image [N, 2].
        channels: of all images.
        workers: processes that crop them.
    """

    device = torch.device("cpu")

    def __init__(self, pixels: Sequence[Tensor], sizes: Tensor, channels: int, workers: int):
        self.pixels = pixels
        self.sizes = sizes.numpy().astype(np.int64)
        self.channels = channels
        self.workers = workers
        ends = (self.sizes.prod(1) * channels).cumsum()
        starts = np.concatenate([[0], ends[:-1]])
        first_of_block = np.cumsum([0, *map(len, pixels)])
        self._block = np.searchsorted(first_of_block, starts, side="right") - 1
        self._offset = starts - first_of_block[self._block]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Tensor:
        """Return an image [C, H, W] as a view, channels last in memory."""
        height, width = self.sizes[index].tolist()
        start = int(self._offset[index])
        flat = self.pixels[self._block[index]][start : start + height * width * self.channels]
        return flat.view(height, width, self.channels).permute(2, 0, 1)

    def index_select(self, dim: int, indices: Tensor) -> list[Tensor]:
        """Return the images with these indices, as `Tensor.index_select` with `dim` 0."""
        return [self[index] for index in indices.tolist()]
