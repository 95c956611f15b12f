"""What the optimizer works on."""

from typing import Any

from torch import nn

from tricklab.model import find_head
from tricklab.penalty import find_weights


def parameter_groups(net: nn.Module, body_apart: bool = False) -> list[dict[str, Any]]:
    """Weights as one group and the rest (biases, norms) as a second one without weight decay.

    With `body_apart`, the classifier's two come first and those of the body follow.
    """
    head = {id(p) for p in (find_head(net)[1] if body_apart else net).parameters()}
    weights = {id(p) for p in find_weights(net)}
    groups: list[dict[str, Any]] = []
    for in_head in (True, False) if body_apart else (True,):
        part = [p for p in net.parameters() if p.requires_grad and (id(p) in head) == in_head]
        groups.append({"params": [p for p in part if id(p) in weights]})
        groups.append({"params": [p for p in part if id(p) not in weights], "weight_decay": 0.0})
    return groups
