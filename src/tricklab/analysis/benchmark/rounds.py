"""Turns of several variants, in new processes, and medians over them. Imports no torch."""

import contextlib
import functools
import multiprocessing
import os
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

from tricklab.devices import RUN_CORES, keep_freed_memory, wait_asleep

# In each repeat: several short ones, as the speed of a machine changes within seconds
TURNS = 3

Turn = Callable[[int], float]  # trains so many steps, returns images/s
Round = dict[str, float]  # a turn of each variant: images/s, seconds or GB by name
Table = dict[str, dict[str, float]]  # by row and column


def run_in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process that has imported nothing yet."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=reset_start_method) as pool:
        return pool.submit(function, *arguments).result()


def reset_start_method() -> None:
    """Make DataLoader start its workers by the default method, not by that of this process."""
    multiprocessing.set_start_method(None, force=True)


def set_up_process(threads: int, is_ours: bool) -> None:
    """Use so many threads; ours may choose fewer, keeps memory and waits as its commands do."""
    if is_ours:
        keep_freed_memory()
        wait_asleep()
    import torch

    reset_start_method()
    os.environ[RUN_CORES] = str(threads)
    torch.set_num_threads(threads)


def alternate_in_processes(
    variants: Mapping[str, Turn], steps: int, threads: int, ours: Collection[str]
) -> list[Round]:
    """Return a few rounds after an untimed one, each variant in a new process of its own.

    Variants would affect each other in one process: compiling slows down all that follows. `ours`
    are the names of this project's.
    """
    context = multiprocessing.get_context("spawn")  # a fork would have torch's waiting already
    turns: dict[str, Turn] = {}
    with contextlib.ExitStack() as stack:
        for name, variant in variants.items():
            arguments = (threads, name in ours)
            pool = ProcessPoolExecutor(1, context, initializer=set_up_process, initargs=arguments)
            stack.enter_context(pool)
            turns[name] = functools.partial(run_in_pool, pool, variant)
        rounds = [take_turns(turns, steps) for _ in range(TURNS + 1)]
    return rounds[1:]


def run_in_pool(pool: ProcessPoolExecutor, variant: Turn, steps: int) -> float:
    return pool.submit(variant, steps).result()


def take_turns(turns: Mapping[str, Turn], steps: int) -> Round:
    """Return the images/s of a turn of each, in random order."""
    order = random.sample([*turns], len(turns))
    speeds = {name: turns[name](steps) for name in order}
    return {name: speeds[name] for name in turns}


def relative_to(name: str, rounds: Sequence[Round]) -> list[Round]:
    """Return speeds as fractions of the speed of one variant in the same round."""
    return [
        {variant: speed / speeds[name] for variant, speed in speeds.items()} for speeds in rounds
    ]


def make_table(columns: Mapping[str, Sequence[Round]]) -> Table:
    """Return the medians over the rounds of each column, a row for each variant."""
    first_column = next(iter(columns.values()))
    table: Table = {}
    for name in first_column[0]:
        table[name] = {
            column: median(values[name] for values in rounds) for column, rounds in columns.items()
        }
    return table


def format_table(title: str, table: Table) -> str:
    """Return a table as text; a value that only other rows have is "-"."""
    columns = max(table.values(), key=len)
    lines = [f"\n{title:55}" + "".join(f"{column:>20}" for column in columns)]
    for name, values in table.items():
        cells = [format_value(values.get(column)) for column in columns]
        lines.append(f"  {name:53}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def format_value(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value > 100 else f"{value:.3f}"
