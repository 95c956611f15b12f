"""GPUs, cores and processes of a run, without importing torch."""

import ctypes
import os
import platform
import re
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

# Environment variable with a copy of WORLD_SIZE, which Lightning removes at its end
RUN_WORLD_SIZE = "PROCESSES_OF_RUN"
RUN_CORES = "CORES_OF_RUN"  # environment variable of a sweep's job
CGROUPS = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
M_TRIM_THRESHOLD = -1  # of malloc.h
M_MMAP_MAX = -4
# Rounds that OpenMP's threads wait awake: some 0.2 ms. By default it is 20 ms, in which two runs on
# the same cores wait for each other's waiting threads: 0.3 of their speed alone, with this 0.5
SPIN_COUNT = "3000"


def visible_devices() -> list[str]:
    """Return the names of the GPUs that jobs may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    return [str(n) for n, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_of_run() -> int:
    """Return the number of cores for this run: of a job of a sweep, its part."""
    return int(os.environ.get(RUN_CORES) or count_cores())


def count_devices(devices: object) -> int | None:
    """Return the number of devices in `trainer.devices`; None if only Lightning can tell."""
    if isinstance(devices, str) and re.fullmatch(r"\d+(,\d*)*", devices):
        indices = [index for index in devices.split(",") if index]
        return len(indices) if "," in devices else int(devices)
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    return devices if isinstance(devices, int) and devices > 0 else None


def count_memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or less in a cgroup.

    Containers and SLURM limit memory by cgroups, whose processes are killed if they take more.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in cgroup_limits():
        with suppress(OSError, ValueError):  # no such file, or "max"
            memory = min(memory, int(path.read_text()))
    return memory


def free_memory() -> int:
    """Return the bytes of memory that are not in use; all, where the system does not tell."""
    memory = count_memory()
    with suppress(OSError):
        match = re.search(r"MemAvailable:\s*(\d+) kB", MEMINFO.read_text())
        if match:
            memory = min(memory, int(match[1]) * 1024)
    return memory


def cgroup_limits() -> Iterator[Path]:
    """Yield the files that may have a limit: of this process's cgroup and of those around it.

    A line of /proc/self/cgroup is "0::/a/b" in version 2, "7:memory:/a/b" in version 1.
    """
    if not CGROUPS.is_file():
        return
    for line in CGROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, name = CGROUP_ROOT / "memory", "memory.limit_in_bytes"
        elif not controllers:
            root, name = CGROUP_ROOT, "memory.max"
        else:
            continue
        cgroup = Path(path)
        for parent in (cgroup, *cgroup.parents):
            yield root / parent.relative_to("/") / name


def world_size() -> int:
    """Return the number of processes that torchrun, srun or Lightning started for this run."""
    if "LOCAL_RANK" in os.environ:
        return int(os.environ.get("WORLD_SIZE") or os.environ.get(RUN_WORLD_SIZE) or "1")
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # as in Lightning
    return 1 if interactive else int(os.environ.get("SLURM_NTASKS", "1"))


def is_first() -> bool:
    """Whether this process has rank 0 in its run, by the environment alone."""
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def omp_threads() -> int:
    """Return the number of threads in OMP_NUM_THREADS; 0 if there is none."""
    match = re.match(r"\d+", os.environ.get("OMP_NUM_THREADS", ""))
    return int(match[0]) if match else 0


def name_processor() -> str:
    """Return the name of the processor, "" where the system does not tell."""
    with suppress(OSError):
        match = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        if match:
            return match[1]
    return platform.processor()


def wait_asleep() -> None:
    """Let threads without work sleep soon, unless the environment says otherwise.

    Call it before torch is imported. It affects GNU's OpenMP, torch's on Linux, and no result.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def wait_as_usual() -> None:
    """Undo `wait_asleep`, before torch is imported."""
    if os.environ.get("GOMP_SPINCOUNT") == SPIN_COUNT:
        del os.environ["GOMP_SPINCOUNT"]


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones; elsewhere do nothing.

    It would give those above 32 MB back to the kernel. With photographs, the page faults of new
    memory then take a tenth of a training step and up to half of an evaluation.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def call_after_exit(process: int, act: Callable[[], object]) -> None:
    """Wait until the process with an ID has ended, then call `act`."""
    try:
        select.select([os.pidfd_open(process)], [], [])
    except (AttributeError, OSError):
        # No pidfd on macOS and older kernels; or the process has ended already
        with suppress(ProcessLookupError):
            while True:
                os.kill(process, 0)
                time.sleep(1)
    act()
