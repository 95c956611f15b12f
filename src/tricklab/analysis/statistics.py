"""Means over seeds with confidence intervals, and differences paired by seed.

SciPy is imported where it is needed: that takes half a second, which `--help` does not wait for.
"""

import itertools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

Bounds = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)
LEVEL = 0.95  # of confidence intervals
POWER = 0.8  # at which numbers of seeds and detectable effects are computed
RELATIVE_TOLERANCE = 1e-9  # differences below this fraction of the largest value are rounding
MAX_SEEDS = 10_000  # more than anyone would run


class Summary(NamedTuple):
    """Statistics of a sample.

    `ci_half_width` is half the width of the 95 % confidence interval of the mean, `p` the p-value
    of Student's t-test of the mean against 0. What the sample is too small for is NaN.
    """

    n: int
    mean: float
    std: float = math.nan
    ci_half_width: float = math.nan
    p: float = math.nan

    def interval(self, bounds: Bounds = UNBOUNDED) -> Bounds:
        """Return the 95 % interval of the mean, clipped to `bounds` (0 and 1 for an accuracy)."""
        if math.isnan(self.ci_half_width):
            return math.nan, math.nan
        low = self.mean - self.ci_half_width
        high = self.mean + self.ci_half_width
        return max(low, bounds[0]), min(high, bounds[1])

    def interval_at(self, level: float) -> Bounds:
        """Return the interval of the mean at some confidence level; of one value, all numbers."""
        from scipy import stats

        if self.n < 2:
            return UNBOUNDED
        quantile = float(stats.t.ppf((1 + level) / 2, self.n - 1))
        half_width = quantile * self.std / math.sqrt(self.n)
        return self.mean - half_width, self.mean + half_width


def summarise(values: Collection[float], scale: float | None = None) -> Summary:
    """Return mean, std, confidence interval and t-test of the finite values.

    A single value has neither interval nor test, equal values have no test. A mean or standard
    deviation below a billionth of `scale` (default: the largest value) is rounding error, as in
    k/360 - l/360, and counts as 0.
    """
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return Summary(0, math.nan)
    if scale is None:
        scale = max(map(abs, values))
    n = len(values)
    mean = _drop_rounding(statistics.mean(values), scale)
    if n < 2:
        return Summary(n, mean)
    return _t_test(n, mean, _drop_rounding(statistics.stdev(values), scale))


def _drop_rounding(value: float, scale: float) -> float:
    return value if abs(value) > RELATIVE_TOLERANCE * scale else 0.0


def _t_test(n: int, mean: float, std: float) -> Summary:
    from scipy import stats

    standard_error = std / math.sqrt(n)
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * standard_error
    if not std:
        return Summary(n, mean, std, half_width, math.nan if mean else 1.0)
    p = float(2 * stats.t.sf(abs(mean / standard_error), n - 1))
    return Summary(n, mean, std, half_width, p)


def compare_paired(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Summary:
    """Summarise the differences `ours` - `theirs`, paired by key (the seed)."""
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    scale = max((abs(value) for pair in pairs for value in pair), default=0.0)
    return summarise([one - other for one, other in pairs], scale)


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for multiple comparisons (Holm, Scand. J. Statist. 6, 1979)."""
    n = len(p_values)
    order = sorted(range(n), key=lambda i: p_values[i])
    scaled = [min(1.0, (n - rank) * p_values[i]) for rank, i in enumerate(order)]
    monotone = itertools.accumulate(scaled, max)
    corrected = dict(zip(order, monotone, strict=True))
    return [corrected[i] for i in range(n)]


def power(effect: float, n: int, alpha: float) -> float:
    """Return the power of the two-sided paired t-test, for the correct sign.

    `effect` is the mean of the n differences in units of their standard deviation (Cohen's d).
    """
    from scipy import stats

    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    return float(stats.nct.sf(critical, n - 1, effect * math.sqrt(n)))


def required_seeds(summary: Summary, alpha: float = 0.05) -> int:
    """Return the number of seeds at which such a difference would be significant with power 0.8.

    It is larger than the present number. 0: the difference or its std is 0; `MAX_SEEDS` + 1: more
    than `MAX_SEEDS`.
    """
    if not summary.mean or not summary.std:
        return 0
    return seeds_to_detect(abs(summary.mean), summary.std, alpha, summary.n + 1)


def seeds_to_detect(difference: float, std: float, alpha: float = 0.05, least: int = 2) -> int:
    """Return the number of seeds, `least` or more, that detect a difference with power 0.8.

    `std` is that of the differences, paired by seed. `MAX_SEEDS` + 1: more than `MAX_SEEDS`.
    """
    if not std:
        return least
    effect = difference / std
    start = max(least, _required_if_std_known(effect, alpha))
    for n in range(start, MAX_SEEDS + 1):
        if power(effect, n, alpha) >= POWER:
            return n
    return MAX_SEEDS + 1


def equivalence_power(margin: float, n: int, alpha: float = 0.05) -> float:
    """Return the power of two one-sided t-tests (TOST) to show that a mean of 0 is within +-margin.

    `margin` is in units of the standard deviation. Schuirmann, J. Pharmacokin. Biopharm. 15 (1987).
    """
    from scipy import stats

    critical = stats.t.ppf(1 - alpha, n - 1)
    return max(0.0, 1 - 2 * float(stats.nct.cdf(critical, n - 1, margin * math.sqrt(n))))


def seeds_for_equivalence(margin: float, std: float, alpha: float = 0.05) -> int:
    """Return the number of seeds that show a mean of 0 to be within +-margin with power 0.8."""
    for n in range(2, MAX_SEEDS + 1):
        if not std or equivalence_power(margin / std, n, alpha) >= POWER:
            return n
    return MAX_SEEDS + 1


def _required_if_std_known(effect: float, alpha: float) -> int:
    """Return a lower bound: the normal approximation needs fewer seeds than the t-test."""
    from scipy import stats

    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER)
    return int(min((z / effect) ** 2, MAX_SEEDS))


def minimum_detectable_effect(n: int, alpha: float) -> float:
    """Return the mean, in standard deviations, that n differences detect with power 0.8."""
    from scipy import optimize

    return float(optimize.brentq(lambda effect: power(effect, n, alpha) - POWER, 0, 1000))


def format_number(value: float, sign: str = "") -> str:
    """Return a number with four decimals, "" for NaN; `sign="+"` always shows the sign."""
    return "" if math.isnan(value) else f"{value:{sign}.4f}"


def format_interval(summary: Summary, bounds: Bounds = UNBOUNDED) -> str:
    low, high = summary.interval(bounds)
    return "" if math.isnan(low) else f"{low:.4f} to {high:.4f}"


def format_p(p: float) -> str:
    return "" if math.isnan(p) else f"{p:.3g}"


def format_seeds(seeds: int) -> str:
    return f"more than {MAX_SEEDS:,} seeds" if seeds > MAX_SEEDS else f"about {seeds} seeds"
