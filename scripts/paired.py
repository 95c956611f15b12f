"""Means over seeds with their intervals, and differences seed by seed."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Summary(NamedTuple):
    """Of values: how many, mean, standard deviation, and half the width of the 95 % interval of the mean."""

    n: int
    mean: float
    deviation: float
    half: float


class Difference(NamedTuple):
    """Of two configurations, seed by seed: its summary, and p of Student's paired t-test."""

    summary: Summary
    p: float


def summarise(values: Sequence[float]) -> Summary:
    """Return the mean with Student's interval; of a single value there is no deviation."""
    from scipy import stats

    n, mean = len(values), statistics.mean(values) if values else math.nan
    if n < 2:
        return Summary(n, mean, math.nan, math.nan)
    deviation = statistics.stdev(values)  # of equal values exactly 0
    return Summary(n, mean, deviation, float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n))


def paired(ours: dict[str, float], theirs: dict[str, float]) -> Difference:
    """Compare seed by seed, with Student's t-test of the differences."""
    from scipy import stats

    summary = summarise([round(ours[seed] - theirs[seed], 12) for seed in ours if seed in theirs])
    if not summary.deviation > 0:  # equal differences, or less than two
        return Difference(summary, 1.0 if summary.mean == 0 and summary.n > 1 else math.nan)
    t = summary.mean / (summary.deviation / math.sqrt(summary.n))
    return Difference(summary, float(2 * stats.t.sf(abs(t), summary.n - 1)))


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, Scand. J. Statist. 6, 1979)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = highest
    return corrected


def power(effect: float, n: int, alpha: float) -> float:
    """Return how often the t-test of n differences, whose mean is `effect` deviations, has a p below `alpha`.

    By the noncentral t distribution, without the cases in which it finds the opposite.
    """
    from scipy import stats

    return float(stats.nct.sf(stats.t.ppf(1 - alpha / 2, n - 1), n - 1, effect * math.sqrt(n)))


def needed(summary: Summary, alpha: float = 0.05) -> int:
    """Return the seeds, more than there are, that would show such a difference in four of five cases; 0: none would."""
    from scipy import stats

    if not summary.mean:
        return 0
    effect = abs(summary.mean) / summary.deviation
    about = ((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(0.8)) / effect) ** 2  # less than with an unknown deviation
    return next(n for n in itertools.count(max(summary.n + 1, int(about))) if power(effect, n, alpha) >= 0.8)


def detectable(n: int, alpha: float) -> float:
    """Return the mean, in deviations, that n differences would show in four of five cases."""
    from scipy import optimize

    return float(optimize.brentq(lambda effect: power(effect, n, alpha) - 0.8, 0, 1000))


def number(value: float, sign: str = "") -> str:
    return "" if math.isnan(value) else f"{value:{sign}.4f}"


def interval(mean: float, half: float) -> str:
    return "" if math.isnan(half) else f"{mean - half:.4f} to {mean + half:.4f}"
