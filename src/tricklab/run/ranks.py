"""Several processes train one run: none waits for another that has failed, and one line says why.

torchrun or srun starts them; or Lightning starts copies of `train.py`, which end with their parent.
They share torch's key-value store: who fails says so under "failed", rank 0 prints it and sets "left".
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
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from tricklab.devices import COPIES, when_ended, world_size

PARENT = (
    "PARENT_OF_RANKS"  # in the environment of Lightning's copies: the process that started them
)


GRACE = 3.0  # seconds in which a process may end by itself after another has failed


GONE = "another process of this run is gone; its own output or the system's log says why"


PEER = re.compile(
    "connection (closed|reset|refused)|broken pipe|gloo|nccl|store|client socket", re.IGNORECASE
)


stores: dict[int, Any] = {}  # by process: a forked one needs a connection of its own


def rank() -> int:
    """Return the rank of this process, as Lightning knows it."""
    return int(rank_zero_only.rank)  # type: ignore[attr-defined]


def is_peers_fault(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    if not isinstance(error, RuntimeError) or world_size() == 1:
        return False
    return isinstance(error, dist.DistError) or bool(PEER.search(str(error)))


def connect() -> Any:
    """Return the store that the processes of this run share; None before it is known where it is.

    The agent of torchrun hosts it, else rank 0 (`multi_tenant`: together with torch's own).
    """
    if os.getpid() not in stores and {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        hosts = rank() == 0 and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ
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


def failure() -> str:
    """Return why a process of this run has failed; nothing as long as none has."""
    if not (store := connect()):
        return ""
    try:
        return store.get("failed").decode() if store.check(["failed"]) else ""
    except RuntimeError:
        return GONE


def has_left() -> bool:
    """Whether rank 0 has said why the run has failed."""
    try:
        return bool(connect() and connect().check(["left"]))
    except RuntimeError:
        return True


def wait_for_reason() -> str:
    """Return why another process has failed: it says so before it is gone, unless it was killed."""
    for _ in range(10):
        if (reason := failure()) not in ("", GONE):
            return reason
        time.sleep(0.1)
    return GONE


def leave(message: str) -> None:
    """Say why this process fails: rank 0 prints it and waits until all know, the others until it has."""
    if rank() == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
    if not (store := connect()):
        return
    try:
        if rank() == 0:
            store.compare_set("failed", "", message)
            store.set("left", "")
            _wait_for_others(store)
        else:
            store.compare_set("failed", "", f"rank {rank()}: {message}")
            store.wait(["left"], timedelta(seconds=3 * GRACE))
            store.add("seen", 1)
    except RuntimeError:  # rank 0 is gone, or waits for something else
        if rank() != 0:
            print(f"error: rank {rank()}: {message}", file=sys.stderr, flush=True)


def _wait_for_others(store: Any) -> None:
    """Keep the store, which may end with this process, until the others have read it."""
    end = time.time() + GRACE
    while store.add("seen", 0) < world_size() - 1 and time.time() < end:
        time.sleep(0.05)


class Watch:
    """Ends this process when another one of its run has failed, also where no exception reaches it.

    `fail(reason)` records the end.
    """

    def __init__(self, fail: Callable[[str], None]):
        self.fail, self.over = fail, threading.Event()
        self.children: list[Any] = []
        if os.environ.get(PARENT) == str(os.getppid()):
            end = (os.getppid(), lambda: os._exit(1))
            threading.Thread(target=when_ended, args=end, daemon=True).start()
        if world_size() > 1:
            self.start()

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def guard(self, trainer: pl.Trainer) -> None:
        """Watch over the copies of this process that Lightning may start."""
        if type(trainer.strategy.launcher) is _SubprocessScriptLauncher:
            trainer.strategy._launcher = Launcher(trainer.strategy.launcher, self)

    def _run(self) -> None:
        while not self.over.wait(0.5):
            if not self._reason() or self.over.wait(0 if has_left() else GRACE):
                continue
            reason = self._reason()
            self.fail(reason)
            leave(reason)
            os._exit(1)

    def _reason(self) -> str:
        for number, child in enumerate(self.children, 1):
            if child.poll():
                return failure() or f"rank {number} ended with exit code {child.returncode}"
        return failure()

    def stop(self) -> None:
        """Leave this process to itself: it has done all that it does together with others."""
        self.over.set()

    def wait_for_children(self) -> None:
        """End with their exit code if a copy fails after all."""
        codes = [child.wait() for child in self.children]
        if any(codes):
            raise SystemExit(1)


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, whose own watch kills this process before it has recorded why."""

    def __init__(self, theirs: _SubprocessScriptLauncher, watch: Watch):
        super().__init__(theirs.cluster_environment, theirs.num_processes, theirs.num_nodes)
        self.watch = watch

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("trainer", None)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[PARENT] = str(os.getpid())
            os.environ[COPIES] = str(self.num_processes * self.num_nodes)
            self._call_children_scripts()
            self.watch.children = self.procs
            self.watch.start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)
