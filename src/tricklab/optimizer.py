"""What the optimizer works on."""

from typing import Any

from torch import nn

from tricklab.penalty import penalised


def parameter_groups(net: nn.Module) -> list[dict[str, Any]]:
    """Weights as one group and the rest (biases, norms) as a second one without weight decay."""
    weights = penalised(net)
    ids = {id(p) for p in weights}
    rest = [p for p in net.parameters() if p.requires_grad and id(p) not in ids]
    return [{"params": weights}, {"params": rest, "weight_decay": 0.0}]
