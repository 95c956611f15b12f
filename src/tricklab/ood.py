"""Images that a network was not trained on, and how well its confidence tells them from those of the test set."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tricklab.randomness import generator


class Noise:
    """Pixels at random, as many batches of them as are asked for."""

    def __init__(self, seed: int):
        self.seed, self.batches = seed, 0

    def __call__(self, images: Tensor) -> Tensor:
        """Return images [B, C, H, W] of 0 .. 255 in which nothing is to be seen."""
        source = generator(self.seed, "noise", self.batches)
        self.batches += 1
        return torch.randint(256, images.shape, generator=source, dtype=torch.uint8).to(images.device)


def rotation(images: Tensor) -> Tensor:
    """Turn images [B, C, H, W] by a quarter."""
    return images.rot90(1, (2, 3))


def blur(images: Tensor) -> Tensor:
    """Blur images [B, C, H, W] of 0 .. 255 by a Gaussian whose deviation is a tenth of their side."""
    from torchvision.transforms.v2.functional import gaussian_blur

    sigma = max(images.shape[2:]) / 10
    sides = [2 * min(math.ceil(2 * sigma), side - 1) + 1 for side in images.shape[:1:-1]]  # what reflection allows
    return gaussian_blur(images, sides, [sigma, sigma])


def grey(images: Tensor) -> Tensor:
    """Average the channels of images [B, C, H, W]."""
    return images.float().mean(1, keepdim=True)


def shifts(seed: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the changes of images by name."""
    return {"noise": Noise(seed), "rotation": rotation, "blur": blur}


def separate(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """Return how well confidence [N] on images of the test set is told from that on others [M].

    - `auroc`: how often the one is higher than the other, where a tie counts half: 0.5 cannot tell.
    - `fpr95`: the share of others at least as high as the 95 % of the test set that are highest.

    (Hendrycks and Gimpel, arXiv 1610.02136; Liang et al., arXiv 1706.02690.)
    """
    n, m = len(inside), len(outside)
    _, place, number = torch.cat([inside, outside]).double().unique(return_inverse=True, return_counts=True)
    ranks = number.cumsum(0) - (number - 1) / 2  # the middle one of those that are equal
    above = ranks[place[:n]].double().sum() - n * (n + 1) / 2
    threshold = inside.sort(descending=True).values[math.ceil(0.95 * n) - 1]
    return {"auroc": float(above / (n * m)), "fpr95": float((outside >= threshold).double().mean())}
