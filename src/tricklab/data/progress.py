"""Progress of reading images, and warnings about it: on stderr, from the first process only."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tricklab.devices import is_first

DELAY = 3.0  # seconds before anything is shown
BAR_INTERVAL = 0.2  # seconds between updates of the bar on a terminal
LINE_INTERVAL = 10.0  # seconds between lines elsewhere
BAR_WIDTH = 30
Block = TypeVar("Block", bound=Sized)


def warn(message: str) -> None:
    """Print one line on stderr."""
    if is_first():
        print(f"warning: {message}", file=sys.stderr)


def with_progress(
    blocks: Iterable[Block], total: int, task: str, unit: str = "images"
) -> Iterator[Block]:
    """Yield blocks of `total` units in all; after 3 s show a bar, without a terminal lines."""
    on_terminal = sys.stderr.isatty()
    silent = not is_first()
    start = shown = time.monotonic()
    done = 0
    try:
        for block in blocks:
            yield block
            done += len(block)
            now = time.monotonic()
            interval = BAR_INTERVAL if on_terminal else LINE_INTERVAL
            if silent or now - shown <= (interval if shown > start else DELAY):
                continue
            shown = now
            seconds = (total - done) * (now - start) / max(1, done)
            state = f"{done:,} of {total:,} {unit}, {seconds:.0f} s left"
            _show(task, done / max(1, total), state, on_terminal)
    finally:
        if on_terminal and shown > start:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _show(task: str, fraction: float, state: str, on_terminal: bool) -> None:
    if on_terminal:
        bar = "#" * int(BAR_WIDTH * fraction)
        print(f"\r{task} [{bar:.<{BAR_WIDTH}}] {state}\033[K", end="", file=sys.stderr, flush=True)
    else:
        print(f"{task}: {state}", file=sys.stderr, flush=True)
