"""Report on a sweep: each configuration over its seeds, and the differences to a baseline.

python scripts/report.py sweeps/NAME [metric=test/acc] [baseline="mixup=off"] [incomplete=true]
    metric      any of result.json's
    baseline    label of a configuration, by default the first
    incomplete  compare also where seeds are missing, on those that both have
    writes into the folder report.md, report.csv, report.tex, the first table for LaTeX (booktabs),
    and report.html, a page with figures
"""

import sys
from pathlib import Path

from tricklab.analysis.report import make_report, write_report
from tricklab.cli.escape import for_terminal
from tricklab.cli.launch import launch
from tricklab.cli.messages import unknown_name
from tricklab.cli.overrides import split_arguments, to_bool
from tricklab.errors import UserError

DEFAULTS = {"metric": "test/acc", "baseline": "", "incomplete": "false"}


def main() -> None:
    folders, options = split_arguments(sys.argv[1:])
    if wrong := options.keys() - DEFAULTS.keys():
        raise UserError(unknown_name(min(wrong), min(wrong), DEFAULTS))
    if not folders:
        raise UserError("no folder. Expected the folder of a sweep, e.g. sweeps/NAME")
    options = DEFAULTS | options
    incomplete = to_bool("incomplete", options["incomplete"])
    for folder in map(Path, folders):
        report = make_report(folder, options["metric"], options["baseline"], incomplete)
        print(write_report(folder, report))
        print(for_terminal(folder / "report.html"))


if __name__ == "__main__":
    launch(main, __doc__)
