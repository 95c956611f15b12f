"""The options in `conf/`, and composed configs as plain values."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parents[3] / "conf"

# Groups of which several options can be combined
MULTI_OPTION_GROUPS = ("augment", "penalty", "callbacks", "logger")

# Groups whose options only override others, or belong to Hydra or to this machine
META_GROUPS = ("experiment", "debug", "hydra", "local")

# Suggested first where several options of a group have a key
COMMON_OPTIONS = ("on", "step", "cosine", "sgd")


def description(path: Path) -> str:
    """Return the first comment of a YAML file that is no directive, of Hydra or for editors."""
    comments = re.findall(
        r"^# (?!@|yaml-language-server:)(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE
    )
    return comments[0] if comments else ""


def flatten(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested config by dotted key; an empty mapping is a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Return a composed config as resolved plain values, without the node `hydra`."""
    keys = [str(key) for key in config if key != "hydra"]
    selected = OmegaConf.masked_copy(config, keys)
    return dict(OmegaConf.to_container(selected, resolve=True))  # type: ignore[arg-type]


def list_groups(conf: Path) -> list[str]:
    """Return the config groups that options are chosen from, in alphabetical order."""
    return sorted(
        path.name
        for path in conf.iterdir()
        if path.is_dir() and path.name not in ("hydra", "local")
    )


def list_options(group: Path) -> list[str]:
    """Return the options of a group: its YAML files, except those included by others (`_*`)."""
    return sorted(path.stem for path in group.glob("*.yaml") if not path.name.startswith("_"))


def find_options(key: str, conf: Path) -> list[str]:
    """Return the options that have a key: step and multistep for scheduler.gamma."""
    group, _, rest = key.partition(".")
    if not rest or not (conf / group).is_dir() or group in META_GROUPS:
        return []
    owners = []
    for option in list_options(conf / group):
        if rest in read_keys(conf / group, option):
            owners.append(option)
    return sorted(owners, key=lambda option: option not in COMMON_OPTIONS)


@functools.cache
def read_keys(group: Path, option: str) -> tuple[str, ...]:
    """Return the dotted keys of an option and of the options in its defaults list."""
    node: Any = OmegaConf.load(group / f"{option}.yaml")
    if not isinstance(node, DictConfig):
        return ()
    keys: list[str] = []
    for name in node.get("defaults", []):
        if isinstance(name, str) and name != "_self_":
            keys += read_keys(group, name)
    return (*keys, *list_keys(node))


def list_keys(node: DictConfig, prefix: str = "") -> list[str]:
    """Return the dotted keys of a config, inner nodes included."""
    keys = []
    for key in map(str, node):
        if key in ("defaults", "_target_", "_partial_"):
            continue
        keys.append(f"{prefix}{key}")
        value = node._get_node(key)
        if isinstance(value, DictConfig) and not value._is_none():
            keys += list_keys(value, f"{prefix}{key}.")
    return keys
