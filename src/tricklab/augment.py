"""Augmentation of a whole batch at once, with random numbers of its own for each image.

Each function takes images [B, C, H, W] (uint8, or float of the same range) and `rand(*shape)`, which returns
uniform numbers [B, *shape]; it returns images of the same shape.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tricklab.randomness import Rand


def none(images: Tensor, rand: Rand) -> Tensor:
    """Leave the images as they are."""
    return images


def flip_crop(images: Tensor, rand: Rand, padding: int = 4, flip: float = 0.5) -> Tensor:
    """Pad by `padding` black pixels, cut the old size out anywhere; mirror with probability `flip`."""
    b, c, h, w = images.shape
    numbers = rand(3)
    top, left = (numbers[:, :2] * (2 * padding + 1)).long().T  # [B], [B]
    rows = top[:, None] + torch.arange(h, device=images.device)  # [B, H]
    columns = left[:, None] + torch.arange(w, device=images.device)  # [B, W]
    columns = torch.where(numbers[:, 2:] < flip, columns.flip(1), columns)
    padded = F.pad(images, [padding] * 4)
    pixels = rows[:, :, None] * padded.shape[3] + columns[:, None, :]  # [B, H, W]
    return padded.flatten(2).gather(2, pixels.flatten(1)[:, None].expand(b, c, h * w)).view(b, c, h, w)


def rotate_crop_flip(images: Tensor, rand: Rand, degrees: float = 15.0, padding: int = 4, flip: float = 0.5) -> Tensor:
    """Rotate about the centre by up to `degrees` either way (bilinear, black outside), then `flip_crop`."""
    angles = (rand() * 2 - 1) * math.radians(degrees)
    return flip_crop(_rotate(images.float(), angles), rand, padding, flip)


def _rotate(images: Tensor, angles: Tensor) -> Tensor:
    b, _, h, w = images.shape
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # affine_grid counts in half widths and half heights, so the sine is scaled for images that are not square
    matrix = torch.stack([cos, -sin * h / w, zero, sin * w / h, cos, zero], 1).view(b, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)
