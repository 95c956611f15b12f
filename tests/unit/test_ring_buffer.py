import multiprocessing
import os
import time
from collections.abc import Sequence

import pytest
import torch

from tricklab.data.ring_buffer import RingBuffer, prefetch_tensors

SIZE = 1000


def load(number):
    """Return two tensors of the number of a task, of each ninth more bytes than its part has."""
    sizes = [SIZE // 2, number % 99] + [SIZE // 2] * (number % 9 == 8)
    return [torch.full((n,), number % 256, dtype=torch.uint8) for n in sizes], os.getpid()


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_results_are_those_of_their_tasks_in_order(workers):
    """Also if the workers have done all that they were given before a result is asked for."""
    results = prefetch_tensors(load, range(60), workers, SIZE)
    for number, (joined, process) in enumerate(results):
        assert torch.equal(joined, torch.cat(load(number)[0]))
        assert (process == os.getpid()) == (workers == 0)
        time.sleep(0.01)
    assert number == 59
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_results_may_be_kept(workers):
    kept = [joined for joined, _ in prefetch_tensors(load, range(60), workers, SIZE)]
    assert all((joined == number).all() for number, joined in enumerate(kept))


def test_results_lie_in_the_buffer_unless_they_are_too_large():
    buffer = RingBuffer(SIZE, workers=1)
    tensors: Sequence[torch.Tensor] = load(7)[0]
    assert buffer.put(3, tensors) == SIZE // 2 + 7
    assert (buffer.parts[3 % 3, : SIZE // 2 + 7] == 7).all()
    assert isinstance(buffer.put(4, load(8)[0]), torch.Tensor)
