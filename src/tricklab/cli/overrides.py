"""What was typed: overrides, their values, and the arguments of scripts."""

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

DEFERRED: dict[str, str] = {}  # what was typed, by what Hydra is given instead


HOME = re.compile(r"(?<![^=,])~(?=/|,|$)")  # at the start of a value, where the shell leaves it


def expand_home(word: str) -> str:
    """Put the home folder for `~` in KEY=~/PATH, which shells leave there, and which Hydra can't parse."""
    key, equals, value = word.partition("=")
    if not equals or not HOME.match(f"={value}", 1):
        return word
    path = HOME.sub(lambda match: os.path.expanduser("~"), f"={value}")[1:]
    return f"{key}={path if ',' in path else quote(path)}"


def defer_to_jobs(words: Sequence[str]) -> list[str]:
    """Make keys of a swept group values to sweep over, one each: Hydra would apply them to the default option first.

    So `-m data=digits,folder data.root=PATH` gets to the jobs, of which the first is named as one without that key.
    """
    if not get_args_parser().parse_known_args(list(words))[0].multirun:
        return list(words)
    groups = {key for key in swept_keys(parse_overrides(words)) if (CONF / key).is_dir()}
    for word in words:
        key, _, value = word.partition("=")
        if value and "." in key and key.partition(".")[0] in groups - {"sweep"}:
            (parsed,) = parse_overrides([word])
            if not parsed.is_sweep_override():
                DEFERRED[f"{key}=choice({value})"] = word
    typed = {word: deferred for deferred, word in DEFERRED.items()}
    return [typed.get(word, word) for word in words]


def as_typed(words: Iterable[str]) -> list[str]:
    """Undo `defer_to_jobs`."""
    return [DEFERRED.get(word, word) for word in words]


def command() -> list[str]:
    """Return the arguments on the command line, as they were typed."""
    return as_typed(sys.argv[1:])


def combine(words: Sequence[Override]) -> list[list[str]]:
    """Return every combination of the values that words have with commas. Raises UserError: an interval has none."""
    choices = []
    for word in words:
        if not word.is_sweep_override():
            choices.append([str(word.input_line)])
        elif word.is_discrete_sweep():
            choices.append([f"{word.get_key_element()}={value}" for value in list_values(word)])
        else:
            raise UserError(
                f"{word.input_line}: an interval needs sweep=optuna; without it give values with commas"
            )
    return [list(combination) for combination in itertools.product(*choices)]


def list_values(word: Override) -> list[str]:
    """Return the values that an override sweeps over. Raises UserError: there is none."""
    values = [value for value in word.sweep_string_iterator() if not value.startswith("_")]
    if not values:
        raise UserError(f"{word.input_line} has no values to sweep over")
    return values


def title() -> str:
    """Return what was asked for on the command line, but for Hydra's own keys."""
    return " ".join(word for word in command() if not word.startswith("hydra"))


def list_overrides(hydra: Any, kind: str = "task") -> list[str]:
    """Return the overrides that Hydra was given, in which ${oc.env:NAME} is not resolved: it may be a secret."""
    plain: Any = OmegaConf.to_container(hydra.overrides, resolve=False)
    return [str(word) for word in plain[kind]]


def parse_command_overrides() -> list[Override]:
    """Return the overrides of the command line."""
    return parse_overrides(command())


def parse_overrides(words: Iterable[str]) -> list[Override]:
    """Parse the overrides among the arguments of a command line."""
    overrides = [w for w in words if w.startswith("~") or ("=" in w and not w.startswith("-"))]
    return OverridesParser.create().parse_overrides(overrides)


def swept_keys(words: Iterable[Override]) -> set[str]:
    """Return the keys that have several values."""
    return {o.get_key_element() for o in words if o.is_sweep_override()}


def read_arguments(words: Sequence[str]) -> dict[str, str]:
    """Read the KEY=VALUE arguments of a script that uses a checkpoint.

    A path alone is `ckpt=PATH`; quotes are Hydra's where there are any.
    Raises UserError: another argument without a key, or one given twice.
    """
    given: dict[str, str] = {}
    for word in words:
        key, value = split_argument(word)
        key = key or "ckpt"
        if key in given:
            hint = f" or input={word}" if "=" not in word else ""
            raise UserError(
                f"{word}: ckpt={given['ckpt']} is given already; expected KEY=VALUE{hint}"
                if key == "ckpt"
                else f"{key} is given twice"
            )
        given[key] = value
    return given


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
    """Take off the quotes that Hydra would need."""
    quote = value[:1]
    if len(value) > 1 and quote in "\"'" and value.endswith(quote):
        return value[1:-1].replace(f"\\{quote}", quote)
    return value


def quote(value: Any) -> str:
    """Quote a value for Hydra, if it needs that."""
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", str(value)).replace("'", "\\'")
    plain = re.fullmatch(
        r"(?!(null|true|false|nan|inf)$)[a-z_/][\w./-]*", text, re.ASCII | re.IGNORECASE
    )
    return text if plain else f"'{text}'"
