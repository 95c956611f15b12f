"""Draw the rate of every step of a run, without training: plan.csv, plan.png and a chart in the terminal.

python scripts/plan.py [scheduler=cosine scheduler.warmup=5ep ...]       overrides as for train.py
python scripts/plan.py scheduler=step,cosine,linear                     several plans in one picture
"""

import csv
import math
import sys
import textwrap
from pathlib import Path

from omegaconf import DictConfig

from tricklab import cli

WIDTH, HEIGHT = 76, 15  # characters of the chart
TOGETHER = 6  # curves that one picture still shows apart


def main() -> None:
    configs = cli.compose_each(sys.argv[1:])

    from tricklab.experiment import hush

    hush()
    rates, notes = {}, []
    for label, config in configs.items():
        for column, values in planned(config).items():
            rates[column if len(configs) == 1 else f"{label}{column[2:]}"] = values
            notes.append(note(config, values))
    folder = Path(next(iter(configs.values())).hydra.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    write(rates, folder / "plan.csv")
    draw(rates, folder / "plan.png", cli.title() or next(iter(configs)))
    print(chart(rates, notes))
    print(f"{folder}/plan.csv, {folder}/plan.png")


def planned(config: DictConfig) -> dict[str, list[float]]:
    """Return the rate of each step, and that of the body where it has another."""
    from tricklab.assemble import build_data, build_trainer
    from tricklab.plan import make_plan

    config.logger, config.callbacks = {}, {}
    ranks = build_trainer(config, Path()).world_size
    plan = make_plan(config, build_data(config), ranks)
    parts = {"lr": plan.multiplier, "lr_body": plan.body_multiplier}
    return {name: [plan.lr * f(t) for t in range(plan.last_step)] for name, f in parts.items() if f}


def note(config: DictConfig, rates: list[float]) -> str:
    """Say what a plan amounts to: some rates, their sum, and what weight decay leaves of a weight without a gradient.

    That is the product of 1 - rate * decay over all steps: exact where the decay is decoupled (AdamW, penalty=decay),
    while SGD's momentum m makes it about 1 / (1 - m) times as strong. Raises UserError: a step that would turn the sign
    of the weights.
    """
    inertia = config.optimizer.get("momentum", 0.0)
    decay = config.optimizer.get("weight_decay", 0.0) / (1 - min(inertia, 0.999))
    decay += config.penalty.decay.strength if "decay" in config.penalty else 0.0
    if decay * max(rates) >= 1:
        said = f"optimizer.lr={config.optimizer.lr} with optimizer.weight_decay={config.optimizer.weight_decay}"
        raise cli.UserError(f"{said}, momentum and penalty turns the sign of weights; allowed: less than 1 together")
    figures = f"first {rates[0]:.4g}, peak {max(rates):.4g}, last {rates[-1]:.4g}, sum {sum(rates):.4g}"
    learns = "; lower when val/loss no longer falls" if config.scheduler._target_.endswith(".plateau") else ""
    left = math.prod(1 - rate * decay for rate in rates)
    return f"{len(rates)} steps, {figures}, weight decay leaves {'about ' if inertia else ''}{left:.4g}{learns}"


def write(rates: dict[str, list[float]], path: Path) -> None:
    """Write a row for each step, in full precision; a shorter plan leaves its column empty at the end."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["step", *rates])
        for t in range(max(map(len, rates.values()))):
            table.writerow([t, *(values[t] if t < len(values) else "" for values in rates.values())])


def draw(rates: dict[str, list[float]], path: Path, title: str) -> None:
    """Draw the curves into one picture, or each into its own where there are many."""
    from matplotlib import pyplot

    rows, columns = (math.ceil(len(rates) / 4), 4) if len(rates) > TOGETHER else (1, 1)
    size = (8, 4.5 if rows == 1 else 1.6 * rows + 0.5)
    figure, grid = pyplot.subplots(
        rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    for n, (name, values) in enumerate(rates.items()):
        axes = grid.flat[n % grid.size]
        axes.plot(values, label=name, drawstyle="steps-post")
        axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        if rows > 1:
            axes.set_title(name, fontsize=8)
    for axes in grid.flat[len(rates) :]:
        axes.axis("off")
    figure.supxlabel("optimizer step", fontsize=9)
    figure.supylabel("learning rate", fontsize=9)
    figure.suptitle("\n".join(textwrap.wrap(title.replace(",", ", "), 100)), fontsize=9)
    if rows == 1:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def chart(rates: dict[str, list[float]], notes: list[str]) -> str:
    """Draw the curves with a letter each, from 0 to the highest rate; below it a note on each."""
    longest, peak = max(map(len, rates.values())), max(map(max, rates.values())) or 1.0
    grid = [[" "] * WIDTH for _ in range(HEIGHT)]
    legend = []
    marks = "abcdefghijklmnopqrstuvwxyz" * len(rates)
    for mark, (name, values), said in zip(marks, rates.items(), notes, strict=False):
        for x in range(WIDTH):
            t = round(x * (longest - 1) / (WIDTH - 1))
            if t < len(values):
                grid[HEIGHT - 1 - round(values[t] / peak * (HEIGHT - 1))][x] = mark
        legend.append(f"  {mark}  {name}: {said}")
    lines = [f"{peak * (HEIGHT - 1 - y) / (HEIGHT - 1):9.3g} |" + "".join(row) for y, row in enumerate(grid)]
    axis = " " * 10 + "+" + "-" * WIDTH + f"\n{0:>12}{longest - 1:>{WIDTH - 1}}"
    return "\n".join([*lines, axis, *legend])


if __name__ == "__main__":
    cli.launch(main, __doc__)
