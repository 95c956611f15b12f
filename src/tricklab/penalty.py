"""Penalties on the weights: a term of the training loss, or what is done to them in place after each step.

They look at the tensors of two or more dimensions, each once: no biases, no norms. Terms are computed in float32. A
function that takes the rate, `lr`, is of the second kind.
"""

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tricklab.errors import UserError
from tricklab.model import find_head


class Penalty(NamedTuple):
    """What is done, and the weights it is done to."""

    act: Callable[..., Any]
    weights: list[nn.Parameter]


METHOD = "no_weight_decay"  # of networks, which names parameters, also by patterns
NOT_DECAYED = re.compile(  # in libraries whose networks do not say it themselves, as torchvision's
    r"(^|\.)(\w*_token|pos_embed(ding)?|\w*position_bias_table|layer_scale(_\d)?|logit_scale|gamma)$"
)


def find_weights(net: nn.Module, only: str | None = None) -> list[nn.Parameter]:
    """Return what penalties and decay act on: weights with the pattern `only` in the name.

    These are tensors of two or more dimensions, each once, but for biases and what the network's
    `no_weight_decay()` names, as timm's optimizers have it. For a network without that method,
    class tokens, embeddings of positions and scales of layers are left out by their usual names.
    Raises UserError: `only` is in no name.
    """
    kept = kept_whole(net)
    named = {
        name: p
        for name, p in net.named_parameters()
        if p.requires_grad and p.ndim >= 2 and not name.endswith("bias") and name not in kept
    }
    try:
        found = [p for name, p in named.items() if re.search(only or "", name)]
    except re.error as error:
        raise UserError(f"only={only} is no regular expression: {error}") from error
    if not found and only:
        raise UserError(f"only={only} is found in no name; allowed: a part of {', '.join(named)}")
    return found


def kept_whole(net: nn.Module) -> set[str]:
    """Return the names of parameters that neither decay nor penalties make smaller."""
    names = [name for name, _ in net.named_parameters()]
    own = {prefix: module for prefix, module in net.named_modules() if hasattr(module, METHOD)}
    if "" in own:  # it speaks for its parts, too
        own = {"": own[""]}
    patterns = [
        f"{prefix}.{pattern}".lstrip(".")
        for prefix, module in own.items()
        for pattern in getattr(module, METHOD)()
    ]
    kept = {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
    return kept if "" in own else kept | {name for name in names if NOT_DECAYED.search(name)}


def parameter_groups(net: nn.Module, body_apart: bool = False) -> list[dict[str, Any]]:
    """Group weights, and the rest (biases, norms) without decay; with `body_apart` the classifier's two come first."""
    weights, head = (
        set(find_weights(net)),
        set((find_head(net)[1] if body_apart else net).parameters()),
    )
    groups: list[dict[str, Any]] = []
    for in_head in (True, False) if body_apart else (True,):
        part = [p for p in net.parameters() if p.requires_grad and (p in head) == in_head]
        groups.append({"params": [p for p in part if p in weights]})
        groups.append({"params": [p for p in part if p not in weights], "weight_decay": 0.0})
    return groups


def l1(weights: Sequence[Tensor], strength: float) -> Tensor:
    """Return strength * sum |w|. As a term of the loss it makes weights small, hardly ever exactly 0."""
    return strength * _Power.apply(1, *[w.float() for w in weights])


def l2(weights: Sequence[Tensor], strength: float) -> Tensor:
    """Return strength / 2 * sum w^2. Its gradient is strength * w: under plain SGD, weight decay."""
    return strength / 2 * _Power.apply(2, *[w.float() for w in weights])


class _Power(torch.autograd.Function):
    """The sum of |w|^p, p = 1 or 2, over all weights at once; l1 + l2 of seven take 0.5 ms, sums of each 0.7."""

    @staticmethod
    def forward(ctx: Any, p: int, *weights: Tensor) -> Tensor:
        ctx.p = p
        ctx.save_for_backward(*weights)
        return torch.stack(torch._foreach_norm(weights, p)).pow(p).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        slopes = torch._foreach_sign(ctx.saved_tensors) if ctx.p == 1 else ctx.saved_tensors
        return None, *torch._foreach_mul(slopes, gradient * ctx.p)


def l1_prox(weights: Sequence[Tensor], lr: float, strength: float) -> None:
    """Soft-threshold in place by lr * strength after each step: ISTA's step for l1 (SIAM J. Imaging Sci. 2, 2009).

    Gives exact zeros. Its fixed points are those of the loss with `l1` under plain SGD; with momentum m those with `l1`
    of (1 - m) * strength, since momentum sums the gradients and not the thresholds. With Adam and its like the
    threshold is not scaled by coordinate, as the decay of AdamW is not.
    """
    torch._foreach_copy_(list(weights), [F.softshrink(w, lr * strength) for w in weights])


def max_norm(weights: Sequence[Tensor], lr: float, norm: float) -> None:
    """Scale in place the weights into each unit [out, ...] to at most `norm` after each step. JMLR 15 (2014), 5.1."""
    torch._foreach_copy_(list(weights), [torch.renorm(w, 2, 0, norm) for w in weights])


def decay(weights: Sequence[Tensor], lr: float, strength: float) -> None:
    """Shrink in place by lr * strength after each step: decoupled decay under any optimizer, arXiv 1711.05101.

    It follows the whole rate, as in torch's AdamW; the paper's follows the schedule alone, lr / lr_0.
    """
    torch._foreach_mul_(list(weights), 1 - lr * strength)


def weight_facts(weights: Sequence[Tensor]) -> dict[str, float]:
    """Return the share of weights that are exactly 0, and the norm of all."""
    zeros = torch.stack([(w == 0).sum() for w in weights]).sum() / sum(w.numel() for w in weights)
    return {
        "train/zeros": float(zeros),
        "train/weight_norm": float(nn.utils.get_total_norm(weights)),
    }
