"""Verdicts on claims: rules, plans, and how often they are right in simulated claims."""

import math

import numpy as np
import pytest
from scipy import stats

from helpers.paths import CONF
from tricklab.analysis.claims import Claim, judge_claim, needed_seeds, read_claim
from tricklab.analysis.recipes import Recipe
from tricklab.analysis.rows import published_seeds
from tricklab.analysis.statistics import (
    Summary,
    equivalence_power,
    seeds_for_equivalence,
    seeds_to_detect,
)
from tricklab.analysis.verdicts import Expectation, judge, measure, round_up
from tricklab.cli.config import list_options

NAMES = list_options(CONF / "experiment" / "claims")
INF = math.inf
SIMULATIONS = 2000
METRIC = "test/acc"
SPREAD = 0.003
DIFFERENCE = Expectation("a", METRIC, "b", above=0)
EQUIVALENCE = Expectation("a", METRIC, "b", within=0.003)


def summary_with_interval(mean, half_width, n=5):
    """Return a summary whose 95 % interval has that half width."""
    quantile = stats.t.ppf(0.975, n - 1)
    return Summary(n, mean, half_width * math.sqrt(n) / quantile, half_width)


@pytest.mark.parametrize(
    ("mean", "half_width", "bounds", "verdict"),
    [
        (0.02, 0.01, {"above": 0}, "PASS"),
        (0.02, 0.03, {"above": 0}, "no difference larger than 0.05"),
        (-0.02, 0.03, {"above": 0}, "no difference larger than 0.05"),
        (-0.02, 0.01, {"above": 0}, "FAIL"),
        (-0.02, 0.01, {"below": 0}, "PASS"),
        (0.02, 0.01, {"below": 0}, "FAIL"),
        (0.0, 0.0, {"above": 0}, "no difference larger than 0"),  # equal, and no spread
        (0.06, 0.02, {"above": 0.05}, "undecided: 0.05 ± 0.03"),
        (0.001, 0.001, {"within": 0.003}, "PASS"),
        (0.001, 0.0023, {"within": 0.003}, "PASS"),  # by 90 %, not by 95 %
        (0.001, 0.003, {"within": 0.003}, "no difference larger than 0.0034"),
        (0.0065, 0.004, {"within": 0.003}, "no difference larger than 0.0096"),
        (0.008, 0.004, {"within": 0.003}, "FAIL"),
        (-0.008, 0.004, {"within": 0.003}, "FAIL"),
        (0.02, math.nan, {"above": 0}, "no difference larger than inf"),
    ],
)
def test_verdict_compares_interval_and_bounds(mean, half_width, bounds, verdict):
    single = math.isnan(half_width)
    measured = Summary(1, mean) if single else summary_with_interval(mean, half_width)
    assert judge(Expectation("a", METRIC, "b", **bounds), measured) == verdict


def test_seeds_are_those_of_published_tables():
    """Of the paired t-test, two-sided 5 %, power 0.8: effect sizes 1, 0.5 and 0.2 (G*Power 3)."""
    assert [seeds_to_detect(effect, 1.0) for effect in (1.0, 0.5, 0.2)] == [10, 34, 199]
    assert seeds_to_detect(1.0, 0.0) == 2


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.00331, 0.0034), (0.05, 0.05), (12.1, 13), (0.0, 0.0), (INF, INF)]
)
def test_what_is_excluded_is_rounded_up(value, rounded):
    assert round_up(value) == pytest.approx(rounded)


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
def test_equivalence_has_the_power_that_it_states(margin):
    n = seeds_for_equivalence(margin, 1.0)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20_000, n))
    half_widths = stats.t.ppf(0.95, n - 1) * values.std(1, ddof=1) / math.sqrt(n)
    shown = np.abs(values.mean(1)) + half_widths < margin
    assert shown.mean() == pytest.approx(equivalence_power(margin, n), abs=0.01)
    assert equivalence_power(margin, n) >= 0.8 > equivalence_power(margin, n - 1)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_of_a_claim_follow_from_its_plan(name):
    claim = read_claim(name)
    for expectation in claim.expectations:
        assert needed_seeds(claim, expectation) <= claim.seeds, str(expectation)


def make_claim(expectation, seeds):
    recipe = Recipe("claims/simulated", {"a": (), "b": ()}, (METRIC,))
    return Claim(recipe, "", [expectation], {METRIC: SPREAD}, {METRIC: SPREAD}, seeds, 0)


def simulate(expectation, seeds, difference, rng):
    """Return the verdict on a claim whose arms differ by `difference`, and share a part by seed."""
    shared = rng.normal(0.9, SPREAD, seeds)
    spread = SPREAD / math.sqrt(2)  # of each arm: the difference has SPREAD
    results = {}
    for arm, shift in (("a", difference), ("b", 0.0)):
        values = shared + shift + rng.normal(0, spread, seeds)
        rows = zip(published_seeds(seeds), values, strict=True)
        results[arm] = {seed: {METRIC: repr(float(value))} for seed, value in rows}
    (judged,) = judge_claim(make_claim(expectation, seeds), results)
    return judged.verdict


SEEDS_IN_USE = sorted({read_claim(name).seeds for name in NAMES})


@pytest.mark.parametrize("seeds", SEEDS_IN_USE)
def test_two_names_of_one_option_are_called_different_in_5_percent(seeds):
    rng = np.random.default_rng(seeds)
    verdicts = [simulate(DIFFERENCE, seeds, 0.0, rng) for _ in range(SIMULATIONS)]
    different = sum(verdict in ("PASS", "FAIL") for verdict in verdicts) / SIMULATIONS
    assert different == pytest.approx(0.05, abs=0.01)


def test_two_halves_of_an_arm_are_called_different_in_5_percent():
    """The seeds of one arm, dealt to two names."""
    rng = np.random.default_rng(1)
    seeds = 10
    different = 0
    for _ in range(SIMULATIONS):
        values = rng.normal(0.9, SPREAD, 2 * seeds)
        halves = {"a": values[:seeds], "b": values[seeds:]}
        results = {
            arm: {
                seed: {METRIC: repr(float(value))}
                for seed, value in zip(published_seeds(seeds), half, strict=True)
            }
            for arm, half in halves.items()
        }
        (judged,) = judge_claim(make_claim(DIFFERENCE, seeds), results)
        different += judged.verdict in ("PASS", "FAIL")
    assert different / SIMULATIONS == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("seeds", SEEDS_IN_USE)
def test_the_smallest_difference_that_a_plan_may_state_is_found(seeds):
    """In 77 % or more; `delta` is what these seeds find with power 0.8."""
    delta = next(
        ratio * SPREAD for ratio in np.arange(0.3, 20, 0.01) if seeds_to_detect(ratio, 1.0) <= seeds
    )
    rng = np.random.default_rng(seeds)
    verdicts = [simulate(DIFFERENCE, seeds, delta, rng) for _ in range(SIMULATIONS)]
    assert verdicts.count("PASS") / SIMULATIONS >= 0.77


def test_equal_arms_are_shown_to_be_equivalent():
    seeds = seeds_for_equivalence(EQUIVALENCE.within, SPREAD)
    rng = np.random.default_rng(2)
    verdicts = [simulate(EQUIVALENCE, seeds, 0.0, rng) for _ in range(SIMULATIONS)]
    assert verdicts.count("PASS") / SIMULATIONS >= 0.77
    verdicts = [simulate(EQUIVALENCE, seeds, EQUIVALENCE.within, rng) for _ in range(SIMULATIONS)]
    assert verdicts.count("PASS") / SIMULATIONS <= 0.06


def make_results(**arms):
    """Return rows as read from a CSV file, with test accuracies by arm and seed."""
    return {
        arm: {seed: {METRIC: str(accuracy)} for seed, accuracy in by_seed.items()}
        for arm, by_seed in arms.items()
    }


def test_differences_are_paired_by_seed():
    a = {0: 0.90, 1: 0.95, 2: 0.85}
    b = {0: 0.88, 1: 0.93, 3: 0.99}  # seeds 2 and 3 have no partner
    measured = measure(Expectation("a", METRIC, "b", above=0.01), make_results(a=a, b=b))
    assert (measured.n, round(measured.mean, 12), measured.std) == (2, 0.02, 0.0)


def test_arms_are_added():
    first = {"a": 0.5, "b": 0.4, "c": 0.3, "d": 0.1}
    results = make_results(**{arm: {0: value, 1: value + 0.1} for arm, value in first.items()})
    expectation = Expectation("a + d", METRIC, "b + c", above=0)
    assert measure(expectation, results).mean == pytest.approx(-0.1)
    assert str(expectation) == "a + d - (b + c), test/acc: above 0"


def test_there_is_no_verdict_before_all_planned_runs_are_done():
    claim = make_claim(DIFFERENCE, seeds=2)
    done = {1000: 0.9, 1001: 0.91}
    assert judge_claim(claim, make_results(a=done, b={1000: 0.8})) == []
    pilots = {0: 0.1, 1: 0.2}
    assert judge_claim(claim, make_results(a=done, b=pilots)) == []
    more = {**done, **pilots, 1002: 0.0}  # neither pilots nor further seeds count
    (judged,) = judge_claim(claim, make_results(a=more, b={1000: 0.8, 1001: 0.81}))
    assert (judged.measured.n, judged.verdict) == (2, "PASS")


def test_there_is_no_verdict_if_a_run_has_no_number():
    claim = make_claim(DIFFERENCE, seeds=3)
    ours = {1000: 0.9, 1001: 0.91, 1002: math.nan}
    results = make_results(a=ours, b={1000: 0.8, 1001: 0.81, 1002: 0.8})
    (judged,) = judge_claim(claim, results)
    assert judged.verdict == "no verdict: 2 of 3 are numbers"
