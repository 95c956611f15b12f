"""Pictures of what a run has come to."""

import csv
from collections.abc import Mapping
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
        path: of the picture; as trained, the images of each bin, the right ones and the sum of their confidence, stand
            in a CSV beside it.
    """
    from matplotlib.figure import Figure  # takes half a second

    with path.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([("images", "right", "confidence"), *reliability(logits, labels).T.tolist()])

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


def draw_confidence(found: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Draw a histogram of confidence [N] for each set of images, one below the other, and each view side by side."""
    from matplotlib.figure import Figure

    sets = list(next(iter(found.values())))
    figure = Figure(figsize=(1 + 3 * len(found), 1 + 1.2 * len(sets)), layout="constrained")
    grid = figure.subplots(len(sets), len(found), sharex=True, sharey=True, squeeze=False)
    for column, (view, confidences) in enumerate(found.items()):
        grid[0][column].set_title(view)
        grid[-1][column].set_xlabel("confidence")
        for row, (name, confidence) in enumerate(confidences.items()):
            shares = torch.histc(confidence.float(), BINS, 0, 1) / len(confidence)
            colour = "C0" if name == "test" else "C1"
            grid[row][column].stairs(shares, torch.linspace(0, 1, BINS + 1), fill=True, color=colour)
            grid[row][0].set_ylabel(name)
    figure.savefig(path, dpi=120)
