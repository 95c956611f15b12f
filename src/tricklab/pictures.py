"""Pictures of what a run has come to."""

from pathlib import Path

import torch
from torch import Tensor

from tricklab.calibration import BINS, reliability


def draw_calibration(logits: Tensor, labels: Tensor, temperature: float, path: Path) -> None:
    """Draw the accuracy at each confidence, the larger the more images, and their shares; before and after tempering.

    Args:
        logits: [N, K].
        labels: class indices [N].
        temperature: by which logits are divided, see `tricklab.calibration.fit_temperature`.
        path: of the picture.
    """
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.25})
    left.plot([0, 1], [0, 1], "--", color="grey", label="to be believed")
    for name, divisor in {"as trained": 1.0, f"temperature {temperature:.2f}": temperature}.items():
        images, hits, sums = reliability(logits.double() / divisor, labels)
        some = images > 0
        size = 15 + 300 * (images / images.sum())[some]
        left.scatter((sums / images)[some], (hits / images)[some], s=size, alpha=0.7, label=name)
        right.stairs(images / images.sum(), torch.linspace(0, 1, BINS + 1), fill=True, alpha=0.5, label=name)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="confidence", ylabel="share of the images", xlim=(0, 1))
    for axes in (left, right):
        axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)
