import multiprocessing
import os
import time

import pytest
import torch

from tricklab.data.shared_memory import SharedBuffer, prefetch_tensors

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


@pytest.mark.parametrize("workers", [0, 2])
def test_results_stay_in_a_kept_buffer_unless_they_are_too_large(workers):
    buffer = SharedBuffer(SIZE, parts=60)
    results = [flat for flat, _ in prefetch_tensors(load, range(60), workers, SIZE, buffer)]
    for number, (flat, part) in enumerate(zip(results, buffer.parts, strict=True)):
        assert torch.equal(flat, torch.cat(load(number)[0]))
        assert (flat.data_ptr() == part.data_ptr()) == (number % 9 < 8)
        assert torch.equal(part[: len(flat)], flat) == (number % 9 < 8)


def test_parts_of_a_buffer_are_used_in_turns():
    buffer = SharedBuffer(SIZE, parts=3)
    for number in (3, 4, 7):
        assert buffer.put(number, load(number)[0]) == SIZE // 2 + number
    assert buffer.parts[:, 0].tolist() == [3, 7, 0]
    assert SharedBuffer(SIZE, parts=0).parts.shape == (0, SIZE)
