"""Statistics over seeds, against SciPy, by hand and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from tricklab.analysis.statistics import (
    MAX_SEEDS,
    Summary,
    compare_paired,
    format_seeds,
    holm_correction,
    minimum_detectable_effect,
    required_seeds,
    summarise,
)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def by_seed(values):
    return dict(enumerate(values))


def simulated_power(random, effect, n, alpha, experiments=4000):
    """Return in how many of simulated experiments a t-test finds the effect."""
    samples = random.normal(effect, 1.0, size=(experiments, n))
    return np.mean(stats.ttest_1samp(samples, 0, axis=1).pvalue < alpha)


@pytest.mark.parametrize("n", [2, 3, 8, 40])
def test_statistics_match_scipy(random, n):
    a = random.normal(size=n)
    b = random.normal(0.3, 1, size=n)
    summary = summarise(a.tolist())
    assert summary[:3] == pytest.approx((n, a.mean(), a.std(ddof=1)))
    expected = stats.t.interval(0.95, n - 1, a.mean(), stats.sem(a))
    assert summary.interval() == pytest.approx(expected)
    assert summary.interval()[1] - summary.mean == pytest.approx(summary.ci_half_width)
    difference = compare_paired(by_seed(a), by_seed(b))
    scipy_result = stats.ttest_rel(a, b)
    assert difference.p == pytest.approx(scipy_result.pvalue)
    assert difference.interval() == pytest.approx(scipy_result.confidence_interval(0.95))


def test_statistics_of_too_few_values_are_nan():
    assert summarise([]).n == 0
    assert math.isnan(summarise([]).mean)
    assert summarise([0.5, math.nan, math.inf])[:2] == (1, 0.5)
    assert math.isnan(summarise([0.5]).ci_half_width)
    assert all(map(math.isnan, summarise([0.5]).interval((0, 1))))


def test_interval_is_clipped_to_the_bounds_of_the_metric():
    assert Summary(2, 0.99, 0.1, 0.5).interval((0, 1)) == pytest.approx((0.49, 1))


def test_pairing_uses_common_seeds_only():
    difference = compare_paired({0: 0.9, 1: 0.8, 2: 0.1}, {0: 0.7, 1: 0.5, 3: 0.9})
    assert difference[:2] == (2, pytest.approx(0.25))


def test_holm_correction_by_hand():
    assert holm_correction([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_correction([0.5, 0.9]) == [1.0, 1.0]
    assert holm_correction([]) == []


def test_paired_test_has_its_nominal_error_rate(random):
    false_positives = 0
    for _ in range(2000):
        a, b = random.normal(size=(2, 20))
        false_positives += compare_paired(by_seed(a), by_seed(b)).p < 0.05
    assert 0.035 < false_positives / 2000 <= 0.065


@pytest.mark.parametrize(("effect", "alpha"), [(0.5, 0.05), (2.0, 0.05), (1.0, 0.005)])
def test_required_seeds_give_power_of_four_in_five(random, effect, alpha):
    n = required_seeds(Summary(2, -effect, 1.0, 0.1), alpha)
    assert simulated_power(random, effect, n, alpha) > 0.78
    assert simulated_power(random, effect, n - 1, alpha) < 0.82


def test_required_seeds_at_the_edges():
    assert required_seeds(Summary(7, 9.0, 1.0, 0.1)) == 8  # more than there are
    assert required_seeds(Summary(7, 0.0, 1.0, 0.1)) == 0
    tiny = required_seeds(Summary(3, 1e-6, 1.0, 0.1))
    assert tiny == MAX_SEEDS + 1
    assert format_seeds(tiny) == "more than 10,000 seeds"


@pytest.mark.parametrize(("n", "alpha"), [(2, 0.005), (3, 0.05), (10, 0.01)])
def test_minimum_detectable_effect_is_detected_in_four_of_five_experiments(random, n, alpha):
    effect = minimum_detectable_effect(n, alpha)
    assert simulated_power(random, effect, n, alpha) == pytest.approx(0.8, abs=0.03)


def test_equal_differences_have_no_spread_despite_rounding():
    for right in range(100, 300):
        ours = by_seed([(right + 5) / 359, (right + 17) / 359, (right + 40) / 359])
        theirs = {seed: value - 5 / 359 for seed, value in ours.items()}
        difference = compare_paired(ours, theirs)
        assert math.isnan(difference.p)
        assert difference.std == 0


def test_differences_of_counts_are_exact(random, recwarn):
    """Differences of k / n leave rounding errors in one of three cases."""
    for _ in range(600):
        n = int(random.integers(2, 6))
        images = int(random.choice([7, 360, 10_000]))
        ours = random.integers(0, images + 1, n)
        theirs = np.clip(ours + random.integers(-3, 4, n), 0, images)
        difference = compare_paired(
            by_seed((ours / images).tolist()), by_seed((theirs / images).tolist())
        )
        total = int((ours - theirs).sum())
        seeds = required_seeds(difference)
        assert difference.mean == pytest.approx(total / images / n, abs=1e-12)
        assert (difference.mean == 0) == (total == 0)
        assert (difference.std == 0) == (len(set(ours - theirs)) == 1)
        assert 0 <= seeds <= MAX_SEEDS + 1
        assert (seeds == 0) == (total == 0 or difference.std == 0)
    assert not recwarn.list
