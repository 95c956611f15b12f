"""Take a recipe apart: its tricks added one after the other, and each left out of the whole.

python scripts/ablate.py fashion_tricks [seeds=3] [slots=2]

The tricks stand in the recipe's file, as claim.tricks; the runs are kept as those of scripts/measure.py.
"""

import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from measure import Arms, Recipe, Rows, arguments, measure
from omegaconf import OmegaConf
from page import Table, table
from paired import Summary, detectable, holm, interval, number, paired, summarise

from tricklab.cli.config import CONF, list_options
from tricklab.cli.launch import launch
from tricklab.errors import UserError

METRIC = "test/acc"
HEAD = [
    "trick",
    METRIC,
    "added in turn",
    "95 % interval",
    "p (Holm)",
    "left out of all",
    "95 % interval",
    "p (Holm)",
]


def main() -> None:
    name, seeds, words = arguments(list_options(CONF / "experiment"), lambda _: 3)
    tricks: Any = OmegaConf.select(
        OmegaConf.load(CONF / "experiment" / f"{name}.yaml"), "claim.tricks"
    )
    if not tricks:
        raise UserError(
            f"experiment={name} has no claim.tricks; allowed: one that has, as fashion_tricks"
        )
    rows = measure(Recipe(name, make_arms(tricks), (METRIC,)), seeds, words)
    print(table(lay_out(list(tricks), rows), trusted=True))
    print(power(list(tricks), rows))
    if left := sum(max(0, seeds - len(of_arm)) for of_arm in rows.values()):
        sys.exit(f"error: {left} runs are not done; the same command again goes on")


def make_arms(tricks: Arms) -> dict[str, list[str]]:
    """Return the words without tricks, up to each of them, and of all but each of them."""
    names = list(tricks)
    chosen: dict[str, list[str]] = {"none": []} | {
        f"to_{name}": names[: i + 1] for i, name in enumerate(names)
    }
    chosen |= {f"no_{name}": [other for other in names if other != name] for name in names}
    return {
        arm: [word for name in of_arm for word in tricks[name]] for arm, of_arm in chosen.items()
    }


def differences(tricks: Sequence[str], rows: Rows) -> list[Summary]:
    """Compare, seed by seed, each trick in turn with what came before it, and all of them with all but each."""
    values = {
        arm: {seed: float(row[METRIC]) for seed, row in of_arm.items()}
        for arm, of_arm in rows.items()
    }
    turns = pairwise(["none", *(f"to_{name}" for name in tricks)])
    pairs = [(after, before) for before, after in turns] + [
        (f"to_{tricks[-1]}", f"no_{name}") for name in tricks
    ]
    return [paired(values[ours], values[theirs]) for ours, theirs in pairs]


def lay_out(tricks: Sequence[str], rows: Rows) -> Table:
    """Return the table: p-values are corrected for the number of all comparisons in it."""
    found = differences(tricks, rows)
    ps = iter(holm([s.p for s in found if not math.isnan(s.p)]))
    cells = [
        [number(s.mean, "+"), interval(s), "" if math.isnan(s.p) else f"{next(ps):.3g}"]
        for s in found
    ]
    means = [
        number(summarise([float(row[METRIC]) for row in rows[arm].values()]).mean) for arm in rows
    ]
    lines = [
        [f"+ {name}", means[i + 1], *cells[i], *cells[len(tricks) + i]]
        for i, name in enumerate(tricks)
    ]
    return [HEAD, ["none", means[0], *[""] * 6], *lines]


def power(tricks: Sequence[str], rows: Rows) -> str:
    """Say which difference so many seeds would show in four of five cases, by itself and as the first of all (Holm)."""
    found = [s for s in differences(tricks, rows) if s.n > 1]
    if not found:
        return "no two seeds are done"
    deviation, n = (
        math.sqrt(math.fsum(s.deviation**2 for s in found) / len(found)),
        min(s.n for s in found),
    )
    said = f"{n} seeds: differences deviate by {deviation:.4f} from seed to seed; seen in 4 of 5 cases would be one of"
    alone, corrected = (deviation * detectable(n, 0.05 / of) for of in (1, len(found)))
    return f"{said} {alone:.4f} by itself, of {corrected:.4f} among {len(found)}"


if __name__ == "__main__":
    launch(main, __doc__)
