"""Metrics: accuracy, calibration and temperature scaling.

All work in double precision on logits [N, K], of any floating type, and class indices [N].
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

BINS = 15


LEAST = 50  # images for a temperature. Its standard error falls with 1 / sqrt(images): fitted on 5 it is anything


def judged(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the confidence of each image, and 1 where it is right, both [N]."""
    confidence, predicted = logits.double().softmax(1).max(1)
    return confidence, (predicted == labels).double()


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """Return the images, the right ones and the sum of the confidence of each bin, [3, bins].

    The bins are of equal width; each holds its upper end, so that a confidence of 1 is in the last.
    """
    confidence, right = judged(logits, labels)
    place = torch.bucketize(confidence, torch.arange(1, bins, dtype=torch.double) / bins)
    values = torch.stack([torch.ones_like(right), right, confidence])
    return torch.zeros(3, bins, dtype=torch.double).index_add_(1, place, values)


def measure(logits: Tensor, labels: Tensor, bins: int = BINS) -> dict[str, float]:
    """Return the measures of calibration, each a mean over the images.

    - `ece`: expected calibration error, by which accuracy and confidence differ in bins of equal width (Guo et al.,
      arXiv 1706.04599), and `ece_mass` in bins of equally many images (Nixon et al., arXiv 1904.01685).
    - `gap`: confidence minus accuracy, above 0 where a network is too sure.
    - `nll`: cross-entropy; `brier`: squared distance of the probabilities to the truth (Brier, 1950), from 0 to 2.
    - `aurc`: the mean error among the most confident images, over all numbers of these (arXiv 1805.08206).
    """
    images, hits, sums = reliability(logits, labels, bins)
    confidence, right = judged(logits, labels)
    confidence, order = confidence.sort(descending=True)
    _, group, sizes = confidence.unique_consecutive(return_inverse=True, return_counts=True)
    right = torch.zeros(len(sizes), dtype=torch.double).index_add_(0, group, right[order])
    right = (right / sizes)[
        group
    ]  # the mean of those of one confidence, so that their order does not matter
    log_p = logits.double().log_softmax(1)
    truth = torch.zeros_like(log_p).scatter_(1, labels[:, None], 1.0)
    values = {
        "ece": (hits - sums).abs().sum() / images.sum(),
        "ece_mass": torch.stack([p.sum() for p in (right - confidence).tensor_split(bins)])
        .abs()
        .sum()
        / len(right),
        "gap": (confidence - right).mean(),
        "nll": -(log_p * truth).sum(1).mean(),
        "brier": (log_p.exp() - truth).square().sum(1).mean(),
        "aurc": ((1 - right).cumsum(0) / torch.arange(1, len(right) + 1)).mean(),
    }
    return {name: float(value) for name, value in values.items()}


class Calibration(Metric):
    """The measures as a metric of torchmetrics: `update(logits, labels)`, then `compute()` gives all by name."""

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self, bins: int = BINS, temperature: float = 1.0, **options: Any):
        super().__init__(**options)
        self.bins, self.temperature = bins, temperature  # by which logits are divided
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.logits.append(logits.detach())
        self.labels.append(labels)

    def compute(self) -> dict[str, float]:
        logits, labels = dim_zero_cat(self.logits).cpu(), dim_zero_cat(self.labels).cpu()
        return measure(logits.double() / self.temperature, labels, self.bins)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature, 0.01 to 100, by which logits are divided for the lowest cross-entropy (arXiv 1706.04599).

    That is convex in its inverse: Newton's method within an interval that halves where a step would leave it. It is 1
    where no other is better, and where it would be noise: for fewer than `LEAST` images.
    """
    if len(labels) < LEAST:
        return 1.0
    z = logits.double()
    z = z - z.gather(1, labels[:, None])  # the loss is logsumexp(inverse * z)
    low, high, inverse = 0.01, 100.0, 1.0
    for _ in range(50):
        p = (inverse * z).softmax(1)
        mean = (p * z).sum(1)
        slope, curvature = (
            mean.mean().item(),
            ((p * z.square()).sum(1) - mean.square()).mean().item(),
        )
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else low
        before, inverse = inverse, step if low < step < high else (low * high) ** 0.5
        if abs(inverse / before - 1) < 1e-10:
            break
    better = (inverse * z).logsumexp(1).mean() < z.logsumexp(1).mean()
    return 1 / inverse if better else 1.0


def share_right(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the share of targets, class indices [B] or probabilities [B, K], at the highest logit: lam if mixed."""
    best = logits.argmax(1)
    right = best == targets if targets.ndim == 1 else targets.gather(1, best[:, None])
    return right.mean(dtype=torch.float)


def evaluate(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, float]:
    """Return loss, accuracy, from 20 classes on top-5 accuracy, and the measures of calibration, see `calibration`.

    These again, with names in `_t`, for the logits [N, K] divided by the temperature. `labels` [N] are class indices.
    """
    values = {
        "loss": F.cross_entropy(logits, labels, reduction="none"),
        "acc": logits.argmax(1) == labels,
    }
    if logits.shape[1] >= 20:
        values["acc_top5"] = (logits.topk(5).indices == labels[:, None]).any(1)
    found = {name: float(value.double().mean()) for name, value in values.items()} | measure(
        logits, labels
    )
    tempered = measure(logits.double() / temperature, labels)
    return (
        found
        | {"temperature": temperature}
        | {f"{name}_t": value for name, value in tempered.items()}
    )
