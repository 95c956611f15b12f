"""Test claims of papers: the expected result, the measured one with its interval, and a verdict.

python scripts/claims.py                             the table of all claims, from the known runs
python scripts/claims.py NAME [seeds=5] [slots=2]    run what has no row yet, and judge

A claim is a file in conf/experiment/claims: an experiment, its arms, and expectations about them.
The rows of its runs stand beside it, and count as long as the config is the same.
"""

import sys

from tricklab.analysis.claims import CLAIMS, claims_table, judge, read_claim
from tricklab.analysis.page import escape_pipes, format_table
from tricklab.analysis.recipes import INCOMPLETE, count_missing, read_command, run_missing
from tricklab.cli.config import list_options
from tricklab.cli.launch import launch


def main() -> None:
    if not sys.argv[1:]:
        print(format_table(claims_table(), escape_pipes))
        return
    name, seeds, overrides = read_command(list_options(CLAIMS), lambda name: read_claim(name).seeds)
    claim = read_claim(name)
    results = run_missing(claim.recipe, seeds, overrides)
    print(claim.statement)
    for expectation in claim.expectations:
        print("  " + "; ".join(judge(expectation, results)))
    if missing := count_missing(results, seeds):
        sys.exit(f"error: {missing} runs are not done; {INCOMPLETE}")


if __name__ == "__main__":
    launch(main, __doc__)
