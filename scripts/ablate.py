"""Ablate a recipe: its tricks added one after the other, and each left out of all.

python scripts/ablate.py fashion_tricks [seeds=3] [slots=2]

The tricks stand in the recipe's file, as claim.tricks; the rows of its runs beside it, as those of
scripts/measure.py.
"""

import sys

from tricklab.analysis.ablation import (
    METRIC,
    ablation_table,
    describe_power,
    make_arms,
    read_tricks,
)
from tricklab.analysis.page import escape_pipes, format_table
from tricklab.analysis.recipes import (
    INCOMPLETE,
    Recipe,
    count_missing,
    read_command,
    run_missing,
)
from tricklab.cli.config import CONF, list_options
from tricklab.cli.launch import launch


def main() -> None:
    name, seeds, overrides = read_command(list_options(CONF / "experiment"), lambda name: 3)
    tricks = read_tricks(name)
    results = run_missing(Recipe(name, make_arms(tricks), (METRIC,)), seeds, overrides)
    print(format_table(ablation_table(list(tricks), results), escape_pipes))
    print(describe_power(list(tricks), results))
    if missing := count_missing(results, seeds):
        sys.exit(f"error: {missing} runs are not done; {INCOMPLETE}")


if __name__ == "__main__":
    launch(main, __doc__)
