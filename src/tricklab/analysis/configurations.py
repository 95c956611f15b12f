"""The runs of a sweep grouped by configuration, and main effects."""

import math
from collections.abc import Mapping, Sequence

from tricklab.analysis.results import Run
from tricklab.analysis.statistics import UNBOUNDED, Bounds, Summary, summarise
from tricklab.sweep import REPLICATES

WITHIN_0_AND_1 = ("acc", "ece", "aurc", "f1", "balanced")  # first parts of metric names

Replicates = dict[str, Run]  # by seed, or by seed and fold
Configurations = dict[str, Replicates]  # by label
Effects = dict[str, dict[str, Summary]]  # by option and value


def find_varied(runs: Sequence[Run]) -> list[str]:
    """Return the options whose values differ between the runs, replicates (seeds) apart."""
    keys = dict.fromkeys(key for run in runs for key in run.options if key not in REPLICATES)
    return [key for key in keys if len({run.options.get(key) for run in runs}) > 1]


def group_runs(runs: Sequence[Run], varied: Sequence[str]) -> Configurations:
    """Group the runs by configuration, and within it by seed and fold."""
    configurations: Configurations = {}
    for run in runs:
        chosen = [f"{key}={run.options[key]}" for key in varied if key in run.options]
        replicate = [
            run.options.get(key, "0") for key in REPLICATES if key in run.options or key == "seed"
        ]
        label = " ".join(chosen) or "base"
        configurations.setdefault(label, {})[", ".join(replicate)] = run
    return configurations


def metric_by_seed(replicates: Mapping[str, Run], metric: str) -> dict[str, float]:
    """Return a metric of the finished runs that have it."""
    return {
        seed: run.metrics[metric]
        for seed, run in replicates.items()
        if run.done and metric in run.metrics
    }


def rank_on_validation(configurations: Configurations, metric: str) -> list[str]:
    """Return the labels by mean validation accuracy, the highest first.

    Only configurations with the most seeds are considered: the mean of few may be high by chance.
    """
    counts = {label: len(metric_by_seed(runs, metric)) for label, runs in configurations.items()}
    most = max(counts.values())
    means = {}
    for label, runs in configurations.items():
        scores = metric_by_seed(runs, "val/acc")
        if scores and counts[label] == most > 0:
            means[label] = summarise(scores.values()).mean
    return sorted(means, key=lambda label: -means[label])


def metric_bounds(metric: str) -> Bounds:
    """Return the range of a metric: 0 to 1 for accuracies, unbounded for losses."""
    name = metric.rpartition("/")[2].removesuffix("_t").partition("_")[0]
    return (0.0, 1.0) if name in WITHIN_0_AND_1 else UNBOUNDED


def mean_seconds(replicates: Mapping[str, Run]) -> float:
    seconds = [run.seconds for run in replicates.values() if run.done]
    return math.fsum(seconds) / len(seconds) if seconds else math.nan


def main_effects(runs: Sequence[Run], varied: Sequence[str], metric: str) -> Effects:
    """Average over all other options, for each value of each option.

    Empty unless every run is done and sets every option: else the averages would be over different
    other options.
    """
    if not all(run.done and run.options.keys() >= set(varied) for run in runs):
        return {}
    effects: Effects = {}
    for key in varied:
        by_value: dict[str, list[float]] = {}
        for run in runs:
            values = by_value.setdefault(run.options[key], [])
            if metric in run.metrics:
                values.append(run.metrics[metric])
        effects[key] = {value: summarise(values) for value, values in by_value.items()}
    return effects
