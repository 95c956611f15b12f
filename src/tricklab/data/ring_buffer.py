"""Results of worker processes in shared memory."""

import mmap
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from tricklab.data.prefetch import TASKS_AHEAD, prefetch

Task = TypeVar("Task")
Info = TypeVar("Info")
Load = Callable[[Task], tuple[Sequence[Tensor], Info]]


def prefetch_tensors(
    load: Load[Task, Info], tasks: Sequence[Task], workers: int, size: int
) -> Iterator[tuple[Tensor, Info]]:
    """Yield the flat uint8 tensors of `load(task)`, joined, and its info, as `prefetch` does.

    Those of up to `size` bytes pass through a `RingBuffer`, larger ones as the DataLoader has it.
    """
    if not workers:
        for tensors, info in map(load, tasks):
            yield torch.cat([*tensors]), info
        return
    buffer = RingBuffer(size, workers)
    loaded = prefetch(partial(_load_to, buffer, load), [*enumerate(tasks)], workers)
    for number, (result, info) in enumerate(loaded):
        yield buffer.get(number, result), info


def _load_to(
    buffer: "RingBuffer", load: Load[Task, Info], numbered: tuple[int, Task]
) -> tuple[int | Tensor, Info]:
    number, task = numbered
    tensors, info = load(task)
    return buffer.put(number, tensors), info


class RingBuffer:
    """A part of `size` bytes for each task that is under way; the workers use them in turns.

    It spares them a new shared file for each result, whose pages take as long to set up, in both
    processes, as the result takes to write.
    """

    def __init__(self, size: int, workers: int):
        count = workers * TASKS_AHEAD + 1  # the tasks that `prefetch` gave out, and the one in use
        memory = mmap.mmap(-1, count * size)  # shared with processes that are forked from this one
        self.parts = torch.frombuffer(memory, dtype=torch.uint8).view(count, size)

    def _part(self, task: int) -> Tensor:
        return self.parts[task % len(self.parts)]

    def put(self, task: int, tensors: Sequence[Tensor]) -> int | Tensor:
        """Join flat tensors in the part of a task; return their size, or the whole if it is larger.

        The tasks are numbered from 0.
        """
        size = sum(map(len, tensors))
        part = self._part(task)
        if size > len(part):
            return torch.cat([*tensors])
        torch.cat([*tensors], out=part[:size])
        return size

    def get(self, task: int, result: int | Tensor) -> Tensor:
        """Return a copy of the joined tensors of a task, for which `put` returned `result`.

        Their part is used again once the next result is asked for.
        """
        return result if isinstance(result, Tensor) else self._part(task)[:result].clone()
