"""Defaults of the selected options, and of this machine: `conf/local/default.yaml`."""

import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from tricklab.cli.config import (
    CONF,
    META_GROUPS,
    MULTI_OPTION_GROUPS,
    find_options,
    flatten,
    to_plain,
)
from tricklab.cli.messages import unknown_key
from tricklab.cli.overrides import list_overrides, split_key
from tricklab.errors import UserError


def load_defaults(config: DictConfig) -> dict[str, Any]:
    """Return the defaults of the selected options by dotted key.

    These are the values before experiment, debug, local and command-line overrides.
    """
    choices = config.hydra.runtime.choices
    typed = list_overrides(config.hydra)
    groups = {*choices, *MULTI_OPTION_GROUPS}  # Hydra leaves out groups with several options
    selected = [override for override in typed if split_key(override) in groups]
    is_modified = choices.get("experiment") or choices.get("debug") or find_local_file(config)
    if selected == typed and not is_modified:
        return flatten(to_plain(config))
    overrides = (*list_overrides(config.hydra, "hydra"), *selected)
    return merge_files(config.hydra.job.config_name, overrides, list_folders(config))


def list_folders(config: DictConfig) -> tuple[str, ...]:
    """Return the folders with configs, in the order in which Hydra searches them."""
    sources = config.hydra.runtime.config_sources
    return tuple(source.path for source in sources if source.schema == "file")


@functools.cache
def merge_files(name: str, overrides: tuple[str, ...], folders: tuple[str, ...]) -> dict[str, Any]:
    """Merge the files of a defaults list, except those that only override others."""
    loader = GlobalHydra.instance().config_loader()
    files = loader.compute_defaults_list(name, list(overrides), RunMode.RUN).defaults
    parts: list[Any] = []
    for file in files:
        if str(file.config_path).startswith(tuple(f"{group}/" for group in META_GROUPS)):
            continue
        candidates = (Path(folder) / f"{file.config_path}.yaml" for folder in folders)
        content: Any = OmegaConf.load(next(path for path in candidates if path.is_file()))
        content.pop("defaults", None)
        parts.append({file.package: content} if file.package else content)
    return flatten(to_plain(OmegaConf.merge(*parts)))  # type: ignore[arg-type]


def find_local_file(config: DictConfig) -> Path | None:
    """Return the file with the defaults of this machine, None if there is none."""
    for folder in list_folders(config):
        path = Path(folder) / "local" / "default.yaml"
        if path.is_file():
            return path
    return None


def drop_unused_local_values(config: DictConfig, known: Collection[str]) -> None:
    """Remove values of the local file for options that are not selected.

    So it can have `data.root` for photographs, and `data=digits`, which has no such key,
    works as well. `known` are the keys of the selected options.
    Raises UserError: a key in the file that no option has.
    """
    path = find_local_file(config)
    if path is None:
        return
    typed = {split_key(override) for override in list_overrides(config.hydra)}
    content: Any = OmegaConf.load(path)
    for key in flatten(content):
        if key in known or key in typed or key.startswith(("defaults", "hydra.", "claim.")):
            continue
        if (CONF / key).is_dir():  # an empty group, refused elsewhere
            continue
        if not find_options(key, CONF):
            raise UserError(f"{path}: {unknown_key(key, [*known])}")
        remove_key(config, key)


def remove_key(config: DictConfig, key: str) -> None:
    """Remove a dotted key, and the nodes above it that are empty then, except its group."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    with open_dict(config):
        del node[name]
    if not node and "." in parent:
        remove_key(config, parent)
