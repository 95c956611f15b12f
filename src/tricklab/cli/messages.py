"""A one-line message for each mistake on the command line: problem and likely intention."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from tricklab.cli.config import CONF, MULTI_OPTION_GROUPS, list_groups, list_keys, list_options
from tricklab.cli.escape import for_terminal
from tricklab.cli.overrides import command, quote
from tricklab.cli.suggest import assign, find_siblings, suggest_key, suggest_option
from tricklab.errors import nearest


def explain(error: BaseException) -> str:
    """Return one line with the problem, the allowed values, and the nearest valid name."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        return unknown_option(group, option)
    if isinstance(error, OverrideParseException):
        return for_terminal(unparsable_override(error.override))
    if match := re.match("Ambiguous value for argument '(.*?)'\n1. To use", str(error), re.DOTALL):
        return for_terminal(ambiguous_override(match[1]))
    if match := re.match("Error merging override (.*)", str(error)):
        return for_terminal(f"{match[1]}: the value is of another type than the option's")
    cause: Any = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        parent = cause.parent_node
        if isinstance(parent, DictConfig):
            root: Any = parent._get_root()
            return unknown_key(str(cause.full_key), list_keys(root))
    return for_terminal(" ".join(str(error).split("\nSee ")[0].split()))


def unparsable_override(override: str) -> str:
    """Return how to write an override that Hydra can't parse."""
    key, equals, value = override.partition("=")
    if equals and re.fullmatch(r"[+~]*[\w./@-]+", key) and value:
        quoted = quote_twice(key, value.strip("\"'"))
        problem = "the value can't be parsed; quote it for Hydra and the shell"
        return f"{override}: {problem}: {quoted}"
    if equals:
        return f"{override}: expected KEY=VALUE, without blanks around ="
    candidates = []
    for group in list_groups(CONF):
        if override in list_options(CONF / group):
            candidates.append(f"{group}={override}")
    if os.path.isdir(override):
        candidates = [f"data=folder data.root={override}"]
    hint = f" Did you mean {' or '.join(candidates)}?" if candidates else ""
    return f"{override or repr(override)}: expected KEY=VALUE.{hint}"


def ambiguous_override(override: str) -> str:
    """Return what a value with commas can mean without -m."""
    key, _, value = override.partition("=")
    text = quote_twice(key, value)
    as_list = f"'{key}=[{value}]'"
    if re.search(r"[/\\ ]", value):
        return f"{override}: quote a path with a comma for Hydra and the shell: {text}"
    if key in MULTI_OPTION_GROUPS:
        return f"{override}: for all of them together {as_list}, for a run each -m {override}"
    if (CONF / key).is_dir():
        return f"{override}: one option of {key}, or for a run each -m {override}"
    return f"{override}: for a run each -m {override}, for a list {as_list}, for a text {text}"


def quote_twice(key: str, value: str) -> str:
    """Return an override whose value is a text for Hydra, as it is typed in a shell."""
    if {"'", '"'} & set(value):
        return shlex.quote(f"{key}={quote(value)}")
    return f"""'{key}="{value}"'"""


def unknown_option(group: str, option: str) -> str:
    """Return that a group has no such option, the options it has, and the nearest one."""
    allowed = ", ".join(list_options(CONF / group)) or "nothing"
    if not group:
        return for_terminal(f"--config-name {option} does not exist; allowed: {allowed}")
    hint = suggest_option(group, option, CONF) if (CONF / group).is_dir() else ""
    return for_terminal(f"{group}={option} does not exist; allowed: {allowed}.{hint}")


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Return that there is no such key, the keys beside it, and the nearest one."""
    typed, value = find_typed(key)
    known = [other for other in known if other.startswith("hydra") == key.startswith("hydra")]
    hint = suggest_key(typed, value, known, CONF)
    siblings = ", ".join(find_siblings(key, known))
    allowed = f"; allowed: {siblings}" if siblings and ("." in key or not hint) else ""
    return for_terminal(f"{assign(typed, value)}: no such option{allowed}.{hint}")


def find_typed(key: str) -> tuple[str, str]:
    """Return key and value of the first override on the command line of this key or below it."""
    for argument in command():
        typed, _, value = argument.lstrip("+~").partition("=")
        if f"{typed}.".startswith(f"{key}."):
            return typed, value
    return key, ""


def unknown_name(problem: str, name: str, allowed: Iterable[str]) -> str:
    """Return that the thing called `problem` does not exist, what does, and the nearest name.

    Names with an underscore in front, such as `_target_`, are not for overriding.
    """
    public = sorted(other for other in allowed if not other.startswith("_"))
    listed = ", ".join(public) or "nothing"
    return f"{problem} does not exist; allowed: {listed}.{nearest(name, public)}"
