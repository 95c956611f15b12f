"""Parameter groups by name, and the weights that decay and penalties act on."""

import fnmatch
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tricklab.model import find_head

# timm's networks have this method, which returns names of parameters, or patterns
NO_DECAY_METHOD = "no_weight_decay"
EMBEDDINGS = re.compile(r"\w*(tokens?|embed(ding)?s?)(_?\d+)?|(\w*_)?bias(es)?(_\w+)?")
POSITIONS = re.compile(r"(\w+_)?pos(_\w+)?|\w*position\w*")
BACKBONE = "backbone"

Group = dict[str, Any]  # parameters, a name, and options such as lr


def parameter_groups(net: nn.Module, separate_backbone: bool = False) -> list[Group]:
    """Group the trainable parameters for an optimizer, which keeps the "name" of each group.

    The groups are "decayed" (see `named_weights`) and "no_decay" (biases, norms, embeddings), with
    `separate_backbone` "head decayed", "head no_decay", "backbone decayed", "backbone no_decay".
    """
    decayed = set(named_weights(net).values())
    trainable = [p for p in net.parameters() if p.requires_grad]
    if not separate_backbone:
        return _split_by_decay(trainable, decayed)
    in_head = set(find_head(net)[1].parameters())
    head = [p for p in trainable if p in in_head]
    backbone = [p for p in trainable if p not in in_head]
    return [
        *_split_by_decay(head, decayed, "head "),
        *_split_by_decay(backbone, decayed, f"{BACKBONE} "),
    ]


def _split_by_decay(
    parameters: Iterable[nn.Parameter], decayed: set[nn.Parameter], part: str = ""
) -> list[Group]:
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in parameters:
        (weights if parameter in decayed else others).append(parameter)
    return [
        {"params": weights, "name": f"{part}decayed"},
        {"params": others, "name": f"{part}no_decay", "weight_decay": 0.0},
    ]


def is_backbone(group: Group) -> bool:
    """Whether a group is one of a separate backbone."""
    return str(group["name"]).startswith(BACKBONE)


def keep_group_names(optimizer: torch.optim.Optimizer) -> None:
    """Let the groups keep their names when a state without names is loaded (older checkpoints)."""
    names = [group["name"] for group in optimizer.param_groups]

    def restore_names(loaded: torch.optim.Optimizer) -> None:
        for group, name in zip(loaded.param_groups, names, strict=True):
            group["name"] = name

    optimizer.register_load_state_dict_post_hook(restore_names)


def named_weights(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that weight decay and penalties act on, by name.

    These are the trainable tensors of two or more dimensions, each once, without biases and
    `no_decay_names`.
    """
    excluded = no_decay_names(net)
    weights = {}
    for name, parameter in net.named_parameters():
        is_matrix = parameter.ndim >= 2 and not name.endswith("bias")
        if is_matrix and parameter.requires_grad and name not in excluded:
            weights[name] = parameter
    return weights


def no_decay_names(net: nn.Module) -> set[str]:
    """Return the names of parameters that neither decay nor penalties shrink.

    A network with a method `no_weight_decay()` lists them itself, as in timm. In any other, such as
    torchvision's, they are those that a submodule lists, embeddings, and scales of channels.
    """
    if hasattr(net, NO_DECAY_METHOD):  # for its submodules too
        return _listed_by(net, "", net)
    names = set()
    for prefix, module in net.named_modules():
        if hasattr(module, NO_DECAY_METHOD):
            names |= _listed_by(module, f"{prefix}.", net)
    tables = {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    for name, parameter in net.named_parameters():
        if id(parameter) in tables or is_embedding_or_scale(name, parameter):
            names.add(name)
    return names


def _listed_by(module: Any, prefix: str, net: nn.Module) -> set[str]:
    """Return the names in `net` that match the patterns of a submodule."""
    names = [name for name, _ in net.named_parameters()]
    matches: set[str] = set()
    for pattern in getattr(module, NO_DECAY_METHOD)():
        matches |= set(fnmatch.filter(names, f"{prefix}{pattern}"))
    return matches


def is_embedding_or_scale(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a token, an embedding, a table of biases or a scale of channels.

    Recognised by name, as `class_token`, `pos_embedding`, `relative_position_bias_table`; a scale
    by its shape, as `layer_scale` [C, 1, 1]. A parameter called `weight` is none of these.
    """
    *parents, last = name.split(".")
    if last == "weight":
        return False
    is_vector = parameter.numel() == max(parameter.shape, default=1)
    is_position = any(POSITIONS.fullmatch(part) for part in [*parents, last])
    return is_vector or is_position or EMBEDDINGS.fullmatch(last) is not None
