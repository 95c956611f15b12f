"""GPUs, cores and processes of a run, known without importing torch."""

import os
import re
import select
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

COPIES = "PROCESSES_OF_RUN"  # in the environment: WORLD_SIZE, which Lightning removes at its end


def visible_devices() -> list[str]:
    """Name the GPUs that jobs may use, without torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    return [str(n) for n, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def count_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def world_size() -> int:
    """Return how many processes torchrun, srun or Lightning have started for this run."""
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE") or os.environ.get(COPIES) or "1")
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # as in Lightning
    return 1 if interactive else int(os.environ.get("SLURM_NTASKS", "1"))


def is_first() -> bool:
    """Whether this process is the first one of its run, by the environment alone."""
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def omp_threads() -> int:
    """Return the threads that OMP_NUM_THREADS asks for; 0 where it does not."""
    return int((re.match(r"\d+", os.environ.get("OMP_NUM_THREADS", "")) or [0])[0])


def call_after_exit(process: int, act: Callable[[], object]) -> None:
    """Wait for the end of a process, then act."""
    try:
        select.select([os.pidfd_open(process)], [], [])
    except (AttributeError, OSError):  # macOS, a kernel that has none, or it is dead already
        with suppress(ProcessLookupError):
            while True:
                os.kill(process, 0)
                time.sleep(1)
    act()
