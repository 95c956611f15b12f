"""`--help`: every option of `conf/` with the first comment of its file."""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.config import CONF, description, list_groups, list_options

USAGE = "python train.py [GROUP=OPTION] [KEY=VALUE] ...    (* is the default)"
EXAMPLES = (
    "python train.py --cfg job    every key of the chosen options with its value",
    "python train.py -m seed=0,1,2    one run for each value",
)


def format_help(conf: Path = CONF) -> str:
    """List every option of every group with its description, and the top-level keys."""
    train = OmegaConf.load(conf / "train.yaml")
    assert isinstance(train, DictConfig)
    defaults = read_defaults(train)
    lines = [USAGE]
    for group in [*list_groups(conf), "hydra/launcher"]:
        lines += ["", group, *format_group(conf / group, group, defaults.get(group))]
    lines += ["", "keys", *format_keys(train)]
    lines += ["", *EXAMPLES]
    return "\n".join(lines)


def read_defaults(train: DictConfig) -> dict[str, str]:
    """Return the default option of each group from the defaults list."""
    defaults = {}
    for entry in train.defaults:
        if isinstance(entry, DictConfig):
            for group, option in entry.items():
                defaults[str(group).removeprefix("override ")] = option
    return defaults


def format_group(folder: Path, group: str, default: str | None) -> Iterator[str]:
    for option in list_options(folder):
        star = "*" if option == default else " "
        name = f" {star}{group}={option}"
        yield name.ljust(30) + description(folder / f"{option}.yaml")


def format_keys(train: DictConfig) -> Iterator[str]:
    for key, value in train.items():
        if key not in ("defaults", "hydra") and value != {}:
            shown = "null" if value is None else value
            yield f"  {key!s}={shown}"
