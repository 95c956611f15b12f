"""Runs jobs of a sweep, each in its own process and on its own device.

All processes end with the one that started them.
"""

import json
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tricklab.cli.config import to_plain
from tricklab.cli.launch import exit_with_message
from tricklab.devices import (
    RUN_CORES,
    call_after_exit,
    count_cores,
    is_first,
    visible_devices,
    wait_asleep,
    world_size,
)
from tricklab.files import write_text
from tricklab.jobs.job import JobSpec, last_line
from tricklab.run.folder import read_result
from tricklab.run.identity import PLANNED_HASH, config_hash

TRAIN = Path(__file__).parents[3] / "train.py"
GRACE = 20  # seconds that interrupted jobs have to save before they are killed


class LocalPool:
    """Runs as many jobs at a time as there are slots. Each slot has its own devices."""

    def __init__(self, config: DictConfig):
        devices = visible_devices()
        one_per_device = config.trainer.devices == 1 and len(devices)
        self.size = int(config.slots or one_per_device or 1)
        self.cores = max(1, count_cores() // self.size)  # of a job
        self.free: Queue[str] = Queue()
        for slot in range(self.size):
            self.free.put(assign_devices(devices, slot, self.size))
        self.processes: list[Any] = []
        self.is_stopping = False

    def run(self, jobs: Sequence[JobSpec]) -> None:
        """Run the jobs. If interrupted, those at work get SIGTERM, on which they save."""
        pool = ThreadPoolExecutor(self.size)
        futures: list[Future[None]] = []
        try:
            for job in jobs:
                futures.append(pool.submit(self.run_one, job))
            for future in futures:
                future.result()
        finally:
            self.is_stopping = True
            self.stop(futures)
            pool.shutdown()

    def run_one(self, job: JobSpec) -> None:
        device = self.free.get()
        try:
            if not self.is_stopping:
                run_job(job, device, self.cores, self.processes)
        finally:
            self.free.put(device)

    def stop(self, futures: Sequence[Future[None]]) -> None:
        """End the running jobs, with SIGKILL after the grace period, and wait for them."""
        started = time.time()
        signalled: set[int] = set()
        while self.list_alive() or not all(future.done() for future in futures):
            is_late = time.time() - started > GRACE
            for process in self.list_alive():
                if is_late:
                    kill_process_group(process, signal.SIGKILL)
                elif process.pid not in signalled:
                    kill_process_group(process, signal.SIGTERM)
                    signalled.add(process.pid)
            time.sleep(0.1)

    def list_alive(self) -> list[Any]:
        return [process for process in self.processes if process.is_alive()]


def assign_devices(devices: Sequence[str], slot: int, slots: int) -> str:
    """Return the devices of a slot for CUDA_VISIBLE_DEVICES: several if there are more than slots.

    Slots without a device of their own share one. "" if there are no devices.
    """
    own = devices[slot::slots]
    shared = devices[slot % max(1, len(devices)) :][:1]
    return ",".join(own or shared)


def run_job(job: JobSpec, device: str, cores: int, processes: list[Any]) -> None:
    """Run a job in a new process, which is in `processes` until it ends.

    If it leaves no result, one is written for it. Of several ranks of a job, the first does that.
    """
    wait_asleep()  # Ray and submitit call this in processes of their own
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tricklab.run.experiment"])
    started = time.time()
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        if is_first():
            (job.folder / "result.json").unlink(missing_ok=True)
        process = context.Process(target=job_main, args=(job, device, cores, os.getpid()))
        processes.append(process)
        process.start()
        is_late = wait_for_job(process, job.timeout)
        processes.remove(process)
        if is_first() and not read_result(job.folder):
            reason = f"exit code {process.exitcode}: {last_line(job.folder)}"
            if is_late:
                reason = f"longer than job_timeout={job.timeout}"
            write_killed_result(job.folder, reason, time.time() - started)
    except (OSError, EOFError) as error:
        # A full disk, for example, must not end the other jobs
        print(f"{job.folder}: {error}", file=sys.stderr)


def wait_for_job(process: Any, timeout: float | None) -> bool:
    """Wait until a job ends, and kill it after `timeout` seconds. Return whether it was late."""
    try:
        process.join(timeout)
    except BaseException:
        # A signal to the launcher: let the job save before it ends
        kill_process_group(process, signal.SIGTERM)
        process.join(60)
        raise
    is_late = bool(process.is_alive())
    kill_process_group(process, signal.SIGKILL)
    process.join()
    return is_late


def write_killed_result(folder: Path, reason: str, seconds: float) -> None:
    result: dict[str, Any] = {
        "status": "killed",
        "reason": reason,
        "metrics": {},
        "objective": None,
        "seconds": round(seconds, 3),
    }
    write_text(folder / "result.json", json.dumps(result, indent=2))


def run_in_child(run: Callable[[list[Any]], object], jobs: list[Any]) -> None:
    """Call `run` in a child process, which ends with this one, as do all its children.

    Ray needs that: when its server dies, it ends the process that started it, with code 0.
    """
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_child_main, args=(run, jobs, os.getpid()))
    process.start()
    try:
        process.join()
    finally:
        kill_process_group(process, signal.SIGTERM)
        process.join(GRACE)
        kill_process_group(process, signal.SIGKILL)  # also processes that the child has left


def _child_main(run: Callable[[list[Any]], object], jobs: list[Any], driver: int) -> None:
    start_process_group(driver)
    with exit_with_message():  # no Ray cluster is running, for example
        run(jobs)


def run_launched_job(overrides: Sequence[str], folder: Path, cfg: DictConfig) -> float | None:
    """Run a job that a launcher of Hydra's plugins has started here, unless it is done.

    Returns its objective, None if it has none. Raises FileNotFoundError: the working directory of
    the sweep does not exist on this machine.
    """
    os.chdir(HydraConfig.get().runtime.cwd)  # workers of a Ray cluster start elsewhere
    if read_result(folder).get("status") != "done":
        job = JobSpec(list(overrides), folder, config_hash(to_plain(cfg)), cfg.job_timeout)
        run_job(job, ",".join(visible_devices()), count_cores(), [])
    return read_result(folder).get("objective")


def job_main(job: JobSpec, device: str, cores: int, driver: int) -> None:
    """Run `python train.py` with a job's arguments, in a process that has imported torch.

    `device` is its CUDA_VISIBLE_DEVICES, "" for all devices. `cores` is the number of cores that it
    may use, `driver` the ID of the process with which the job ends.
    """
    import torch

    start_process_group(driver)
    redirect_output(job.folder / log_name())
    if not is_slurm_rank():
        hide_slurm()
    os.environ[PLANNED_HASH] = job.planned_hash
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    # Otherwise workers of a loader come from a fork server, which takes seconds to start
    multiprocessing.set_start_method(None, force=True)
    os.environ[RUN_CORES] = str(cores)
    torch.set_num_threads(cores)
    sys.argv = [str(TRAIN), *job.arguments]
    runpy.run_path(str(TRAIN), run_name="__main__")


def is_slurm_rank() -> bool:
    """Whether the launcher for SLURM has started this process as one of several of a job."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and world_size() > 1


def log_name() -> str:
    """Return the name of this process's log: ranks on several machines can't share a file."""
    rank = os.environ["SLURM_PROCID"] if is_slurm_rank() else "0"
    return "job.log" if rank == "0" else f"job_rank-{rank}.log"


def hide_slurm() -> None:
    """Let Lightning start the processes of trainer=ddp, which it expects SLURM to start."""
    os.environ.pop("SLURM_NTASKS", None)


def start_process_group(driver: int) -> None:
    """Move this process into a group of its own, which ends with the process `driver`."""
    os.setsid()
    threading.Thread(target=exit_with_parent, args=(driver,), daemon=True).start()


def exit_with_parent(driver: int) -> None:
    """Wait for the end of a process, then kill this one and its group."""
    call_after_exit(driver, lambda: os.killpg(0, signal.SIGKILL))


def redirect_output(log: Path) -> None:
    """Append stdout and stderr of this process and its children to a file."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def kill_process_group(process: Any, by: signal.Signals) -> None:
    """Send a signal to a process and its children."""
    try:
        os.killpg(process.pid, by)
    except (ProcessLookupError, PermissionError):
        process.kill()
