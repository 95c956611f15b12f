"""The speed of each trick, beside the same trick written by hand. Imports torch only to train."""

import functools
from collections.abc import Sequence
from statistics import median

from tricklab.analysis.benchmark.cases import CASES, GREY, NETS, TRICKS, Overrides
from tricklab.analysis.benchmark.rounds import Round, Table, Turn, alternate_in_processes

OURS = "ours"
PER_IMAGE = "by hand, per image"
PER_BATCH = "v2, per batch"
PLAIN = "plain loop"
RATIOS = {PER_IMAGE: "ours / by hand", PER_BATCH: "ours / v2", PLAIN: "ours / plain loop"}


def measure_tricks(threads: int, repeats: int) -> dict[str, Table]:
    """Measure the speed of each trick, and ours as a fraction of each other in the same round."""
    tables: dict[str, Table] = {}
    for net, batch_size in CASES:
        title = f"{net}, batches of {batch_size}, images/s"
        tables[title] = {}
        for trick in TRICKS:
            rounds = run_rounds(trick, net, batch_size, threads, repeats)
            tables[title][trick] = summarise(rounds)
    return tables


def run_rounds(trick: str, net: str, batch_size: int, threads: int, repeats: int) -> list[Round]:
    """Return the images/s of each variant of a trick in each round; each repeat has new processes.

    The variants of one trick take turns, and not all variants of all tricks, so that the turns of a
    round are close together.
    """
    size = ("data.images=60000", "data.val_size=100", f"data.batch_size={batch_size}")
    variants = make_variants(trick, (*GREY, *NETS[net], *size))
    rounds = []
    for _ in range(repeats):
        rounds += alternate_in_processes(variants, CASES[net, batch_size], threads, {OURS})
    return rounds


def make_variants(trick: str, overrides: Overrides) -> dict[str, Turn]:
    """Return the ways to train with a trick: all start with the benchmark's number of threads.

    Each has a process of its own, in which ours may choose another number.
    """
    from tricklab.analysis.benchmark import by_hand, loops

    variants: dict[str, Turn] = {
        PLAIN: functools.partial(loops.plain_loop, overrides),
        OURS: functools.partial(loops.ours, (*overrides, *TRICKS[trick])),
    }
    if trick in by_hand.TRICKS:
        variants[PER_IMAGE] = functools.partial(by_hand.train_per_image, overrides, trick)
    if trick in by_hand.PER_BATCH_TRICKS:
        variants[PER_BATCH] = functools.partial(by_hand.train_per_batch, overrides, trick)
    return variants


def summarise(rounds: Sequence[Round]) -> dict[str, float]:
    """Return a row: the medians of the speeds, and of ours as a fraction of each other variant."""
    names = [name for name in (OURS, *RATIOS) if name in rounds[0]]
    row = {name: median(speeds[name] for speeds in rounds) for name in names}
    for name in names[1:]:
        row[RATIOS[name]] = median(speeds[OURS] / speeds[name] for speeds in rounds)
    return row
