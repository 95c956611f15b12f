"""Recall of each class: the best configuration of a sweep against another, paired by seed."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tricklab.analysis.configurations import Configurations, Replicates, rank_on_validation
from tricklab.analysis.differences import correct_p_values, has_all_seeds
from tricklab.analysis.page import Section
from tricklab.analysis.results import parse_numbers
from tricklab.analysis.statistics import (
    Bounds,
    Summary,
    compare_paired,
    format_interval,
    format_number,
    format_p,
)
from tricklab.files import UnreadableError, read_table

MAX_CLASSES = 20  # of which all are listed
MAX_CHANGES = 10  # gains, and losses, that are listed of more classes
CLASS_HEADER = ("class", "pairs", "difference", "95 % interval", "p (Holm)")
DIFFERENCE_BOUNDS: Bounds = (-1.0, 1.0)  # of a recall


def class_section(
    configurations: Configurations, metric: str, baseline: str, incomplete: bool
) -> list[Section]:
    """Compare the recall of each class of the best configuration on validation with the baseline.

    Where the baseline is the best itself, it is compared with the second. There is no p-value where
    one of the two lacks a seed, unless `incomplete`; no section without `classes.csv` in both.
    """
    best, other = choose_pair(rank_on_validation(configurations, metric), baseline)
    if not other:
        return []
    differences = compare_recall(configurations[best], configurations[other])
    comparable = incomplete or has_all_seeds(configurations, best, other, metric)
    p_values = correct_p_values(differences) if comparable else {}
    shown = select_largest(differences)
    if not shown:
        return []
    heading = f"Recall of each class: {best} against {other}"
    if len(shown) < len(differences):
        count = f"{len(shown)} of {len(differences)} classes"
        heading = f"Largest differences of recall, {count}: {best} against {other}"
    rows = [list(CLASS_HEADER)]
    rows += [format_class(name, differences[name], p_values.get(name, math.nan)) for name in shown]
    return [Section(heading, rows)]


def choose_pair(ranking: Sequence[str], baseline: str) -> tuple[str, str]:
    """Return the best label, and the baseline or else the second; "" where there is none."""
    best, second = [*ranking[:2], "", ""][:2]
    return (best, second) if best in ("", baseline) else (best, baseline)


def compare_recall(ours: Replicates, theirs: Replicates) -> dict[str, Summary]:
    """Return the difference of the recall of each class of which both have pairs."""
    our_recall, their_recall = recall_by_class(ours), recall_by_class(theirs)
    differences = {}
    for name, recall in our_recall.items():
        difference = compare_paired(recall, their_recall.get(name, {}))
        if difference.n:
            differences[name] = difference
    return differences


def recall_by_class(replicates: Replicates) -> dict[str, dict[str, float]]:
    """Return the recall of the finished runs by class and seed, in the order of the classes."""
    by_class: dict[str, dict[str, float]] = {}
    for seed, run in replicates.items():
        if run.done:
            for name, recall in read_recall(run.folder / "classes.csv").items():
                by_class.setdefault(name, {})[seed] = recall
    return by_class


def read_recall(path: Path) -> dict[str, float]:
    """Return the recall of each class in a `classes.csv`; none if it is missing or damaged."""
    try:
        rows = read_table(path)
    except UnreadableError:
        return {}
    recalls = {row.get("class", ""): parse_numbers(row).get("recall", math.nan) for row in rows}
    return {name: recall for name, recall in recalls.items() if 0 <= recall <= 1}


def select_largest(differences: Mapping[str, Summary]) -> list[str]:
    """Return all classes; of more than `MAX_CLASSES` the largest gains, then losses."""
    if len(differences) <= MAX_CLASSES:
        return list(differences)
    ordered = sorted(differences, key=lambda name: -differences[name].mean)
    gains = [name for name in ordered if differences[name].mean > 0]
    losses = [name for name in ordered if differences[name].mean < 0]
    return gains[:MAX_CHANGES] + losses[-MAX_CHANGES:]


def format_class(name: str, difference: Summary, p: float) -> list[str]:
    mean = format_number(difference.mean, "+")
    interval = format_interval(difference, DIFFERENCE_BOUNDS)
    return [name, str(difference.n), mean, interval, format_p(p)]
