"""The input that a network expects, and how images become it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tricklab.boxes import resize

LARGE = 2**17  # pixels times channels; two of such images do not fit into the cache of a core


class InputSpec(NamedTuple):
    """Input of a network: shape (C, H, W); mean and std of each channel, for pixels in 0 .. 1.

    Of image files, `fit`, `crop_fraction` and `interpolation` say how they are resized and cropped,
    see `tricklab.data.fit`.
    """

    shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    fit: str = "crop"
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"


class Preprocess(nn.Module):
    """Resizes and normalises images [B, C, H, W] of 0 .. 255; repeats grey as each channel."""

    def __init__(self, spec: InputSpec):
        super().__init__()
        scale = 1 / (255 * torch.tensor(spec.std, dtype=torch.double))
        shift = -torch.tensor(spec.mean, dtype=torch.double) * 255 * scale
        self.size = list(spec.shape[1:])
        self.interpolation = spec.interpolation
        self.scale = nn.Buffer(scale.float().view(1, -1, 1, 1))
        self.shift = nn.Buffer(shift.float().view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if list(images.shape[2:]) != self.size:
            images = resize(images.float(), self.size, self.interpolation)
        images = images.expand(-1, self.scale.shape[1], -1, -1)
        # one copy, changed in place: another tensor would take 0.5 ms for 512 images
        if images.device.type != "cpu" or images.shape[1:].numel() < LARGE:
            images = images.to(torch.float, copy=True)
            return images.mul_(self.scale).add_(self.shift)
        normalised = torch.empty(images.shape)
        for image, source in zip(normalised.split(1), images.split(1), strict=True):
            image.copy_(source).mul_(self.scale).add_(self.shift)  # while it is in the cache
        return normalised
