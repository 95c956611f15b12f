"""Results of worker processes in memory that they share with this one."""

import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from tricklab.data.prefetch import TASKS_AHEAD, prefetch

Task = TypeVar("Task")
Info = TypeVar("Info")
Compute = Callable[[Task], tuple[Sequence[Tensor], Info]]
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # the module has it from Python 3.13 on


def prefetch_tensors(
    compute: Compute[Task, Info],
    tasks: Sequence[Task],
    workers: int,
    size: int,
    kept: "SharedBuffer | None" = None,
) -> Iterator[tuple[Tensor, Info]]:
    """Yield the flat uint8 tensors of `compute(task)`, joined, and its info, as `prefetch` does.

    Those of up to `size` bytes pass through a shared buffer, larger ones as the DataLoader has it.
    In a buffer `kept`, with a part for each task, the results stay.
    """
    if not workers and not kept:
        for tensors, info in map(compute, tasks):
            yield torch.cat([*tensors]), info
        return
    # of the tasks that `prefetch` gave out, and of the one in use
    buffer = kept or SharedBuffer(size, workers * TASKS_AHEAD + 1)
    results = prefetch(partial(_compute_to, buffer, compute), [*enumerate(tasks)], workers)
    for number, (result, info) in enumerate(results):
        flat = buffer.get(number, result)
        yield (flat if kept else flat.clone()), info


def _compute_to(
    buffer: "SharedBuffer", compute: Compute[Task, Info], numbered: tuple[int, Task]
) -> tuple[int | Tensor, Info]:
    number, task = numbered
    tensors, info = compute(task)
    return buffer.put(number, tensors), info


class SharedBuffer:
    """A buffer of `parts` times `size` bytes; tasks, numbered from 0, use its parts in turns.

    It spares the workers a new shared file for each result, whose pages take as long to set up, in
    both processes, as the result takes to write. Parts take no memory before they are used.
    """

    def __init__(self, size: int, parts: int):
        # shared with processes that are forked from this one
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        memory = mmap.mmap(-1, max(1, size * parts), flags=flags)
        self.parts = torch.frombuffer(memory, dtype=torch.uint8)[: size * parts].view(parts, size)

    def _part(self, task: int) -> Tensor:
        return self.parts[task % len(self.parts)]

    def put(self, task: int, tensors: Sequence[Tensor]) -> int | Tensor:
        """Join flat tensors in the part of a task.

        Return their size; if it is above that of a part, return the joined tensor itself.
        """
        size = sum(map(len, tensors))
        part = self._part(task)
        if size > len(part):
            return torch.cat([*tensors])
        torch.cat([*tensors], out=part[:size])
        return size

    def get(self, task: int, result: int | Tensor) -> Tensor:
        """Return the joined tensors of a task, for which `put` returned `result`."""
        return result if isinstance(result, Tensor) else self._part(task)[:result]
