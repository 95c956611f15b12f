"""The command line of the scripts that use a checkpoint. Known without importing torch."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from tricklab.cli.compose import compose_each
from tricklab.cli.messages import unknown_name
from tricklab.cli.overrides import read_arguments
from tricklab.errors import UserError
from tricklab.run.folder import find_best

ALLOWED_OVERRIDES = ("trainer.accelerator", "trainer.precision")  # besides the data


class Command(NamedTuple):
    """A checkpoint file, the options of the script, and overrides of the run's config."""

    checkpoint: Path
    options: dict[str, str]
    overrides: dict[str, str]


def read_command(arguments: Sequence[str], **defaults: str) -> Command:
    """Parse the arguments of a script with the options `ckpt` (also a bare path) and `defaults`.

    Raises UserError: no such checkpoint, or an argument that is neither an option of the script
    nor an override of the data, accelerator or precision.
    """
    overrides = read_arguments(arguments)
    options = {key: overrides.pop(key, default) for key, default in defaults.items()}
    checkpoint = find_best(overrides.pop("ckpt", None), "ckpt")
    for key in overrides:
        if key.split(".")[0] != "data" and key not in ALLOWED_OVERRIDES:
            raise UserError(unknown_name(key, key, ["ckpt", *defaults, "data", *ALLOWED_OVERRIDES]))
    return Command(checkpoint, options, overrides)


def compose_one(overrides: Sequence[str]) -> DictConfig:
    """Compose a single config. Raises UserError: the overrides have several values."""
    configs = list(compose_each(list(overrides)).values())
    if len(configs) > 1:
        raise UserError(f"{' '.join(overrides)}: several values. Expected one each, without commas")
    return copy.deepcopy(configs[0])


def read_count(options: dict[str, str], name: str) -> int:
    """Return a number of views or resamples. Raises UserError: 1, or not a number."""
    text = options[name]
    if not text.isdecimal() or int(text) == 1:
        raise UserError(f"{name}={text}; allowed: 0, or 2 and more")
    return int(text)
