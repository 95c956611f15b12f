"""Figures that a run draws of its own results."""

import csv
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tricklab.files import save_figure, write_text
from tricklab.metrics import BINS, reliability


def draw_calibration(logits: Tensor, labels: Tensor, temperature: float, path: Path) -> None:
    """Draw the reliability diagram of the test set and a histogram of its confidence.

    Both are drawn as trained and after temperature scaling; the area of a point is proportional to
    its number of images. The bins as trained are written to a CSV beside the figure.

    Args:
        logits: [N, K].
        labels: [N].
        temperature: by which logits are divided.
        path: of the PNG.
    """
    from matplotlib.figure import Figure  # half a second

    write_bins(reliability(logits, labels), path.with_suffix(".csv"))
    figure = Figure(figsize=(9, 4))
    diagram, histogram = figure.subplots(1, 2, gridspec_kw={"wspace": 0.25})
    diagram.plot([0, 1], [0, 1], "--", color="grey", label="perfectly calibrated")
    for label, divisor in (("as trained", 1.0), (f"temperature {temperature:.2f}", temperature)):
        images, hits, confidences = reliability(logits.double() / divisor, labels)
        fractions = images / images.sum()
        used = images > 0
        sizes: Any = {"s": 15 + 300 * fractions[used], "clip_on": False}
        points = (confidences / images)[used], (hits / images)[used]
        diagram.scatter(*points, alpha=0.7, label=label, **sizes)
        edges = torch.linspace(0, 1, BINS + 1)
        histogram.stairs(fractions, edges, fill=True, alpha=0.5, label=label)
    diagram.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    histogram.set(xlabel="confidence", ylabel="fraction of the images", xlim=(0, 1))
    for axes in (diagram, histogram):
        axes.legend(loc="upper left")
    figure.suptitle(f"test set, {len(labels):,} images")
    save_figure(figure, path)


def write_bins(bins: Tensor, path: Path) -> None:
    """Write images, number correct and summed confidence of each bin, [3, bins], as a CSV."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("images", "right", "confidence"))
    writer.writerows(bins.T.tolist())
    write_text(path, table.getvalue())
