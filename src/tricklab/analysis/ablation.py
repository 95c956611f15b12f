"""An ablation: the tricks of a recipe added one after the other, and each left out of all."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

from tricklab.analysis.page import Table
from tricklab.analysis.recipes import Arms, Recipe, Results, make_recipe
from tricklab.analysis.statistics import (
    Summary,
    compare_paired,
    format_interval,
    format_number,
    format_p,
    holm_correction,
    minimum_detectable_effect,
    summarise,
)
from tricklab.cli.config import CONF
from tricklab.errors import UserError
from tricklab.files import read_yaml

METRIC = "test/acc"
Paper = Mapping[str, float | Sequence[float]]  # accuracies in %, or with that of before the trick
COMPARISON = ("95 % interval", "p (Holm)")
HEADER = ("trick", METRIC, "added in turn", *COMPARISON, "left out of all", *COMPARISON)


class Ablation(NamedTuple):
    """The runs of an ablation, its tricks in order, and what a paper has up to each of them."""

    recipe: Recipe
    tricks: list[str]
    paper: Paper


def find_tricks(name: str) -> Arms:
    """Return the overrides of each trick of an experiment; none if it has no `claim.tricks`."""
    tricks: Arms = read_section(name).get("tricks", {})
    return tricks


def read_section(name: str) -> dict[str, Any]:
    """Return `claim` in the file of an experiment, empty without one."""
    claim = read_yaml(CONF / "experiment" / f"{name}.yaml").get("claim")
    return claim if isinstance(claim, dict) else {}


def read_ablation(name: str) -> Ablation:
    """Return the ablation of an experiment. Raises UserError: it has no tricks."""
    section = read_section(name)
    tricks = section.get("tricks")
    if not tricks:
        raise UserError(f"experiment={name} has no claim.tricks. Expected e.g. fashion_tricks")
    recipe = make_recipe(name, make_arms(tricks), (METRIC,), section.get("teacher", ()))
    return Ablation(recipe, list(tricks), section.get("paper", {}))


def make_arms(tricks: Arms) -> dict[str, list[str]]:
    """Return the overrides without tricks, up to each of them, and of all but each of them."""
    names = list(tricks)
    chosen: dict[str, list[str]] = {"none": []}
    for i, name in enumerate(names):
        chosen[f"to_{name}"] = names[: i + 1]
    for name in names:
        chosen[f"no_{name}"] = [other for other in names if other != name]
    return {
        arm: [override for name in of_arm for override in tricks[name]]
        for arm, of_arm in chosen.items()
    }


def compare_arms(tricks: Sequence[str], results: Results) -> list[Summary]:
    """Return the differences, paired by seed, that each trick makes.

    First each trick in turn against those before it, then all tricks against all but each.
    """
    values = {
        arm: {seed: float(row[METRIC]) for seed, row in rows.items()}
        for arm, rows in results.items()
    }
    turns = pairwise(["none", *(f"to_{name}" for name in tricks)])
    pairs = [(after, before) for before, after in turns]
    pairs += [(f"to_{tricks[-1]}", f"no_{name}") for name in tricks]
    return [compare_paired(values[ours], values[theirs]) for ours, theirs in pairs]


def ablation_table(
    tricks: Sequence[str], results: Results, paper: Paper = MappingProxyType({})
) -> Table:
    """Return a row for each trick; p-values are corrected for all comparisons in the table.

    The last column, if there is a `paper`, is its accuracy in %, and what the trick added there.
    """
    differences = compare_arms(tricks, results)
    tested = [i for i, difference in enumerate(differences) if not math.isnan(difference.p)]
    corrected = holm_correction([differences[i].p for i in tested])
    p_values = dict(zip(tested, corrected, strict=True))
    cells = [
        [
            format_number(difference.mean, "+"),
            format_interval(difference),
            format_p(p_values.get(i, math.nan)),
        ]
        for i, difference in enumerate(differences)
    ]
    rows = [list(HEADER), ["none", mean_accuracy(results, "none"), *[""] * 6]]
    for i, name in enumerate(tricks):
        accuracy = mean_accuracy(results, f"to_{name}")
        rows.append([f"+ {name}", accuracy, *cells[i], *cells[len(tricks) + i]])
    if not paper:
        return rows
    column = ["paper, %", *paper_column(["none", *tricks], paper)]
    return [[*row, cell] for row, cell in zip(rows, column, strict=True)]


def paper_column(names: Sequence[str], paper: Paper) -> list[str]:
    """Return accuracies with their gains, "" where the paper has none.

    The gain is over the accuracy of the trick before, or over the second number of a pair.
    """
    cells = []
    before = math.nan
    for name in names:
        value = paper.get(name, math.nan)
        if not isinstance(value, int | float):
            value, before = value
        cell = "" if math.isnan(value) else f"{value:.2f}"
        gain = value - before
        cells.append(cell if math.isnan(gain) else f"{cell} ({gain:+.2f})")
        before = value
    return cells


def mean_accuracy(results: Results, arm: str) -> str:
    """Return the mean over the seeds, "" without one."""
    accuracies = [float(row[METRIC]) for row in results[arm].values()]
    return format_number(summarise(accuracies).mean) if accuracies else ""


def describe_power(tricks: Sequence[str], results: Results) -> str:
    """Return the smallest difference that so many seeds detect with power 0.8.

    For a single comparison, and for the smallest p-value of all comparisons (Holm).
    """
    differences = [summary for summary in compare_arms(tricks, results) if summary.n > 1]
    if not differences:
        return "no two seeds are done"
    n = min(summary.n for summary in differences)
    comparisons = len(differences)
    variance = math.fsum(summary.std**2 for summary in differences) / comparisons
    std = math.sqrt(variance)
    alone = std * minimum_detectable_effect(n, 0.05)
    corrected = std * minimum_detectable_effect(n, 0.05 / comparisons)
    return (
        f"{n} seeds: std of the differences {std:.4f}; detectable with power 0.8: "
        f"{alone:.4f} in one comparison, {corrected:.4f} in {comparisons}"
    )
