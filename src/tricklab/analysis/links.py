"""Links from a report to the folders of its runs."""

from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from tricklab.analysis.configurations import Configurations
from tricklab.analysis.page import Link
from tricklab.analysis.results import Run, is_folder_name


def link_runs(sweep: Path, configurations: Configurations) -> dict[str, list[Link]]:
    """Return a link for each run of a configuration whose folder lies right below the sweep's.

    Targets are relative to the folder of the sweep, texts are seeds, or seeds and folds.
    """
    links: dict[str, list[Link]] = {}
    for label, replicates in configurations.items():
        links[label] = []
        for seed, run in replicates.items():
            if is_child(sweep, run):
                target = f"./{quote(run.folder.name, safe='')}/"
                links[label].append(Link(seed, target))
    return links


def is_child(sweep: Path, run: Run) -> bool:
    """Whether a run's folder exists, is no link and lies right below that of the sweep."""
    folder = run.folder
    if folder.parent != sweep or not is_folder_name(folder.name):
        return False
    with suppress(OSError, ValueError):  # of names that no file can have
        return folder.is_dir() and not folder.is_symlink()
    return False
