"""Penalties on the weights: a term of the training loss, or a projection after each step.

`@term` and `@projection` turn a function of a list of weights into an option. The weights are the
tensors of two or more dimensions, each once: no biases, no norms (see `tricklab.optimizer`). Terms
are computed in float32.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tricklab.errors import UserError
from tricklab.option import as_option, keys_after


class Penalty(NamedTuple):
    """A function with its options, and the parameters that it applies to."""

    fn: Callable[..., Any]
    weights: list[nn.Parameter]
    is_projection: bool

    def try_on_copy(self) -> None:
        """Apply to a copy of one weight, to raise before training whatever it may raise."""
        copies = [w.detach().clone() for w in self.weights[:1]]
        if self.is_projection:
            self.fn(copies, lr=0.0)
        else:
            self.fn(copies)


def term(fn: Callable[..., Tensor]) -> Callable[..., Penalty]:
    """Turn `fn(weights, ...)`, a term of the loss, into an option; see `_make_option`."""
    return _make_option(fn, is_projection=False)


def projection(fn: Callable[..., None]) -> Callable[..., Penalty]:
    """Turn `fn(weights, lr, ...)`, in place after each step, into an option; see `_make_option`."""
    return _make_option(fn, is_projection=True)


def _make_option(fn: Callable[..., Any], is_projection: bool) -> Callable[..., Penalty]:
    """Return `option(weights, params=None, ...) -> Penalty`, for weights by name.

    `params` is a regular expression: only weights with a match in their name are penalised.
    """

    def option(
        weights: Mapping[str, nn.Parameter], *, params: str | None = None, **options: Any
    ) -> Penalty:
        return Penalty(functools.partial(fn, **options), select(weights, params), is_projection)

    return as_option(option, fn, keys_after(fn, 2 if is_projection else 1))


def select(weights: Mapping[str, nn.Parameter], params: str | None) -> list[nn.Parameter]:
    """Return the weights with a match of `params` in their name, or all. Raises UserError."""
    if params is None:
        return list(weights.values())
    try:
        pattern = re.compile(params)
    except re.error as error:
        raise UserError(f"params={params!r} is not a regular expression: {error}") from error
    selected = [weight for name, weight in weights.items() if pattern.search(name)]
    if not selected:
        raise UserError(f"params={params!r} matches no weight; weights are: {', '.join(weights)}")
    return selected


@term
def l1(weights: Sequence[Tensor], strength: float) -> Tensor:
    """Return strength * sum |w|: in the loss it makes weights small, hardly ever exactly 0."""
    norms = torch._foreach_norm([w.float() for w in weights], 1)
    return strength * torch.stack(norms).sum()


@term
def l2(weights: Sequence[Tensor], strength: float) -> Tensor:
    """Return strength / 2 * sum w^2, whose gradient strength * w is weight decay in plain SGD."""
    return strength / 2 * _SquareSum.apply(*[w.float() for w in weights])


class _SquareSum(torch.autograd.Function):
    """sum w^2 over all weights at once, with the exact gradient 2 w.

    Autograd of `torch._foreach_norm` computes it as w / norm * (2 norm), wrong in the last bit;
    sums of squares one by one take twice as long for the seven weights of a convnet.
    """

    @staticmethod
    def forward(ctx: Any, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        return torch.stack(torch._foreach_norm(weights, 2)).pow(2).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return torch._foreach_mul(ctx.saved_tensors, gradient * 2)


@projection
def l1_prox(weights: Sequence[Tensor], lr: float, strength: float) -> None:
    """Soft-threshold by lr * strength: the step of ISTA for l1. SIAM J. Imaging Sci. 2 (2009).

    Gives exact zeros. With plain SGD it converges to a minimum of the loss with `l1` of the same
    strength; with momentum m, of (1 - m) * strength, as momentum sums the gradients and not the
    thresholds. With Adam and its variants the threshold is not scaled by coordinate, just as the
    decay of AdamW is not.
    """
    torch._foreach_copy_(list(weights), [F.softshrink(w, lr * strength) for w in weights])


@projection
def max_norm(weights: Sequence[Tensor], lr: float, norm: float) -> None:
    """Shrink each row of [out, ...], the weights into one unit, to a norm of at most `norm`.

    JMLR 15 (2014), 5.1. Raises UserError: a norm of 0 or less, which would leave no weight.
    """
    if not norm > 0:
        raise UserError(f"norm={norm}; allowed: more than 0")
    torch._foreach_copy_(list(weights), [torch.renorm(w, 2, 0, norm) for w in weights])


@projection
def decay(weights: Sequence[Tensor], lr: float, strength: float) -> None:
    """Multiply by 1 - lr * strength: decoupled weight decay, any optimizer. arXiv 1711.05101.

    It follows the whole LR, as in torch's AdamW; the paper's follows the schedule alone, lr / lr_0.
    """
    torch._foreach_mul_(list(weights), 1 - lr * strength)
