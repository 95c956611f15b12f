"""Update the tables and pictures of conf/experiment/README.md from the CSV rows beside it.

python scripts/results.py
    the rows are those of scripts/measure.py, claims.py and ablate.py; nothing is run. Rows that
    are no evidence are refused: of unknown configs or code, or older than what was expected
"""

import sys

from tricklab.analysis.evidence import find_problems, has_history
from tricklab.analysis.results_page import PAGE, all_recipes, update_page
from tricklab.cli.launch import launch
from tricklab.errors import UserError


def main() -> None:
    if sys.argv[1:]:
        raise UserError(f"{sys.argv[1]}: expected no argument")
    check_rows()
    print(f"{PAGE} {'is updated' if update_page() else 'was up to date'}")


def check_rows() -> None:
    """Refuse rows that are no evidence, where the history is there to tell."""
    if not has_history():
        print("warning: without the history of the repository, rows are not checked")
        return
    problems = [problem for recipe in all_recipes() for problem in find_problems(recipe)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    launch(main, __doc__)
