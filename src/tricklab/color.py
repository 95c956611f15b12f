"""Brightness, contrast, saturation and hue of images [B, C, H, W], float in 0 .. 255.

The definitions are those of torchvision.transforms.v2.functional on floats, with an amount
[B, 1, 1, 1] for each image instead of one for all, and in the same range.
"""

import torch
from torch import Tensor


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the pixels by `factor`: 0 is black."""
    return (images * factor).clamp_(0, 255)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance from the mean of the grey image by `factor`: 0 is that grey."""
    return blend(images, to_grey(images).mean((1, 2, 3), keepdim=True), factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Multiply the distance from the grey image by `factor`: 0 is grey. For RGB."""
    return blend(images, to_grey(images), factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue in HSV by `shift` turns of the color circle, -0.5 to 0.5. For RGB."""
    hue, low, chroma = split_hue(images)
    return join_hue((hue + 6 * shift).remainder_(6), low, chroma)


def blend(images: Tensor, others: Tensor, factor: Tensor) -> Tensor:
    """Return factor * images + (1 - factor) * others, clamped; a factor above 1 extrapolates."""
    return (images * factor).add_(others * (1 - factor)).clamp_(0, 255)


def to_grey(images: Tensor) -> Tensor:
    """Return the luma [B, 1, H, W] of RGB images (ITU-R BT.601); grey ones as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def split_hue(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return hue, lowest channel and chroma (highest - lowest), [B, 1, H, W] each, of RGB images.

    The hue, in sixths of the color circle, is 0 at red, 2 at green and 4 at blue; of grey it is 4.
    Value and saturation of HSV, high and chroma / high, do not change with it.
    """
    red, green, blue = images.split(1, 1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    scale = chroma.clamp(min=1e-6).reciprocal_()  # finite for grey, where the hue has no effect
    near_red = (green - blue).mul_(scale)
    near_green = (blue - red).mul_(scale).add_(2)
    near_blue = (red - green).mul_(scale).add_(4)
    hue = torch.where(high == red, near_red, torch.where(high == green, near_green, near_blue))
    return hue, low, chroma


def join_hue(hue: Tensor, low: Tensor, chroma: Tensor) -> Tensor:
    """Return RGB images of hue in [0, 6), lowest channel and chroma, [B, 1, H, W] each."""
    red = (hue - 3).abs_().sub_(1)
    green = (hue - 2).abs_().neg_().add_(2)
    blue = (hue - 4).abs_().neg_().add_(2)
    above_low = torch.cat([red, green, blue], 1).clamp_(0, 1)  # fractions of the chroma
    return above_low.mul_(chroma).add_(low).clamp_(0, 255)
