"""The options in `conf/`, found by globbing: a new file is covered as it is."""

from helpers.paths import CONF
from tricklab.cli.config import list_options


def find_options() -> list[tuple[str, str]]:
    """Return all options as pairs (group, option)."""
    options = []
    for group in sorted(CONF.iterdir()):
        if group.is_dir() and group.name != "hydra":
            options += [(group.name, option) for option in list_options(group)]
    return options


OPTIONS = find_options()
RGB_ONLY = ("color", "pca_noise")  # options of `augment` that refuse grey images, such as digits
