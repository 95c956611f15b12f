"""Test what papers claim: what is expected, what was measured with its interval, and a verdict.

python scripts/claims.py                             the table of all claims, from the runs that are known
python scripts/claims.py NAME [seeds=5] [slots=2]    run what was not run yet, and judge

A claim is a file in conf/experiment/claims: an experiment, its arms, and what is expected of them. Beside it stand the
results of its runs, a row each, which count as done as long as the config is the same.
"""

import math
import sys
from typing import Any, NamedTuple

from measure import Recipe, Rows, arguments, known, measure
from omegaconf import OmegaConf
from page import table
from paired import Summary, needed, number, seeds_text, summarise

from tricklab.cli import messages
from tricklab.cli.config import CONF, description, list_options
from tricklab.cli.launch import launch
from tricklab.errors import UserError

CLAIMS = CONF / "experiment" / "claims"


class Expectation(NamedTuple):
    """That a metric of an arm, or of a sum "a + b" of arms, less that of others, lies between bounds, or near 0."""

    of: str
    metric: str
    than: str = ""
    above: float = -math.inf
    below: float = math.inf
    within: float = math.inf

    def __str__(self) -> str:
        than = f"({self.than})" if " + " in self.than else self.than
        bounds = {"above ": self.above, "below ": self.below, "within ±": self.within}
        said = " and ".join(
            f"{word}{bound:g}" for word, bound in bounds.items() if math.isfinite(bound)
        )
        return f"{self.of}{' - ' * bool(than)}{than}, {self.metric}: {said}"

    @property
    def terms(self) -> dict[str, float]:
        """The sign of each arm."""
        return dict.fromkeys(self.of.split(" + "), 1.0) | dict.fromkeys(
            filter(None, self.than.split(" + ")), -1.0
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which values it lies."""
        return max(self.above, -self.within), min(self.below, self.within)


class Claim(NamedTuple):
    """A claim, and what its file says about it."""

    recipe: Recipe
    says: str
    expect: list[Expectation]
    seeds: int
    minutes: float


def main() -> None:
    if not sys.argv[1:]:
        print(table(overview(), trusted=True))
        return
    name, seeds, words = arguments(list_options(CLAIMS), lambda name: read_claim(name).seeds)
    claim = read_claim(name)
    rows = measure(claim.recipe, seeds, words)
    print(claim.says)
    for expectation in claim.expect:
        print("  " + "; ".join(judge(expectation, rows)))
    if left := sum(max(0, seeds - len(of_arm)) for of_arm in rows.values()):
        sys.exit(f"error: {left} runs are not done; the same command again goes on")


def read_claim(name: str) -> Claim:
    """Read the file of a claim. Raises UserError: it has not what a claim has."""
    path = CLAIMS / f"{name}.yaml"
    try:
        said: Any = OmegaConf.to_container(OmegaConf.load(path).claim)
        expect = [Expectation(**entry) for entry in said["expect"]]
        recipe = Recipe(
            f"claims/{name}", said["arms"], list(dict.fromkeys(e.metric for e in expect))
        )
        claim = Claim(recipe, description(path), expect, said["seeds"], said["minutes"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}; allowed: as in the claims beside it") from error
    if unknown := {arm for e in expect for arm in e.terms} - recipe.arms.keys():
        raise UserError(
            f"{path}: " + messages.unknown_name(min(unknown), min(unknown), recipe.arms)
        )
    return claim


def judge(expectation: Expectation, rows: Rows) -> list[str]:
    """Return what was expected, what was measured, and the verdict."""
    signs, metric = expectation.terms, expectation.metric
    seeds = set.intersection(*(set(rows[arm]) for arm in signs))
    if not seeds:
        return [str(expectation), "", "not run"]
    values = [
        sum(sign * float(rows[arm][seed][metric]) for arm, sign in signs.items()) for seed in seeds
    ]
    scale = max(abs(float(rows[arm][seed][metric])) for arm in signs for seed in seeds)
    measured = summarise(values, scale)
    low, high = measured.mean - measured.half, measured.mean + measured.half
    ends = f" ({number(low)} to {number(high)})" if measured.n > 1 else ""
    said = number(measured.mean, "+" if expectation.than else "") + ends
    return [str(expectation), said, verdict(measured, *expectation.bounds)]


def verdict(measured: Summary, low: float, high: float) -> str:
    """Say PASS where the interval of 95 % lies between the bounds, FAIL where it lies outside of them.

    Else INCONCLUSIVE, with the seeds that would show on which side of the nearer bound the mean lies.
    """
    if measured.mean - measured.half > low and measured.mean + measured.half < high:
        return "PASS"
    if measured.mean + measured.half <= low or measured.mean - measured.half >= high:
        return "FAIL"
    nearer = min((low, high), key=lambda bound: abs(measured.mean - bound))
    seeds = needed(measured._replace(mean=measured.mean - nearer)) if measured.n > 1 else 2
    return f"INCONCLUSIVE, {seeds_text(seeds)} would decide" if seeds else "INCONCLUSIVE"


def overview() -> list[list[str]]:
    """Return the table of all claims, from the runs that are known."""
    lines = [
        ["claim", "expected", "measured (95 % interval)", "verdict", "seeds", "minutes", "date"]
    ]
    for name in list_options(CLAIMS):
        claim = read_claim(name)
        rows = known(claim.recipe, claim.seeds)
        done = [row for of_arm in rows.values() for row in of_arm.values()]
        minutes = math.fsum(float(row["seconds"]) for row in done) / 60 if done else claim.minutes
        facts = [
            str(min(map(len, rows.values()))),
            f"{minutes:.0f}",
            max((row["date"] for row in done), default=""),
        ]
        lines.append([f"`{name}`", claim.says, "", "" if done else "not run", *facts])
        lines += [
            ["", *judge(expectation, rows), "", "", ""] for expectation in claim.expect if done
        ]
    return lines


if __name__ == "__main__":
    launch(main, __doc__)
