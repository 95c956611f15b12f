"""The training loss. Evaluation has its own, without smoothing and weights (`metrics.evaluate`)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tricklab.errors import UserError


class CrossEntropy(nn.Module):
    """Cross-entropy of logits [B, K] and class indices [B] or probabilities [B, K].

    - sum_k w_k q_k log softmax(logits)_k, with q = (1 - eps) target + eps / K, eps =
    `label_smoothing` (arXiv 1512.00567) and w = `class_weights` (1 without them), as a mean over
    the images: not over their weights, as torch has it for class indices. Raises UserError: nothing
    is left of the targets, or invalid weights.
    """

    class_weights: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None):
        super().__init__()
        if not 0 <= label_smoothing < 1:
            message = f"loss.label_smoothing={label_smoothing} leaves nothing of the targets"
            raise UserError(f"{message}; allowed: 0 or more, less than 1")
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else _to_tensor(class_weights)
        self.register_buffer("class_weights", weights)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        classes = logits.shape[1]
        if self.class_weights is not None:
            self._check_classes(classes)
            if targets.ndim == 1:
                targets = F.one_hot(targets, classes).to(logits.dtype)
        return F.cross_entropy(
            logits, targets, self.class_weights, label_smoothing=self.label_smoothing
        )

    def _check_classes(self, classes: int) -> None:
        assert self.class_weights is not None
        if len(self.class_weights) != classes:
            message = f"loss.class_weights={self.class_weights.tolist()}"
            raise UserError(f"{message}: expected {classes} numbers, one for each class")


class Distill(CrossEntropy):
    """Cross-entropy, and the divergence from a teacher's predictions (arXiv 1503.02531).

    (1 - w) CE + w T^2 KL(p || q), with w = `weight`, p = softmax(teacher's logits / T),
    q = softmax(logits / T) and T = `temperature`; T^2 keeps the size of the gradients. A weight of
    1/2 is half of the sum in arXiv 1812.01187, 5.2. Smoothing and class weights are those of the
    cross-entropy; `teacher` is read by `tricklab.run.teacher`.
    """

    def __init__(
        self,
        teacher: str | None = None,
        temperature: float = 20.0,
        weight: float = 0.5,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ):
        super().__init__(label_smoothing, class_weights)
        self.temperature = temperature
        self.weight = weight

    def divergence(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return T^2 KL(p || q) of logits [B, K], the mean over the images."""
        log_q = F.log_softmax(logits / self.temperature, 1)
        log_p = F.log_softmax(teacher_logits / self.temperature, 1)
        kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        return kl * self.temperature**2

    def combine(self, cross_entropy: Tensor, divergence: Tensor) -> Tensor:
        return (1 - self.weight) * cross_entropy + self.weight * divergence


class Entropy(CrossEntropy):
    """Cross-entropy minus `kappa` times the entropy of the predictions (arXiv 1701.06548).

    The penalty on confidence that arXiv 1905.11001, 3.1, compares mixup with.
    """

    def __init__(
        self,
        kappa: float = 0.1,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ):
        super().__init__(label_smoothing, class_weights)
        self.kappa = kappa

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        log_p = logits.log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        return super().forward(logits, targets) - self.kappa * entropy


def balanced_weights(labels: Tensor, classes: int) -> list[float]:
    """Return n / (k n_c) for each class c, 0 for one without images, from the labels [N].

    n_c of the n images are of class c, k classes have images, so the mean over the images is 1; as
    scikit-learn's compute_class_weight("balanced").
    """
    counts = labels.bincount(minlength=classes)
    present = counts > 0
    weights = len(labels) / (present.sum() * counts.clamp(min=1)).double()
    return (weights * present).tolist()


def _to_tensor(class_weights: Sequence[float]) -> Tensor:
    """Return the weights in float32. Raises UserError: not finite, negative, or all 0."""
    valid = all(isinstance(w, int | float) and 0 <= w < math.inf for w in class_weights)
    if not valid or not sum(class_weights):
        message = f"loss.class_weights={class_weights}"
        raise UserError(f"{message}: expected numbers of 0 or more, one for each class, not all 0")
    return torch.tensor(class_weights, dtype=torch.float)


cross_entropy = CrossEntropy  # the names of their options
distill = Distill
entropy = Entropy
