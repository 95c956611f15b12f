"""The floating-point operations of a training."""

import torch
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode

from tricklab.run.build import build_data, build_net
from tricklab.run.experiment import quiet_lightning
from tricklab.run.plan import make_plan


def training_flops(config: DictConfig) -> float:
    """Return the FLOPs of all training steps, forward and backward, as counted by torch."""
    quiet_lightning()
    data = build_data(config)
    net = build_net(config, data.shape, len(data.classes)).train()
    images = torch.zeros(2, *data.shape)
    with FlopCounterMode(display=False) as counter:
        net(images).sum().backward()
    flops_per_image = counter.get_total_flops() / len(images)
    return flops_per_image * make_plan(config, data, ranks=1).last_step * data.batch_size
