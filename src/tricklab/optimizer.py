"""Parameter groups by name, part and layer, and the weights that decay and penalties act on."""

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tricklab.errors import UserError
from tricklab.model import find_head

# Methods of timm's networks: the first returns names of parameters, or patterns
NO_DECAY_METHOD = "no_weight_decay"
LAYERS_METHOD = "group_matcher"
EMBEDDINGS = re.compile(r"\w*(tokens?|embed(ding)?s?)(_?\d+)?|(\w*_)?bias(es)?(_\w+)?")
POSITIONS = re.compile(r"(\w+_)?pos(_\w+)?|\w*position\w*")
BACKBONE = "backbone"
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # of blocks, not blocks themselves
OWN_KEYS = ("name", "layer", "lr_scale")  # of a group, besides the options of the optimizer

Group = dict[str, Any]  # parameters, a name, and options such as lr


def parameter_groups(
    net: nn.Module,
    separate_backbone: bool = False,
    layer_decay: float = 1.0,
    decay_all: bool = False,
) -> list[Group]:
    """Group the trainable parameters for an optimizer, which keeps the "name" of each group.

    The groups are "decayed" (see `named_weights`) and "no_decay" (biases, norms, embeddings), with
    `separate_backbone` "head decayed", "head no_decay", "backbone decayed", "backbone no_decay".
    With a `layer_decay` below 1 they are those of each layer, see `_groups_by_layer`. With
    `decay_all` the groups "no_decay" are empty.
    """
    decayed = set(net.parameters() if decay_all else named_weights(net).values())
    if layer_decay != 1:
        return _groups_by_layer(net, separate_backbone, layer_decay, decayed)
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


def _groups_by_layer(
    net: nn.Module, separate_backbone: bool, layer_decay: float, decayed: set[nn.Parameter]
) -> list[Group]:
    """Return groups for layers i = L, ..., 0 with `lr_scale` = `layer_decay` ** (L - i).

    arXiv 2003.10555; as `timm.optim.param_groups_layer_decay`. They are "head decayed", "head
    no_decay", "layer 3 decayed", ..., without empty ones; with `separate_backbone` all but those of
    the head are "backbone layer 3 decayed", .... Raises UserError: the head is the only layer.
    """
    layers = find_layers(net)
    last = max(layers.values())
    if last == 0:
        reason = "the network has a single layer, the head, whose LR stays the same"
        raise UserError(f"optimizer.layer_decay={layer_decay}: {reason}. Expected 1")
    in_head = set(find_head(net)[1].parameters()) if separate_backbone else set(layers)
    groups = []
    for layer in range(last, -1, -1):
        trainable = [p for p, i in layers.items() if i == layer and p.requires_grad]
        head = [p for p in trainable if p in in_head]
        backbone = [p for p in trainable if p not in in_head]
        split = [
            *_split_by_decay(head, decayed, "head " if layer == last else f"layer {layer} "),
            *_split_by_decay(backbone, decayed, f"{BACKBONE} layer {layer} "),
        ]
        scale = {"layer": layer, "lr_scale": layer_decay ** (last - layer)}
        groups += [group | scale for group in split if group["params"]]
    return groups


def find_layers(net: nn.Module) -> dict[nn.Parameter, int]:
    """Return the layer of each parameter, from 0 for the stem to L for the head.

    A network of timm numbers them itself, with its `group_matcher`. In any other they are the
    blocks in definition order (see `_blocks`), then the head; what has no weights that decay
    (norms, tokens, position embeddings) belongs to the block before, or else to the first.
    """
    if hasattr(net, LAYERS_METHOD):
        return _find_layers_of_timm(net)
    weights = set(_named_matrices(net).values())
    in_head = set(find_head(net)[1].parameters())
    layers: list[set[nn.Parameter]] = [set()]
    kinds = Counter(type(module) for module in net.modules())
    for block in _blocks(net, kinds):
        backbone = block - in_head
        if weights & backbone and weights & layers[-1]:
            layers.append(set())
        layers[-1] |= backbone
    numbered = enumerate(filter(None, [*layers, in_head]))
    numbers = {parameter: i for i, layer in numbered for parameter in layer}
    return {parameter: numbers[parameter] for parameter in net.parameters()}  # in their order


def _find_layers_of_timm(net: Any) -> dict[nn.Parameter, int]:
    from timm.models import group_parameters

    matcher = getattr(net, LAYERS_METHOD)(coarse=False)
    layers: Mapping[str, int] = group_parameters(net, matcher, reverse=True)
    return {parameter: layers[name] for name, parameter in net.named_parameters()}


def _blocks(module: nn.Module, kinds: Counter[type]) -> Iterator[set[nn.Parameter]]:
    """Yield the parameters of each block within a module, in definition order.

    A block is a module that is none of `CONTAINERS`, nor one with containers whose class occurs
    once in the network, as the encoder of a ViT. `kinds` counts the classes.
    """
    yield set(module.parameters(recurse=False))
    for child in module.children():
        has_containers = any(isinstance(m, CONTAINERS) for m in child.modules())
        if isinstance(child, CONTAINERS) or (has_containers and kinds[type(child)] == 1):
            yield from _blocks(child, kinds)
        else:
            yield set(child.parameters())


def is_backbone(group: Group) -> bool:
    """Whether a group is one of a separate backbone."""
    return str(group["name"]).startswith(BACKBONE)


def keep_group_names(optimizer: torch.optim.Optimizer) -> None:
    """Let the groups keep their names when a state without names is loaded (older checkpoints).

    They keep their layers and LR scales, too, which are those of the config.
    """
    kept = [
        {key: group[key] for key in OWN_KEYS if key in group} for group in optimizer.param_groups
    ]

    def restore(loaded: torch.optim.Optimizer) -> None:
        for group, values in zip(loaded.param_groups, kept, strict=True):
            group.update(values)

    optimizer.register_load_state_dict_post_hook(restore)


def named_weights(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that weight decay and penalties act on, by name.

    These are the trainable tensors of two or more dimensions, each once, without biases and
    `no_decay_names`.
    """
    return {name: p for name, p in _named_matrices(net).items() if p.requires_grad}


def _named_matrices(net: nn.Module) -> dict[str, nn.Parameter]:
    excluded = no_decay_names(net)
    matrices = {}
    for name, parameter in net.named_parameters():
        is_matrix = parameter.ndim >= 2 and not name.endswith("bias")
        if is_matrix and name not in excluded:
            matrices[name] = parameter
    return matrices


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
