"""A sweep on one machine: each job is one command that can be given again, run in a process of its own."""

import json
import multiprocessing
import os
import runpy
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext
from pathlib import Path
from queue import Queue
from typing import Any

from omegaconf import DictConfig

from tricklab.check import check
from tricklab.errors import UserError
from tricklab.resume import HASH, config_hash, lock_run, read_result, task, write_whole

TRAIN = Path(__file__).parents[2] / "train.py"


class Job:
    """A combination of words, and the folder that follows from its config."""

    def __init__(self, words: Sequence[str], load: Callable[[list[str]], DictConfig], root: Path):
        self.words = list(words)
        try:
            config = load(self.words)
            check(config)
        except UserError as error:
            raise UserError(f"{' '.join(self.words)}: {error}") from None
        self.hash, self.limit = config_hash(task(config)), config.job_timeout
        self.folder = root / config.hydra.sweep.subdir
        self.command = command(self.words, self.folder)
        if "wandb" in config.logger and not config.logger.wandb.group:
            self.command.append(f"logger.wandb.group={root.name}")

    @property
    def result(self) -> dict[str, Any]:
        return what_is_left(self.folder)


def command(words: Sequence[str], folder: Path) -> list[str]:
    """Return the words of a single run that is a job in this folder, begun or gone on with."""
    return [*words, f"hydra.run.dir='{folder}'", "resume=auto"]


def what_is_left(folder: Path) -> dict[str, Any]:
    """Return what a job has left: its result, or the last line of its log."""
    log = folder / "job.log"
    last = log.read_text("utf-8", "replace").strip().rpartition("\n")[2] if log.exists() else "not started"
    killed = {"status": "killed" if log.exists() else "open", "reason": last, "objective": None}
    return read_result(folder) or killed


def be_placed(cfg: DictConfig, folder: Path, words: Sequence[str]) -> float:
    """Run a job that another launcher has placed here, as a child of this process, unless it is done already.

    Raises:
        UserError: it is not done after that.
    """
    if what_is_left(folder)["status"] != "done":
        (folder / "result.json").unlink(missing_ok=True)
        environment = os.environ | {HASH: config_hash(task(cfg))}
        with (folder / "job.log").open("a") as log:
            job = [sys.executable, str(TRAIN), *command(words, folder)]
            subprocess.run(job, stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=cfg.job_timeout)
    result = what_is_left(folder)
    if result["status"] != "done":
        raise UserError(f"{result['status']}: {result['reason']}; see {folder}/job.log")
    return float(result["objective"])


class Sweep:
    """The jobs of one command, so many at a time as there are slots.

    Raises:
        UserError: another process is at the same sweep.
    """

    def __init__(self, config: DictConfig, folder: Path, jobs: Sequence[Job]):
        self.folder, self.jobs = folder, jobs
        self.left = [job for job in jobs if job.result["status"] != "done"]
        devices = visible_devices()
        self.slots = int(config.slots or len(devices) or 1)
        self.threads = int(os.environ.get("OMP_NUM_THREADS", 0)) or max(1, (os.cpu_count() or 1) // self.slots)
        self.free: Queue[str] = Queue()
        for slot in range(self.slots):
            self.free.put(devices[slot % len(devices)] if devices else "")
        self.processes: dict[str, Any] = {}
        self.ended, self.started = 0, time.time()

    def outline(self) -> str:
        """Say what there is to do."""
        done = len(self.jobs) - len(self.left)
        return f"{len(self.jobs)} jobs, {done} done, {self.slots} at a time, in {self.folder}"

    def run(self) -> None:
        """Run what is not done yet, and say how it went."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = lock_run(self.folder)
        if not lock:
            raise UserError(f"the sweep in {self.folder} is running; wait for it, or choose another hydra.sweep.dir")
        self.write_list()
        print(self.outline())
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tricklab.experiment"])
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        pool = ThreadPoolExecutor(self.slots)
        try:
            list(pool.map(lambda job: self.run_one(job, context), self.left))
        except KeyboardInterrupt:
            raise SystemExit(128 + signal.SIGINT) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self.stop()
            pool.shutdown()
            self.summarise()
            lock.close()

    def run_one(self, job: Job, context: ForkServerContext) -> None:
        """Start a job on a free device, wait for its end and say how it ended."""
        device, started = self.free.get(), time.time()
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "result.json").unlink(missing_ok=True)
        place = (job.folder, device, self.threads, job.hash, os.getpid())
        process = context.Process(target=work, args=(job.command, *place))
        self.processes[job.hash] = process
        process.start()
        process.join(job.limit)
        if process.is_alive():
            end(process, signal.SIGKILL)
        self.free.put(device)
        self.ended += 1
        left = (time.time() - self.started) / self.ended * (len(self.left) - self.ended)
        said = f"{job.result['status']} {job.result['objective'] or ''}".strip()
        seconds = f"{time.time() - started:.1f} s, {left:.0f} s left"
        print(f"{self.ended} of {len(self.left)}: {said}, {seconds}: {' '.join(job.words)}", flush=True)

    def stop(self) -> None:
        """End the jobs that are still at work: they may save, then they are killed."""
        alive = [process for process in self.processes.values() if process.is_alive()]
        for process in alive:
            end(process, signal.SIGTERM)
        for process in alive:
            process.join(20)
            end(process, signal.SIGKILL)

    def summarise(self) -> None:
        """Say how many are done, why the others are not, and how to go on."""
        bad = [job for job in self.jobs if job.result["status"] != "done"]
        print(f"{len(self.jobs) - len(bad)} of {len(self.jobs)} jobs done, in {self.folder}")
        for job in bad:
            print(f"  {job.result['status']}: {job.result['reason']}: {' '.join(job.words)}; see {job.folder}/job.log")
        if bad:
            print(f"  the same command again goes on with these: python train.py {shlex.join(sys.argv[1:])}")

    def write_list(self) -> None:
        """Write `sweep.json`: the jobs of the command, since other folders may lie beside theirs."""
        jobs = [{"folder": job.folder.name, "overrides": job.words} for job in self.jobs]
        text = json.dumps({"command": sys.argv[1:], "jobs": jobs}, indent=2, ensure_ascii=False)
        write_whole(self.folder / "sweep.json", text + "\n")


def visible_devices() -> list[str]:
    """Name the GPUs that jobs may use, without torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    return [str(n) for n, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def work(command: list[str], folder: Path, device: str, threads: int, planned: str, driver: int) -> None:
    """Be `python train.py COMMAND`, in a process that has torch imported already."""
    os.setsid()  # a group of its own, so that all it starts can be ended with it
    threading.Thread(target=end_with, args=(driver,), daemon=True).start()
    with (folder / "job.log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.update({"CUDA_VISIBLE_DEVICES": device, "OMP_NUM_THREADS": str(threads), HASH: planned})
    import torch

    torch.set_num_threads(threads)
    sys.argv = [str(TRAIN), *command]
    runpy.run_path(str(TRAIN), run_name="__main__")


def end_with(driver: int) -> None:
    """Wait for the end of the process that started the sweep, then end this one and all that it started."""
    if hasattr(os, "pidfd_open"):
        select.select([os.pidfd_open(driver)], [], [])
    else:  # macOS
        while is_alive(driver):
            time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def end(process: Any, by: signal.Signals) -> None:
    try:
        os.killpg(process.pid, by)
    except (ProcessLookupError, PermissionError):
        process.kill()
