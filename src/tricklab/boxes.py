"""Boxes of random resized crops, and resizing, as in torchvision."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ATTEMPTS = 10  # to draw a box that lies within the image
NUMBERS_PER_BOX = 2 * ATTEMPTS + 2  # area and aspect ratio of each attempt, top and left


def resize(images: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    """Resize images [B, C, H, W] of 0 .. 255 with antialiasing, as torchvision does."""
    options: Any = {"size": list(size), "mode": interpolation, "antialias": True}
    if images.dtype == torch.uint8 and images.device.type == "cpu":
        return F.interpolate(images, **options)
    resized = F.interpolate(images.float(), **options)
    if interpolation == "bicubic":
        resized = resized.clamp(0, 255)
    return resized.round().byte() if images.dtype == torch.uint8 else resized


def draw_boxes(
    numbers: Tensor, heights_widths: Tensor, scale: Sequence[float], ratio: Sequence[float]
) -> Tensor:
    """Return top, left, height and width [B, 4] of boxes in images of these sizes [B, 2].

    As torchvision's `RandomResizedCrop.get_params`: the first of ten boxes that lies within the
    image, at a random place; if none does, the largest box in the centre with a ratio in `ratio`.
    `numbers` [B, 22] are uniform in [0, 1).
    """
    numbers = numbers.double()
    image_height, image_width = heights_widths.long().T[:, :, None]  # [B, 1] each
    area, log_ratio = numbers[:, :-2].split(ATTEMPTS, 1)  # [B, 10] each
    area = (scale[0] + (scale[1] - scale[0]) * area) * image_height * image_width
    low, high = map(math.log, ratio)
    aspect = (low + (high - low) * log_ratio).exp()
    width = (area * aspect).sqrt().round().long()
    height = (area / aspect).sqrt().round().long()
    fits = (width > 0) & (width <= image_width) & (height > 0) & (height <= image_height)
    first = fits.int().argmax(1, keepdim=True)
    any_fits = fits.any(1, keepdim=True)
    central_height, central_width = central_box(image_height, image_width, ratio)
    height = torch.where(any_fits, height.gather(1, first), central_height)
    width = torch.where(any_fits, width.gather(1, first), central_width)
    free = torch.cat([image_height - height, image_width - width], 1)  # [B, 2]
    random_place = (numbers[:, -2:] * (free + 1)).long()
    place = torch.where(any_fits, random_place, free // 2)
    return torch.cat([place, height, width], 1)


def central_box(height: Tensor, width: Tensor, ratio: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return height and width of the largest boxes in images [B, 1] with a ratio in `ratio`."""
    low, high = ratio
    aspect = width / height
    box_height = torch.where(aspect < low, (width / low).round().long(), height)
    box_width = torch.where(aspect > high, (height * high).round().long(), width)
    return box_height, box_width
