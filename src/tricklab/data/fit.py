"""The sizes of a photograph: what is kept of it in memory, and what a network takes."""

import math
from typing import NamedTuple

from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

METHODS = ("crop", "pad", "stretch")
INTERPOLATIONS = ("bilinear", "bicubic")
MAX_ASPECT = 8  # longer images are cut before they are resized, so that they fit into memory


class Keep(NamedTuple):
    """Keeps the aspect ratio; reduces the short side to `short_side` pixels if it is longer.

    With `jpeg_scaling`, JPEGs are decoded at 1/2, 1/4 or 1/8 while their short side stays at
    `short_side` or more: faster, but other pixels.
    """

    short_side: int
    interpolation: str = "bilinear"
    jpeg_scaling: bool = False

    def __call__(self, image: Image.Image) -> Image.Image:
        if min(image.size) <= self.short_side:
            return image
        return F.resize(image, self.short_side, InterpolationMode(self.interpolation))


class Fit(NamedTuple):
    """Resizes and crops an image to `size` = (height, width), with torchvision's functions.

    The image is resized to size / crop_fraction, then its centre is cut out. The methods of
    resizing are

    - crop: the short side, so that the image covers the size,
    - pad: the long side, so that the image lies within the size; the rest is black,
    - stretch: both sides.

    They are those of timm's `create_transform` with the crop modes center, border and squash.
    """

    size: tuple[int, int]
    method: str = "crop"
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"

    def __call__(self, image: Image.Image) -> Image.Image:
        if self.method == "crop":
            image = cut_long_side(image)
        resized = F.resize(image, self.resized(*image.size), InterpolationMode(self.interpolation))
        return F.center_crop(resized, list(self.size))

    @property
    def before_crop(self) -> tuple[int, int]:
        """Height and width whose centre, a fraction `crop_fraction` of each, is cut out."""
        height, width = self.size
        # a fraction such as 224 / 232 is not exact
        fraction = self.crop_fraction
        return math.floor(height / fraction + 1e-6), math.floor(width / fraction + 1e-6)

    def resized(self, width: int, height: int) -> list[int]:
        """Return the height and width that an image is resized to."""
        rows, columns = self.before_crop
        if self.method == "stretch":
            return [rows, columns]
        if self.method == "pad":
            factor = min(rows / height, columns / width)
            return [max(1, round(height * factor)), max(1, round(width * factor))]
        # torchvision's rule for the long side: rounded down
        if rows * width < columns * height:
            return [int(columns * height / width), columns]
        return [rows, int(rows * width / height)]

    def enlargement(self, width: int, height: int) -> float:
        """Return the factor by which an image is enlarged; below 1 it is reduced."""
        rows, columns = self.resized(width, height)
        return max(rows / height, columns / width)


def cut_long_side(image: Image.Image) -> Image.Image:
    """Cut the centre out of an image with an aspect ratio above MAX_ASPECT."""
    width, height = image.size
    limit = MAX_ASPECT * min(width, height)
    if max(width, height) <= limit:
        return image
    return F.center_crop(image, [min(height, limit), min(width, limit)])
