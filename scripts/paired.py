"""Means over seeds with their intervals, and differences seed by seed."""

import itertools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from scipy import optimize, stats


class Summary(NamedTuple):
    """Of values: how many, mean, deviation, half the width of the mean's 95 % interval, and p of a t-test against 0."""

    n: int
    mean: float
    deviation: float = math.nan
    half: float = math.nan
    p: float = math.nan


def summarise(values: Collection[float]) -> Summary:
    """Return the mean with Student's interval and test; of a single value there is neither, of equal ones no test."""
    n, mean = len(values), statistics.mean(values) if values else math.nan
    if n < 2:
        return Summary(n, mean)
    deviation = statistics.stdev(values)  # of equal values exactly 0
    half = float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    if not deviation:
        return Summary(n, mean, deviation, half, math.nan if mean else 1.0)
    t = mean / (deviation / math.sqrt(n))
    return Summary(n, mean, deviation, half, float(2 * stats.t.sf(abs(t), n - 1)))


def paired(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Summary:
    """Summarise the differences seed by seed."""
    return summarise([round(ours[seed] - theirs[seed], 12) for seed in ours if seed in theirs])


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, Scand. J. Statist. 6, 1979)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    steps = (min(1.0, (len(ps) - rank) * ps[i]) for rank, i in enumerate(order))
    corrected = dict(zip(order, itertools.accumulate(steps, max), strict=True))
    return [corrected[i] for i in range(len(ps))]


def power(effect: float, n: int, alpha: float) -> float:
    """Return how often n differences, whose mean is `effect` deviations, have a p below `alpha` on the right side."""
    return float(stats.nct.sf(stats.t.ppf(1 - alpha / 2, n - 1), n - 1, effect * math.sqrt(n)))


def needed(summary: Summary, alpha: float = 0.05) -> int:
    """Return the seeds, more than there are, that would show such a difference in four of five cases; 0: none would."""
    if not summary.mean:
        return 0
    effect = abs(summary.mean) / summary.deviation
    about = (
        (stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(0.8)) / effect
    ) ** 2  # less than with an unknown deviation
    return next(
        n for n in itertools.count(max(summary.n + 1, int(about))) if power(effect, n, alpha) >= 0.8
    )


def detectable(n: int, alpha: float) -> float:
    """Return the mean, in deviations, that n differences would show in four of five cases."""
    return float(optimize.brentq(lambda effect: power(effect, n, alpha) - 0.8, 0, 1000))


def number(value: float, sign: str = "") -> str:
    return "" if math.isnan(value) else f"{value:{sign}.4f}"


def interval(summary: Summary) -> str:
    ends = summary.mean - summary.half, summary.mean + summary.half
    return "" if math.isnan(summary.half) else "{:.4f} to {:.4f}".format(*ends)
