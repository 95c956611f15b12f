"""Validation of the composed config, before the run folder exists and torch is imported."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tricklab.cli.config import MULTI_OPTION_GROUPS as SEVERAL
from tricklab.cli.config import flatten, to_plain
from tricklab.cli.lightning import check_argument, check_callback
from tricklab.cli.messages import unknown_key
from tricklab.cli.overrides import list_overrides
from tricklab.cli.redact import SECRET, check_secrets
from tricklab.cli.signatures import find_default
from tricklab.cli.values import check_value
from tricklab.duration import parse
from tricklab.errors import UserError, nearest

MULTI_OPTION_GROUPS = (*SEVERAL, "tags")


GROUPS = (
    *MULTI_OPTION_GROUPS,
    "data",
    "model",
    "mixup",
    "loss",
    "optimizer",
    "scheduler",
    "trainer",
    "sweep",
)


FIXED = {  # the test reads best.ckpt, whatever these are
    "callbacks.best._target_": "tricklab.callbacks.BestCheckpoint",
    "callbacks.best.filename": "best",
    "callbacks.best.enable_version_counter": False,
    "callbacks.last._target_": "tricklab.callbacks.LastCheckpoint",
    "trainer._target_": "pytorch_lightning.Trainer",
}


INSIDE = ("filename", "tensorboard.name", "tensorboard.version", "tensorboard.sub_dir")


MONITORED = {"val/loss": "min", "val/acc": "max", "val/ece": "min"}  # what callbacks can see


def check(config: DictConfig) -> None:
    """Refuse unknown keys, values of another type than the default or out of range, and contradictions."""
    words = list_overrides(config.hydra)
    check_overrides(words)
    plain = to_plain(config)
    values = flatten(plain)
    if any(SECRET.search(key) or contains_mapping(value) for key, value in values.items()):
        check_secrets(config)
    if empty := next((group for group in GROUPS if config[group] is None), ""):
        raise UserError(f"{empty} is empty; expected an option of it, or keys below it")
    reference, experiment = defaults(config), config.hydra.runtime.choices.get("experiment")
    given = [word.lstrip("+").split("=")[0] for word in words]
    added = tuple(f"{key}." for key, word in zip(given, words, strict=True) if word.startswith("+"))
    free = tuple(
        f"{key}." for key in ("sweep.of", "claim") if key in reference
    )  # names of one's own below
    check_lightning(plain)
    for key, value in values.items():
        if key.startswith(free):
            continue
        default = reference.get(key)
        if key not in reference and f"{key}.".startswith(added):
            default = find_default(key, config)
        elif key not in reference:
            by = (
                f"experiment={experiment} with these options: "
                if experiment and key not in given
                else ""
            )
            raise UserError(by + unknown_key(key, [*reference]))
        check_value(key, value, default)
        if FIXED.get(key, value) != value:
            raise UserError(f"{key}={value}: the run's results rest on {FIXED[key]}, leave it so")
    check_combinations(config)


def contains_mapping(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, dict | list) for part in value)


def check_overrides(words: Sequence[str]) -> None:
    """Refuse words that can't be taken as they were given."""
    for word in words:
        key, _, value = word.partition("=")
        if value.startswith("[") and "." not in key and key not in MULTI_OPTION_GROUPS:
            raise UserError(f"{word}; allowed: one option of {key}")
        if word.startswith("~") and (
            word[1:].split(".")[0] not in MULTI_OPTION_GROUPS
            or re.match(r"~callbacks(\.(best|last))?(=|$)", word)
        ):
            raise UserError(f"{word} would leave out what is needed; give it another value")


def check_lightning(config: Mapping[str, Any]) -> None:
    """Refuse what Lightning has and what would not do here what it says, and files outside of the run folder."""
    for name in config["trainer"]:
        check_argument(str(name))
    for name, node in config["callbacks"].items():
        if isinstance(node, dict):
            check_callback(name, str(node.get("_target_")))
            check_monitor(name, node)
    for group in ("callbacks", "logger"):
        for key, value in flatten(config[group]).items():
            if key.endswith(INSIDE) and isinstance(value, str) and leaves_folder(value):
                said = "is outside of the run folder"
                raise UserError(f"{group}.{key}={value} {said}; expected a name")
    project = str((config["logger"].get("wandb") or {}).get("project", ""))
    if wrong := re.search(r"[/\\#?%:]", project):
        raise UserError(f"logger.wandb.project={project}: W&B takes no {wrong[0]} in it")


def leaves_folder(path: str) -> bool:
    return Path(path).is_absolute() or ".." in Path(path).parts


def check_monitor(name: str, node: Mapping[str, Any]) -> None:
    """Refuse a callback that would wait for a value that is not there, or for it to move the wrong way."""
    monitor, mode = node.get("monitor"), node.get("mode", "min")
    if monitor is None:
        return
    if monitor not in MONITORED:
        hint = nearest(str(monitor), MONITORED)
        raise UserError(
            f"callbacks.{name}.monitor={monitor}; allowed: {', '.join(MONITORED)}.{hint}"
        )
    if mode in ("min", "max") and mode != MONITORED[monitor]:
        better = "lower" if mode == "max" else "higher"
        need = f"callbacks.{name}.mode={MONITORED[monitor]}"
        raise UserError(f"callbacks.{name}.monitor={monitor} needs {need}: {better} is better")


def check_combinations(config: DictConfig) -> None:
    """Refuse options that contradict each other."""
    check_stop(config)
    erase: Any = config.augment.get("erase") or {}
    if erase.get("smallest", 0) > erase.get("largest", 1):
        said = (
            f"augment.erase.smallest={erase['smallest']} augment.erase.largest={erase['largest']}"
        )
        raise UserError(f"{said}: smallest must not exceed largest")
    trainer, weight, freeze = config.trainer, config.loss.get("weight"), config.model.get("freeze")
    if freeze and not config.model.get("weights"):
        raise UserError(
            f"model.freeze={freeze} would keep random weights; allowed: with model.weights"
        )
    if weight and config.mixup._target_ != "tricklab.mixup.identity":
        why = "an image of two classes would have the weight of neither"
        raise UserError(f"loss.weight={weight} with mixing: {why}; allowed: with mixup=off")
    for name, node in config.callbacks.items():
        if "l1_prox" in config.penalty and str(node.get("_target_")).endswith("WeightAveraging"):
            why = "an average of weights is hardly ever 0"
            raise UserError(f"penalty=l1_prox with callbacks={name}: {why}; allowed: one of them")
    if (
        config.optimizer.get("fused")
        and trainer.precision in ("16-mixed", 16, "16")
        and trainer.gradient_clip_val
    ):
        said = f"trainer.precision={trainer.precision} trainer.gradient_clip_val={trainer.gradient_clip_val}"
        raise UserError(
            f"{said}: a fused step unscales gradients itself; allowed: with optimizer.fused=false"
        )


def check_stop(config: DictConfig) -> None:
    """Refuse a run without a step or an end, and a `stop_after` beyond that end or between two validations."""
    stop_after, trainer = str(config.stop_after), config.trainer
    limits = (trainer.max_epochs, trainer.max_steps)
    if 0 in limits or limits == (-1, -1):
        said = f"trainer.max_epochs={limits[0]} trainer.max_steps={limits[1]}"
        raise UserError(f"{said}: the run would take no step, or never stop")
    if not stop_after.endswith(("ep", "it")):
        return
    unit = stop_after[-2:]
    most = {"ep": trainer.max_epochs, "it": trainer.max_steps}[unit]
    key = {"ep": "trainer.max_epochs", "it": "trainer.max_steps"}[unit]
    if parse(stop_after)[0] > most > -1:
        raise UserError(f"stop_after={stop_after} is after the end of the run: {key}={most}")
    every = trainer.check_val_every_n_epoch
    if unit == "ep" and parse(stop_after)[0] % every:
        why = f"trainer.check_val_every_n_epoch={every} has none there, and the run that goes on would not be the same"
        raise UserError(
            f"stop_after={stop_after} ends with a validation: {why}; expected a multiple"
        )


def defaults(config: DictConfig) -> dict[str, Any]:
    """Return the values of the chosen options as their files have them: without experiment, debug and single values."""
    choices, given = config.hydra.runtime.choices, list_overrides(config.hydra)
    chosen = {*choices, *MULTI_OPTION_GROUPS} - {
        "tags"
    }  # Hydra leaves out groups with several options
    words = [word for word in given if word.lstrip("+~").split("=")[0] in chosen]
    if words == given and not choices.get("experiment") and not choices.get("debug"):
        return flatten(to_plain(config))  # which takes no second look at the files
    folders = [
        source.path for source in config.hydra.runtime.config_sources if source.schema == "file"
    ]
    return merge_files(
        config.hydra.job.config_name,
        (*list_overrides(config.hydra, "hydra"), *words),
        tuple(folders),
    )


@functools.cache
def merge_files(name: str, words: tuple[str, ...], folders: tuple[str, ...]) -> dict[str, Any]:
    files = (
        GlobalHydra.instance()
        .config_loader()
        .compute_defaults_list(name, list(words), RunMode.RUN)
        .defaults
    )
    parts = []
    for file in files:
        if not str(file.config_path).startswith(("hydra/", "experiment/", "debug/")):
            path = next(
                p for p in (Path(f) / f"{file.config_path}.yaml" for f in folders) if p.is_file()
            )
            content: Any = OmegaConf.load(path)
            content.pop("defaults", None)
            parts.append({file.package: content} if file.package else content)
    return flatten(to_plain(OmegaConf.merge(*parts)))  # type: ignore[arg-type]
