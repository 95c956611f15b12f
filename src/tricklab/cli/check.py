"""Validation of the composed config, before the run folder exists and torch is imported."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

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
from tricklab.duration import parse
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


def check_combinations(config: DictConfig) -> None:
    """Raise UserError for options that contradict each other."""
    check_stop(config)
    check_pairs(config)
    check_prox(config)
    check_fused(config)
    freeze = config.model.get("freeze")
    if freeze and not config.model.get("weights"):
        problem = "needs model.weights (it would freeze random weights)"
        raise UserError(f"model.freeze={freeze} {problem}")
    weight = config.loss.get("class_weights")
    if weight and config.mixup._target_ != "tricklab.mixup.identity":
        problem = "a mixed image has two classes, but would get the weight of neither"
        raise UserError(f"loss.class_weights={weight} with mixing: {problem}. Expected mixup=off")
    if weight == config.data.get("sampler") == "balanced":
        options = "data.sampler=balanced loss.class_weights=balanced"
        raise UserError(f"{options}: rare classes would count twice. Expected one of the two")
    check_files(config)


def check_files(config: DictConfig) -> None:
    """Raise UserError for options of image files without an effect."""
    data = config.data
    if "fit" not in data:
        return
    crops = "resized_crop" in config.augment
    if data.fit == "none" and crops:
        problem = "images that keep their size are not cropped to another"
        raise UserError(
            f"data.fit=none with augment=resized_crop: {problem}. Expected data.fit=crop"
        )
    if data.fit == "none" and data.crop_fraction is not None:
        raise UserError("data.fit=none with data.crop_fraction: nothing is cropped. Leave one out")
    for key in ("keep", "jpeg_scaling"):
        if data[key] and not crops:
            problem = "only augment=resized_crop keeps more than the network takes"
            raise UserError(f"data.{key}={data[key]} has no effect: {problem}")


def check_prox(config: DictConfig) -> None:
    if "l1_prox" not in config.penalty:
        return
    for name, node in config.callbacks.items():
        if str(node.get("_target_")).endswith("WeightAveraging"):
            problem = "averaged weights are hardly ever exactly 0. Expected one of the two"
            raise UserError(f"penalty=l1_prox with callbacks={name}: {problem}")


def check_fused(config: DictConfig) -> None:
    trainer = config.trainer
    precision = trainer.precision
    clip = trainer.gradient_clip_val
    if config.optimizer.get("fused") and precision in ("16-mixed", 16, "16") and clip:
        options = f"trainer.precision={precision} trainer.gradient_clip_val={clip}"
        problem = "a fused step unscales the gradients itself, after clipping"
        raise UserError(f"{options}: {problem}. Expected optimizer.fused=false")


def check_pairs(config: DictConfig) -> None:
    for key in ("erase.scale", "resized_crop.scale", "resized_crop.ratio"):
        low, high = OmegaConf.select(config.augment, key) or (0, 1)
        if low > high:
            message = f"augment.{key}=[{low}, {high}]: low is above high"
            raise UserError(f"{message}; swap them")


def check_stop(config: DictConfig) -> None:
    """Raise UserError for a run without steps or without an end, or a wrong `stop_after`."""
    trainer = config.trainer
    limits = (trainer.max_epochs, trainer.max_steps)
    if 0 in limits or limits == (-1, -1):
        options = f"trainer.max_epochs={limits[0]} trainer.max_steps={limits[1]}"
        raise UserError(f"{options}: the run would take no optimizer step, or never stop")
    stop_after = str(config.stop_after)
    if stop_after.endswith("ep"):
        check_stop_limit(stop_after, "trainer.max_epochs", trainer.max_epochs)
        check_stop_validation(stop_after, trainer.check_val_every_n_epoch)
    if stop_after.endswith("it"):
        check_stop_limit(stop_after, "trainer.max_steps", trainer.max_steps)


def check_stop_limit(stop_after: str, key: str, limit: int) -> None:
    """Raise UserError if the run ends before `stop_after`; a `limit` of -1 is none."""
    if parse(stop_after)[0] > limit > -1:
        raise UserError(f"stop_after={stop_after} is after the end of the run: {key}={limit}")


def check_stop_validation(stop_after: str, every: int) -> None:
    """Raise UserError if `stop_after` is between two validations, `every` epochs apart."""
    if parse(stop_after)[0] % every:
        expected = f"must be a multiple of trainer.check_val_every_n_epoch={every}"
        raise UserError(f"stop_after={stop_after} {expected}, or resuming would not be exact")
