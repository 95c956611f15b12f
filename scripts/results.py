"""Update the tables of conf/experiment/README.md from the CSV rows beside it.

python scripts/results.py
    the rows are those of scripts/measure.py, claims.py and ablate.py; nothing is run
"""

import sys

from tricklab.analysis.results_page import PAGE, update_page
from tricklab.cli.launch import launch
from tricklab.errors import UserError


def main() -> None:
    if sys.argv[1:]:
        raise UserError(f"{sys.argv[1]}: expected no argument")
    print(f"{PAGE} {'is updated' if update_page() else 'was up to date'}")


if __name__ == "__main__":
    launch(main, __doc__)
