"""Claims of papers: the expected result, the measured one with its interval, and a verdict.

A claim is a file in `conf/experiment/claims`: an experiment, its arms, and expectations about them.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tricklab.analysis.recipes import (
    Recipe,
    Results,
    Row,
    load_results,
    make_recipe,
    update_results,
)
from tricklab.analysis.statistics import (
    Bounds,
    Summary,
    format_number,
    format_seeds,
    required_seeds,
    summarise,
)
from tricklab.cli.config import CONF, description, list_options
from tricklab.cli.messages import unknown_name
from tricklab.errors import UserError
from tricklab.files import read_yaml

CLAIMS = CONF / "experiment" / "claims"
HEADER = ("claim", "expected", "measured (95 % interval)", "verdict", "seeds", "minutes", "date")


class Expectation(NamedTuple):
    """Bounds of the mean of a metric over the seeds, of an arm or of a difference of arms.

    `of` and `than` (subtracted) are names of arms, or sums of arms: "a + b". `within` are bounds on
    both sides of 0.
    """

    of: str
    metric: str
    than: str = ""
    above: float = -math.inf
    below: float = math.inf
    within: float = math.inf

    def __str__(self) -> str:
        quantity = self.of
        if self.than:
            quantity += f" - ({self.than})" if " + " in self.than else f" - {self.than}"
        limits = {"above ": self.above, "below ": self.below, "within ±": self.within}
        finite = [f"{name}{limit:g}" for name, limit in limits.items() if math.isfinite(limit)]
        return f"{quantity}, {self.metric}: {' and '.join(finite)}"

    @property
    def signs(self) -> dict[str, float]:
        """The sign of each arm: 1 or -1."""
        added = dict.fromkeys(self.of.split(" + "), 1.0)
        subtracted = dict.fromkeys(filter(None, self.than.split(" + ")), -1.0)
        return added | subtracted

    @property
    def bounds(self) -> Bounds:
        return max(self.above, -self.within), min(self.below, self.within)


class Claim(NamedTuple):
    """A claim as its file states it; `minutes` are estimated for all runs on two cores."""

    recipe: Recipe
    statement: str
    expectations: list[Expectation]
    seeds: int
    minutes: float


def read_claim(name: str) -> Claim:
    """Read the file of a claim. Raises UserError: a key is missing or unknown, or an arm is."""
    path = CLAIMS / f"{name}.yaml"
    try:
        content: Any = read_yaml(path)["claim"]
        expectations = [Expectation(**entry) for entry in content["expect"]]
        metrics = list(dict.fromkeys(expectation.metric for expectation in expectations))
        teacher = content.get("teacher", ())
        recipe = make_recipe(f"claims/{name}", content["arms"], metrics, teacher)
        seeds, minutes = content["seeds"], content["minutes"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}. Expected the keys of the claims beside it") from error
    named = {arm for expectation in expectations for arm in expectation.signs}
    if missing := named - recipe.arms.keys():
        raise UserError(f"{path}: {unknown_name(min(missing), min(missing), recipe.arms)}")
    return Claim(recipe, description(path), expectations, seeds, minutes)


def judge(expectation: Expectation, results: Results) -> list[str]:
    """Return the expectation, the measured value with its interval, and the verdict, as text."""
    signs, metric = expectation.signs, expectation.metric
    seeds = set.intersection(*(set(results[arm]) for arm in signs))
    if not seeds:
        return [str(expectation), "", "not run"]
    terms = {
        seed: [sign * float(results[arm][seed][metric]) for arm, sign in signs.items()]
        for seed in seeds
    }
    scale = max(abs(term) for of_seed in terms.values() for term in of_seed)
    measured = summarise([sum(of_seed) for of_seed in terms.values()], scale)
    value = format_number(measured.mean, "+" if expectation.than else "")
    if measured.n > 1:
        low, high = measured.interval()
        value += f" ({format_number(low)} to {format_number(high)})"
    return [str(expectation), value, verdict(measured, expectation.bounds)]


def verdict(measured: Summary, bounds: Bounds) -> str:
    """Return PASS if the 95 % interval lies within the bounds, FAIL if it lies outside.

    Else INCONCLUSIVE, with the seeds at which the mean would differ from the nearer bound.
    """
    low, high = measured.interval()
    if low > bounds[0] and high < bounds[1]:
        return "PASS"
    if high <= bounds[0] or low >= bounds[1]:
        return "FAIL"
    if measured.n < 2:
        return f"INCONCLUSIVE, needs {format_seeds(2)}"
    nearer = min(bounds, key=lambda bound: abs(measured.mean - bound))
    seeds = required_seeds(measured._replace(mean=measured.mean - nearer))
    return f"INCONCLUSIVE, needs {format_seeds(seeds)}" if seeds else "INCONCLUSIVE"


def claims_table(collect: bool = True) -> list[list[str]]:
    """Return the table of all claims; `collect`: with finished runs that have no row yet."""
    table = [list(HEADER)]
    for name in list_options(CLAIMS):
        claim = read_claim(name)
        find_results = update_results if collect else load_results
        table += claim_rows(name, claim, find_results(claim.recipe, claim.seeds))
    return table


def claim_rows(name: str, claim: Claim, results: Results) -> list[list[str]]:
    """Return a row with the statement of a claim, and one for each of its expectations."""
    rows = [row for by_seed in results.values() for row in by_seed.values()]
    seeds = str(min(map(len, results.values())))
    date = max((row["date"] for row in rows), default="")
    minutes = f"{measured_minutes(rows) if rows else claim.minutes:.0f}"
    header = [f"`{name}`", claim.statement, "", "" if rows else "not run", seeds, minutes, date]
    if not rows:
        return [header]
    return [header, *(["", *judge(each, results), "", "", ""] for each in claim.expectations)]


def measured_minutes(rows: Sequence[Row]) -> float:
    """Return the minutes of all runs together."""
    return math.fsum(float(row["seconds"]) for row in rows) / 60
