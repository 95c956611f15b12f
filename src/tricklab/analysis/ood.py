"""Images that a network was not trained on, and how well its confidence tells them from those of the test set."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tricklab.files import save_figure
from tricklab.metrics import BINS
from tricklab.randomness import generator


class Noise:
    """Pixels at random in place of images [B, C, H, W]: other ones for each batch."""

    def __init__(self, seed: int):
        self.seed, self.batches = seed, itertools.count()

    def __call__(self, images: Tensor) -> Tensor:
        source = generator(self.seed, "noise", next(self.batches))
        return torch.randint(256, images.shape, generator=source, dtype=torch.uint8).to(
            images.device
        )


def rotation(images: Tensor) -> Tensor:
    """Turn images [B, C, H, W] by a quarter."""
    return images.rot90(1, (2, 3))


def blur(images: Tensor) -> Tensor:
    """Blur images [B, C, H, W] of 0 .. 255 by a Gaussian whose deviation is a tenth of their side."""
    from torchvision.transforms.v2.functional import gaussian_blur

    sigma = max(images.shape[2:]) / 10
    sides = [
        2 * min(math.ceil(2 * sigma), side - 1) + 1 for side in images.shape[:1:-1]
    ]  # what reflection allows
    return gaussian_blur(images, sides, [sigma, sigma])


def grey(images: Tensor) -> Tensor:
    """Average the channels of images [B, C, H, W]."""
    return images.float().mean(1, keepdim=True)


def separate(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """Return how well confidence [N] on images of the test set is told from that on others [M].

    - `auroc`: how often the one is higher than the other, where a tie counts half: 0.5 can't tell (arXiv 1610.02136).
    - `fpr95`: the share of others at least as high as the 95 % of the test set that are highest (arXiv 1706.02690).
    """
    n, m = len(inside), len(outside)
    _, place, number = (
        torch.cat([inside, outside]).double().unique(return_inverse=True, return_counts=True)
    )
    ranks = number.cumsum(0) - (number - 1) / 2  # the middle one of those that are equal
    above = ranks[place[:n]].double().sum() - n * (n + 1) / 2
    threshold = inside.sort(descending=True).values[math.ceil(0.95 * n) - 1]
    return {"auroc": float(above / (n * m)), "fpr95": float((outside >= threshold).double().mean())}


def draw_confidence(found: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Draw a histogram of confidence [N] for each set of images, one below the other, and each view side by side."""
    from matplotlib.figure import Figure  # takes half a second

    sets = list(next(iter(found.values())))
    figure = Figure(figsize=(1 + 3 * len(found), 1 + 1.2 * len(sets)), layout="constrained")
    grid = figure.subplots(len(sets), len(found), sharex=True, sharey=True, squeeze=False)
    for column, (view, confidences) in zip(grid.T, found.items(), strict=True):
        column[0].set_title(view)
        column[-1].set_xlabel("confidence")
        for first, axes, (name, confidence) in zip(
            grid[:, 0], column, confidences.items(), strict=True
        ):
            first.set_ylabel(name)
            shares = torch.histc(confidence.float(), BINS, 0, 1) / len(confidence)
            axes.stairs(
                shares,
                torch.linspace(0, 1, BINS + 1),
                fill=True,
                color="C0" if name == "test" else "C1",
            )
    save_figure(figure, path)
