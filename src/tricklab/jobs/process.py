"""A job of a sweep in a process of its own, on a device of its own; it ends with the process that started it."""

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
from typing import Any, NamedTuple

from omegaconf import DictConfig

from tricklab.cli.config import to_plain
from tricklab.cli.overrides import quote
from tricklab.devices import call_after_exit, count_cores, omp_threads, visible_devices
from tricklab.files import write_text
from tricklab.run.folder import read_result
from tricklab.run.identity import PLANNED_HASH, config_hash

TRAIN = Path(__file__).parents[3] / "train.py"


class JobSpec(NamedTuple):
    """A job: the hash `planned` of its config must still be that when it starts; its time has a `limit` in seconds."""

    words: list[str]
    folder: Path
    planned: str
    limit: float | None

    @property
    def line(self) -> list[str]:
        """What follows after `python train.py`, to begin it or go on with it."""
        return [*self.words, f"hydra.run.dir={quote(self.folder)}", "resume=auto"]


class LocalPool:
    """Runs so many jobs at a time as there are slots, each slot with its device; with several, where there are more."""

    def __init__(self, config: DictConfig):
        devices, alone = visible_devices(), config.trainer.devices == 1
        self.number = int(config.slots or (alone and len(devices)) or 1)
        self.threads = omp_threads() or max(1, count_cores() // self.number)
        self.free: Queue[str] = Queue()
        for slot in range(self.number):
            self.free.put(
                ",".join(devices[slot :: self.number] or devices[slot % max(1, len(devices)) :][:1])
            )
        self.processes: list[Any] = []
        self.over = False

    def run(self, jobs: Sequence[JobSpec]) -> None:
        """Run the jobs; if this is interrupted, end those at work: they may save, for 20 s, then they are killed."""
        pool, running = ThreadPoolExecutor(self.number), list[Future[None]]()
        try:
            for job in jobs:
                running.append(pool.submit(self.run_one, job))
            for future in running:
                future.result()
        finally:
            self.over, told, started = True, set(), time.time()
            while any(p.is_alive() for p in self.processes) or not all(
                future.done() for future in running
            ):
                late = time.time() - started > 20
                for process in [
                    p for p in self.processes if p.is_alive() and (late or p.pid not in told)
                ]:
                    kill_process_group(process, signal.SIGKILL if late else signal.SIGTERM)
                    told.add(process.pid)
                time.sleep(0.1)
            pool.shutdown()

    def run_one(self, job: JobSpec) -> None:
        device = self.free.get()
        try:
            if not self.over:
                run_job(job, device, self.threads, self.processes)
        finally:
            self.free.put(device)


def run_job(job: JobSpec, device: str, threads: int, processes: list[Any]) -> None:
    """Run a job in a new process, which stands in `processes` until its end; it leaves a result in any case."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tricklab.run.experiment"])
    started = time.time()
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "result.json").unlink(missing_ok=True)
        process = context.Process(target=job_main, args=(job, device, threads, os.getpid()))
        processes.append(process)
        process.start()
        try:
            process.join(job.limit)
        except BaseException:  # by a signal that a launcher has got: the job may save
            kill_process_group(process, signal.SIGTERM)
            process.join(60)
            raise
        late = process.is_alive()
        kill_process_group(process, signal.SIGKILL)
        process.join()
        processes.remove(process)
        if not read_result(job.folder):
            code = f"exit code {process.exitcode}: {last_line(job.folder)}"
            left = {
                "status": "killed",
                "reason": f"longer than job_timeout={job.limit}" if late else code,
            }
            facts: dict[str, Any] = {
                "metrics": {},
                "objective": None,
                "seconds": round(time.time() - started, 3),
            }
            write_text(job.folder / "result.json", json.dumps(left | facts, indent=2))
    except (OSError, EOFError) as error:  # a full disk is the misfortune of this job alone
        print(f"{job.folder}: {error}", file=sys.stderr)


def last_line(folder: Path) -> str:
    """Return the last line of a job's log."""
    try:
        return (folder / "job.log").read_text("utf-8", "replace").strip().rpartition("\n")[2]
    except OSError:
        return "no job.log"


def run_in_child(run: Callable[[list[Any]], object], jobs: list[Any]) -> None:
    """Call `run` in a process that ends with this one, as all it starts: a dying Ray ends its starter, with code 0."""

    def _child_main(driver: int) -> None:
        os.setsid()
        threading.Thread(target=exit_with_parent, args=(driver,), daemon=True).start()
        run(jobs)

    process = multiprocessing.get_context("fork").Process(target=_child_main, args=(os.getpid(),))
    process.start()
    try:
        process.join()
    finally:
        kill_process_group(process, signal.SIGTERM)
        process.join(20)
        kill_process_group(process, signal.SIGKILL)  # and what it has left behind


def run_launched_job(words: Sequence[str], folder: Path, cfg: DictConfig) -> float | None:
    """Run a job that a launcher of Hydra's plugins has placed here, unless it is done; return its objective."""
    if read_result(folder).get("status") != "done":
        job = JobSpec(list(words), folder, config_hash(to_plain(cfg)), cfg.job_timeout)
        run_job(job, ",".join(visible_devices()), omp_threads(), [])
    return read_result(folder).get("objective")


def job_main(job: JobSpec, device: str, threads: int, driver: int) -> None:
    """Be `python train.py` with the words of a job, in a process that has torch imported already."""
    os.setsid()  # a group of its own, so that all it starts can be ended with it
    threading.Thread(target=exit_with_parent, args=(driver,), daemon=True).start()
    with (job.folder / "job.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.pop(
        "SLURM_NTASKS", None
    )  # or Lightning would leave it to SLURM to start the processes of trainer=ddp
    os.environ |= {PLANNED_HASH: job.planned} | (
        {"CUDA_VISIBLE_DEVICES": device} if device else {}
    )  # "": all there are
    multiprocessing.set_start_method(
        None, force=True
    )  # or a loader's workers would come from a server, seconds later
    import torch

    if threads:
        os.environ["OMP_NUM_THREADS"] = str(
            threads
        )  # for further processes; for this one it comes too late
        torch.set_num_threads(threads)
    sys.argv = [str(TRAIN), *job.line]
    runpy.run_path(str(TRAIN), run_name="__main__")


def exit_with_parent(driver: int) -> None:
    """Wait for the end of the process that started the job, then end this one and all that it started."""
    call_after_exit(driver, lambda: os.killpg(0, signal.SIGKILL))


def kill_process_group(process: Any, by: signal.Signals) -> None:
    try:
        os.killpg(process.pid, by)
    except (ProcessLookupError, PermissionError):
        process.kill()
