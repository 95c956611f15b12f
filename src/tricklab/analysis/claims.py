"""Claims of papers: the expected result, the measured one with its interval, and a verdict.

A claim is a file in `conf/experiment/claims`: an experiment, its arms, expectations about them, the
smallest differences that matter, and the number of seeds that follows.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tricklab.analysis.recipes import (
    Recipe,
    Results,
    load_results,
    make_recipe,
    select_seeds,
    update_results,
)
from tricklab.analysis.rows import FIRST_SEED, Row, published_seeds
from tricklab.analysis.statistics import Summary, format_seeds
from tricklab.analysis.verdicts import (
    FAIL,
    PASS,
    UNDECIDED,
    Expectation,
    format_measured,
    judge,
    measure,
    plan_seeds,
)
from tricklab.cli.config import CONF, description, list_options
from tricklab.cli.messages import unknown_name
from tricklab.errors import UserError
from tricklab.files import read_yaml

CLAIMS = CONF / "experiment" / "claims"
HEADER = ("claim", "expected", "matters", "measured", "verdict", "seeds", "minutes", "date")


class Claim(NamedTuple):
    """A claim as its file states it.

    `delta`: the smallest difference that matters, by metric. `spread`: the std over the seeds of a
    difference of two arms, or of an arm, in earlier runs. `seeds`: of each arm; they find `delta`
    with power 0.8, or show equivalence, at that spread. `minutes`: of all runs together, planned.
    """

    recipe: Recipe
    statement: str
    expectations: list[Expectation]
    delta: Mapping[str, float]
    spread: Mapping[str, float]
    seeds: int
    minutes: float

    @property
    def runs(self) -> int:
        return self.seeds * len(self.recipe.arms)


class Judged(NamedTuple):
    """An expectation with the smallest difference that matters, what was measured, the verdict."""

    expectation: Expectation
    matters: float
    measured: Summary
    verdict: str


def read_claim(name: str) -> Claim:
    """Read the file of a claim. Raises UserError: a key is missing or unknown, or an arm is."""
    path = CLAIMS / f"{name}.yaml"
    try:
        content: Any = read_yaml(path)["claim"]
        expectations = [Expectation(**entry) for entry in content["expect"]]
        metrics = list(dict.fromkeys(expectation.metric for expectation in expectations))
        teacher = content.get("teacher", ())
        recipe = make_recipe(f"claims/{name}", content["arms"], metrics, teacher)
        delta, spread = content.get("delta", {}), content["spread"]
        seeds, minutes = content["seeds"], content["minutes"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}. Expected the keys of the claims beside it") from error
    named = {arm for expectation in expectations for arm in expectation.signs}
    if missing := named - recipe.arms.keys():
        raise UserError(f"{path}: {unknown_name(min(missing), min(missing), recipe.arms)}")
    claim = Claim(recipe, description(path), expectations, delta, spread, seeds, minutes)
    for expectation in expectations:
        check_expectation(path, expectation)
        if math.isnan(what_matters(claim, expectation)):
            raise UserError(f"{path}: claim.delta lacks {expectation.metric}")
        if not what_matters(claim, expectation) > 0:
            raise UserError(f"{path}: what matters of {expectation.metric} has to be above 0")
        if expectation.metric not in spread:
            raise UserError(f"{path}: claim.spread lacks {expectation.metric}")
    return claim


def check_expectation(path: Path, expectation: Expectation) -> None:
    """Raise UserError: it expects nothing, or names an arm twice."""
    if not any(map(math.isfinite, expectation.bounds)):
        raise UserError(f"{path}: {expectation.quantity}: expected above, below or within")
    arms = [*expectation.of.split(" + "), *expectation.than.split(" + ")]
    if len(set(arms)) < len(arms):
        raise UserError(f"{path}: {expectation.quantity}: an arm is named twice")


def what_matters(claim: Claim, expectation: Expectation) -> float:
    """Return the smallest difference that matters to an expectation, NaN if it is not stated."""
    if expectation.is_equivalence:
        return expectation.within
    return claim.delta.get(expectation.metric, math.nan)


def judge_claim(claim: Claim, results: Results) -> list[Judged]:
    """Return a verdict on each expectation; none before all planned runs are done."""
    planned = published_seeds(claim.seeds)
    results = select_seeds(results, planned)
    if count_rows(results) < claim.runs:
        return []
    judged = []
    for expectation in claim.expectations:
        measured = measure(expectation, results)
        matters = what_matters(claim, expectation)
        verdict = judge(expectation, measured)
        if measured.n < claim.seeds:
            verdict = f"no verdict: {measured.n} of {claim.seeds} are numbers"
        judged.append(Judged(expectation, matters, measured, verdict))
    return judged


def count_rows(results: Results) -> int:
    return sum(map(len, results.values()))


def select_pilot(results: Results) -> Results:
    """Return the rows of small seeds, which serve to plan."""
    return {
        arm: {seed: row for seed, row in rows.items() if seed < FIRST_SEED}
        for arm, rows in results.items()
    }


def needed_seeds(claim: Claim, expectation: Expectation) -> int:
    """Return the number of seeds of each arm by the plan.

    A sum of arms spreads more than a difference of two, as all of them are independent.
    """
    spread = claim.spread[expectation.metric]
    spread *= math.sqrt(max(1.0, len(expectation.signs) / 2))
    return plan_seeds(expectation, what_matters(claim, expectation), spread)


def describe_pilot(claim: Claim, results: Results) -> list[str]:
    """Return a line for each expectation: its spread in the pilot, and the seeds by that."""
    pilot = select_pilot(results)
    lines = []
    for expectation in claim.expectations:
        measured = measure(expectation, pilot)
        if measured.n > 1:
            matters = what_matters(claim, expectation)
            seeds = plan_seeds(expectation, matters, measured.std)
            found = f"std {measured.std:.2g} of {measured.n}; {matters:g} needs"
            lines.append(f"{expectation}; {found} {format_seeds(seeds)}, planned {claim.seeds}")
    return lines


def load_claims(collect: bool = False) -> dict[str, tuple[Claim, Results]]:
    """Return all claims with their rows by name; `collect`: with finished runs without a row."""
    loaded = {}
    for name in list_options(CLAIMS):
        claim = read_claim(name)
        seeds = published_seeds(claim.seeds)
        results = update_results(claim.recipe, seeds) if collect else load_results(claim.recipe)
        loaded[name] = claim, results
    return loaded


def summarise_claims(claims: Mapping[str, tuple[Claim, Results]]) -> str:
    """Return how many verdicts there are of each kind, and the planned minutes."""
    minutes = sum(claim.minutes for claim, _ in claims.values())
    runs = sum(claim.runs for claim, _ in claims.values())
    judged = [judge_claim(claim, results) for claim, results in claims.values()]
    done = sum(map(bool, judged))
    counts = Counter(kind(each.verdict) for of_claim in judged for each in of_claim)
    parts = [f"{counts[name]} {name}" for name in (PASS, FAIL, UNDECIDED)]
    plan = f"All take {runs:,} runs, planned {minutes:,.0f} minutes together."
    return f"{plan} {done} of {len(claims)} claims have verdicts: {', '.join(parts)}."


def kind(verdict: str) -> str:
    return verdict if verdict in (PASS, FAIL) else UNDECIDED


def claims_table(claims: Mapping[str, tuple[Claim, Results]]) -> list[list[str]]:
    """Return the table of claims: their statement, then a row for each expectation."""
    table = [list(HEADER)]
    for name, (claim, results) in claims.items():
        table += claim_rows(name, claim, results)
    return table


def claim_rows(name: str, claim: Claim, results: Results) -> list[list[str]]:
    """Return a row with the statement of a claim, and one for each verdict."""
    planned = select_seeds(results, published_seeds(claim.seeds))
    rows = [row for by_seed in planned.values() for row in by_seed.values()]
    judged = judge_claim(claim, results)
    done = "" if judged else f"not run yet: {len(rows)} of {claim.runs} runs"
    minutes = measured_minutes(rows) if judged else claim.minutes
    date = max((row["date"] for row in rows), default="")
    header = [f"`{name}`", claim.statement, "", "", done, str(claim.seeds), f"{minutes:.0f}", date]
    return [header, *map(judged_row, judged)]


def judged_row(judged: Judged) -> list[str]:
    expectation, matters, measured, verdict = judged
    value = format_measured(expectation, measured)
    return ["", str(expectation), f"{matters:g}", value, verdict, "", "", ""]


def measured_minutes(rows: Sequence[Row]) -> float:
    """Return the minutes of all runs together."""
    return math.fsum(float(row["seconds"]) for row in rows) / 60


def format_judged(judged: Judged) -> str:
    """Return an expectation, what was measured and the verdict in a line."""
    expectation, _, measured, verdict = judged
    return f"{expectation}; {format_measured(expectation, measured)}; {verdict}"
