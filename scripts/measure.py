"""Measure a recipe: run the seeds that lack a row in the CSV beside it, add theirs, summarise.

python scripts/measure.py fashion_92 [seeds=10] [OVERRIDE ...]    overrides are those of the sweep

Seeds are 1000, 1001, ..., with which nothing was tuned. Before each run, a plain loop is timed
for comparison: its images/s are `control` in the row. A row counts as long as the config is the
same, known by its hash; code that differs from its commit gives none.
"""

import sys

from tricklab.analysis.control import record_control
from tricklab.analysis.recipes import (
    INCOMPLETE,
    Recipe,
    Results,
    compose_recipe,
    format_summary,
    load_results,
    read_command,
    run_missing,
    select_seeds,
)
from tricklab.analysis.rows import published_seeds
from tricklab.cli.config import CONF, list_options
from tricklab.cli.launch import launch


def main() -> None:
    command = read_command(list_options(CONF / "experiment"), seeds=10)
    seeds = published_seeds(command.options["seeds"])
    rows = [*measure(Recipe(command.name), seeds, command.overrides)[""].values()]
    from tricklab.analysis.flops import training_flops  # imports torch

    print(format_summary(rows, training_flops(compose_recipe(command.name))))
    if len(rows) < len(seeds):
        sys.exit(f"error: {len(rows)} of {len(seeds)} seeds are done; {INCOMPLETE}")


def measure(recipe: Recipe, seeds: range, overrides: list[str]) -> Results:
    """Run each seed without a row by itself, after a control; return the results."""
    for seed in seeds:
        if seed not in load_results(recipe, [seed])[""]:
            print(f"control: {record_control(recipe.folder):,.0f} images/s", flush=True)
            run_missing(recipe, [seed], overrides)
    return select_seeds(load_results(recipe, seeds), seeds)


if __name__ == "__main__":
    launch(main, __doc__)
