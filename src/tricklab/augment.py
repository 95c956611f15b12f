"""Augmentation of a whole batch at once, with its own random numbers for each image.

Each option takes images [B, C, H, W] in 0 .. 255 (uint8 or float) and `rand`, the source of their
random numbers, and returns images of the same shape and range. Several are applied in sequence.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tricklab.errors import UserError
from tricklab.randomness import Rand

Step = TypeVar("Step", bound=Callable[..., Tensor])
CROP_ATTEMPTS = 10  # as many as torchvision makes to draw a box that lies within the image


def of_originals(step: Step) -> Step:
    """Mark an augmentation of images as they were before they got the size of the network.

    It takes images [C, h, w] of any sizes, [B, C, H, W] or a list, and `size`, the height and width
    to return. It runs first, where images are loaded.
    """
    step.of_originals = True  # type: ignore[attr-defined]
    return step


def image_by_image(step: Step) -> Step:
    """Mark an augmentation that does not work on a whole batch: processes that load files do it."""
    step.image_by_image = True  # type: ignore[attr-defined]
    return step


def takes_originals(step: Any) -> bool:
    """Whether an augmentation, or a partial of it, is marked `of_originals`."""
    return hasattr(getattr(step, "func", step), "of_originals")


def works_on_each(step: Any) -> bool:
    """Whether an augmentation, or a partial of it, is marked `image_by_image`."""
    return hasattr(getattr(step, "func", step), "image_by_image")


def resize(images: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    """Resize images [B, C, H, W] of 0 .. 255 with antialiasing, as torchvision does."""
    options: Any = {"size": list(size), "mode": interpolation, "antialias": True}
    if images.dtype == torch.uint8 and images.device.type == "cpu":
        return F.interpolate(images, **options)
    resized = F.interpolate(images.float(), **options)
    if interpolation == "bicubic":
        resized = resized.clamp(0, 255)
    return resized.round().byte() if images.dtype == torch.uint8 else resized


@of_originals
def resized_crop(
    images: Tensor | Sequence[Tensor],
    rand: Rand,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
    size: Sequence[int] | None = None,
) -> Tensor:
    """Random resized crop: cut out a box and resize it to `size`. arXiv 1409.4842.

    The box has `scale` = [low, high] of the area, and an aspect ratio (width / height) within
    `ratio`, log-uniform. Distribution and pixels are those of torchvision's RandomResizedCrop.
    """
    size = size or images[0].shape[1:]
    heights_widths = torch.tensor([image.shape[1:] for image in images])
    boxes = draw_boxes(rand(2 * CROP_ATTEMPTS + 2).cpu(), heights_widths, scale, ratio)
    cropped = images[0].new_empty(len(images), len(images[0]), *size)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        box = images[i][None, :, top : top + height, left : left + width]
        cropped[i] = resize(box, size, interpolation)[0]
    return cropped


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
    area, log_ratio = numbers[:, :-2].split(CROP_ATTEMPTS, 1)  # [B, 10] each
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


def crop(images: Tensor, rand: Rand, padding: float = 0.125) -> Tensor:
    """Random crop: zero-pad, then crop back to the original size at a random offset.

    `padding` is in pixels, below 1 a fraction of the side. Raises UserError: it exceeds the side.
    """
    b, c, h, w = images.shape
    pad_h, pad_w = (round(padding if padding >= 1 else padding * side) for side in (h, w))
    if pad_h > h or pad_w > w:
        raise UserError(f"augment.crop.padding={padding} exceeds the image size {h} x {w}")
    offsets = rand(2)  # [B, 2]
    top = (offsets[:, 0] * (2 * pad_h + 1)).long()
    left = (offsets[:, 1] * (2 * pad_w + 1)).long()
    padded = F.pad(images, [pad_w, pad_w, pad_h, pad_h])
    padded_h, padded_w = padded.shape[2:]
    # every row of the result is a slice of the flattened pixels: gather them by their first pixel
    rows = torch.arange(0, padded.numel(), padded_w, device=top.device).view(b, c, padded_h)
    starts = rows[:, :, :h] + (top * padded_w + left)[:, None, None]
    slices = padded.flatten().unfold(0, w, 1)
    return slices.index_select(0, starts.flatten()).view(images.shape)


def flip(images: Tensor, rand: Rand, horizontal: float = 0.5, vertical: float = 0.0) -> Tensor:
    """Mirror left-right and upside down with these probabilities."""
    x, y = rand(2).T  # [B] each
    images = where_images(x < horizontal, images.flip(3), images)
    if not vertical:
        return images
    return where_images(y < vertical, images.flip(2), images)


def alternating_flip(images: Tensor, rand: Rand) -> Tensor:
    """Mirror half of the images in even epochs, the other half in odd ones. arXiv 2404.00498."""
    is_mirrored = (rand.per_image < 0.5) ^ bool(rand.epoch % 2)  # [B]
    return where_images(is_mirrored, images.flip(3), images)


def where_images(mask: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return images of `a` where `mask` [B], else of `b`; `torch.where` takes twice as long."""
    rows = torch.arange(len(a), device=a.device) + len(a) * ~mask
    return torch.cat([a, b]).index_select(0, rows)


def rotate(images: Tensor, rand: Rand, degrees: float = 15.0) -> Tensor:
    """Rotate about the centre by up to +-`degrees`; bilinear, black outside."""
    return affine(images, rand, degrees, translate=0, scale=0, shear=0)


def affine(
    images: Tensor,
    rand: Rand,
    degrees: float = 15.0,
    translate: float = 0.1,
    scale: float = 0.1,
    shear: float = 10.0,
) -> Tensor:
    """Rotate and shear by up to +-degrees, scale by up to 1 +- `scale`, shift; black outside.

    `translate` is the maximum shift as a fraction of the side. Bilinear.
    """
    if not (degrees or translate or scale or shear):
        return images
    numbers = rand(5) * 2 - 1  # [B, 5] in [-1, 1)
    angles = numbers[:, 0] * degrees
    shears = numbers[:, 1] * shear
    scales = 1 + numbers[:, 2] * scale
    shifts = numbers[:, 3:] * 2 * translate  # in half sides
    return warp(images, angles, shears, scales, shifts)


def warp(images: Tensor, degrees: Tensor, shear: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Warp each image as torchvision's `affine`.

    Angles in degrees [B], factors [B], shifts [B, 2] in half sides.
    """
    b, _, h, w = images.shape
    cos = degrees.deg2rad().cos()
    sin = degrees.deg2rad().sin()
    slant = shear.deg2rad().tan()
    # from output to input coordinates; affine_grid counts in half widths and half heights
    inverse = [cos - slant * sin, (sin + slant * cos) * h / w, -sin * w / h, cos]
    matrix = (torch.stack(inverse, 1) / scale[:, None]).view(b, 2, 2)
    theta = torch.cat([matrix, -matrix @ shift[:, :, None]], 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False)


def erase(
    images: Tensor,
    rand: Rand,
    probability: float = 0.25,
    scale: Sequence[float] = (0.02, 0.33),
    value: int = 0,
) -> Tensor:
    """Random erasing: fill a box of `scale` = [low, high] of the area. arXiv 1708.04896.

    Its height is 0.3 to 3.3 times its width. A box higher (or wider) than the image becomes as high
    (or wide) as the image and keeps its area, so the areas are as drawn for images of any shape. In
    the paper and torchvision such a box is drawn again, up to ten times, which makes large areas
    rare in elongated images. Raises UserError: low is above high.
    """
    low, high = scale
    if low > high:
        message = f"augment.erase.scale={list(scale)}: low is above high"
        raise UserError(f"{message}; swap them")
    h, w = images.shape[2:]
    is_erased, size, aspect, y, x = rand(5).T  # [B] each
    area = (low + (high - low) * size) * h * w
    height, width = fit_boxes(area, 0.3 ** (2 * aspect - 1), h, w)
    height = height * (is_erased < probability)
    top = (y * (h + 1 - height)).floor()
    left = (x * (w + 1 - width)).floor()
    mask = box(top, top + height, left, left + width, h, w).to(images.dtype)
    return images * (1 - mask) + mask * value  # masked_fill takes twice as long


def fit_boxes(area: Tensor, ratio: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Return height and width [B] of boxes of `area` and height / width `ratio`, within h x w."""
    drawn_height = (area * ratio).sqrt().round()
    drawn_width = (area / ratio).sqrt().round()
    height = torch.where(drawn_width > w, (area / w).round(), drawn_height).clamp(max=h)
    width = torch.where(drawn_height > h, (area / h).round(), drawn_width).clamp(max=w)
    return height, width


def box(
    top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, height: int, width: int
) -> Tensor:
    """Return a uint8 mask [B, 1, height, width] that is 1 in [top, bottom) x [left, right)."""
    rows = torch.arange(height, device=top.device)
    columns = torch.arange(width, device=top.device)
    in_rows = (top[:, None] <= rows) & (rows < bottom[:, None])  # [B, H]
    in_columns = (left[:, None] <= columns) & (columns < right[:, None])  # [B, W]
    mask = in_rows.view(torch.uint8)[:, :, None] & in_columns.view(torch.uint8)[:, None, :]
    return mask[:, None]


def jitter(images: Tensor, rand: Rand, brightness: float = 0.2, contrast: float = 0.2) -> Tensor:
    """Color jitter: scale pixels by 1 +- `brightness`, then contrast by 1 +- `contrast` at most."""
    lighter, steeper = (rand(2, 1, 1, 1) * 2 - 1).unbind(1)  # [B, 1, 1, 1] each
    bright = images * (1 + lighter * brightness)
    bright = bright + (bright - bright.mean((1, 2, 3), keepdim=True)) * (steeper * contrast)
    return bright.clamp(0, 255)


@image_by_image
def randaugment(images: Tensor, rand: Rand, operations: int = 2, magnitude: int = 9) -> Tensor:
    """RandAugment: `operations` random ops of one magnitude (0-30) per image. arXiv 1909.13719."""
    return _apply_torchvision("RandAugment", images, rand, num_ops=operations, magnitude=magnitude)


@image_by_image
def trivialaugment(images: Tensor, rand: Rand) -> Tensor:
    """TrivialAugment: one random op of a random magnitude per image. arXiv 2103.10158."""
    return _apply_torchvision("TrivialAugmentWide", images, rand)


def _apply_torchvision(name: str, images: Tensor, rand: Rand, **options: Any) -> Tensor:
    """Apply a transform of torchvision image by image, for 1 or 3 channels.

    It draws from torch's default generator: seeded for each image, and restored afterwards.
    """
    from torchvision.transforms import v2  # takes a second

    if images.shape[1] not in (1, 3):
        message = f"torchvision's operations do not take {images.shape[1]} channels"
        raise UserError(f"augment: {message}; allowed: 1, 3")
    transform = getattr(v2, name)(**options)
    state = torch.get_rng_state()
    augmented = []
    for image, number in zip(images.float().round().byte(), rand().tolist(), strict=True):
        torch.default_generator.manual_seed(int(number * 2**24))
        augmented.append(transform(image))
    torch.set_rng_state(state)
    return torch.stack(augmented)
