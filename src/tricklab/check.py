"""What can be seen to be wrong in a composed config, before a folder is made or torch is imported."""

import functools
import math
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from tricklab.cli import explain, unknown
from tricklab.duration import parse
from tricklab.errors import UserError, nearest
from tricklab.resume import (
    HASH,
    checkpoint,
    config_hash,
    is_secret,
    is_volatile,
    masked,
    read_config,
    read_result,
    run_folder,
    task,
)
from tricklab.scheduler import DURATIONS as OF_DECAYS
from tricklab.scheduler import FALLS, RAMPS

Leaves = dict[str, Any]

DURATIONS = (*OF_DECAYS, "warmup", "hold", "milestones", "begin", "end", "stop_after", "freeze")
SEVERAL_OPTIONS = ("augment", "penalty", "callbacks", "logger", "tags")
GROUPS = (*SEVERAL_OPTIONS, "data", "model", "mixup", "loss", "optimizer", "scheduler", "trainer", "sweep")
SEVERAL_TYPES = ("trainer.devices", "trainer.precision", "trainer.strategy", "resume")  # Lightning takes more than one
SHARES = (
    *("dropout", "input_dropout", "spatial_dropout", "drop_path", "label_noise", "label_smoothing", "probability"),
    *("floor", "momentum", "threshold"),
    *("horizontal", "vertical", "translate", "smallest", "largest", "brightness", "contrast"),
)
FROM_0 = (
    *("val_size", "train_size", "alpha", "cutmix_alpha", "strength", "lr", "body_lr", "weight_decay"),
    *("patience", "padding", "operations", "seed", "num_workers", "gradient_clip_val"),
)
FROM_1 = (
    *("slots", "job_timeout", "batch_size", "lr_per", "test_images", "channels", "height", "width", "every_n_steps"),
    *(
        "accumulate_grad_batches",
        "check_val_every_n_epoch",
        "mult",
        "trials",
        "replicates",
        "rounds",
        "batch",
        "widths",
    ),
)
TYPES: dict[str, type] = {  # of what is null by default
    **dict.fromkeys(("name", "weights", "entity", "group", "notes", "profiler", "only"), str),
    **dict.fromkeys(("lr_per", "folds", "slots", "job_timeout", "num_workers", "every_n_steps"), int),
    "weight": list,
}
NULLABLE = ("resize",)
FREE = ("sweep.of", "claim")  # names of one's own below
CHOICES = {
    "scheduler.shape": tuple(FALLS),
    "scheduler.warmup_shape": (*RAMPS, "constant"),
    "mixup.per": ("batch", "image"),
    "data.mode": ("RGB", "L"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "cuda", "mps", "tpu"),
    "trainer.precision": (
        *("32-true", "32", "16-mixed", "16", "bf16-mixed", "bf16", "16-true", "bf16-true", "64-true", "64"),
        *("transformer-engine", "transformer-engine-float16"),
    ),
}
PAIRS = ("betas",)
RANGES = {  # by the last word of a key: lowest and highest
    **dict.fromkeys(SHARES, (0, 1)),
    **dict.fromkeys((*FROM_0, "norm", "mistakes", "power"), (0, math.inf)),
    **dict.fromkeys((*FROM_1, "log_every_n_steps"), (1, math.inf)),
    **dict.fromkeys(("images", "classes", "factor"), (2, math.inf)),
    **dict.fromkeys(("gamma", "start", "warmup_share"), (1e-6, 1)),  # a rate of 0 would be a step without a step
    **dict.fromkeys(("momentum_low", "momentum_high", "betas"), (0, 0.9999999)),
    **{"degrees": (0, 180), "shear": (0, 89), "scale": (0, 0.99), "magnitude": (0, 30), "value": (0, 255)},
    **dict.fromkeys(("limit_val_batches", "limit_test_batches"), (0.001, math.inf)),  # best.ckpt needs validation
}


class Check(Callback):
    """Hydra's callback, which runs before the folder of a run is made."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        refuse(config)
        with read_write(config.hydra.run):  # or further processes of the run would look for it again, and find others
            config.hydra.run.dir = str(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.resume != "none":
            raise SystemExit(f"error: resume={config.resume} -m; allowed: none, a sweep goes on by itself")


def refuse(config: DictConfig) -> None:
    """End the process with one line if anything is wrong; after any other exception Hydra would go on."""
    try:
        check(config)
        if (planned := os.environ.get(HASH)) and planned != config_hash(task(config)):
            raise UserError("conf/ was changed after this sweep had begun; give its command again")
        together = "TORCHELASTIC_RUN_ID" in os.environ or os.environ.get("SLURM_NTASKS", "1") != "1"
        if together and not any(word.startswith("hydra.run.dir=") for word in config.hydra.overrides.hydra):
            raise UserError("what torchrun or srun starts together shares a folder; allowed: with hydra.run.dir=FOLDER")
        if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
            check_folder(Path(config.hydra.run.dir), config)
    except (UserError, OmegaConfBaseException) as error:
        raise SystemExit(f"error: {explain(error)}") from None
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(1) from error


def check(config: DictConfig) -> None:
    """Compare keys, types and ranges with those of the chosen options.

    Raises UserError: an unknown key, a value of another type than the default, or out of range; several options of a
    group that takes one; options that contradict each other.
    """
    words = list(config.hydra.overrides.task)
    check_words(words)
    if empty := next((group for group in GROUPS if config[group] is None), ""):
        raise UserError(f"{empty} is empty; allowed: an option of it, or keys below it")
    reference = defaults(config)
    added = [word.lstrip("+").split("=")[0] for word in words if word.startswith("+")]
    for key, value in leaves(config).items():
        if any(key.startswith(f"{free}.") and free in reference for free in FREE):
            continue
        if key not in reference and not any(key == a or key.startswith(f"{a}.") for a in added):
            parent = key.rpartition(".")[0]
            siblings = [k[len(parent) :].lstrip(".").split(".")[0] for k in reference if k.startswith(parent)]
            raise UserError(said_by(key, config) + unknown(key, key.rpartition(".")[2], set(siblings)))
        check_value(key, value, reference.get(key))
    check_together(config)


def check_words(words: Sequence[str]) -> None:
    """Refuse words that can't be taken as they were given."""
    for word in words:
        key, _, value = word.partition("=")
        if value.startswith("[") and "." not in key and key not in SEVERAL_OPTIONS:
            raise UserError(f"{word}; allowed: one option of {key}")
        within = re.findall(r"(\w+)['\"]?\s*:\s*([^][{},]+)", value)
        if any(is_secret(k, v) and "${" not in v for k, v in [(key, value), *within]):
            said = f"{key.lstrip('+')}=*** would be written down"
            raise UserError(f"{said}; allowed: an environment variable, as ${{oc.env:NAME}}")
        if word.startswith("~") and word[1:].split(".")[0] not in SEVERAL_OPTIONS:
            raise UserError(f"{word} would leave out what is needed; allowed: another value")


def check_together(config: DictConfig) -> None:
    """Refuse options that contradict each other."""
    if config.model.get("freeze") and not config.model.get("weights"):
        raise UserError(f"model.freeze={config.model.freeze} would keep random weights; allowed: with model.weights")
    if config.loss.get("weight") and config.mixup._target_ != "tricklab.mixup.identity":
        why = "an image of two classes would have the weight of neither"
        raise UserError(f"loss.weight={config.loss.weight} with mixing: {why}; allowed: with mixup=off")
    if "l1_prox" in config.penalty and "ema" in config.callbacks:
        why = "an average of weights is hardly ever 0"
        raise UserError(f"penalty=l1_prox with callbacks=ema: {why}; allowed: one of them")
    trainer, fused = config.trainer, config.optimizer.get("fused")
    every, stop_after = trainer.check_val_every_n_epoch, str(config.stop_after)
    if stop_after.endswith("ep") and parse(stop_after)[0] % every:
        why = f"trainer.check_val_every_n_epoch={every} has none there, and the run that goes on would not be the same"
        raise UserError(f"stop_after={stop_after} ends with a validation: {why}; allowed: a multiple")
    if fused and trainer.precision in ("16-mixed", 16, "16") and trainer.gradient_clip_val:
        said = f"trainer.precision={trainer.precision} trainer.gradient_clip_val={trainer.gradient_clip_val}"
        raise UserError(f"{said}: a fused step unscales gradients itself; allowed: with optimizer.fused=false")


def said_by(key: str, config: DictConfig) -> str:
    """Name the experiment that a key comes from, if it is not from the command line."""
    given = key in {word.lstrip("+").split("=")[0] for word in config.hydra.overrides.task}
    experiment = config.hydra.runtime.choices.get("experiment")
    return f"experiment={experiment} with these options: " if experiment and not given else ""


def check_value(key: str, value: Any, default: Any) -> None:
    """Check the type of a value against its default's, and its range. Raises UserError: one of the two does not fit."""
    word = key.rpartition(".")[2]
    if value is None and (default is None or word in NULLABLE):
        return
    if default is None and word in TYPES and type(value) is not TYPES[word]:
        raise UserError(f"{key}={value!r} is a {type(value).__name__}; allowed: null, {TYPES[word].__name__}")
    if word in DURATIONS:
        check_durations(key, value, several=isinstance(default, list))
    elif not fits(value, default) and key not in SEVERAL_TYPES:
        raise UserError(f"{key}={value!r} is a {type(value).__name__}; allowed: {type(default).__name__}")
    if key in CHOICES and str(value) not in CHOICES[key]:
        raise UserError(f"{key}={value}; allowed: {', '.join(CHOICES[key])}.{nearest(str(value), CHOICES[key])}")
    if (
        isinstance(value, list)
        and isinstance(default, list)
        and default
        and not all(fits(part, default[0]) for part in value)
    ):
        raise UserError(f"{key}={value}; allowed: a list of {type(default[0]).__name__}")
    if word in PAIRS and isinstance(value, list) and len(value) != 2:
        raise UserError(f"{key}={value}; allowed: two numbers")
    low, high = RANGES.get(word, (-math.inf, math.inf))
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and (not low <= number <= high or math.isinf(number)):
            raise UserError(f"{key}={value}; allowed: {low} {'or more' if high == math.inf else f'to {high}'}")


def check_durations(key: str, value: Any, several: bool) -> None:
    if isinstance(value, list) != several:
        raise UserError(f"{key}={value}; allowed: {'a list of durations, as [50%,75%]' if several else 'one duration'}")
    for duration in value if several else [value]:
        try:
            if parse(duration)[0] <= 0 and key == "stop_after":
                raise UserError(f"{duration}; allowed: more than 0")
        except UserError as error:
            raise UserError(f"{key}={error}") from None


def fits(value: Any, default: Any) -> bool:
    """Say whether a value may stand where this default stood; an int may where a float did."""
    if value is None or default is None:
        return value is default or default is None
    if isinstance(default, float) and not isinstance(value, bool):
        return isinstance(value, int | float)
    return type(value) is type(default)


def defaults(config: DictConfig) -> Leaves:
    """Return the values of the chosen options as their files have them: without experiment, debug and single values."""
    chosen = {*config.hydra.runtime.choices, *SEVERAL_OPTIONS}  # Hydra leaves out groups with several options
    words = [word for word in config.hydra.overrides.task if word.lstrip("+~").split("=")[0] in chosen]
    folders = [source.path for source in config.hydra.runtime.config_sources if source.schema == "file"]
    return merge_files(config.hydra.job.config_name, (*config.hydra.overrides.hydra, *words), tuple(folders))


@functools.cache
def merge_files(name: str, words: tuple[str, ...], folders: tuple[str, ...]) -> Leaves:
    files = GlobalHydra.instance().config_loader().compute_defaults_list(name, list(words), RunMode.RUN).defaults
    merged: Any = OmegaConf.create()
    for file in files:
        if not str(file.config_path).startswith(("hydra/", "experiment/", "debug/")):
            path = next(p for p in (Path(f) / f"{file.config_path}.yaml" for f in folders) if p.is_file())
            content = cast(DictConfig, OmegaConf.load(path))
            content.pop("defaults", None)
            merged = OmegaConf.merge(merged, {file.package: content} if file.package else content)
    return leaves(cast(DictConfig, merged))


def leaves(config: DictConfig) -> Leaves:
    """Flatten a config to values by dotted key, Hydra's own left out."""

    def walk(node: Any, path: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict) and value:
                yield from walk(value, f"{path}{key}.")
            else:
                yield f"{path}{key}", value

    return dict(walk(task(config), ""))


def check_folder(folder: Path, config: DictConfig) -> None:
    """Refuse to write over an earlier run, or to go on with it under other options.

    Raises UserError: the folder holds a run, or another one than `resume` asks for, or can't be written.
    """
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"hydra.run.dir={folder}: {there} can't be written; choose another folder")
    if config.resume not in ("none", "auto"):
        named = Path(run_folder("", _root_=config))
        if not Path(str(config.resume)).exists() or not (named / "config.yaml").exists():
            raise UserError(f"resume={config.resume}; allowed: none, auto, the folder of a run or a checkpoint in it")
        if read_result(named).get("status") == "done" and not checkpoint(str(config.resume), named):
            raise UserError(f"resume={config.resume}: no last.ckpt there; allowed: model.weights=.../best.ckpt")
        if named != folder:
            raise UserError(f"hydra.run.dir={folder} and resume={config.resume} differ; allowed: one of the two")
    if not (folder / "config.yaml").exists():
        return
    if config.resume == "none":
        raise UserError(f"hydra.run.dir={folder} holds a run already; resume=auto goes on with it, or choose another")
    was, now = leaves(OmegaConf.create(read_config(folder))), leaves(OmegaConf.create(masked(task(config))))
    if not was:
        raise UserError(f"resume={config.resume}: {folder}/config.yaml is damaged; allowed: another hydra.run.dir")
    changed = [key for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
    changed = [key for key in changed if key != "stop_after" and not is_volatile(key)]
    if changed == ["trainer.max_epochs"] and now[changed[0]] > was[changed[0]]:
        print(f"resume: {was[changed[0]]} epochs become {now[changed[0]]}, over which the schedule is planned again")
    elif changed:
        said = ", ".join(f"{key}={now.get(key)} (was {was.get(key)})" for key in changed)
        raise UserError(f"resume={config.resume}: {said}; allowed: the options of the run in {folder}")
