"""One line for each mistake on the command line: what is wrong, and what was meant."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from tricklab.cli.config import CONF, MULTI_OPTION_GROUPS, list_keys, list_options
from tricklab.cli.escape import for_terminal
from tricklab.cli.overrides import command, quote
from tricklab.cli.suggest import assign, find_siblings, suggest_key, suggest_option
from tricklab.errors import nearest


def explain(error: BaseException) -> str:
    """Say in one line what is wrong, what is allowed and which right word is nearest."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return unknown_option(group, option)
    if isinstance(error, OverrideParseException):
        return for_terminal(unparsed(error.override))
    if match := re.match("Ambiguous value for argument '(.*?)'\n1. To use", str(error), re.DOTALL):
        return for_terminal(ambiguous(match[1]))
    if match := re.match("Error merging override (.*)", str(error)):
        return for_terminal(f"{match[1]}: the value is of another type than the option's")
    cause: Any = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(
        cause.parent_node, DictConfig
    ):
        return unknown_key(str(cause.full_key), list_keys(cause.parent_node._get_root()))  # type: ignore[arg-type]
    return for_terminal(" ".join(str(error).split("\nSee ")[0].split()))


def unparsed(override: str) -> str:
    """Say how to write an override that Hydra can't parse."""
    key, equals, value = override.partition("=")
    if equals and re.fullmatch(r"[+~]*[\w./@-]+", key) and value:
        plain = value.strip("\"'")
        typed = quote_twice(key, plain)
        return f"{override}: the value can't be parsed; quote it for Hydra and the shell: {typed}"
    if equals:
        return f"{override}: expected KEY=VALUE, without blanks around ="
    groups = [path.name for path in sorted(CONF.iterdir()) if path.is_dir()]
    homes = [f"{group}={override}" for group in groups if override in list_options(CONF / group)]
    if os.path.isdir(override):
        homes = [f"data=folder data.root={override}"]
    hint = f" Did you mean {' or '.join(homes)}?" if homes else ""
    return f"{override or repr(override)}: expected KEY=VALUE.{hint}"


def ambiguous(override: str) -> str:
    """Say what values with commas may mean without -m."""
    key, _, value = override.partition("=")
    text = quote_twice(key, value)
    several = f"'{key}=[{value}]'"
    if re.search(r"[/\\ ]", value):
        return f"{override}: quote a path with a comma for Hydra and the shell: {text}"
    if key in MULTI_OPTION_GROUPS:
        return f"{override}: for all of them together {several}, for a run each -m {override}"
    if (CONF / key).is_dir():
        return f"{override}: one option of {key}, or for a run each -m {override}"
    return f"{override}: for a run each -m {override}, for a list {several}, for a text {text}"


def quote_twice(key: str, value: str) -> str:
    """Return an override whose value is a text for Hydra, as it is typed in a shell."""
    if {"'", '"'} & set(value):
        return shlex.quote(f"{key}={quote(value)}")
    return f"""'{key}="{value}"'"""


def unknown_option(group: str, option: str) -> str:
    """Say that a group has no such option, which it has, and what was meant."""
    there = ", ".join(list_options(CONF / group)) or "nothing"
    if not group:
        return for_terminal(f"--config-name {option} does not exist; allowed: {there}")
    hint = suggest_option(group, option, CONF) if (CONF / group).is_dir() else ""
    return for_terminal(f"{group}={option} does not exist; allowed: {there}.{hint}")


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Say that there is no such key, which others stand beside it, and what was meant."""
    words = (word.lstrip("+~").partition("=") for word in command())
    typed, _, value = next(
        (word for word in words if f"{word[0]}.".startswith(f"{key}.")), (key, "", "")
    )
    known = [other for other in known if other.startswith("hydra") == key.startswith("hydra")]
    hint = suggest_key(typed, value, known, CONF)
    beside = ", ".join(find_siblings(key, known))
    listed = f"; allowed: {beside}" if beside and ("." in key or not hint) else ""
    return for_terminal(f"{assign(typed, value)}: no such option{listed}.{hint}")


def unknown_name(what: str, word: str, allowed: Iterable[str]) -> str:
    """Say that `what` does not exist, what there is, and the nearest to `word`."""
    allowed = sorted(
        a for a in allowed if not a.startswith("_")
    )  # _target_ and the like are not for overriding
    return f"{what} does not exist; allowed: {', '.join(allowed) or 'nothing'}.{nearest(word, allowed)}"
