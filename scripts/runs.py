"""List the runs below a folder, search them by options and status, and delete them.

python scripts/runs.py [root=runs]                                   all runs, the newest first
python scripts/runs.py status=failed                                 by status
python scripts/runs.py scheduler=cosine mixup=on optimizer.lr=0.1    by options
python scripts/runs.py status=failed delete=true                     delete those found

status is done, failed, interrupted, unfinished (killed), running or unreadable (a damaged
config.yaml). Unfinished and unreadable runs are only deleted if status=... asks for them, running
ones never.
"""

import sys
from pathlib import Path

from tricklab.analysis.search import (
    STATUSES,
    delete_run,
    find_deletable,
    find_matching,
    format_run,
)
from tricklab.cli.escape import for_terminal
from tricklab.cli.launch import launch
from tricklab.cli.overrides import split_arguments, to_bool
from tricklab.errors import UserError, nearest


def main() -> None:
    root, delete, filters = read_command(sys.argv[1:])
    runs = find_matching(root, filters)
    to_delete = find_deletable(runs, root, by_status="status" in filters) if delete else []
    for folder, status in runs.items():
        print(for_terminal(format_run(folder, status)))
    for folder in to_delete:
        delete_run(folder)
    print(f"{len(runs)} runs below {root}" + (f", {len(to_delete)} deleted" if delete else ""))


def read_command(arguments: list[str]) -> tuple[Path, bool, dict[str, str]]:
    """Return the root, whether to delete, and the filters. Raises UserError: one is wrong."""
    names, filters = split_arguments(arguments)
    if names:
        raise UserError(f"{names[0]}: expected OPTION=VALUE, e.g. status=failed, scheduler=cosine")
    root = Path(filters.pop("root", "runs"))
    delete = to_bool("delete", filters.pop("delete", "false"))
    status = filters.get("status", "done")
    if not root.is_dir():
        raise UserError(f"root={root}: not a folder")
    if status not in STATUSES:
        allowed = ", ".join(STATUSES)
        raise UserError(f"status={status}; allowed: {allowed}.{nearest(status, STATUSES)}")
    if delete and not filters:
        raise UserError("delete=true: needs a filter. Expected e.g. status=failed")
    return root, delete, filters


if __name__ == "__main__":
    launch(main, __doc__)
