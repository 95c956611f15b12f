"""A stranger's config, made one of ours: the options are this project's, only plain values are theirs.

A checkpoint's config says which network its weights are for. It is read as text and numbers
(`tricklab.files`); here each option it names must be one of `conf/`, and each value must be one that
the command line would take for that option. So nothing that it names is imported, resolved or called.
"""

import functools
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.check import check_value
from tricklab.cli.config import CONF, list_options
from tricklab.cli.messages import unknown_name
from tricklab.errors import UserError

NEVER_TAKEN = {"weights": None, "cache": "memory", "num_workers": None}  # name files, or write them
TRAINER = ("accelerator", "precision", "limit_test_batches", "compile", "channels_last")


def judge(config: Mapping[str, Any], source: str) -> DictConfig:
    """Return `model`, `data`, `augment`, `trainer` and `seed` of a config as options of ours.

    Raises UserError, which begins with the `source`: anything that is none.
    """
    try:
        groups: dict[str, Any] = {
            group: judge_option(group, group, config.get(group)) for group in ("model", "data")
        }
        several = _mapping("augment", config.get("augment", {}))
        groups["augment"] = {
            name: judge_option("augment", f"augment.{name}", node) for name, node in several.items()
        }
        groups["trainer"] = judge_trainer(_mapping("trainer", config.get("trainer", {})))
        groups["seed"] = config.get("seed", 0)
        check_value("seed", groups["seed"], 0)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    return OmegaConf.create(groups)


def judge_option(group: str, path: str, node: Any) -> dict[str, Any]:
    """Return our option with the values of a stranger's node, e.g. for `path` "augment.flip"."""
    node, known = _mapping(path, node), options_by_target(group)
    target = node.get("_target_")
    if not isinstance(target, str) or target not in known:
        raise UserError(unknown_name(f"{path}._target_={target!r}", str(target), known))
    own = known[target]
    for key, value in node.items():
        if key not in own:
            raise UserError(unknown_name(f"{path}.{key}", key, own))
        if not key.startswith("_"):
            _check_plain(f"{path}.{key}", value, own[key])
    return (
        own
        | node
        | {key: value for key, value in NEVER_TAKEN.items() if key in own}
        | {key: own[key] for key in own if key.startswith("_")}
    )


def judge_trainer(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return what evaluation needs of a trainer's options."""
    own = next(iter(options_by_target("trainer").values()))
    taken = {key: node.get(key, own[key]) for key in TRAINER}
    for key, value in taken.items():
        _check_plain(f"trainer.{key}", value, own[key])
    return taken


def _check_plain(key: str, value: Any, default: Any) -> None:
    """Refuse what the command line would refuse, nested values and interpolations."""
    parts = value if isinstance(value, list) else [value]
    if not all(part is None or isinstance(part, str | int | float) for part in parts):
        raise UserError(f"{key} is nested; expected a plain value or a list of these")
    if any("${" in part for part in parts if isinstance(part, str)):
        raise UserError(f"{key}={value!r}: interpolations are not resolved here")
    check_value(key, value, default)


def _mapping(path: str, node: Any) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise UserError(f"{path} is a {type(node).__name__}; expected an option with its keys")
    return {str(key): value for key, value in node.items()}


@functools.cache
def options_by_target(group: str) -> dict[str, dict[str, Any]]:
    """Return the options of a group in `conf/` by their `_target_`, with their default values."""
    found: dict[str, dict[str, Any]] = {}
    for option in list_options(CONF / group):
        content = _load(group, option)
        base = _load(group, "_options") if "_options" in content.pop("defaults", []) else {}
        for node in [content] if "_target_" in content else content.values():
            if isinstance(node, dict) and "_target_" in node:
                found.setdefault(node["_target_"], {**base, **node})
    return found


def _load(group: str, option: str) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{option}.yaml"))
    return dict(content)
