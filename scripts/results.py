"""Update the tables of conf/experiment/README.md from the CSV rows beside it.

python scripts/results.py
    the rows are those of scripts/measure.py, claims.py and ablate.py; nothing is run
"""

import sys

from tricklab.analysis.results_page import PAGE, update_tables
from tricklab.cli.launch import launch
from tricklab.errors import UserError
from tricklab.files import read_text, write_text


def main() -> None:
    if sys.argv[1:]:
        raise UserError(f"{sys.argv[1]}: expected no argument")
    before = read_text(PAGE)
    after = update_tables(before)
    if after != before:
        write_text(PAGE, after)
    print(f"{PAGE} {'was up to date' if after == before else 'is updated'}")


if __name__ == "__main__":
    launch(main, __doc__)
