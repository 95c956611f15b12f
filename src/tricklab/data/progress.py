"""How far the reading of images is, and lines about it: on stderr, from the first process of a run alone."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

QUIET = 3.0  # seconds in which nothing is shown
EVERY = 10.0  # seconds between two lines, where stderr is no terminal
Block = TypeVar("Block", bound=Sized)


def is_first_process() -> bool:
    ranks = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def warn(message: str) -> None:
    """Print one line on stderr."""
    if is_first_process():
        print(f"warning: {message}", file=sys.stderr)


def with_progress(blocks: Iterable[Block], total: int, doing: str) -> Iterator[Block]:
    """Yield blocks of `total` images in all; after 3 s show a bar on a terminal, elsewhere a line every 10 s."""
    start = shown = time.monotonic()
    done, on_terminal, first = 0, sys.stderr.isatty(), is_first_process()
    try:
        for block in blocks:
            yield block
            done += len(block)
            now = time.monotonic()
            due = now - shown > (0.2 if on_terminal and shown > start else QUIET)
            if first and due and (on_terminal or shown == start or now - shown > EVERY):
                shown = now
                _show(doing, done, total, (now - start) / max(1, done), on_terminal)
    finally:
        if on_terminal and shown > start:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _show(doing: str, done: int, total: int, seconds: float, on_terminal: bool) -> None:
    """Print how many of the images are done, of which each takes so many seconds."""
    state = f"{done:,} of {total:,} images, {(total - done) * seconds:.0f} s left"
    if on_terminal:
        bar = "#" * (30 * done // max(1, total))
        print(f"\r{doing} [{bar:.<30}] {state}\033[K", end="", file=sys.stderr, flush=True)
    else:
        print(f"{doing}: {state}", file=sys.stderr, flush=True)
