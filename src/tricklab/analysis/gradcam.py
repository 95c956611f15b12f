"""Grad-CAM: where in an image a convolutional network finds a class (arXiv 1610.02391)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tricklab.errors import UserError


class Layer(NamedTuple):
    """The layer with the last feature map of a network, of which [C, H, W] is the shape."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]


@torch.no_grad()
def find_layer(net: nn.Module, images: Tensor) -> Layer:
    """Return the last layer of a network whose output [B, C, H, W] has several places.

    Behind it there is only the pooling, and the head on what is pooled. Raises UserError: there is
    no such layer, as in a transformer, or channels do not come first in it.
    """
    outputs: list[tuple[str, nn.Module, Tensor]] = []

    def record(name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append((name, module, output))

    with hooks(net, record):
        net(images)
    maps = [i for i, (name, _, output) in enumerate(outputs) if name and is_map(output)]
    if not maps:
        raise UserError("Grad-CAM needs feature maps; this network has none of several places")
    behind = outputs[maps[-1] + 1 :]
    sequences = [name for name, _, output in behind if output.ndim == 3]
    if sequences:
        message = f"its last feature map is followed by sequences of tokens, in {sequences[0]}"
        raise UserError(f"Grad-CAM is for convolutional networks: {message}")
    if getattr(net, "output_fmt", "NCHW") != "NCHW":  # of timm
        raise UserError("Grad-CAM is for convolutional networks: here channels come last")
    name, module, output = outputs[maps[-1]]
    return Layer(name, module, tuple(output.shape[1:]))


def is_map(output: Tensor) -> bool:
    return output.ndim == 4 and output.shape[2] * output.shape[3] > 1


@contextmanager
def hooks(net: nn.Module, record: Any) -> Iterator[None]:
    """Call `record(name, module, output)` after each module within the context, in their order."""
    handles = []
    for name, module in net.named_modules():

        def after(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
            record(name, module, output)

        handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def grad_cam(net: nn.Module, layer: Layer, images: Tensor, classes: Tensor) -> Tensor:
    """Return maps [B, H, W] of 0 .. 1, as large as the images [B, C, H, W], for classes [B].

    relu(sum_k a_k A_k) with the feature map A [B, K, h, w] of the layer and a_k the mean of
    dy / dA_k over its places, y the logit of the class; enlarged bilinearly, and divided by its
    maximum. It is 0 everywhere if nothing speaks for the class. `net` must be in evaluation mode.
    """
    kept: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        with torch.enable_grad():
            logits = net(images.requires_grad_())
    finally:
        handle.remove()
    activations = kept[-1]
    chosen = logits.gather(1, classes[:, None]).sum()
    (gradients,) = torch.autograd.grad(chosen, activations)
    weights = gradients.mean((2, 3), keepdim=True)
    cam = (weights * activations).sum(1, keepdim=True).relu().detach()
    cam = F.interpolate(cam, images.shape[2:], mode="bilinear", align_corners=False).squeeze(1)
    return cam / cam.amax((1, 2), keepdim=True).clamp(min=torch.finfo(cam.dtype).tiny)
