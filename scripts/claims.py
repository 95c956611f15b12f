"""Test claims of papers: the expected result, the measured one with its interval, and a verdict.

python scripts/claims.py                      the table of all claims, from the known runs
python scripts/claims.py NAME [slots=2]       run what has no row yet, and judge
python scripts/claims.py NAME pilot=3         run three other seeds, and say how many are needed

A claim is a file in conf/experiment/claims: an experiment, its arms, expectations about them, the
smallest difference that matters, and the number of seeds. It is judged once all of them are done,
with seeds 1000, 1001, ...; those of pilots are 0, 1, ... The rows of its runs stand beside it, and
count as long as the config is the same; code that differs from its commit gives none.
"""

import sys

from tricklab.analysis.claims import (
    CLAIMS,
    claims_table,
    describe_pilot,
    format_judged,
    judge_claim,
    load_claims,
    read_claim,
    summarise_claims,
)
from tricklab.analysis.page import escape_pipes, format_table
from tricklab.analysis.recipes import INCOMPLETE, count_missing, read_command, run_missing
from tricklab.analysis.rows import published_seeds
from tricklab.cli.config import list_options
from tricklab.cli.launch import launch


def main() -> None:
    if not sys.argv[1:]:
        print_table()
        return
    command = read_command(list_options(CLAIMS), pilot=0)
    claim = read_claim(command.name)
    pilot = command.options["pilot"]
    seeds = range(pilot) if pilot else published_seeds(claim.seeds)
    results = run_missing(claim.recipe, seeds, command.overrides)
    print(claim.statement)
    if pilot:
        lines = describe_pilot(claim, results)
    else:
        lines = [format_judged(judged) for judged in judge_claim(claim, results)]
    for line in lines:
        print(f"  {line}")
    if missing := count_missing(results, seeds):
        sys.exit(f"error: {missing} runs are not done; {INCOMPLETE}")


def print_table() -> None:
    claims = load_claims(collect=True)
    print(f"{summarise_claims(claims)}\n")
    print(format_table(claims_table(claims), escape_pipes))


if __name__ == "__main__":
    launch(main, __doc__)
