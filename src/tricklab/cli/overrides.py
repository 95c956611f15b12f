"""The command line as typed: overrides, their values, and the arguments of scripts."""

import itertools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from tricklab.cli.config import CONF
from tricklab.errors import UserError

# Overrides as typed, by the form that Hydra is given instead: see `defer_to_jobs`
DEFERRED: dict[str, str] = {}

# A `~` at the start of a value, also of one in a list: shells don't expand it there
HOME = re.compile(r"(?<![^=,])~(?=/|,|$)")


def expand_home(override: str) -> str:
    """Expand `~` in KEY=~/PATH, which shells leave as it is and Hydra can't parse."""
    key, equals, value = override.partition("=")
    if not equals or not HOME.match(f"={value}", 1):
        return override
    home = os.path.expanduser("~")
    path = HOME.sub(lambda match: home, f"={value}")[1:]
    return f"{key}={path if ',' in path else quote(path)}"


def defer_to_jobs(overrides: Sequence[str]) -> list[str]:
    """Turn the keys of a swept group into sweeps over one value each.

    Hydra would apply them to the group's default option, which may not have them. So
    `-m data=digits,folder data.root=PATH` reaches the jobs, and the first job, without
    that key, is named in the error.
    """
    if not get_args_parser().parse_known_args(list(overrides))[0].multirun:
        return list(overrides)
    groups = {key for key in swept_keys(parse_overrides(overrides)) if (CONF / key).is_dir()}
    deferred = []
    for override in overrides:
        if not is_fixed_key_of(groups - {"sweep"}, override):
            deferred.append(override)
            continue
        key, _, value = override.partition("=")
        deferred.append(f"{key}=choice({value})")
        DEFERRED[deferred[-1]] = override
    return deferred


def is_fixed_key_of(groups: set[str], override: str) -> bool:
    """Whether an override sets a key below one of the groups to a single value."""
    key, _, value = override.partition("=")
    group, dot, _ = key.partition(".")
    if not value or not dot or group not in groups:
        return False
    (parsed,) = parse_overrides([override])
    return not parsed.is_sweep_override()


def as_typed(overrides: Iterable[str]) -> list[str]:
    """Undo `defer_to_jobs`."""
    return [DEFERRED.get(override, override) for override in overrides]


def command() -> list[str]:
    """Return the command-line arguments as they were typed."""
    return as_typed(sys.argv[1:])


def title() -> str:
    """Return the command-line arguments without Hydra's own keys, as a title."""
    return " ".join(argument for argument in command() if not argument.startswith("hydra"))


def combine(overrides: Sequence[Override]) -> list[list[str]]:
    """Return every combination of the values that overrides sweep over.

    Raises UserError: an override is an interval, which has no list of values.
    """
    choices = []
    for override in overrides:
        if not override.is_sweep_override():
            choices.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            choices.append([f"{key}={value}" for value in list_values(override)])
        else:
            expected = "an interval needs sweep=optuna; without it give values with commas"
            raise UserError(f"{override.input_line}: {expected}")
    return [list(combination) for combination in itertools.product(*choices)]


def list_values(override: Override) -> list[str]:
    """Return the values that an override sweeps over. Raises UserError: there is none."""
    values = [value for value in override.sweep_string_iterator() if not value.startswith("_")]
    if not values:
        raise UserError(f"{override.input_line} has no values to sweep over")
    return values


def list_overrides(hydra: Any, kind: str = "task") -> list[str]:
    """Return the overrides that Hydra was given; `kind` is "task" or "hydra".

    Interpolations such as ${oc.env:NAME}, which may be secrets, are not resolved.
    """
    plain: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
    return [str(override) for override in plain[kind]]


def parse_command_overrides() -> list[Override]:
    """Parse the overrides of the command line."""
    return parse_overrides(command())


def parse_overrides(arguments: Iterable[str]) -> list[Override]:
    """Parse the overrides among command-line arguments."""
    overrides = []
    for argument in arguments:
        is_assignment = "=" in argument and not argument.startswith("-")
        if argument.startswith("~") or is_assignment:
            overrides.append(argument)
    return OverridesParser.create().parse_overrides(overrides)


def swept_keys(overrides: Iterable[Override]) -> set[str]:
    """Return the keys that have several values."""
    return {o.get_key_element() for o in overrides if o.is_sweep_override()}


def split_key(override: str) -> str:
    """Return the key or group of an override, without a leading + or ~."""
    return override.lstrip("+~").partition("=")[0]


def read_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """Read the KEY=VALUE arguments of a script that uses a checkpoint.

    A path alone is `ckpt=PATH`. Quotes are removed, except in overrides of the config
    (`data.root="a b"`), which Hydra parses.
    Raises UserError: a second argument without a key, or a key given twice.
    """
    values: dict[str, str] = {}
    for argument in arguments:
        key, value = split_argument(argument)
        key = key or "ckpt"
        if key == "ckpt" and key in values:
            hint = "" if "=" in argument else f" or input={argument}"
            problem = f"ckpt={values[key]} is given already"
            raise UserError(f"{argument}: {problem}. Expected KEY=VALUE{hint}")
        if key in values:
            raise UserError(f"{key} is given twice")
        values[key] = value
    return values


def split_arguments(arguments: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """Split the arguments of a script into names or paths, and the values of options by key.

    Raises UserError: an option is given twice.
    """
    names = []
    options: dict[str, str] = {}
    for argument in arguments:
        key, value = split_argument(argument)
        if not key:
            names.append(value)
        elif key in options:
            raise UserError(f"{key} is given twice")
        else:
            options[key] = value
    return names, options


def split_argument(argument: str) -> tuple[str, str]:
    """Split KEY=VALUE; the key is "" for a name, and for whatever exists as a file.

    The value is without the quotes that Hydra would need, unless the key has a dot: such an
    argument is an override, which Hydra parses.
    """
    key, equals, value = argument.partition("=")
    if not equals or os.path.exists(argument):
        return "", argument
    return key, value if "." in key else unquote(value)


def to_bool(key: str, value: str) -> bool:
    """Return a boolean option. Raises UserError: it is neither true nor false."""
    if value not in ("true", "false"):
        raise UserError(f"{key}={value}; allowed: true, false")
    return value == "true"


def unquote(value: str) -> str:
    """Remove the quotes that Hydra would need."""
    quotation = value[:1]
    if len(value) > 1 and quotation in "\"'" and value.endswith(quotation):
        return value[1:-1].replace(f"\\{quotation}", quotation)
    return value


# Texts that Hydra reads as such without quotes
UNQUOTED = re.compile(
    r"(?!(null|true|false|nan|inf)$)[a-z_/][\w./-]*",
    re.ASCII | re.IGNORECASE,
)


def quote(value: Any) -> str:
    """Quote a value for Hydra, if necessary."""
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", str(value)).replace("'", "\\'")
    return text if UNQUOTED.fullmatch(text) else f"'{text}'"
