"""Augmentation of a whole batch at once, with its own random numbers for each image.

Each option takes images [B, C, H, W] in 0 .. 255 (uint8 or float) and `rand`, the source of their
random numbers, and returns images of the same shape and range. Several are applied in sequence.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tricklab.boxes import NUMBERS_PER_BOX, draw_boxes, resize
from tricklab.color import adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation
from tricklab.errors import UserError
from tricklab.randomness import Rand, to_normal

RGB_EIGENVALUES = (0.2175, 0.0188, 0.0045)  # of the covariance of ImageNet's pixels in 0 .. 1
RGB_EIGENVECTORS = (  # its columns
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)

LARGE = 2**14  # pixels times channels, from which single images on a CPU are worth a loop
Step = TypeVar("Step", bound=Callable[..., Tensor])


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
    boxes = draw_boxes(rand(NUMBERS_PER_BOX).cpu(), heights_widths, scale, ratio)
    cropped = images[0].new_empty(len(images), len(images[0]), *size)
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        box = images[i][None, :, top : top + height, left : left + width]
        cropped[i] = resize(box, size, interpolation)[0]
    return cropped


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
    images = mirror(images, x < horizontal, 3)
    if not vertical:
        return images
    return mirror(images, y < vertical, 2)


def alternating_flip(images: Tensor, rand: Rand) -> Tensor:
    """Mirror half of the images in even epochs, the other half in odd ones. arXiv 2404.00498."""
    is_mirrored = (rand.per_image < 0.5) ^ bool(rand.epoch % 2)  # [B]
    return mirror(images, is_mirrored, 3)


def mirror(images: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Mirror the images [B, C, H, W] of a mask [B] along a dimension."""
    if images.device.type != "cpu" or images.shape[1:].numel() < LARGE:
        return where_images(mask, images.flip(dim), images)
    mirrored = images.clone()
    for i in mask.nonzero()[:, 0].tolist():  # a quarter of the memory traffic
        mirrored[i] = images[i].flip(dim - 1)
    return mirrored


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
    """Scale pixels by 1 +- `brightness`, then contrast by 1 +- `contrast` at most."""
    lighter, steeper = (rand(2, 1, 1, 1) * 2 - 1).unbind(1)  # [B, 1, 1, 1] each
    bright = images * (1 + lighter * brightness)
    bright = bright + (bright - bright.mean((1, 2, 3), keepdim=True)) * (steeper * contrast)
    return bright.clamp(0, 255)


def color(
    images: Tensor,
    rand: Rand,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
) -> Tensor:
    """Color jitter: four adjustments in a random order, as torchvision's ColorJitter.

    Brightness, contrast and saturation are multiplied by factors from max(0, 1 - strength) to
    1 + strength; the hue is shifted by up to +-`hue` turns of the color circle. Amounts and order
    are drawn for each image. A strength of 0 takes no time and leaves the other numbers as they
    are. Raises UserError: saturation or hue of grey images, other images than grey and RGB.
    """
    _check_color(images.shape[1], saturation, hue)
    first, second, third, fourth, *ranks = rand(8, 1, 1, 1).unbind(1)  # [B, 1, 1, 1] each
    order = torch.cat(ranks, 1).flatten(1).argsort(1)  # [B, 4]
    adjustments = (
        (brightness, adjust_brightness, _around_one(brightness, first)),
        (contrast, adjust_contrast, _around_one(contrast, second)),
        (saturation, adjust_saturation, _around_one(saturation, third)),
        (hue, adjust_hue, hue * (2 * fourth - 1)),
    )
    adjusted = images.to(torch.float32, copy=True)
    for turn in order.T:  # [B]: the adjustment that is each image's turn
        for n, (strength, adjust, amounts) in enumerate(adjustments):
            if strength:
                rows = (turn == n).nonzero().flatten()
                adjusted[rows] = adjust(adjusted[rows], amounts[rows])
    return adjusted


def _check_color(channels: int, saturation: float, hue: float) -> None:
    if channels not in (1, 3):
        message = f"augment=color: takes grey or RGB images, the data have {channels} channels"
        raise UserError(f"{message}. Expected 1 or 3")
    if channels == 1 and (saturation or hue):
        message = f"augment.color.saturation={saturation} augment.color.hue={hue}"
        expected = "augment.color.saturation=0 augment.color.hue=0"
        raise UserError(f"{message}: no effect on grey images. Expected {expected}")


def _around_one(strength: float, number: Tensor) -> Tensor:
    """Turn numbers in [0, 1) into factors from max(0, 1 - strength) to 1 + strength."""
    low = max(0, 1 - strength)
    return low + (1 + strength - low) * number


def pca_noise(images: Tensor, rand: Rand, std: float = 0.1) -> Tensor:
    """AlexNet's PCA noise: shift the color of each image along ImageNet's principal components.

    The shift is 255 * sum_i alpha_i lambda_i p_i, alpha_i ~ N(0, std^2), with the eigenvalues
    lambda and eigenvectors p of ImageNet's RGB covariance: "ImageNet Classification with Deep
    Convolutional Neural Networks" (NeurIPS 2012), 4.1; with std 0.1 in arXiv 1812.01187, 2.1.
    fb.resnet.torch, the source of lambda and p, does not clamp to the range of the pixels; this
    does, as all augmentations here return 0 .. 255. Raises UserError: the images are not RGB.
    """
    channels = images.shape[1]
    if channels != 3:
        count = f"{channels} channel{'s' * (channels > 1)}"
        message = f"augment=pca_noise: takes RGB images, the data have {count}"
        raise UserError(f"{message}. Expected 3")
    u, v = rand(2, 3).unbind(1)  # [B, 3] each
    alpha = std * to_normal(u, v)
    eigenvalues = alpha.new_tensor(RGB_EIGENVALUES)
    eigenvectors = alpha.new_tensor(RGB_EIGENVECTORS)
    shift = 255 * (alpha * eigenvalues) @ eigenvectors.T  # [B, 3]
    return (images + shift[:, :, None, None]).clamp_(0, 255)


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
