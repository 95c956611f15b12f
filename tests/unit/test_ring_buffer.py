import multiprocessing
import os
import time
from functools import partial

import pytest
import torch

from tricklab.data.prefetch import prefetch
from tricklab.data.ring_buffer import RingBuffer

SIZE = 1000


def fill(buffer, number):
    """Join two tensors of the number of a task; each ninth task needs more than its part."""
    halves = [torch.full((n,), number % 256, dtype=torch.uint8) for n in (SIZE // 2, number % 99)]
    if number % 9 == 8:
        halves.append(halves[0])
    return os.getpid(), buffer.put(number, halves)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_results_are_not_overwritten_while_they_are_in_use(workers):
    buffer = RingBuffer(SIZE, workers)
    tasks = range(60)
    for number, (process, result) in enumerate(prefetch(partial(fill, buffer), tasks, workers)):
        time.sleep(0.01)  # the workers have done all that they were given
        joined = buffer.get(number, result)
        half = SIZE // 2
        assert len(joined) == half + number % 99 + (half if number % 9 == 8 else 0)
        assert (joined == number % 256).all()
        assert (process == os.getpid()) == (workers == 0)
    assert not multiprocessing.active_children()


def test_results_lie_in_shared_memory_unless_they_are_too_large():
    buffer = RingBuffer(SIZE, workers=1)
    for number, (_, result) in enumerate(prefetch(partial(fill, buffer), range(20), 2)):
        assert isinstance(result, torch.Tensor) == (number % 9 == 8)
