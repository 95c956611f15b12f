"""Draw the rate of every step of a run, without training: plan.csv, plan.png and a chart in the terminal.

python scripts/plan.py [scheduler=cosine scheduler.warmup=5ep ...]       overrides as for train.py
python scripts/plan.py scheduler=step,cosine,linear                     several plans in one picture
"""

import csv
import itertools
import math
import string
import sys
import textwrap
from pathlib import Path

from omegaconf import DictConfig

from tricklab.cli import overrides
from tricklab.cli.compose import compose_each
from tricklab.cli.launch import launch
from tricklab.run.build import build_data, build_trainer
from tricklab.run.experiment import quiet_lightning
from tricklab.run.plan import make_plan

WIDTH, HEIGHT = 76, 15  # characters of the chart
TOGETHER = 6  # curves that one picture still shows apart
Rates = dict[str, list[float]]  # of each step, by name


def main() -> None:
    configs = compose_each(sys.argv[1:])
    rates, notes = {}, []
    for label, config in configs.items():
        for column, values in planned(config).items():
            rates[column if len(configs) == 1 else f"{label}{column[2:]}"] = values
            notes.append(note(config, values))
    folder = Path(next(iter(configs.values())).hydra.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "plan.csv").open(
        "w", newline="", encoding="utf-8"
    ) as file:  # a shorter plan has empty cells
        rows = enumerate(itertools.zip_longest(*rates.values(), fillvalue=""))
        csv.writer(file, lineterminator="\n").writerows(
            [["step", *rates], *([t, *row] for t, row in rows)]
        )
    draw(rates, folder / "plan.png", overrides.title() or next(iter(configs)))
    print(chart(rates, notes))
    print(f"{folder}/plan.csv, {folder}/plan.png")


def planned(config: DictConfig) -> Rates:
    """Return the rate of each step, and that of the body where it has another."""
    quiet_lightning()
    config.logger, config.callbacks = {}, {}
    ranks = build_trainer(config, Path()).world_size
    made = make_plan(config, build_data(config), ranks)
    parts = {"lr": made.multiplier, "lr_body": made.backbone_multiplier}
    return {name: [made.lr * f(t) for t in range(made.last_step)] for name, f in parts.items() if f}


def note(config: DictConfig, rates: list[float]) -> str:
    """Say what a plan amounts to: some rates, their sum, and what weight decay leaves of a weight without a gradient.

    That is the product of 1 - rate * decay over all steps: exact where the decay is decoupled (AdamW, penalty=decay),
    while SGD's momentum m makes it about 1 / (1 - m) times as strong.
    """
    from tricklab.run.plan import total_decay

    momentum, decay = config.optimizer.get("momentum", 0.0), total_decay(config)
    figures = (
        f"first {rates[0]:.4g}, peak {max(rates):.4g}, last {rates[-1]:.4g}, sum {sum(rates):.4g}"
    )
    learns = (
        "; lower when val/loss no longer falls"
        if config.scheduler._target_.endswith(".plateau")
        else ""
    )
    left = math.prod(1 - rate * decay for rate in rates)
    return f"{len(rates)} steps, {figures}, weight decay leaves {'about ' if momentum else ''}{left:.4g}{learns}"


def draw(rates: Rates, path: Path, title: str) -> None:
    """Draw the curves into one picture, or each into its own where there are many."""
    from matplotlib import pyplot

    rows, columns = (math.ceil(len(rates) / 4), 4) if len(rates) > TOGETHER else (1, 1)
    figure = pyplot.figure(
        figsize=(8, 4.5 if rows == 1 else 1.6 * rows + 0.5), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, (name, values) in zip(itertools.cycle(grid), rates.items(), strict=False):
        axes.plot(values, label=name, drawstyle="steps-post")
        axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        if rows > 1:
            axes.set_title(name, fontsize=8)
    for axes in grid[len(rates) :]:
        axes.axis("off")
    figure.supxlabel("optimizer step", fontsize=9)
    figure.supylabel("learning rate", fontsize=9)
    figure.suptitle("\n".join(textwrap.wrap(title.replace(",", ", "), 100)), fontsize=9)
    if rows == 1:
        grid[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def chart(rates: Rates, notes: list[str]) -> str:
    """Draw the curves with a letter each, from 0 to the highest rate; below it a note on each."""
    longest, peak = max(map(len, rates.values())), max(map(max, rates.values())) or 1.0
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    marks = dict(zip(rates, itertools.cycle(string.ascii_lowercase), strict=False))
    for (name, values), x in itertools.product(rates.items(), range(WIDTH)):
        if (t := round(x * (longest - 1) / (WIDTH - 1))) < len(values):
            grid[HEIGHT - 1 - round(values[t] / peak * (HEIGHT - 1))][x] = marks[name]
    lines = [
        f"{peak * (HEIGHT - 1 - y) / (HEIGHT - 1):9.3g} |" + "".join(row)
        for y, row in enumerate(grid)
    ]
    axis = " " * 10 + "+" + "-" * WIDTH + f"\n{0:>12}{longest - 1:>{WIDTH - 1}}"
    legend = [f"  {marks[name]}  {name}: {said}" for name, said in zip(rates, notes, strict=True)]
    return "\n".join([*lines, axis, *legend])


if __name__ == "__main__":
    launch(main, __doc__)
