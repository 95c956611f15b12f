"""Verdicts on the expectations of a claim, by rules that are fixed before the runs.

An expectation compares the mean of a metric over the seeds, or of a difference that is paired by
seed, with bounds. Its 95 % interval lies within them (PASS), outside (FAIL) or neither; then it
says what is excluded. Where "as good as" is claimed, the two one-sided t-tests at 5 % decide, that
is the 90 % interval. There is a verdict once all planned runs are done, and none before.
"""

import math
from typing import NamedTuple

from tricklab.analysis.rows import Row
from tricklab.analysis.statistics import (
    LEVEL,
    Bounds,
    Summary,
    format_number,
    seeds_for_equivalence,
    seeds_to_detect,
    summarise,
)

PASS = "PASS"
FAIL = "FAIL"
UNDECIDED = "no difference"  # larger than some number
EQUIVALENCE_LEVEL = 0.9  # of the interval that is two one-sided tests at 5 %

RowsByArm = dict[str, dict[int, Row]]  # and seed


class Expectation(NamedTuple):
    """Bounds of the mean of a metric over the seeds, of an arm or of a difference of arms.

    `of` and `than` (subtracted) are names of arms, or sums of arms: "a + b". `within` are bounds on
    both sides of 0: equivalence.
    """

    of: str
    metric: str
    than: str = ""
    above: float = -math.inf
    below: float = math.inf
    within: float = math.inf

    def __str__(self) -> str:
        limits = {"above ": self.above, "below ": self.below, "within ±": self.within}
        finite = [f"{name}{limit:g}" for name, limit in limits.items() if math.isfinite(limit)]
        return f"{self.quantity}, {self.metric}: {' and '.join(finite)}"

    @property
    def quantity(self) -> str:
        if not self.than:
            return self.of
        return f"{self.of} - ({self.than})" if " + " in self.than else f"{self.of} - {self.than}"

    @property
    def signs(self) -> dict[str, float]:
        """The sign of each arm: 1 or -1."""
        added = dict.fromkeys(self.of.split(" + "), 1.0)
        subtracted = dict.fromkeys(filter(None, self.than.split(" + ")), -1.0)
        return added | subtracted

    @property
    def bounds(self) -> Bounds:
        return max(self.above, -self.within), min(self.below, self.within)

    @property
    def is_equivalence(self) -> bool:
        return math.isfinite(self.within)


def measure(expectation: Expectation, results: RowsByArm) -> Summary:
    """Summarise what an expectation is about over the seeds that all of its arms have."""
    signs = expectation.signs
    seeds = set.intersection(*(set(results[arm]) for arm in signs))
    terms = [
        [sign * float(results[arm][seed][expectation.metric]) for arm, sign in signs.items()]
        for seed in sorted(seeds)
    ]
    scale = max((abs(term) for of_seed in terms for term in of_seed), default=0.0)
    return summarise([sum(of_seed) for of_seed in terms], scale)


def judge(expectation: Expectation, measured: Summary) -> str:
    """Return PASS, FAIL, or what the interval excludes."""
    low, high = interval(expectation, measured)
    lower, upper = expectation.bounds
    if low > lower and high < upper:
        return PASS
    wide_low, wide_high = measured.interval_at(LEVEL)
    if wide_high < lower or wide_low > upper:
        return FAIL
    return exclude(expectation, (low, high))


def interval(expectation: Expectation, measured: Summary) -> Bounds:
    """Return the interval that decides: of 95 %, or the two one-sided tests for equivalence."""
    return measured.interval_at(EQUIVALENCE_LEVEL if expectation.is_equivalence else LEVEL)


def exclude(expectation: Expectation, found: Bounds) -> str:
    """Say how far from its bound, or from 0, the mean may be at most."""
    lower, upper = expectation.bounds
    bound = 0.0 if expectation.is_equivalence else (lower if math.isfinite(lower) else upper)
    farthest = round_up(max(abs(end - bound) for end in found))
    if not bound and expectation.than:
        return f"{UNDECIDED} larger than {farthest:g}"
    return f"undecided: {bound:g} ± {farthest:g}"


def round_up(value: float) -> float:
    """Round up to two significant digits: what is excluded is never more than the interval says."""
    if not 0 < value < math.inf:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit - 1e-9) * unit


def plan_seeds(expectation: Expectation, delta: float, std: float) -> int:
    """Return how many seeds find a difference of `delta` from the bound with power 0.8.

    Or show equivalence, if there is no difference. `std` is that of a pilot.
    """
    if expectation.is_equivalence:
        return seeds_for_equivalence(expectation.within, std)
    return seeds_to_detect(delta, std)


def format_measured(expectation: Expectation, measured: Summary) -> str:
    """Return the mean with the interval that decides."""
    low, high = interval(expectation, measured)
    value = format_number(measured.mean, "+" if expectation.than else "")
    return f"{value} ({format_number(low)} to {format_number(high)})"
