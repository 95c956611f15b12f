"""The report of a sweep: each configuration over its seeds, and the differences to a baseline."""

import csv
import io
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tricklab.analysis.classes import class_section
from tricklab.analysis.configurations import (
    Configurations,
    Effects,
    Replicates,
    find_varied,
    group_runs,
    main_effects,
    mean_seconds,
    metric_bounds,
    metric_by_seed,
    rank_on_validation,
)
from tricklab.analysis.differences import difference_table
from tricklab.analysis.latex import to_latex
from tricklab.analysis.links import link_runs
from tricklab.analysis.page import Section, Table, to_html, to_markdown
from tricklab.analysis.results import Run, read_numbers, read_sweep
from tricklab.analysis.statistics import format_interval, format_number, summarise
from tricklab.cli.escape import for_csv
from tricklab.cli.messages import unknown_name
from tricklab.errors import UserError, nearest
from tricklab.files import write_text
from tricklab.sweep import REPLICATES

MAIN_HEADER = ("configuration", "n", "mean", "sd", "95 % interval", "seconds")
CSV_HEADER = ("configuration", "n", "of", "mean", "sd", "low", "high", "seconds")
CLASS_METRICS = ("test/balanced_acc", "test/f1_macro")  # shown beside the metric
NOTICEABLE = 0.01  # difference to the accuracy from which the page shows them


class Report(NamedTuple):
    """A report of a sweep and what it is drawn from."""

    title: str
    metric: str
    sections: list[Section]
    configurations: Configurations
    effects: Effects


def make_report(folder: Path, metric: str, baseline: str = "", incomplete: bool = False) -> Report:
    """Compare the configurations of a sweep by a metric.

    `baseline` is the label of a configuration, by default the first. `incomplete`: compare with the
    baseline also where seeds are missing, on those that both have. Raises UserError: there is no
    such sweep, metric or baseline.
    """
    runs = read_sweep(folder)
    metrics = {name for run in runs for name in run.metrics}
    if metrics and metric not in metrics:
        raise UserError(unknown_name(f"metric={metric}", metric, metrics))
    varied = find_varied(runs)
    configurations = group_runs(runs, varied)
    effects = main_effects(runs, varied, metric)
    baseline = choose_baseline(configurations, baseline)
    links = link_runs(folder, configurations)
    sections = [Section("", main_table(configurations, metric), links=links)]
    if len(configurations) > 1:
        table = difference_table(configurations, metric, baseline, incomplete)
        sections.append(Section(f"Differences to {baseline}", table))
    if len(varied) > 1:
        sections += effect_sections(effects, metric)
    sections += best_section(configurations, metric)
    sections += class_section(configurations, metric, baseline, incomplete)
    sections += left_out_section(folder, runs)
    title = f"{metric}{describe_images(runs)}"
    return Report(title, metric, sections, configurations, effects)


def choose_baseline(configurations: Configurations, label: str) -> str:
    """Return a label, or "" as the first one. Raises UserError: there is no such configuration."""
    label = label or next(iter(configurations))
    if label not in configurations:
        hint = nearest(label, configurations)
        raise UserError(f"baseline={label}; allowed: {', '.join(configurations)}.{hint}")
    return label


def write_report(folder: Path, report: Report) -> str:
    """Write `report.md`, `.csv`, `.tex` and `.html` into a folder; return the Markdown."""
    from tricklab.analysis.plots import RunLogs, draw_figures  # imports numpy

    logs = {
        label: [RunLogs(run.metrics, *read_logs(run)) for run in replicates.values() if run.done]
        for label, replicates in report.configurations.items()
    }
    figures = draw_figures(logs, report.effects, report.metric)
    text = to_markdown(report.title, report.sections)
    write_text(folder / "report.md", text)
    write_text(folder / "report.csv", to_csv(report.configurations, report.metric))
    write_text(folder / "report.tex", to_latex(report.title, report.sections[0].table))
    page_title = f"{folder.resolve().name}: {report.title}"
    write_text(folder / "report.html", to_html(page_title, report.sections, figures))
    return text


def read_logs(run: Run) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the rows of a run's `metrics.csv` and `calibration.csv`."""
    return read_numbers(run.folder / "metrics.csv"), read_numbers(run.folder / "calibration.csv")


def describe_images(runs: Sequence[Run]) -> str:
    """Return " on N test images" if all finished runs agree on N."""
    counts = {run.test_images for run in runs if run.done}
    return f" on {counts.pop():,} test images" if len(counts) == 1 and 0 not in counts else ""


def main_table(configurations: Configurations, metric: str) -> Table:
    """Return a row for each configuration: runs, mean, std, interval, seconds.

    Where accuracy hides rare classes, the means of `CLASS_METRICS` follow.
    """
    added = [name for name in CLASS_METRICS if name != metric and differs(configurations, name)]
    rows = [[*MAIN_HEADER, *added]]
    for label, replicates in configurations.items():
        summary = summarise(metric_by_seed(replicates, metric).values())
        seconds = mean_seconds(replicates)
        rows.append(
            [
                label,
                f"{summary.n} of {len(replicates)}",
                format_number(summary.mean),
                format_number(summary.std),
                format_interval(summary, metric_bounds(metric)),
                "" if math.isnan(seconds) else f"{seconds:.1f}",
                *(format_number(mean_metric(replicates, name)) for name in added),
            ]
        )
    return rows


def mean_metric(replicates: Replicates, metric: str) -> float:
    """Return the mean over seeds, NaN without any."""
    return summarise(metric_by_seed(replicates, metric).values()).mean


def differs(configurations: Configurations, name: str) -> bool:
    """Whether a metric differs noticeably from the test accuracy in any configuration."""
    gaps = [mean_metric(r, name) - mean_metric(r, "test/acc") for r in configurations.values()]
    return any(abs(gap) >= NOTICEABLE for gap in gaps)


def to_csv(configurations: Configurations, metric: str) -> str:
    """Return the main table as CSV, in full precision, always with the `CLASS_METRICS`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_HEADER, *CLASS_METRICS])
    for label, replicates in configurations.items():
        summary = summarise(metric_by_seed(replicates, metric).values())
        low, high = summary.interval(metric_bounds(metric))
        numbers = [summary.mean, summary.std, low, high, mean_seconds(replicates)]
        numbers += [mean_metric(replicates, name) for name in CLASS_METRICS]
        cells = ["" if math.isnan(number) else number for number in numbers]
        writer.writerow([for_csv(label), summary.n, len(replicates), *cells])
    return text.getvalue()


def effect_sections(effects: Effects, metric: str) -> list[Section]:
    sections = []
    for key, by_value in effects.items():
        rows = [["value", "n", "mean", "95 % interval"]]
        for value, summary in by_value.items():
            interval = format_interval(summary, metric_bounds(metric))
            rows.append([value, str(summary.n), format_number(summary.mean), interval])
        sections.append(Section(f"Effect of {key}", rows))
    return sections


def best_section(configurations: Configurations, metric: str) -> list[Section]:
    """Name the configuration with the highest validation accuracy and the command to repeat it."""
    ranking = rank_on_validation(configurations, metric)
    if not ranking:
        return []
    best = ranking[0]
    overrides = repeat_overrides(list(configurations[best].values()))
    command = f"python train.py -m {shlex.join(overrides)}"
    return [Section(f"Best on validation: {best}", command=command)]


def repeat_overrides(runs: Sequence[Run]) -> list[str]:
    """Return the overrides that run a configuration again, with all its seeds and folds."""
    first = runs[0]
    fixed = first.options.keys() - REPLICATES
    overrides = [text for text in first.overrides if text.lstrip("+").split("=")[0] in fixed]
    for key in REPLICATES:
        values = dict.fromkeys(run.options[key] for run in runs if key in run.options)
        if values:
            overrides.append(f"{key}={','.join(values)}")
    return overrides


def left_out_section(folder: Path, runs: Sequence[Run]) -> list[Section]:
    """List the runs that are not done, and those of earlier commands or configs in the folder."""
    rows = [[run.status, run.reason, run.folder.name] for run in runs if not run.done]
    stale = {path.parent.name for path in folder.glob("*/result.json")}
    stale -= {run.folder.name for run in runs}
    rows += [["stale", "not of the last command or config", name] for name in sorted(stale)]
    return [Section("Left out", [["status", "reason", "folder"], *rows])] if rows else []
