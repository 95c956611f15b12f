"""Dropout: its kinds, its probabilities, and the layers that drop."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tricklab.errors import UserError


class GaussianDropout(nn.Dropout):
    """Multiplies each unit by noise N(1, p / (1 - p)) in training (JMLR 15, 2014, section 10).

    Mean and variance are those of dropout with the probability `p`, whose units are multiplied by 0
    or 1 / (1 - p).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        std = (self.p / (1 - self.p)) ** 0.5
        return x * (1 + std * torch.randn_like(x))


class DropPath(nn.Dropout):
    """Stochastic depth: zero the branch per image, rescale the others by 1 / (1 - p)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x.new_ones(x.shape[0], 1, 1, 1))


DROPOUTS = {"bernoulli": nn.Dropout, "gaussian": GaussianDropout}  # by model.dropout_kind


def check_dropout(**probabilities: float) -> None:
    """Raise UserError for a dropout probability outside of [0, 1): at 1 nothing would pass."""
    for name, probability in probabilities.items():
        if not 0 <= probability < 1:
            raise UserError(f"model.{name}={probability}; allowed: 0 or more, less than 1")


def dropout_of_layers(dropout: float | Sequence[float], widths: Sequence[int]) -> list[float]:
    """Return the dropout probability of each layer, from that of all of them or a list.

    Raises UserError: there are no layers, not one probability for each, or one outside of [0, 1).
    """
    if not isinstance(dropout, int | float):
        probabilities = list(dropout)
    else:
        probabilities = [dropout] * len(widths)
        if dropout and not widths:
            message = f"model.dropout={dropout} with model.widths=[]"
            raise UserError(f"{message}: there are no hidden units")
    for probability in probabilities:
        check_dropout(dropout=probability)
    if len(probabilities) != len(widths):
        message = f"model.dropout={probabilities} with model.widths={list(widths)}"
        raise UserError(f"{message}: expected one number, or one for each width")
    return probabilities


def find_dropout(net: nn.Module) -> list[str]:
    """Return the names of dropout layers that precede a batch norm in definition order.

    Stochastic depth is not among them.
    """
    modules = list(net.named_modules())
    last_norm = 0
    for index, (_, module) in enumerate(modules):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            last_norm = index
    names = []
    for name, module in modules[:last_norm]:
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        if is_dropout and module.p > 0 and not isinstance(module, DropPath):
            names.append(name)
    return names
