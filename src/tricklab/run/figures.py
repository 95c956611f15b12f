"""The figures that a run draws of itself."""

import csv
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tricklab.files import save_figure, write_text
from tricklab.metrics import BINS, reliability


def draw_calibration(logits: Tensor, labels: Tensor, temperature: float, path: Path) -> None:
    """Draw the accuracy of the test set at each confidence, the larger the more images, as trained and tempered.

    Beside it, the fraction of the images at each confidence. The `reliability` as trained stands in a
    CSV beside the picture.
    """
    from matplotlib.figure import Figure  # takes half a second

    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("images", "right", "confidence"))
    writer.writerows(reliability(logits, labels).T.tolist())
    write_text(path.with_suffix(".csv"), table.getvalue())
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.25})
    left.plot([0, 1], [0, 1], "--", color="grey", label="perfectly calibrated")
    for name, divisor in {"as trained": 1.0, f"temperature {temperature:.2f}": temperature}.items():
        images, hits, sums = reliability(logits.double() / divisor, labels)
        fractions, some = images / images.sum(), images > 0
        sizes: Any = {"s": 15 + 300 * fractions[some], "clip_on": False}
        left.scatter((sums / images)[some], (hits / images)[some], alpha=0.7, label=name, **sizes)
        right.stairs(fractions, torch.linspace(0, 1, BINS + 1), fill=True, alpha=0.5, label=name)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    right.set(xlabel="confidence", ylabel="fraction of the images", xlim=(0, 1))
    left.legend(loc="upper left")
    right.legend(loc="upper left")
    figure.suptitle(f"test set, {len(labels):,} images")
    save_figure(figure, path)
