"""Train a run again, and say whether it comes out the same, digit by digit, or what differs.

python scripts/reproduce.py RUN [data.root=PATH ...]     the run in a folder, also a job of a sweep
python scripts/reproduce.py claim=decay arm=cosine seed=3     a row of a claim
python scripts/reproduce.py recipe=fashion_92 seed=0          of a recipe (arm=NAME: an ablation)

    commit=recorded     with the code of the run's commit, or of another one, in a worktree
    threads=2           instead of the number that was recorded
    output=FOLDER       of the new run, by default below runs/

The folder may be a stranger's: its overrides choose options of this checkout, its code and its
uncommitted changes are never used. Further overrides say where the data are. Exit code 1: a digit
differs.
"""

import sys
from datetime import datetime
from pathlib import Path

from tricklab.analysis.original import Original, read_original, read_row
from tricklab.cli.launch import launch
from tricklab.cli.overrides import split_argument, split_arguments
from tricklab.errors import UserError

OPTIONS = ("claim", "recipe", "arm", "seed", "commit", "threads", "output")


def main() -> None:
    arguments = sys.argv[1:]
    overrides = [argument for argument in arguments if "." in split_argument(argument)[0]]
    folders, options = split_arguments(a for a in arguments if a not in overrides)
    original = find_original(folders, dict.fromkeys(OPTIONS, "") | options)
    places = {override.partition("=")[0] for override in overrides}
    kept = [o for o in original.overrides if o.partition("=")[0] not in places]
    original = original._replace(overrides=kept)
    commit = options.get("commit", "")
    if commit == "recorded":
        commit = original.circumstances["commit"]
    threads = options.get("threads") or original.circumstances.get("threads", "")
    folder = Path(options.get("output") or default_folder(original))

    from tricklab.analysis import reproduction  # imports torch: takes seconds

    reproduction.train_again(original, folder, threads, commit, overrides)
    comparison = reproduction.compare(original, read_original(folder))
    print(reproduction.format_comparison(comparison))
    if comparison.different:
        sys.exit(1)


def find_original(folders: list[str], options: dict[str, str]) -> Original:
    """Return the run of a folder or of a row. Raises UserError: neither, or unknown options."""
    if unknown := set(options) - set(OPTIONS):
        raise UserError(f"{min(unknown)}: no such option; allowed: {', '.join(OPTIONS)}")
    if len(folders) + bool(options["claim"]) + bool(options["recipe"]) != 1:
        raise UserError("expected the folder of a run, or claim=NAME, or recipe=NAME")
    return read_original(Path(folders[0]).expanduser()) if folders else read_row(options)


def default_folder(original: Original) -> str:
    return f"runs/reproduced_{original.name[:150]}_{datetime.now():%Y%m%d-%H%M%S}"


if __name__ == "__main__":
    launch(main, __doc__)
