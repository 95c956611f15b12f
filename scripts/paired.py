"""Means over seeds with their intervals, and differences seed by seed."""

import itertools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from scipy import optimize, stats

Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)
ROUNDING = 1e-9  # of the largest value
MOST = 10_000  # seeds that anyone would run


class Summary(NamedTuple):
    """Of values: how many, mean, deviation, half the width of the mean's 95 % interval, and p of a t-test against 0."""

    n: int
    mean: float
    deviation: float = math.nan
    half: float = math.nan
    p: float = math.nan


def summarise(values: Collection[float], scale: float | None = None) -> Summary:
    """Return the mean with Student's interval and test; of a single value there is neither, of equal ones no test.

    A mean or a standard deviation below a billionth of `scale`, by default the largest value, is 0:
    it is what is left of rounding, as of k/360 - l/360.
    """
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return Summary(0, math.nan)
    least = ROUNDING * (max(map(abs, values)) if scale is None else scale)
    n, mean = len(values), above(least, statistics.mean(values))
    if n < 2:
        return Summary(n, mean)
    deviation = above(least, statistics.stdev(values))
    half = float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)
    if not deviation:
        return Summary(n, mean, deviation, half, math.nan if mean else 1.0)
    t = mean / (deviation / math.sqrt(n))
    return Summary(n, mean, deviation, half, float(2 * stats.t.sf(abs(t), n - 1)))


def above(least: float, value: float) -> float:
    return value if abs(value) > least else 0.0


def paired(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Summary:
    """Summarise the differences seed by seed."""
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    scale = max((abs(value) for pair in pairs for value in pair), default=0.0)
    return summarise([one - other for one, other in pairs], scale)


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
    """Return the seeds, more than there are, that would show such a difference in four of five cases.

    0: there is no difference to show; `MOST` + 1: more than that.
    """
    if not summary.mean or not summary.deviation:
        return 0
    effect = abs(summary.mean) / summary.deviation
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(0.8)
    about = min((z / effect) ** 2, MOST)  # less than with an unknown deviation
    candidates = range(max(summary.n + 1, int(about)), MOST + 1)
    return next((n for n in candidates if power(effect, n, alpha) >= 0.8), MOST + 1)


def seeds_text(seeds: int) -> str:
    return f"more than {MOST:,} seeds" if seeds > MOST else f"some {seeds} seeds"


def detectable(n: int, alpha: float) -> float:
    """Return the mean, in deviations, that n differences would show in four of five cases."""
    return float(optimize.brentq(lambda effect: power(effect, n, alpha) - 0.8, 0, 1000))


def number(value: float, sign: str = "") -> str:
    return "" if math.isnan(value) else f"{value:{sign}.4f}"


def interval(summary: Summary, bounds: Bounds = UNBOUNDED) -> str:
    low, high = ends(summary, bounds)
    return "" if math.isnan(low) else f"{low:.4f} to {high:.4f}"


def ends(summary: Summary, bounds: Bounds = UNBOUNDED) -> Bounds:
    """Return the interval of 95 %, cut off where no mean can lie: at 0 and 1 of an accuracy."""
    if math.isnan(summary.half):
        return math.nan, math.nan
    low, high = summary.mean - summary.half, summary.mean + summary.half
    return max(low, bounds[0]), min(high, bounds[1])
