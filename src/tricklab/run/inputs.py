"""How images become the input of a network: of `data`, of the weights, or of the network."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from tricklab.data.inputs import InputSpec
from tricklab.run.weights import LIBRARIES, published_input

LARGE_SIDE = 224  # pixels; of a network of a library without published weights, or built like one
SMALL_SIDE = 32  # of our other networks
CROP_FRACTION = 0.875  # of ImageNet's evaluation, for images of SMALLEST_CROPPED pixels or more
SMALLEST_CROPPED = 128


def resolve_input(data: DictConfig, model: DictConfig, spec: InputSpec | None) -> dict[str, Any]:
    """Return the arguments of a data set that say how its images are resized and normalised.

    Options of `data` come first, then those that weights expect, then the defaults. A size of None
    is that of the images.
    """
    size = resolve_size(data, model, spec)
    options: dict[str, Any] = {
        "input_channels": spec and spec.shape[0],
        "mean": data.get("mean") or (spec and spec.mean),
        "std": data.get("std") or (spec and spec.std),
        "interpolation": data.get("interpolation") or (spec.interpolation if spec else "bilinear"),
        "size": size,
    }
    if "fit" in data:
        options |= resolve_fit(data, spec, size)
    return options


def resolve_size(
    data: DictConfig, model: DictConfig, spec: InputSpec | None
) -> Sequence[int] | None:
    """Return height and width of the network's input; None for that of the images."""
    if data.get("size"):
        return [data.size, data.size]
    if spec:
        return spec.shape[1:]
    if data.get("fit", "none") == "none":
        return None
    if published := published_input(model):
        return published.shape[1:]
    is_large = model._target_.rpartition(".")[2] in LIBRARIES or model.get("layout") == "imagenet"
    side = LARGE_SIDE if is_large else SMALL_SIDE
    return [side, side]


def resolve_fit(
    data: DictConfig, spec: InputSpec | None, size: Sequence[int] | None
) -> dict[str, Any]:
    """Return how image files get their size.

    The crop fraction of weights is for their way of fitting. Without it, 1/8 is cut off from 128
    pixels on, as usual for ImageNet.
    """
    fit = data.fit or (spec.fit if spec else "crop")
    fraction = data.crop_fraction
    if fraction is None and spec and fit == spec.fit:
        fraction = spec.crop_fraction
    if fraction is None:
        is_large = fit == "crop" and size is not None and min(size) >= SMALLEST_CROPPED
        fraction = CROP_FRACTION if is_large else 1.0
    return {"fit": fit, "crop_fraction": fraction}
