"""Augmentation of a whole batch at once, with random numbers of its own for each image.

Each function takes images [B, C, H, W] of 0 .. 255 (uint8 or float) and `rand`, which has their random numbers, and
returns images of the same shape and range. Several are done one after the other.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tricklab.errors import UserError
from tricklab.randomness import Rand


def crop(images: Tensor, rand: Rand, padding: float = 0.125) -> Tensor:
    """Pad with black and cut the old size out anywhere. `padding`: pixels, or a share of the side if it is below 1."""
    b, c, h, w = images.shape
    pad_h, pad_w = (round(padding if padding >= 1 else padding * side) for side in (h, w))
    if pad_h > h or pad_w > w:
        raise UserError(
            f"augment.crop.padding={padding} of images of {h} x {w}; allowed: up to that"
        )
    numbers = rand(2)
    top, left = (numbers[:, 0] * (2 * pad_h + 1)).long(), (numbers[:, 1] * (2 * pad_w + 1)).long()
    padded = F.pad(images, [pad_w, pad_w, pad_h, pad_h])
    high, wide = padded.shape[2:]
    # where a row begins, counted through all pixels of `padded`: as it is, and moved
    rows = torch.arange(0, padded.numel(), wide, device=top.device).view(b, c, high)
    begins = rows[:, :, :h] + (top * wide + left)[:, None, None]
    return padded.flatten().unfold(0, w, 1).index_select(0, begins.flatten()).view(images.shape)


def flip(images: Tensor, rand: Rand, horizontal: float = 0.5, vertical: float = 0.0) -> Tensor:
    """Mirror left and right, top and bottom, with these probabilities."""
    x, y = rand(2).T  # [B] each
    images = choose(x < horizontal, images.flip(3), images)
    return choose(y < vertical, images.flip(2), images) if vertical else images


def alternating_flip(images: Tensor, rand: Rand) -> Tensor:
    """Mirror each image in every other epoch: half of them in the first, the others in the next. arXiv 2404.00498."""
    turned = (rand.lasting < 0.5) ^ bool(rand.epoch % 2)  # [B]
    return choose(turned, images.flip(3), images)


def choose(first: Tensor, images: Tensor, others: Tensor) -> Tensor:
    """Return `images` where `first` [B] holds and `others` elsewhere; `torch.where` takes twice as long for bytes."""
    rows = torch.arange(len(images), device=images.device) + len(images) * ~first
    return torch.cat([images, others]).index_select(0, rows)


def rotate(images: Tensor, rand: Rand, degrees: float = 15.0) -> Tensor:
    """Rotate about the centre by up to `degrees` either way; bilinear, black outside."""
    return affine(images, rand, degrees, translate=0, scale=0, shear=0)


def affine(
    images: Tensor,
    rand: Rand,
    degrees: float = 15.0,
    translate: float = 0.1,
    scale: float = 0.1,
    shear: float = 10.0,
) -> Tensor:
    """Rotate, shear (degrees), scale and shift (shares) by up to so much either way; bilinear, black outside."""
    if not (degrees or translate or scale or shear):
        return images
    numbers = rand(5) * 2 - 1
    shift = numbers[:, 3:] * 2 * translate  # the sides of an image are 2 long here
    return warp(
        images, numbers[:, 0] * degrees, numbers[:, 1] * shear, 1 + numbers[:, 2] * scale, shift
    )


def warp(images: Tensor, degrees: Tensor, shear: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Move each image by angles and factors [B] and a shift [B, 2] in half sides, as torchvision's `affine` does."""
    b, _, h, w = images.shape
    turn, slant = degrees.deg2rad(), shear.deg2rad().tan()
    cos, sin = turn.cos(), turn.sin()
    # from a pixel of the result to where it was; affine_grid counts in half widths and half heights
    back = [cos - slant * sin, (sin + slant * cos) * h / w, -sin * w / h, cos]
    matrix = (torch.stack(back, 1) / scale[:, None]).view(b, 2, 2)
    grid = F.affine_grid(
        torch.cat([matrix, -matrix @ shift[:, :, None]], 2), list(images.shape), align_corners=False
    )
    return F.grid_sample(images.float(), grid, align_corners=False)


def erase(
    images: Tensor,
    rand: Rand,
    probability: float = 0.25,
    smallest: float = 0.02,
    largest: float = 0.33,
    value: int = 0,
) -> Tensor:
    """Fill a box with `value`: `smallest` to `largest` of the area, 0.3 to 3.3 times as high as wide.

    Random erasing, arXiv 1708.04896. A box higher (or wider) than the image becomes as high (or
    wide) as the image and keeps its area, so the areas are those drawn in images of any shape. There,
    and in torchvision, such a box is drawn again, up to ten times: then large areas are rare in images
    much wider than high, or higher than wide. Raises UserError: `smallest` is above `largest`.
    """
    if smallest > largest:
        message = f"augment.erase.smallest={smallest} is above augment.erase.largest={largest}"
        raise UserError(f"{message}; swap them")
    h, w = images.shape[2:]
    chance, size, shape, y, x = rand(5).T  # [B] each
    area = (smallest + (largest - smallest) * size) * h * w
    ratio = 0.3 ** (2 * shape - 1)
    drawn_height, drawn_width = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    height = torch.where(drawn_width > w, (area / w).round(), drawn_height).clamp(max=h)
    width = torch.where(drawn_height > h, (area / h).round(), drawn_width).clamp(max=w)
    height = height * (chance < probability)
    top = (y * (h + 1 - height)).floor()
    left = (x * (w + 1 - width)).floor()
    inside = box(top, top + height, left, left + width, h, w).to(images.dtype)
    return images * (1 - inside) + inside * value  # masked_fill takes twice as long


def box(
    top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, height: int, width: int
) -> Tensor:
    """Return bytes [B, 1, height, width], 1 between these borders [B], the second of each left out, and 0 elsewhere."""
    rows, columns = torch.arange(height, device=top.device), torch.arange(width, device=top.device)
    inside_rows = (top[:, None] <= rows) & (rows < bottom[:, None])  # [B, H]
    inside_columns = (left[:, None] <= columns) & (columns < right[:, None])  # [B, W]
    return (
        inside_rows.view(torch.uint8)[:, :, None] & inside_columns.view(torch.uint8)[:, None, :]
    )[:, None]


def jitter(images: Tensor, rand: Rand, brightness: float = 0.2, contrast: float = 0.2) -> Tensor:
    """Multiply the pixels, and their distance from the image's mean, by up to so much more or less than 1."""
    lighter, steeper = (rand(2, 1, 1, 1) * 2 - 1).unbind(1)  # [B, 1, 1, 1] each
    bright = images * (1 + lighter * brightness)
    bright = bright + (bright - bright.mean((1, 2, 3), keepdim=True)) * (steeper * contrast)
    return bright.clamp(0, 255)


def randaugment(images: Tensor, rand: Rand, operations: int = 2, magnitude: int = 9) -> Tensor:
    """So many random operations of one strength (0 to 30), image by image, by torchvision. arXiv 1909.13719."""
    return _one_by_one("RandAugment", images, rand, num_ops=operations, magnitude=magnitude)


def trivialaugment(images: Tensor, rand: Rand) -> Tensor:
    """One random operation of a random strength, image by image, by torchvision. arXiv 2103.10158."""
    return _one_by_one("TrivialAugmentWide", images, rand)


def _one_by_one(transform: str, images: Tensor, rand: Rand, **options: Any) -> Tensor:
    """Torchvision draws from the default generator, which is as it was afterwards; it takes 1 or 3 channels."""
    from torchvision.transforms import v2  # takes a second

    if images.shape[1] not in (1, 3):
        raise UserError(
            f"augment: torchvision's operations do not take {images.shape[1]} channels; allowed: 1, 3"
        )
    change, before, changed = getattr(v2, transform)(**options), torch.get_rng_state(), []
    for image, number in zip(images.float().round().byte(), rand().tolist(), strict=True):
        torch.default_generator.manual_seed(int(number * 2**24))
        changed.append(change(image))
    torch.set_rng_state(before)
    return torch.stack(changed)
