"""Loading of batches ahead of their use, by worker processes."""

import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch.utils.data import DataLoader

from tricklab.errors import UserError

Task = TypeVar("Task")
Loaded = TypeVar("Loaded")
TASKS_AHEAD = 2  # that each worker is given before its first result is asked for
DEAD_WORKER = re.compile("exited unexpectedly|killed by signal")


def prefetch(
    load: Callable[[Task], Loaded], tasks: Sequence[Task], workers: int
) -> Iterator[Loaded]:
    """Yield `load(task)` for each task in order, some tasks ahead with `workers`.

    Raises UserError: the one that `load` raised, or a worker died.
    """
    workers = min(workers, len(tasks)) if len(tasks) > 1 else 0
    if not workers:
        yield from map(load, tasks)
        return
    try:
        yield from _load_in_workers(load, tasks, workers)
    except UserError as error:
        # without its frames the loader is freed at once; else it waits 5 s for each worker
        traceback.clear_frames(error.__traceback__)
        message = str(error).rpartition("UserError: ")[2].strip()  # follows the worker's traceback
        raise UserError(message) from None
    except RuntimeError as error:
        if not DEAD_WORKER.search(str(error)):
            raise
        message = f"data.num_workers={workers}: a worker died ({error})"
        raise UserError(f"{message}; fewer workers take less memory") from error


def _load_in_workers(
    load: Callable[[Task], Loaded], tasks: Sequence[Task], workers: int
) -> Iterator[Loaded]:
    """Let a DataLoader over the tasks load the data as it collates them."""
    loader: DataLoader[Loaded] = DataLoader(
        tasks,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=load,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=TASKS_AHEAD,
        generator=torch.Generator(),  # draws nothing from torch's default generator
    )
    yield from loader
