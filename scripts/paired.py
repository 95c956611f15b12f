"""Means over seeds with their intervals, and differences seed by seed."""

import math
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

    n, mean = len(values), math.fsum(values) / len(values) if values else math.nan
    if n < 2:
        return Summary(n, mean, math.nan, math.nan)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return Summary(n, mean, deviation, float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n))


def paired(ours: dict[str, float], theirs: dict[str, float]) -> Difference:
    """Compare seed by seed, with Student's t-test of the differences."""
    from scipy import stats

    summary = summarise([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
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


def needed(summary: Summary) -> int:
    """Return the seeds that would show this difference in four of five cases: 7.85 (deviation / difference)^2."""
    return max(3, math.ceil(7.85 * (summary.deviation / summary.mean) ** 2)) if summary.mean else 0


def number(value: float, sign: str = "") -> str:
    return "" if math.isnan(value) else f"{value:{sign}.4f}"


def interval(mean: float, half: float) -> str:
    return "" if math.isnan(half) else f"{mean - half:.4f} to {mean + half:.4f}"
