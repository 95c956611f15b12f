"""Penalties on the weights, added to the training loss.

They look at the tensors of two or more dimensions, each once: no biases, no norms. Computed in float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def penalised(net: nn.Module) -> list[nn.Parameter]:
    """Return the weights that penalties and weight decay act on."""
    return [p for p in net.parameters() if p.requires_grad and p.ndim >= 2]


def l1(weights: Sequence[Tensor], strength: float) -> Tensor:
    """Return strength * sum |w|. As a term of the loss it makes weights small, hardly ever exactly 0."""
    return strength * torch.stack([w.float().abs().sum() for w in weights]).sum()


def l2(weights: Sequence[Tensor], strength: float) -> Tensor:
    """Return strength / 2 * sum w^2. Its gradient is strength * w: under plain SGD, weight decay."""
    return strength / 2 * torch.stack([w.float().square().sum() for w in weights]).sum()
