"""Configs from untrusted files: only options of this project's `conf/`, with plain values.

The config of a checkpoint selects the network for its weights. It is parsed as text and numbers
(`tricklab.files`). Here each `_target_` in it must be that of an option in `conf/`, and each value
must be valid for that option on the command line, so nothing else is imported, resolved or called.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.config import CONF, list_options
from tricklab.cli.messages import unknown_name
from tricklab.cli.renamed import rename_keys
from tricklab.cli.specs import find_spec
from tricklab.cli.values import check_value
from tricklab.errors import UserError
from tricklab.run.automatic import find_recorded

# Keys that name files to read or write are reset to these values
RESET = {"weights": None, "index": None, "cache": "memory", "num_workers": None}
MAX_REPETITIONS = 3  # in a regular expression: each multiplies the time by the length of the text
TRAINER_KEYS = (
    *("accelerator", "precision", "limit_test_batches"),
    *("compile", "channels_last", "threads"),
)


def validate_config(config: Mapping[str, Any], source: str) -> DictConfig:
    """Return `model`, `data`, `augment`, `trainer` and `seed` of a config, as options of `conf/`.

    Raises UserError, which begins with `source`, for anything that is no option of `conf/`.
    """
    validated: dict[str, Any] = {}
    try:
        for group in ("model", "data"):
            validated[group] = validate_option(group, group, config.get(group))
        validated["augment"] = validate_augment(config.get("augment", {}))
        validated["trainer"] = validate_trainer(config.get("trainer", {}))
        validated["trainer"] |= find_recorded(config)
        validated["seed"] = config.get("seed", 0)
        check_value("seed", validated["seed"], 0, find_spec("seed"))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return OmegaConf.create(validated)


def validate_option(group: str, path: str, node: Any) -> dict[str, Any]:
    """Return the option of `conf/` that a node selects, with the values of the node.

    `path` is the node's key in the config, e.g. "augment.flip".
    """
    node = rename_keys(path, _check_mapping(path, node))
    known = options_by_target(group)
    target = node.get("_target_")
    if not isinstance(target, str) or target not in known:
        raise UserError(unknown_name(f"{path}._target_={target!r}", str(target), known))
    option = known[target]
    for key, value in node.items():
        if key not in option:
            raise UserError(unknown_name(f"{path}.{key}", key, option))
        if not key.startswith("_"):
            _check_plain(f"{path}.{key}", value, option[key], target)
    reset = {key: value for key, value in RESET.items() if key in option}
    special = {key: value for key, value in option.items() if key.startswith("_")}
    return option | node | reset | special


def validate_augment(node: Any) -> dict[str, Any]:
    """Return each augmentation of a config, as an option of `conf/`."""
    augmentations = _check_mapping("augment", node)
    return {
        name: validate_option("augment", f"augment.{name}", option)
        for name, option in augmentations.items()
    }


def validate_trainer(node: Any) -> dict[str, Any]:
    """Return those options of a trainer that evaluation needs."""
    node = _check_mapping("trainer", node)
    defaults = next(iter(options_by_target("trainer").values()))
    validated = {key: node.get(key, defaults[key]) for key in TRAINER_KEYS}
    for key, value in validated.items():
        _check_plain(f"trainer.{key}", value, defaults[key], defaults["_target_"])
    return validated


def _check_plain(key: str, value: Any, default: Any, target: str) -> None:
    """Raise UserError for nested values, interpolations and what the command line would refuse."""
    parts = value if isinstance(value, list) else [value]
    if not all(part is None or isinstance(part, str | int | float) for part in parts):
        raise UserError(f"{key} is nested. Expected a plain value or a list of plain values")
    if any("${" in part for part in parts if isinstance(part, str)):
        raise UserError(f"{key}={value!r}: interpolations are not resolved here")
    check_value(key, value, default, find_spec(key, target))
    if key == "data.group" and value is not None:
        _check_pattern(value)


def _check_pattern(pattern: str) -> None:
    """Raise UserError for a regular expression that could take for ever."""
    repetitions = re.findall(r"(?<!\\)[*+{]", pattern)
    if len(repetitions) > MAX_REPETITIONS or re.search(r"(?<!\\)\)[*+{]", pattern):
        allowed = f"{MAX_REPETITIONS} repetitions, none of a group in parentheses"
        raise UserError(f"data.group={pattern}; allowed: {allowed}")


def _check_mapping(path: str, node: Any) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise UserError(f"{path} is a {type(node).__name__}. Expected an option with its keys")
    return {str(key): value for key, value in node.items()}


@functools.cache
def options_by_target(group: str) -> dict[str, dict[str, Any]]:
    """Return the options of a group of `conf/` with their defaults, by `_target_`."""
    by_target: dict[str, dict[str, Any]] = {}
    for option in list_options(CONF / group):
        content, base = _load(group, option)
        nodes = [content] if "_target_" in content else list(content.values())
        for node in nodes:
            if isinstance(node, dict) and "_target_" in node:
                by_target.setdefault(node["_target_"], {**base, **node})
    return by_target


def _load(group: str, option: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keys of an option's YAML, and those of the `_` files in its defaults list."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
    inherited: dict[str, Any] = {}
    for name in content.pop("defaults", []):
        if name.startswith("_") and name != "_self_":
            own, base = _load(group, name)
            inherited |= base | own
    return dict(content), inherited
