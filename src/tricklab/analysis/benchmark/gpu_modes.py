"""Training steps on one GPU: their speed and memory in each mode, and whether they wait for it."""

import contextlib
import gc
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from tricklab.analysis.benchmark.cases import (
    CONVNET,
    EVERYTHING,
    MODES,
    WARMUP_STEPS,
    GpuCase,
    Mode,
    Overrides,
)
from tricklab.analysis.benchmark.loops import fit, keep
from tricklab.cli.compose import compose_each
from tricklab.data.module import ImageData
from tricklab.run.build import build_data

Result = dict[str, Any]
SPEEDS = ("steps/s", "images/s", "peak GB")

# The batches between which no step may wait: 10 and 20 are logged, 19 updates the progress bar
AFTER_BATCH = 10
BEFORE_BATCH = 19


class WaitCheck(pl.Callback):
    """Makes each operation that waits for the GPU an error, between two logged steps.

    It is so from the end of one batch to the start of another: loading and augmentation included.
    """

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == AFTER_BATCH:
            set_wait_mode("error")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == BEFORE_BATCH:
            set_wait_mode("default")


def set_wait_mode(mode: str) -> None:
    """Set what an operation that waits for the GPU does: "default" or "error"."""
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode(mode)


def find_wait(case: GpuCase) -> str:
    """Return what waits for the GPU in a step with everything on, if anything does."""
    release()
    overrides = (*case.data, *case.nets[CONVNET], *EVERYTHING, *stop_after(BEFORE_BATCH + 1))
    config = compose_one(overrides)
    try:
        fit(config, build_data(config), callbacks=[WaitCheck()])
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        traceback.print_exc()  # it names the operation
        return first_line(error)
    finally:
        set_wait_mode("default")
    return f"nothing in steps {AFTER_BATCH + 1} to {BEFORE_BATCH - 1}, everything on"


def stop_after(steps: int) -> Overrides:
    return (f"stop_after={steps}it", "trainer.max_epochs=1000")


def compose_one(overrides: Overrides) -> DictConfig:
    (config,) = compose_each(list(overrides)).values()
    return config


def release() -> None:
    """Free what the last run left: compiled functions, and memory of the GPU."""
    torch.compiler.reset()  # it gives up after eight compilations of a function
    if not torch.cuda.is_available():
        return
    gc.unfreeze()  # `fit` froze objects that refer to each other
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def measure_modes(case: GpuCase) -> list[Result]:
    """Return a row for each mode of each network, with a note instead of numbers if it fails."""
    end = time.monotonic() + case.mode_seconds
    data = build_data(compose_one(case.data))
    rows = []
    for net, overrides in case.nets.items():
        for name, mode in MODES.items():
            row = dict.fromkeys(SPEEDS) | {"note": "left out, as time was up"}
            if time.monotonic() < end:
                row = try_mode((*case.data, *overrides), data, mode, case.steps)
            rows.append({"network": net, "mode": name, **row})
            print(rows[-1], file=sys.stderr)  # they are not lost if a later part fails
    return rows


def try_mode(overrides: Overrides, data: ImageData, mode: Mode, steps: int) -> Result:
    """Measure a mode, which a GPU or a version may lack; the others are measured all the same."""
    try:
        return measure_mode(overrides, data, mode, steps) | {"note": ""}
    except Exception as error:
        traceback.print_exc()
        return dict.fromkeys(SPEEDS) | {"note": first_line(error)}


def measure_mode(overrides: Overrides, data: ImageData, mode: Mode, steps: int) -> Result:
    """Return the speed of so many steps, and the peak memory."""
    release()
    config = compose_one((*overrides, *mode.overrides, *stop_after(steps + WARMUP_STEPS)))
    with allow_tf32(mode.tf32):
        timing = fit(config, data, prepare=CudaGraphs if mode.cuda_graphs else keep)
    speed = steps / timing.seconds
    return dict(zip(SPEEDS, (speed, speed * data.batch_size, peak_memory()), strict=True))


@contextlib.contextmanager
def allow_tf32(allowed: bool | None) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions and matrix products; None changes nothing."""
    convolutions = torch.backends.cudnn.allow_tf32
    products = torch.get_float32_matmul_precision()
    if allowed is not None:
        torch.backends.cudnn.allow_tf32 = allowed
        torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


class CudaGraphs(nn.Module):
    """A network that is compiled to CUDA graphs, images [B, C, H, W] to logits [B, K]."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        net.compile(mode="reduce-overhead")

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits.clone()  # the next call overwrites the original


def peak_memory() -> float | None:
    """Return the most GB of tensors on the GPU since `release`, all images included."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated() / 1e9


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:120]
