"""The memory format and the number of threads that a run chooses where its config says `auto`.

They follow from the config and the hardware alone, never from timing or load.
"""

import functools

import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tricklab.devices import cores_of_run, count_devices, omp_threads, visible_devices
from tricklab.run.automatic import AUTO, KEYS, Choice

Flops = dict[str, float]  # by operator

# FLOPs of a layer in the forward pass of a batch. With 2 threads a step takes 1.2 to 1.8 times as
# long as with one at 60 million or less, about as long at 100, 0.7 to 0.8 times at 130 or more
LARGE_LAYER = 1e8


def choose(cfg: DictConfig, net: nn.Module, flops: Flops) -> Choice:
    """Return memory format and threads of a run: those of the config, or what `auto` stands for.

    `flops` are those of a forward pass of one image.
    """
    choice = {key: cfg.trainer[key] for key in KEYS}
    if choice["channels_last"] == AUTO:
        choice["channels_last"] = on_cpu(cfg.trainer) and is_mostly_convolutions(flops)
    if choice["threads"] == AUTO:
        layers = sum(parameter.ndim > 1 for parameter in net.parameters())
        flops_of_layer = sum(flops.values()) * cfg.data.batch_size / max(1, layers)
        choice["threads"] = choose_threads(cfg.trainer, flops_of_layer)
    return choice


def flops_per_image(counter: FlopCounterMode, images: int) -> Flops:
    """Return what torch has counted in a forward pass of some images."""
    counted = counter.get_flop_counts().get("Global", {})
    return {str(operator): flops / images for operator, flops in counted.items()}


def on_cpu(trainer: DictConfig) -> bool:
    """Whether a trainer computes on the CPU."""
    return trainer.accelerator == "cpu" or not has_gpu()


@functools.cache
def has_gpu() -> bool:
    """Whether there is a GPU; torch looks for the driver's library each time."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def is_mostly_convolutions(flops: Flops) -> bool:
    """Whether convolutions have most of the FLOPs.

    With `channels_last` a CPU trains such networks 1.05 to 1.5 times as fast, others as fast.
    """
    of_convolutions = sum(n for operator, n in flops.items() if "conv" in operator)
    return 2 * of_convolutions > sum(flops.values())


def choose_threads(trainer: DictConfig, flops_of_layer: float) -> int:
    """Return OMP_NUM_THREADS if it is set; else 1 for small layers, all cores for large ones.

    Several processes on one machine share its cores.
    """
    if threads := omp_threads():
        return threads
    if flops_of_layer < LARGE_LAYER:
        return 1
    processes = count_devices(trainer.devices) or len(visible_devices()) or 1
    return max(1, cores_of_run() // processes)
