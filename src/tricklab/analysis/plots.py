"""The figures of a report, as SVG."""

import io
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from tricklab.analysis.page import Figure
from tricklab.analysis.statistics import Summary
from tricklab.cli.escape import for_terminal

MAX_CONFIGURATIONS = 8  # in a figure
CALIBRATION_COLUMNS = ("images", "right", "confidence")
DASHES = ("-", "--", ":", "-.")
FIGURE_SIZE = (4.5, 2.8)  # inches, without the legend
LINE_HEIGHT = 0.16  # inches of a line of a legend
LEGEND_WIDTH, OPTION_WIDTH = 60, 24  # characters of a line
GROUP = re.compile(r'(?<=<g) id="[\w.]+"')  # nothing refers to these, which all figures have


class RunLogs(NamedTuple):
    """The final metrics of a run, and the rows of its `metrics.csv` and `calibration.csv`."""

    results: Mapping[str, float]
    metrics: Sequence[Mapping[str, float]]
    calibration: Sequence[Mapping[str, float]]


Configurations = Mapping[str, Sequence[RunLogs]]  # by label, a run per seed
Effects = Mapping[str, Mapping[str, Summary]]  # by option and value


def draw_figures(configurations: Configurations, effects: Effects, metric: str) -> list[Figure]:
    """Return the figures of a report.

    The main effects, and of the best configurations on validation: learning curves, accuracy
    against calibration error, reliability diagrams and learning-rate schedules.
    """
    labelled = {plain_text(label): runs for label, runs in configurations.items() if runs}
    if not labelled:
        return []
    best = sorted(labelled, key=lambda label: -mean_validation_accuracy(labelled[label]))
    shown = {label: labelled[label] for label in best[:MAX_CONFIGURATIONS]}
    suffix = ""
    if len(labelled) > MAX_CONFIGURATIONS:
        suffix = f", best {MAX_CONFIGURATIONS} of {len(labelled)}"
    curves = f"Accuracy on validation, mean ± sd over seeds{suffix}"
    figures = [to_figure(curves, draw_curves, shown)]
    if effects:
        title = f"{metric}, mean and 95 % interval over all other options"
        figures.append(to_figure(title, partial(draw_effects, metric=metric), effects))
    titles: dict[str, Callable[[Any, Any], None]] = {
        "Accuracy against calibration error on the test set": draw_calibration_errors,
        "Reliability diagram of the test set; steps: fraction of images": draw_reliability,
        "Learning rate": draw_learning_rates,
    }
    for title, draw in titles.items():
        figures.append(to_figure(f"{title}{suffix}", draw, shown))
    return figures


def mean_validation_accuracy(runs: Sequence[RunLogs]) -> float:
    return float(np.mean([run.results.get("val/acc") or 0.0 for run in runs]))


def plain_text(text: str, width: int = LEGEND_WIDTH) -> str:
    """Return text that matplotlib draws literally: no mathematics, no control characters.

    It is broken into lines of at most `width` characters.
    """
    return "\n".join(textwrap.wrap(for_terminal(text), width)).replace("$", r"\$")


def to_figure(title: str, draw: Callable[[Any, Any], None], data: Any) -> Figure:
    """Return a figure whose SVG keeps its text as text, with the legend below."""
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=FIGURE_SIZE, layout="constrained")
        draw(axes, data)
        axes.grid(alpha=0.3)
        if labels := axes.get_legend_handles_labels()[1]:
            figure.set_figheight(figure.get_figheight() + LINE_HEIGHT * count_lines(labels))
            figure.legend(loc="outside lower left", fontsize=8, frameon=False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
        pyplot.close(figure)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    return Figure(title, GROUP.sub("", svg))


def count_lines(texts: Iterable[str]) -> int:
    return sum(text.count("\n") + 1 for text in texts)


def line_style(n: int) -> dict[str, Any]:
    """Return the style of the n-th curve: later ones are thinner, so that none hides another."""
    return {"linestyle": DASHES[n % 4], "linewidth": 3.0 - 0.25 * n, "alpha": 0.8}


def draw_curves(axes: Any, configurations: Configurations) -> None:
    """Draw validation accuracy over epochs, as mean and band of one std over the seeds."""
    for n, (label, runs) in enumerate(configurations.items()):
        epochs, means, stds = validation_curve(runs)
        axes.plot(epochs, means, label=label, **line_style(n))
        axes.fill_between(epochs, means - stds, means + stds, alpha=0.2)
    axes.set(xlabel="epoch", ylabel="accuracy")
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)


def validation_curve(runs: Sequence[RunLogs]) -> Any:
    """Return epochs (from 1), mean validation accuracies and stds over the runs, as an array."""
    by_epoch: dict[float, list[float]] = {}
    for run in runs:
        for row in run.metrics:
            if {"val/acc", "epoch"} <= row.keys():
                by_epoch.setdefault(row["epoch"] + 1, []).append(row["val/acc"])
    points = []
    for epoch, accuracies in sorted(by_epoch.items()):
        std = np.std(accuracies, ddof=min(1, len(accuracies) - 1))
        points.append((epoch, np.mean(accuracies), std))
    return np.array(points).reshape(-1, 3).T


def draw_effects(axes: Any, effects: Effects, metric: str) -> None:
    """Draw the mean for each value of an option; the interval of a single run has no width."""
    lines = 0
    for n, (key, by_value) in enumerate(effects.items()):
        known = {}
        for value, summary in by_value.items():
            if summary.n:
                known[plain_text(f"{key}={value}", OPTION_WIDTH)] = summary
        lines += count_lines(known)
        axes.errorbar(
            [summary.mean for summary in known.values()],
            list(known),
            xerr=np.nan_to_num([summary.ci_half_width for summary in known.values()]),
            fmt="o",
            capsize=3,
            color=f"C{n}",
        )
    axes.margins(y=0.1)
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    axes.set(xlabel=plain_text(metric), ylabel="option")
    height = 0.7 + 1.5 * LINE_HEIGHT * lines
    axes.figure.set_figheight(max(FIGURE_SIZE[1], height))


def draw_calibration_errors(axes: Any, configurations: Configurations) -> None:
    for label, runs in configurations.items():
        points = [
            (run.results["test/ece"], run.results["test/acc"])
            for run in runs
            if {"test/ece", "test/acc"} <= run.results.keys()
        ]
        axes.plot(*np.reshape(points, (-1, 2)).T, "o", alpha=0.6, label=label)
    axes.set(xlabel="expected calibration error (lower is better)", ylabel="accuracy")


def draw_reliability(axes: Any, configurations: Configurations) -> None:
    """Draw reliability diagrams over all seeds; steps show the fraction of images in each bin."""
    axes.plot([0, 1], [0, 1], "--", color="grey")
    for n, (label, runs) in enumerate(configurations.items()):
        images, right, confidence = sum_bins(runs)
        filled = images > 0
        style = {"alpha": 0.6, "color": f"C{n}"}
        mean_confidence = confidence[filled] / images[filled]
        axes.plot(mean_confidence, right[filled] / images[filled], "o-", label=label, **style)
        edges = np.linspace(0, 1, len(images) + 1)
        axes.stairs(images / max(images.sum(), 1), edges, **style)
    axes.set(xlabel="confidence", ylabel="accuracy; fraction of images")


def sum_bins(runs: Sequence[RunLogs]) -> Any:
    """Return images, correct ones and summed confidence of each bin over the runs, [3, bins]."""
    totals: dict[int, Any] = {}
    for run in runs:
        for i, row in enumerate(run.calibration):
            if row.keys() >= set(CALIBRATION_COLUMNS):
                values = np.array([row[column] for column in CALIBRATION_COLUMNS])
                totals[i] = totals.get(i, 0) + values
    return np.array([totals[i] for i in sorted(totals)]).reshape(-1, 3).T


def draw_learning_rates(axes: Any, configurations: Configurations) -> None:
    """Draw the learning rate of the first run of each configuration."""
    for n, (label, runs) in enumerate(configurations.items()):
        rows = [row for row in runs[0].metrics if {"lr", "step"} <= row.keys()]
        points = [(row["step"], row["lr"]) for row in rows]
        axes.plot(*np.reshape(points, (-1, 2)).T, label=label, **line_style(n))
    axes.set(xlabel="optimizer step", ylabel="learning rate")
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
