"""Penalties on the weights: a term of the training loss, or what is done to them in place after each step.

They look at the tensors of two or more dimensions, each once: no biases, no norms. Terms are computed in float32. A
function that takes the rate, `lr`, is of the second kind.
"""

import fnmatch
import inspect
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

    @property
    def follows_step(self) -> bool:
        """Whether it is done after a step, with its LR, rather than added to the loss."""
        return "lr" in inspect.signature(self.act).parameters

    def try_on_copy(self) -> None:
        """Act on a copy of a weight, for whatever is raised then to be raised before training."""
        copies = [w.detach().clone() for w in self.weights[:1]]
        self.act(copies, **({"lr": 0.0} if self.follows_step else {}))


METHOD = "no_weight_decay"  # of networks, which names parameters, also by patterns
EMBEDDINGS = re.compile(r"\w*(tokens?|embed(ding)?s?)(_?\d+)?|(\w*_)?bias(es)?(_\w+)?")
POSITIONS = re.compile(r"(\w+_)?pos(_\w+)?|\w*position\w*")


def find_weights(net: nn.Module, only: str | None = None) -> list[nn.Parameter]:
    """Return what penalties and decay act on: weights with the pattern `only` in the name.

    These are tensors of two or more dimensions, each once, but for those that end in `bias` and
    what `kept_whole` names. Raises UserError: `only` is in no name.
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
    """Return the names of parameters that neither decay nor penalties make smaller.

    A network with a method `no_weight_decay()` names them itself, as in timm. Of others, such as
    torchvision's, they are what such a method of a part names, and what `is_embedding_or_scale`.
    """
    named = dict(net.named_parameters())
    own = {prefix: module for prefix, module in net.named_modules() if hasattr(module, METHOD)}
    if "" in own:  # it speaks for its parts, too
        own = {"": own[""]}
    patterns = [
        f"{prefix}.{pattern}".lstrip(".")
        for prefix, module in own.items()
        for pattern in getattr(module, METHOD)()
    ]
    kept = {name for pattern in patterns for name in fnmatch.filter(named, pattern)}
    if "" in own:
        return kept
    tables = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    kept |= {name for name, p in named.items() if id(p) in tables}
    return kept | {name for name, p in named.items() if is_embedding_or_scale(name, p)}


def is_embedding_or_scale(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a token, an embedding, a table of biases or a scale of channels.

    By its name, as `class_token`, `pos_embedding`, `relative_position_bias_table`; a scale by its
    shape, as `layer_scale` [C, 1, 1]. What is called `weight` is none of these.
    """
    *parents, last = name.split(".")
    if last == "weight":
        return False
    is_vector = parameter.numel() == max(parameter.shape, default=1)
    named_so = EMBEDDINGS.fullmatch(last) or any(map(POSITIONS.fullmatch, [*parents, last]))
    return is_vector or bool(named_so)


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
    """Scale in place the weights into each unit [out, ...] to at most `norm` after each step. JMLR 15 (2014), 5.1.

    Raises UserError: a norm of 0 or less, which would leave no weight.
    """
    if not norm > 0:
        raise UserError(f"norm={norm}; allowed: more than 0")
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
