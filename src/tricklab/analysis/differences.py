"""The differences of the configurations of a sweep to a baseline, paired by seed."""

import math
from collections.abc import Mapping

from tricklab.analysis.configurations import Configurations, metric_by_seed
from tricklab.analysis.page import Table
from tricklab.analysis.statistics import (
    Summary,
    compare_paired,
    format_interval,
    format_number,
    format_p,
    format_seeds,
    holm_correction,
    required_seeds,
)

SIGNIFICANCE = 0.05
DIFFERENCE_HEADER = ("configuration", "pairs", "difference", "95 % interval", "p (Holm)", "verdict")


def difference_table(
    configurations: Configurations, metric: str, baseline: str, incomplete: bool
) -> Table:
    """Compare every configuration with the baseline, p-values corrected by Holm.

    There is no verdict where one of the two lacks a seed, unless `incomplete`.
    """
    values = {label: metric_by_seed(runs, metric) for label, runs in configurations.items()}
    differences, comparable = {}, {}
    for label in configurations:
        if label != baseline:
            difference = compare_paired(values[label], values[baseline])
            differences[label] = difference
            if incomplete or has_all_seeds(configurations, label, baseline, metric):
                comparable[label] = difference
    p_values = correct_p_values(comparable)
    rows = [list(DIFFERENCE_HEADER)]
    for label, difference in differences.items():
        p = p_values.get(label, math.nan)
        verdict = "seeds are missing: incomplete=true compares the others"
        if label in comparable:
            verdict = describe_difference(difference, p, len(p_values))
        mean, interval = format_number(difference.mean, "+"), format_interval(difference)
        rows.append([label, str(difference.n), mean, interval, format_p(p), verdict])
    return rows


def has_all_seeds(configurations: Configurations, one: str, other: str, metric: str) -> bool:
    """Whether both configurations have the metric for every seed that either was started with."""
    ours, theirs = configurations[one], configurations[other]
    expected = len(ours.keys() | theirs.keys())
    return len(metric_by_seed(ours, metric)) == len(metric_by_seed(theirs, metric)) == expected


def correct_p_values(differences: Mapping[str, Summary]) -> dict[str, float]:
    """Return the p-values corrected by Holm; a difference without a test has none."""
    tested = [name for name, summary in differences.items() if not math.isnan(summary.p)]
    corrected = holm_correction([differences[name].p for name in tested])
    return dict(zip(tested, corrected, strict=True))


def describe_difference(difference: Summary, p: float, comparisons: int) -> str:
    """Return a verdict; an inconclusive one says how many seeds would be needed."""
    if math.isnan(p):
        return "too few seeds, or no spread"
    if p < SIGNIFICANCE:
        return "higher" if difference.mean > 0 else "lower"
    if not difference.std:
        return "equal"
    seeds = required_seeds(difference, SIGNIFICANCE / comparisons)
    return f"inconclusive; needs {format_seeds(seeds)}" if seeds else "no difference"
