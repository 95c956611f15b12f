"""Ablate a recipe: its tricks added one after the other, and each left out of all.

python scripts/ablate.py fashion_tricks [seeds=3] [slots=2]

The tricks stand in the file of the recipe, as claim.tricks; claim.paper has what a paper reached
with each of them and those before, in %, claim.teacher the network that others distill. The rows of
the runs stand beside it, as those of scripts/measure.py.
"""

import sys

from tricklab.analysis.ablation import ablation_table, describe_power, read_ablation
from tricklab.analysis.page import escape_pipes, format_table
from tricklab.analysis.recipes import INCOMPLETE, count_missing, read_command, run_missing
from tricklab.analysis.rows import published_seeds
from tricklab.cli.config import CONF, list_options
from tricklab.cli.launch import launch


def main() -> None:
    command = read_command(list_options(CONF / "experiment"), seeds=3)
    seeds = published_seeds(command.options["seeds"])
    ablation = read_ablation(command.name)
    results = run_missing(ablation.recipe, seeds, command.overrides)
    table = ablation_table(ablation.tricks, results, ablation.paper)
    print(format_table(table, escape_pipes))
    print(describe_power(ablation.tricks, results))
    if missing := count_missing(results, seeds):
        sys.exit(f"error: {missing} runs are not done; {INCOMPLETE}")


if __name__ == "__main__":
    launch(main, __doc__)
