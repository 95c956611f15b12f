"""Validation of the composed config, before the run folder exists and torch is imported."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tricklab.cli.combinations import check_combinations
from tricklab.cli.config import MULTI_OPTION_GROUPS, flatten, to_plain
from tricklab.cli.defaults import drop_unused_local_values, load_defaults
from tricklab.cli.grammar import Spec
from tricklab.cli.lightning import check_argument, check_callback
from tricklab.cli.messages import unknown_key
from tricklab.cli.overrides import list_overrides, split_key
from tricklab.cli.redact import SECRET, check_secrets
from tricklab.cli.signatures import find_default
from tricklab.cli.specs import find_specs
from tricklab.cli.values import check_value
from tricklab.errors import UserError, nearest

# Keys that take a list, of options or of values
LIST_KEYS = (*MULTI_OPTION_GROUPS, "tags")

# Keys that must have a value
REQUIRED_KEYS = (
    *LIST_KEYS,
    "data",
    "model",
    "mixup",
    "loss",
    "optimizer",
    "scheduler",
    "trainer",
    "sweep",
)

# Nodes with keys of the user's choice
FREE_NODES = ("sweep.arms", "claim")

# Values that the run's results depend on: best.ckpt is tested, last.ckpt is resumed
FIXED = {
    "callbacks.best._target_": "tricklab.callbacks.BestCheckpoint",
    "callbacks.best.filename": "best",
    "callbacks.best.enable_version_counter": False,
    "callbacks.last._target_": "tricklab.callbacks.LastCheckpoint",
    "trainer._target_": "pytorch_lightning.Trainer",
}

# Paths that must stay in the run folder
RELATIVE_PATHS = ("filename", "tensorboard.name", "tensorboard.version", "tensorboard.sub_dir")

# Metrics that callbacks can monitor, with the mode that improves them
MONITORED = {"val/loss": "min", "val/acc": "max", "val/ece": "min"}


def check(config: DictConfig) -> None:
    """Check keys, types, ranges and combinations of a composed config.

    Raises UserError: an unknown key, a value of another type than its default or out of
    range, a plain secret, or options that contradict each other.
    """
    check_overrides(list_overrides(config.hydra))
    defaults = load_defaults(config)
    drop_unused_local_values(config, defaults)
    plain = to_plain(config)
    values = flatten(plain)
    if any(SECRET.search(key) or contains_mapping(value) for key, value in values.items()):
        check_secrets(config)
    for key in REQUIRED_KEYS:
        if config[key] is None:
            raise UserError(f"{key} is empty. Expected an option of it, or keys below it")
    check_lightning(plain)
    specs = find_specs(values, plain, config.hydra.runtime)
    check_values(values, defaults, specs, config)
    check_combinations(config)


def contains_mapping(value: Any) -> bool:
    """Whether a value is a list with nested lists or mappings."""
    return isinstance(value, list) and any(isinstance(part, dict | list) for part in value)


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise UserError for an override that can't be applied as it was typed."""
    for override in overrides:
        key, _, value = override.partition("=")
        if value.startswith("[") and "." not in key and key not in LIST_KEYS:
            raise UserError(f"{override}: expected one option of {key}")
        if not override.startswith("~"):
            continue
        is_optional = key[1:].split(".")[0] in LIST_KEYS
        if not is_optional or re.fullmatch(r"~callbacks(\.(best|last))?", key):
            raise UserError(f"{override} would remove a required key; give it another value")


def check_values(
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    specs: Mapping[str, Spec],
    config: DictConfig,
) -> None:
    """Check the values of all keys. Raises UserError: an unknown key or a wrong value."""
    added = [
        f"{split_key(override)}."
        for override in list_overrides(config.hydra)
        if override.startswith("+")
    ]
    free = tuple(f"{key}." for key in FREE_NODES if key in defaults)
    for key, value in values.items():
        if key.startswith(free):
            continue
        default = defaults.get(key)
        if key not in defaults:
            if not f"{key}.".startswith(tuple(added)):
                raise_unknown_key(key, defaults, config)
            default = find_default(key, config)
        check_value(key, value, default, specs.get(key))
        if FIXED.get(key, value) != value:
            fixed = FIXED[key]
            raise UserError(f"{key}={value}: the run's results depend on {fixed}, keep it")


def raise_unknown_key(key: str, known: Collection[str], config: DictConfig) -> None:
    """Raise UserError, which names the experiment if the key is not from the command line."""
    experiment = config.hydra.runtime.choices.get("experiment")
    typed = map(split_key, list_overrides(config.hydra))
    source = ""
    if experiment and key not in typed:
        source = f"experiment={experiment} with these options: "
    raise UserError(source + unknown_key(key, [*known]))


def check_lightning(config: Mapping[str, Any]) -> None:
    """Refuse arguments and callbacks of Lightning that don't work here.

    Raises UserError: one of these, or a path outside the run folder.
    """
    for name in config["trainer"]:
        check_argument(str(name))
    for name, node in config["callbacks"].items():
        if isinstance(node, dict):
            check_callback(name, str(node.get("_target_")))
            check_monitor(name, node)
    for group in ("callbacks", "logger"):
        check_paths(group, config[group])
    project = str((config["logger"].get("wandb") or {}).get("project", ""))
    if wrong := re.search(r"[/\\#?%:]", project):
        raise UserError(f"logger.wandb.project={project}: W&B takes no {wrong[0]} in it")


def check_paths(group: str, node: Mapping[str, Any]) -> None:
    """Raise UserError for a path of callbacks or loggers that is outside the run folder."""
    for key, value in flatten(node).items():
        if not isinstance(value, str) or not key.endswith(RELATIVE_PATHS):
            continue
        if Path(value).is_absolute() or ".." in Path(value).parts:
            problem = "is outside of the run folder"
            raise UserError(f"{group}.{key}={value} {problem}. Expected a name")


def check_monitor(name: str, node: Mapping[str, Any]) -> None:
    """Raise UserError if a callback monitors an unknown metric, or in the wrong direction."""
    monitor = node.get("monitor")
    mode = node.get("mode", "min")
    option = f"callbacks.{name}.monitor={monitor}"
    if monitor is None:
        return
    if monitor not in MONITORED:
        hint = nearest(str(monitor), MONITORED)
        raise UserError(f"{option}; allowed: {', '.join(MONITORED)}.{hint}")
    if mode in ("min", "max") and mode != MONITORED[monitor]:
        better = "lower" if mode == "max" else "higher"
        needed = f"callbacks.{name}.mode={MONITORED[monitor]}"
        raise UserError(f"{option} needs {needed}: {better} is better")
