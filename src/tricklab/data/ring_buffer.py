"""Memory in which worker processes leave their results."""

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from tricklab.data.prefetch import TASKS_AHEAD


class RingBuffer:
    """A part of `size` bytes for each task that is under way; the workers use them in turns.

    It spares a worker a new shared file for each result, whose pages take as long to set up as the
    result takes to write. A result is valid until the next one is asked for.
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
        """Return the joined tensors of a task, for which `put` returned `result`."""
        return result if isinstance(result, Tensor) else self._part(task)[:result]
