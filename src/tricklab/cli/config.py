"""The options in `conf/`, and composed configs as plain values."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

CONF = Path(__file__).parents[3] / "conf"


def description(path: Path) -> str:
    """Return the first comment of a YAML file that is not for Hydra."""
    comments = re.findall(r"^# (?!@)(.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return comments[0] if comments else ""


def flatten(config: Mapping[Any, Any], path: str = "") -> dict[str, Any]:
    """Flatten a config to values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= (
            flatten(value, f"{path}{key}.")
            if isinstance(value, Mapping) and value
            else {f"{path}{key}": value}
        )
    return flat


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Return a composed config as plain values, without Hydra's own."""
    part = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return dict(OmegaConf.to_container(part, resolve=True))  # type: ignore[arg-type]


MULTI_OPTION_GROUPS = (
    "augment",
    "penalty",
    "callbacks",
    "logger",
)  # groups that take several at once


USUAL = ("on", "step", "cosine", "sgd")  # of several options that have a key


def list_options(group: Path) -> list[str]:
    """Return the options of a group: its YAML files, without those that only others include."""
    return sorted(path.stem for path in group.glob("*.yaml") if not path.name.startswith("_"))


def find_options(key: str, conf: Path) -> list[str]:
    """Return the options of a key's group that have it, as step and multistep for scheduler.gamma."""
    group, _, rest = key.partition(".")
    if not rest or not (conf / group).is_dir() or group in ("experiment", "debug", "hydra"):
        return []
    homes = [
        option for option in list_options(conf / group) if rest in read_keys(conf / group, option)
    ]
    return sorted(homes, key=lambda option: option not in USUAL)


@functools.cache
def read_keys(group: Path, option: str) -> tuple[str, ...]:
    """Return the dotted keys of an option, with those of the options in its defaults list."""
    node: Any = OmegaConf.load(group / f"{option}.yaml")
    if not isinstance(node, DictConfig):
        return ()
    included = [name for name in node.get("defaults", []) if isinstance(name, str)]
    keys = [key for name in included if name != "_self_" for key in read_keys(group, name)]
    return (*keys, *list_keys(node))


def list_keys(node: DictConfig, path: str = "") -> list[str]:
    """Return the dotted keys of a config, those of nodes too."""
    keys = []
    for key in map(str, node):
        if key not in ("defaults", "_target_", "_partial_"):
            keys.append(f"{path}{key}")
            value = node._get_node(key)
            if isinstance(value, DictConfig) and not value._is_none():
                keys += list_keys(value, f"{path}{key}.")
    return keys
