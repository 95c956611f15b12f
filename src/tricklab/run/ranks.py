"""Several processes train one run: none waits for a failed one, and one line gives the reason.

torchrun or srun start the processes, or Lightning starts copies of `train.py`, which end with their
parent. They share torch's key-value store: a failing process writes its reason under "failed", rank
0 prints it and sets "left".
"""

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from tricklab.devices import RUN_WORLD_SIZE, call_after_exit, world_size

PARENT = "PARENT_OF_RANKS"  # environment variable of Lightning's copies: the process ID of rank 0
GRACE = 3.0  # seconds that a process has to end by itself after another one has failed
GONE = "another process of this run is gone; see its own output or the system log"
CONNECTION_ERROR = re.compile(
    "connection (closed|reset|refused)|broken pipe|gloo|nccl|store|client socket", re.IGNORECASE
)
stores: dict[int, Any] = {}  # by process ID: a forked process needs its own connection


def get_rank() -> int:
    """Return the rank of this process, as Lightning knows it."""
    return int(rank_zero_only.rank)  # type: ignore[attr-defined]


def is_peers_fault(error: BaseException) -> bool:
    """Whether an error was caused by the end of another process."""
    if not isinstance(error, RuntimeError) or world_size() == 1:
        return False
    return isinstance(error, dist.DistError) or bool(CONNECTION_ERROR.search(str(error)))


def connect() -> Any:
    """Return the store shared by the processes of this run; None before its address is known.

    The agent of torchrun hosts it, otherwise rank 0 (`multi_tenant`: together with torch's own).
    """
    if os.getpid() not in stores and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        hosts = get_rank() == 0 and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ
        with suppress(RuntimeError):
            store = dist.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                is_master=hosts,
                wait_for_workers=False,
                multi_tenant=hosts,
                timeout=timedelta(seconds=30),
            )
            stores[os.getpid()] = dist.PrefixStore("tricklab", store)
    return stores.get(os.getpid())


def read_failure() -> str:
    """Return the reason of the first failed process; "" as long as there is none."""
    if not (store := connect()):
        return ""
    try:
        return store.get("failed").decode() if store.check(["failed"]) else ""
    except RuntimeError:
        return GONE


def has_left() -> bool:
    """Whether rank 0 has printed the reason of the failure."""
    try:
        return bool(connect() and connect().check(["left"]))
    except RuntimeError:
        return True


def wait_for_reason() -> str:
    """Return the reason of another process, which it writes before it ends, unless it is killed."""
    for _ in range(10):
        if (reason := read_failure()) not in ("", GONE):
            return reason
        time.sleep(0.1)
    return GONE


def leave(message: str) -> None:
    """Publish why this process fails. Rank 0 prints it, and waits for the others to read it."""
    if get_rank() == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
    if not (store := connect()):
        return
    try:
        if get_rank() == 0:
            store.compare_set("failed", "", message)
            store.set("left", "")
            _wait_for_others(store)
        else:
            store.compare_set("failed", "", f"rank {get_rank()}: {message}")
            store.wait(["left"], timedelta(seconds=3 * GRACE))
            store.add("seen", 1)
    except RuntimeError:  # rank 0 is gone, or waits for something else
        if get_rank() != 0:
            print(f"error: rank {get_rank()}: {message}", file=sys.stderr, flush=True)


def _wait_for_others(store: Any) -> None:
    """Keep the store, which may end with this process, until the others have read it."""
    end = time.time() + GRACE
    while store.add("seen", 0) < world_size() - 1 and time.time() < end:
        time.sleep(0.05)


class Watch:
    """Ends this process if another one of its run fails, also where no exception reaches it.

    `fail(reason)` records the failure.
    """

    def __init__(self, fail: Callable[[str], None]):
        self.fail = fail
        self.over = threading.Event()
        self.children: list[Any] = []
        self.threads: list[threading.Thread] = []
        if os.environ.get(PARENT) == str(os.getppid()):
            end = (os.getppid(), lambda: os._exit(1))
            threading.Thread(target=call_after_exit, args=end, daemon=True).start()
        if world_size() > 1:
            self.start()

    def start(self) -> None:
        self.threads.append(threading.Thread(target=self._run, daemon=True))
        self.threads[-1].start()

    def guard(self, trainer: pl.Trainer) -> None:
        """Watch the copies of this process that Lightning may start."""
        if type(trainer.strategy.launcher) is _SubprocessScriptLauncher:
            trainer.strategy._launcher = Launcher(trainer.strategy.launcher, self)

    def _run(self) -> None:
        while not self.over.wait(0.5):
            if not self._find_reason() or self.over.wait(0 if has_left() else GRACE):
                continue
            reason = self._find_reason()
            self.fail(reason)
            leave(reason)
            os._exit(1)

    def _find_reason(self) -> str:
        for rank, child in enumerate(self.children, 1):
            if child.poll():
                return read_failure() or f"rank {rank} ended with exit code {child.returncode}"
        return read_failure()

    def stop(self) -> None:
        """Stop watching: this process no longer depends on others.

        A thread that still asks the store when Python ends would abort the process.
        """
        self.over.set()
        for thread in self.threads:
            thread.join(GRACE)

    def wait_for_children(self) -> None:
        """Wait for the copies to end. Raises SystemExit if one of them fails."""
        codes = [child.wait() for child in self.children]
        if any(codes):
            raise SystemExit(1)


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher without its own watch, which kills rank 0 before it records a reason."""

    def __init__(self, original: _SubprocessScriptLauncher, watch: Watch):
        cluster = original.cluster_environment
        super().__init__(cluster, original.num_processes, original.num_nodes)
        self.watch = watch

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("trainer", None)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT] = str(os.getpid())
            os.environ[RUN_WORLD_SIZE] = str(self.num_processes * self.num_nodes)
            self._call_children_scripts()
            self.watch.children = self.procs
            self.watch.start()
        return function(*args, **kwargs)
