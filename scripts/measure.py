"""Measure a recipe: run the seeds that lack a row in the CSV beside it, add theirs, summarise.

python scripts/measure.py fashion_92 [seeds=10] [slots=1 ...]    further overrides are the sweep's

A row counts as long as the config is the same, known by its hash.
"""

import sys

from tricklab.analysis.recipes import (
    INCOMPLETE,
    Recipe,
    compose_recipe,
    format_summary,
    read_command,
    run_missing,
)
from tricklab.cli.config import CONF, list_options
from tricklab.cli.launch import launch


def main() -> None:
    name, seeds, overrides = read_command(list_options(CONF / "experiment"), lambda name: 10)
    results = run_missing(Recipe(name), seeds, overrides)[""]
    rows = [row for seed, row in results.items() if seed < seeds]
    from tricklab.analysis.flops import training_flops  # imports torch

    print(format_summary(rows, training_flops(compose_recipe(name))))
    if len(rows) < seeds:
        sys.exit(f"error: {len(rows)} of {seeds} seeds are done; {INCOMPLETE}")


if __name__ == "__main__":
    launch(main, __doc__)
