"""Learning rates of planned runs: summary, table, figure and a chart for the terminal."""

import csv
import io
import itertools
import math
import string
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from omegaconf import DictConfig

from tricklab.run.build import build_data, build_trainer
from tricklab.run.plan import make_plan, total_decay

CHART_WIDTH, CHART_HEIGHT = 76, 15  # characters
MAX_CURVES = 6  # in one plot
SUBPLOT_COLUMNS = 4  # if there are more curves
LearningRates = dict[str, list[float]]  # at each step, by name


def plan_each(configs: Mapping[str, DictConfig]) -> tuple[LearningRates, list[str]]:
    """Return the LRs of several configs by label, and a summary of each curve."""
    lrs: LearningRates = {}
    summaries = []
    for label, config in configs.items():
        for name, values in plan_learning_rates(config).items():
            suffix = name.removeprefix("lr")
            lrs[name if len(configs) == 1 else f"{label}{suffix}"] = values
            summaries.append(summarize(config, values))
    return lrs, summaries


def plan_learning_rates(config: DictConfig) -> LearningRates:
    """Return `lr`, and `lr_body` if the backbone has an LR of its own."""
    config.logger, config.callbacks = {}, {}
    ranks = build_trainer(config, Path()).world_size
    plan = make_plan(config, build_data(config), ranks)
    curves = {"lr": plan.multiplier, "lr_body": plan.backbone_multiplier}
    steps = range(plan.last_step)
    return {
        name: [plan.lr * multiplier(step) for step in steps]
        for name, multiplier in curves.items()
        if multiplier
    }


def summarize(config: DictConfig, lrs: Sequence[float]) -> str:
    """Return the number of steps, some LRs and their sum, and the effect of weight decay.

    That is the fraction of a weight that is left if its gradient is 0: the product over all steps
    of 1 - lr * decay, in the head with `layer_decay`. It is exact for decoupled decay (AdamW,
    penalty=decay); the momentum m of SGD makes the decay about 1 / (1 - m) times as strong.
    """
    decay = total_decay(config)
    remaining = math.prod(1 - lr * decay for lr in lrs)
    about = "about " if config.optimizer.get("momentum", 0.0) else ""
    also = ", also of biases and norms," if config.optimizer.get("decay_all") else ""
    parts = [
        f"{len(lrs)} steps",
        f"first {lrs[0]:.4g}",
        f"peak {max(lrs):.4g}",
        f"last {lrs[-1]:.4g}",
        f"sum {sum(lrs):.4g}",
        f"weight decay{also} leaves {about}{remaining:.4g}",
    ]
    is_plateau = config.scheduler._target_.endswith(".plateau")
    plateau_note = "; lower when val/loss no longer falls" if is_plateau else ""
    layer_decay = config.optimizer.get("layer_decay", 1.0)
    layer_note = f"; in layer i of L times {layer_decay} ** (L - i)" if layer_decay < 1 else ""
    return ", ".join(parts) + plateau_note + layer_note


def format_csv(lrs: LearningRates) -> str:
    """Return a table with a row for each step; the cells of a shorter plan are empty."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["step", *lrs])
    for step, row in enumerate(itertools.zip_longest(*lrs.values(), fillvalue="")):
        writer.writerow([step, *row])
    return table.getvalue()


def draw_plans(lrs: LearningRates, path: Path, title: str) -> None:
    """Draw the LRs into one plot, or into one each if there are many."""
    rows, columns = 1, 1
    size = (8.0, 4.5)
    if len(lrs) > MAX_CURVES:
        rows, columns = math.ceil(len(lrs) / SUBPLOT_COLUMNS), SUBPLOT_COLUMNS
        size = (8.0, 4.5 if rows == 1 else 1.6 * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (name, values) in zip(itertools.cycle(grid), lrs.items(), strict=False):
        axes.plot(values, label=name, drawstyle="steps-post")
        axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        if rows > 1:
            axes.set_title(name, fontsize=8)
    for axes in grid[len(lrs) :]:
        axes.axis("off")
    figure.supxlabel("optimizer step", fontsize=9)
    figure.supylabel("learning rate", fontsize=9)
    figure.suptitle("\n".join(textwrap.wrap(title.replace(",", ", "), 100)), fontsize=9)
    if rows == 1:
        grid[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def format_chart(lrs: LearningRates, summaries: Sequence[str]) -> str:
    """Return a chart of the LRs in characters, a letter for each curve, and their summaries."""
    last_step = max(map(len, lrs.values())) - 1
    peak = max(map(max, lrs.values())) or 1.0
    letters = itertools.cycle(string.ascii_lowercase)
    marks = dict(zip(lrs, letters, strict=False))
    grid = [[" "] * CHART_WIDTH for _ in range(CHART_HEIGHT)]
    for name, values in lrs.items():
        for x in range(CHART_WIDTH):
            step = round(x * last_step / (CHART_WIDTH - 1))
            if step < len(values):
                height = round(values[step] / peak * (CHART_HEIGHT - 1))
                grid[CHART_HEIGHT - 1 - height][x] = marks[name]
    lines = []
    for y, row in enumerate(grid):
        lr = peak * (CHART_HEIGHT - 1 - y) / (CHART_HEIGHT - 1)
        lines.append(f"{lr:9.3g} |" + "".join(row))
    lines.append(" " * 10 + "+" + "-" * CHART_WIDTH)
    lines.append(f"{0:>12}{last_step:>{CHART_WIDTH - 1}}")
    for name, summary in zip(lrs, summaries, strict=True):
        lines.append(f"  {marks[name]}  {name}: {summary}")
    return "\n".join(lines)
