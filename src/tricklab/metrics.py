"""Accuracy, per-class results, calibration, temperature scaling and weight statistics.

Metrics of an evaluation are computed in double precision from logits [N, K], of any floating type,
and class indices [N].
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

BINS = 15
# Images to fit a temperature on: its standard error falls with 1 / sqrt(images), on 5 it is noise
MIN_TEMPERATURE_IMAGES = 50
MIN_TOP5_CLASSES = 20


def evaluate(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> dict[str, float]:
    """Return all metrics of an evaluation by name.

    These are `loss`, `acc`, with 20 or more classes `acc_top5`, the `class_metrics`, and the
    `calibration_metrics`; then `temperature`, and with the suffix `_t` the calibration metrics of
    logits / temperature.
    """
    predicted = logits.argmax(1)
    metrics = {
        "loss": mean(F.cross_entropy(logits, labels, reduction="none")),
        "acc": mean(predicted == labels),
    }
    if logits.shape[1] >= MIN_TOP5_CLASSES:
        metrics["acc_top5"] = mean((logits.topk(5).indices == labels[:, None]).any(1))
    metrics |= class_metrics(confusion_matrix(predicted, labels, logits.shape[1]))
    metrics |= calibration_metrics(logits, labels)
    metrics["temperature"] = temperature
    tempered = calibration_metrics(logits.double() / temperature, labels)
    return metrics | {f"{name}_t": value for name, value in tempered.items()}


def evaluate_briefly(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return `loss`, `acc` and `ece`, as `evaluate` does."""
    images, hits, confidences = reliability(logits, labels)
    return {
        "loss": mean(F.cross_entropy(logits, labels, reduction="none")),
        "acc": mean(logits.argmax(1) == labels),
        "ece": float(_ece(images, hits, confidences)),
    }


def mean(values: Tensor) -> float:
    return float(values.double().mean())


def confusion_matrix(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the number of images of each class (row) predicted as each (column), [K, K]; int64.

    `predictions` are logits [N, K] or class indices [N].
    """
    if predictions.ndim == 2:
        predictions = predictions.argmax(1)
    pairs = labels * classes + predictions
    return pairs.bincount(minlength=classes**2).view(classes, classes)


def class_scores(confusion: Tensor) -> dict[str, Tensor]:
    """Return `precision`, `recall` and `f1` of each class, [K] each, from a matrix [K, K].

    0 / 0 is NaN: the precision of a class that is never predicted, the recall of one without
    images, and the F1 score, the harmonic mean of both, of one with neither.
    """
    hits = confusion.diagonal().double()
    images, predicted = confusion.sum(1), confusion.sum(0)
    return {
        "precision": hits / predicted,
        "recall": hits / images,
        "f1": 2 * hits / (images + predicted),
    }


def class_metrics(confusion: Tensor) -> dict[str, float]:
    """Return means over the classes by name, of a confusion matrix [K, K].

    - `balanced_acc`: balanced accuracy, the mean recall of the classes with images (Brodersen et
      al., ICPR 2010).
    - `f1_macro`: mean F1 score of the classes with images or predictions; each class counts the
      same.
    """
    scores = class_scores(confusion)
    return {
        "balanced_acc": float(scores["recall"].nanmean()),
        "f1_macro": float(scores["f1"].nanmean()),
    }


def soft_accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean target at the highest logit, a scalar; float32, on the device.

    That is the accuracy for class indices [B], and for probabilities [B, K] an accuracy that is
    weighted by lam if images are mixed.
    """
    predicted = logits.argmax(1)
    if targets.ndim == 1:
        return (predicted == targets).mean(dtype=torch.float)
    return targets.gather(1, predicted[:, None]).mean(dtype=torch.float)


def confidence_and_correctness(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest probability of each image, and 1 if it is that of the label, both [N]."""
    confidence, predicted = logits.double().softmax(1).max(1)
    return confidence, (predicted == labels).double()


def _classes_first(logits: Tensor) -> Tensor:
    """Return logits [N, K] as [K, N]: torch's softmax over 10 classes is 7 times as fast there.

    But equal images may differ in their last bit there, so it is not for confidences, where equal
    ones count as a tie.
    """
    return logits.double().T.contiguous()


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """Return per bin the number of images, number correct and summed confidence, [3, bins].

    The bins divide (0, 1] into equal widths; each includes its upper end.
    """
    return _count_in_bins(*confidence_and_correctness(logits, labels), bins)


def _count_in_bins(confidence: Tensor, correct: Tensor, bins: int) -> Tensor:
    bin_indices = torch.bucketize(confidence, torch.arange(1, bins, dtype=torch.double) / bins)
    values = torch.stack([torch.ones_like(correct), correct, confidence])
    return torch.zeros(3, bins, dtype=torch.double).index_add_(1, bin_indices, values)


def calibration_metrics(logits: Tensor, labels: Tensor, bins: int = BINS) -> dict[str, float]:
    """Return calibration metrics by name, each a mean over the images.

    - `ece`: expected calibration error, |accuracy - confidence| in bins of equal width (Guo et al.,
      arXiv 1706.04599).
    - `oe`: overconfidence error, confidence * max(confidence - accuracy, 0) in the same bins
      (Thulasidasan et al., arXiv 1905.11001, section 3).
    - `ece_mass`: adaptive ECE, in bins of equally many images (Nixon et al., arXiv 1904.01685).
    - `gap`: signed confidence gap, confidence - accuracy; above 0 the network is overconfident.
    - `nll`: negative log-likelihood, the cross-entropy.
    - `brier`: squared distance of probabilities and one-hot label, 0 to 2 (Brier, 1950).
    - `aurc`: area under the risk-coverage curve, the error of the n most confident images averaged
      over n (Geifman et al., arXiv 1805.08206).
    """
    confidence, correct = confidence_and_correctness(logits, labels)
    images, hits, confidences = _count_in_bins(confidence, correct, bins)
    mean_confidence = confidences / images.clamp(min=1)  # of each bin
    confidence, correct = _sort_by_confidence(confidence, correct)
    adaptive_bins = (correct - confidence).tensor_split(bins)
    errors = (1 - correct).cumsum(0) / torch.arange(1, len(correct) + 1)
    log_p = _classes_first(logits).log_softmax(0)  # [K, N]
    truth = torch.zeros_like(log_p).scatter_(0, labels[None], 1.0)
    metrics = {
        "ece": _ece(images, hits, confidences),
        "oe": (mean_confidence * (confidences - hits).clamp(min=0)).sum() / images.sum(),
        "ece_mass": torch.stack([b.sum() for b in adaptive_bins]).abs().sum() / len(correct),
        "gap": (confidence - correct).mean(),
        "nll": -(log_p * truth).sum(0).mean(),
        "brier": (log_p.exp() - truth).square().sum(0).mean(),
        "aurc": errors.mean(),
    }
    return {name: float(value) for name, value in metrics.items()}


def _ece(images: Tensor, hits: Tensor, confidences: Tensor) -> Tensor:
    """Return the expected calibration error of bins, see `reliability`."""
    return (hits - confidences).abs().sum() / images.sum()


def _sort_by_confidence(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Sort both [N] by descending confidence.

    Images of the same confidence get their mean correctness, so that their order has no effect.
    """
    confidence, order = confidence.sort(descending=True)
    _, group, sizes = confidence.unique_consecutive(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(sizes), dtype=torch.double).index_add_(0, group, correct[order])
    return confidence, (sums / sizes)[group]


class Calibration(Metric):
    """`calibration_metrics` as a torchmetrics metric; `compute()` returns them by name.

    Args:
        bins: of both calibration errors.
        temperature: by which logits are divided.
        options: of torchmetrics.Metric.
    """

    full_state_update = False
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self, bins: int = BINS, temperature: float = 1.0, **options: Any):
        super().__init__(**options)
        self.bins = bins
        self.temperature = temperature
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.logits.append(logits.detach())
        self.labels.append(labels)

    def compute(self) -> dict[str, float]:
        logits = dim_zero_cat(self.logits).cpu()
        labels = dim_zero_cat(self.labels).cpu()
        return calibration_metrics(logits.double() / self.temperature, labels, self.bins)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature in [0.01, 100] that minimises the NLL of logits / temperature.

    It is 1 for fewer than `MIN_TEMPERATURE_IMAGES` images, and if no other lowers the NLL. Guo et
    al., arXiv 1706.04599.
    """
    if len(labels) < MIN_TEMPERATURE_IMAGES:
        return 1.0
    z = _classes_first(logits)
    z = z - z.gather(0, labels[None])  # so the NLL is logsumexp(inverse * z)
    inverse = _minimise_nll(z)
    is_better = (inverse * z).logsumexp(0).mean() < z.logsumexp(0).mean()
    return 1 / inverse if is_better else 1.0


def _minimise_nll(z: Tensor) -> float:
    """Return the inverse temperature that minimises the mean of logsumexp(inverse * z), z [K, N].

    The NLL is convex in it: Newton's method, with bisection of the bracketing interval (in the
    logarithm) whenever a step would leave it.
    """
    low, high, inverse = 0.01, 100.0, 1.0
    for _ in range(50):
        slope, curvature = _nll_derivatives(z, inverse)
        if slope < 0:
            low = inverse
        else:
            high = inverse
        step = inverse - slope / curvature if curvature > 0 else low
        previous = inverse
        inverse = step if low < step < high else (low * high) ** 0.5
        if abs(inverse / previous - 1) < 1e-10:
            break
    return inverse


def _nll_derivatives(z: Tensor, inverse: float) -> tuple[float, float]:
    """Return the first and second derivative of the NLL with respect to the inverse temperature."""
    p = (inverse * z).softmax(0)
    expected = (p * z).sum(0)
    variance = (p * z.square()).sum(0) - expected.square()
    return expected.mean().item(), variance.mean().item()


def weight_stats(weights: Sequence[Tensor]) -> dict[str, float]:
    """Return the fraction of weights that are exactly 0, and the norm of all weights."""
    zeros = torch.stack([(w == 0).sum() for w in weights]).sum() / sum(w.numel() for w in weights)
    return {
        "train/zeros": float(zeros),
        "train/weight_norm": float(nn.utils.get_total_norm(weights)),
    }
