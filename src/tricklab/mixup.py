"""Mixing of a batch with itself: images and their target probabilities together.

Each function takes images [B, C, H, W] (float32), targets [B, K] (probabilities) and a CPU generator, and
returns both mixed. Any batch size will do, 1 and odd ones included.
"""

import math

import torch
from torch import Tensor

Mixed = tuple[Tensor, Tensor]


def identity(images: Tensor, targets: Tensor, generator: torch.Generator) -> Mixed:
    """Leave the batch as it is."""
    return images, targets


def mixup(images: Tensor, targets: Tensor, generator: torch.Generator, alpha: float) -> Mixed:
    """X = lam x_i + (1 - lam) x_j, y likewise; lam ~ Beta(alpha, alpha). mixup, arXiv 1710.09412."""
    partner = _partner(images, generator)
    lam = draw_lam(alpha, generator)
    return lam * images + (1 - lam) * images[partner], lam * targets + (1 - lam) * targets[partner]


def cutmix(images: Tensor, targets: Tensor, generator: torch.Generator, alpha: float) -> Mixed:
    """Paste a box of x_j into x_i; targets are weighted by the area really pasted. CutMix, arXiv 1905.04899."""
    partner = _partner(images, generator)
    y0, y1, x0, x1 = draw_box(images.shape[2], images.shape[3], draw_lam(alpha, generator), generator)
    mixed = images.clone()
    mixed[:, :, y0:y1, x0:x1] = images[partner, :, y0:y1, x0:x1]
    lam = 1 - (y1 - y0) * (x1 - x0) / images[0, 0].numel()
    return mixed, lam * targets + (1 - lam) * targets[partner]


def draw_lam(alpha: float, generator: torch.Generator) -> float:
    """Draw lam ~ Beta(alpha, alpha), from two gamma variates in double precision; alpha 0 gives 1: no mixing."""
    if alpha == 0:
        return 1.0
    # log Gamma(a) = log Gamma(a + 1) + log(U) / a: for a small alpha the variates themselves underflow to 0
    gammas = torch._standard_gamma(torch.full((2,), alpha + 1.0, dtype=torch.double), generator=generator)
    uniform = torch.rand(2, dtype=torch.double, generator=generator)
    return float((gammas.log() + uniform.log() / alpha).softmax(0)[0])


def draw_box(height: int, width: int, lam: float, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw a box (y0, y1, x0, x1) of 1 - lam of the area around any pixel, cut off at the border."""
    side = math.sqrt(1 - lam)
    cy, cx = (
        int(n * size) for n, size in zip(torch.rand(2, generator=generator).tolist(), (height, width), strict=True)
    )
    half_h, half_w = int(height * side) // 2, int(width * side) // 2
    return max(cy - half_h, 0), min(cy + half_h, height), max(cx - half_w, 0), min(cx + half_w, width)


def _partner(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(images), generator=generator).to(images.device)
