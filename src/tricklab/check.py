"""What can be seen to be wrong in a composed config, before a folder is made or torch is imported: a UserError."""

import functools
import math
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from tricklab import resume, scheduler
from tricklab.cli import given, one_line, swept, unknown
from tricklab.duration import parse
from tricklab.errors import UserError, nearest
from tricklab.folder import refuse_links
from tricklab.process import is_first, world_size

DURATIONS = (
    *scheduler.DURATIONS,
    "warmup",
    "hold",
    "milestones",
    "begin",
    "end",
    "stop_after",
    "freeze",
)
SEVERAL_OPTIONS = ("augment", "penalty", "callbacks", "logger", "tags")
GROUPS = (
    *SEVERAL_OPTIONS,
    "data",
    "model",
    "mixup",
    "loss",
    "optimizer",
    "scheduler",
    "trainer",
    "sweep",
)
SEVERAL_TYPES = (
    "trainer.devices",
    "trainer.precision",
    "trainer.strategy",
    "resume",
)  # Lightning takes more than one
TYPES: dict[str, type] = {  # of what is null by default
    **dict.fromkeys(("name", "weights", "entity", "group", "notes", "profiler", "only"), str),
    **dict.fromkeys(
        ("lr_per", "folds", "slots", "job_timeout", "num_workers", "every_n_steps"), int
    ),
    "weight": list,
}
CHOICES = {
    "scheduler.shape": " ".join(scheduler.FALLS),
    "scheduler.warmup_shape": " ".join([*scheduler.RAMPS, "constant"]),
    "mixup.per": "batch image",
    "data.mode": "RGB L",
    "trainer.accelerator": "auto cpu gpu cuda mps tpu",
    "trainer.precision": "32-true 32 16-mixed 16 bf16-mixed bf16 16-true bf16-true 64-true 64 "
    "transformer-engine transformer-engine-float16",
}
RANGES = {  # by the last word of a key: lowest and highest
    word: (low, high)
    for low, high, words in (
        (
            0,
            1,
            "dropout input_dropout spatial_dropout drop_path label_noise label_smoothing floor momentum threshold",
        ),
        (0, 1, "probability horizontal vertical translate smallest largest brightness contrast"),
        (
            0,
            math.inf,
            "val_size train_size alpha cutmix_alpha strength lr body_lr weight_decay norm power patience",
        ),
        (0, math.inf, "padding operations seed num_workers gradient_clip_val mistakes"),
        (
            1,
            math.inf,
            "slots job_timeout trials replicates rounds batch batch_size lr_per mult test_images channels",
        ),
        (
            1,
            math.inf,
            "height width widths accumulate_grad_batches check_val_every_n_epoch every_n_steps",
        ),
        (1, math.inf, "log_every_n_steps"),
        (2, math.inf, "images classes factor"),
        (1e-6, 1, "gamma start warmup_share"),  # a rate of 0 would be a step without a step
        (0.001, math.inf, "limit_val_batches limit_test_batches"),  # best.ckpt needs validation
        (0, 0.9999999, "betas momentum_low momentum_high"),
    )
    for word in words.split()
} | {
    "scale": (0, 0.99),
    "magnitude": (0, 30),
    "shear": (0, 89),
    "degrees": (0, 180),
    "value": (0, 255),
}


class Check(Callback):
    """Hydra's callback, which runs before the folder of a run is made."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        refuse(config)
        with read_write(
            config.hydra.run
        ):  # or further processes of the run would look for it again, and find others
            config.hydra.run.dir = str(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if "TORCHELASTIC_RUN_ID" in os.environ and world_size() > 1:
            raise SystemExit("error: torchrun with -m; allowed: python train.py -m trainer=ddp")
        if config.resume != "none":
            raise SystemExit(
                f"error: resume={config.resume} -m; allowed: none, a sweep goes on by itself"
            )
        if several := [
            key for key in swept(given()) if key.partition(".")[0] in ("sweep", "slots", "dry")
        ]:
            raise SystemExit(
                f"error: {several[0]} has several values; allowed: one, which is that of the sweep"
            )
        chosen = config.hydra.runtime.choices
        if chosen["hydra/launcher"] == "local" and chosen["hydra/sweeper"] != "search":
            said = f"hydra/sweeper={chosen['hydra/sweeper']} hydra/launcher=local"
            raise SystemExit(
                f"error: {said}; allowed: hydra/sweeper=search, or another launcher, as basic"
            )


def refuse(config: DictConfig) -> None:
    """End the process with one line if anything is wrong; after any other exception Hydra would go on."""
    try:
        with one_line():
            check(config)
            if (planned := os.environ.get(resume.HASH)) and planned != resume.config_hash(
                resume.task(config)
            ):
                raise UserError(
                    "conf/ was changed after this sweep had begun; give its command again"
                )
            check_processes(config)
            if is_first():
                check_folder(Path(config.hydra.run.dir), config)
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(1) from error


def check(config: DictConfig) -> None:
    """Refuse unknown keys, values of another type than the default or out of range, and contradictions."""
    words = list(config.hydra.overrides.task)
    check_words(words)
    if empty := next((group for group in GROUPS if config[group] is None), ""):
        raise UserError(f"{empty} is empty; allowed: an option of it, or keys below it")
    reference, experiment = defaults(config), config.hydra.runtime.choices.get("experiment")
    given = [word.lstrip("+").split("=")[0] for word in words]
    added = tuple(f"{key}." for key, word in zip(given, words, strict=True) if word.startswith("+"))
    free = tuple(
        f"{key}." for key in ("sweep.of", "claim") if key in reference
    )  # names of one's own below
    for key, value in leaves(resume.task(config)).items():
        if key.startswith(free):
            continue
        if key not in reference and not f"{key}.".startswith(added):
            parent, _, word = key.rpartition(".")
            siblings = {
                k[len(parent) :].lstrip(".").split(".")[0]
                for k in reference
                if k.startswith(parent)
            }
            by = (
                f"experiment={experiment} with these options: "
                if experiment and key not in given
                else ""
            )
            raise UserError(by + unknown(key, word, siblings))
        check_value(key, value, reference.get(key))
    check_together(config)


def check_words(words: Sequence[str]) -> None:
    """Refuse words that can't be taken as they were given."""
    for word in words:
        key, _, value = word.partition("=")
        if value.startswith("[") and "." not in key and key not in SEVERAL_OPTIONS:
            raise UserError(f"{word}; allowed: one option of {key}")
        within = re.findall(r"(\w+)['\"]?\s*:\s*([^][{},]+)", value)
        if any(resume.is_secret(k, v) and "${" not in v for k, v in [(key, value), *within]):
            said = f"{key.lstrip('+')}=*** would be written down"
            raise UserError(f"{said}; allowed: an environment variable, as ${{oc.env:NAME}}")
        if word.startswith("~") and word[1:].split(".")[0] not in SEVERAL_OPTIONS:
            raise UserError(f"{word} would leave out what is needed; allowed: another value")


def check_value(key: str, value: Any, default: Any) -> None:
    """Refuse a value that is not of its default's type, or out of range."""
    word, parts = key.rpartition(".")[2], value if isinstance(value, list) else [value]
    if value is None and (default is None or word == "resize"):
        return
    if default is None and word in TYPES and type(value) is not TYPES[word]:
        raise UserError(
            f"{key}={value!r} is a {type(value).__name__}; allowed: null, {TYPES[word].__name__}"
        )
    if word in DURATIONS:
        if isinstance(value, list) != isinstance(default, list):
            allowed = (
                "one duration" if isinstance(value, list) else "a list of durations, as [50%,75%]"
            )
            raise UserError(f"{key}={value}; allowed: {allowed}")
        if any(parse(duration, f"{key}=")[0] <= 0 for duration in parts) and key == "stop_after":
            raise UserError(f"{key}={value}; allowed: more than 0")
    elif not fits(value, default) and key not in SEVERAL_TYPES:
        raise UserError(
            f"{key}={value!r} is a {type(value).__name__}; allowed: {type(default).__name__}"
        )
    if key in CHOICES and str(value) not in (choices := CHOICES[key].split()):
        raise UserError(
            f"{key}={value}; allowed: {', '.join(choices)}.{nearest(str(value), choices)}"
        )
    if type(value) is type(default) is list and not all(fits(part, *default[:1]) for part in value):
        raise UserError(f"{key}={value}; allowed: a list of {type(default[0]).__name__}")
    if word == "betas" and type(value) is list and len(value) != 2:
        raise UserError(f"{key}={value}; allowed: two numbers")
    low, high = RANGES.get(word, (-math.inf, math.inf))
    if any(isinstance(n, int | float) and (not low <= n <= high or math.isinf(n)) for n in parts):
        raise UserError(
            f"{key}={value}; allowed: {low} {'or more' if high == math.inf else f'to {high}'}"
        )


def fits(value: Any, default: Any = None) -> bool:
    """Say whether a value may stand where this default stood; an int may where a float did."""
    return (
        default is None
        or type(value) is type(default)
        or (type(value), type(default)) == (int, float)
    )


def check_together(config: DictConfig) -> None:
    """Refuse options that contradict each other."""
    trainer, weight, freeze = config.trainer, config.loss.get("weight"), config.model.get("freeze")
    every, stop_after = trainer.check_val_every_n_epoch, str(config.stop_after)
    if freeze and not config.model.get("weights"):
        raise UserError(
            f"model.freeze={freeze} would keep random weights; allowed: with model.weights"
        )
    if weight and config.mixup._target_ != "tricklab.mixup.identity":
        why = "an image of two classes would have the weight of neither"
        raise UserError(f"loss.weight={weight} with mixing: {why}; allowed: with mixup=off")
    if "l1_prox" in config.penalty and "ema" in config.callbacks:
        why = "an average of weights is hardly ever 0"
        raise UserError(f"penalty=l1_prox with callbacks=ema: {why}; allowed: one of them")
    if stop_after.endswith("ep") and parse(stop_after)[0] % every:
        why = f"trainer.check_val_every_n_epoch={every} has none there, and the run that goes on would not be the same"
        raise UserError(
            f"stop_after={stop_after} ends with a validation: {why}; allowed: a multiple"
        )
    if (
        config.optimizer.get("fused")
        and trainer.precision in ("16-mixed", 16, "16")
        and trainer.gradient_clip_val
    ):
        said = f"trainer.precision={trainer.precision} trainer.gradient_clip_val={trainer.gradient_clip_val}"
        raise UserError(
            f"{said}: a fused step unscales gradients itself; allowed: with optimizer.fused=false"
        )


def defaults(config: DictConfig) -> dict[str, Any]:
    """Return the values of the chosen options as their files have them: without experiment, debug and single values."""
    choices, given = config.hydra.runtime.choices, list(config.hydra.overrides.task)
    chosen = {*choices, *SEVERAL_OPTIONS} - {"tags"}  # Hydra leaves out groups with several options
    words = [word for word in given if word.lstrip("+~").split("=")[0] in chosen]
    if words == given and not choices.get("experiment") and not choices.get("debug"):
        return leaves(resume.task(config))  # which takes no second look at the files
    folders = [
        source.path for source in config.hydra.runtime.config_sources if source.schema == "file"
    ]
    return merge_files(
        config.hydra.job.config_name, (*config.hydra.overrides.hydra, *words), tuple(folders)
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
    return leaves(resume.task(OmegaConf.merge(*parts)))  # type: ignore[arg-type]


def leaves(config: Mapping[Any, Any], path: str = "") -> dict[str, Any]:
    """Flatten a config to values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= (
            leaves(value, f"{path}{key}.")
            if isinstance(value, Mapping) and value
            else {f"{path}{key}": value}
        )
    return flat


def check_processes(config: DictConfig) -> None:
    """Refuse processes that torchrun or srun have started together, but would train apart."""
    torchrun, size = "TORCHELASTIC_RUN_ID" in os.environ, world_size()
    overrides = config.hydra.overrides.hydra
    together = torchrun or size > 1
    if together and not any(word.startswith("hydra.run.dir=") for word in overrides):
        shared = "what torchrun or srun starts together shares a folder"
        raise UserError(f"{shared}; allowed: with hydra.run.dir=FOLDER")
    devices = count_devices(config.trainer)
    if size == 1 or devices in (None, size):
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or size)
    asked = f"trainer.devices={config.trainer.devices} trainer.num_nodes={config.trainer.num_nodes}"
    right = f"trainer=ddp trainer.devices={here} trainer.num_nodes={size // here}"
    raise UserError(
        f"{asked} is no run of the {size} processes that were started; allowed: {right}"
    )


def count_devices(trainer: DictConfig) -> int | None:
    """Return how many processes a run has; None where Lightning alone can tell."""
    devices = trainer.devices
    if isinstance(devices, str) and re.fullmatch(r"\d+(,\d*)*", devices):
        indices = [index for index in devices.split(",") if index]
        devices = indices if "," in devices else int(devices)
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        devices = len(devices)
    if isinstance(devices, int) and devices > 0:
        return devices * int(trainer.num_nodes)
    return int(trainer.num_nodes) if trainer.accelerator == "cpu" else None


def check_folder(folder: Path, config: DictConfig) -> None:
    """Refuse a folder that can't be written, or holds a run that `resume` does not name or that has other options."""
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"hydra.run.dir={folder}: {there} can't be written; choose another folder")
    refuse_links(folder)
    if config.resume not in ("none", "auto"):
        named = Path(resume.run_folder("", _root_=config))
        if not Path(str(config.resume)).exists() or not (named / "config.yaml").exists():
            raise UserError(
                f"resume={config.resume}; allowed: none, auto, the folder of a run or a checkpoint in it"
            )
        if resume.read_result(named).get("status") == "done" and not resume.checkpoint(
            str(config.resume), named
        ):
            raise UserError(
                f"resume={config.resume}: no last.ckpt there; allowed: model.weights=.../best.ckpt"
            )
        if named != folder:
            raise UserError(
                f"hydra.run.dir={folder} and resume={config.resume} differ; allowed: one of the two"
            )
    if not (folder / "config.yaml").exists():
        return
    if config.resume == "none":
        raise UserError(
            f"hydra.run.dir={folder} holds a run already; resume=auto goes on with it, or choose another"
        )
    was, now = leaves(resume.read_config(folder)), leaves(resume.masked(resume.task(config)))
    if not was:
        raise UserError(
            f"resume={config.resume}: {folder}/config.yaml is damaged; allowed: another hydra.run.dir"
        )
    kept = [key for key in sorted(was | now) if key != "stop_after" and not resume.is_volatile(key)]
    changed = [key for key in kept if was.get(key) != now.get(key)]
    if changed == ["trainer.max_epochs"] and now[changed[0]] > was[changed[0]]:
        print(
            f"resume: {was[changed[0]]} epochs become {now[changed[0]]}, over which the schedule is planned again"
        )
    elif changed:
        said = ", ".join(f"{key}={now.get(key)} (was {was.get(key)})" for key in changed)
        raise UserError(
            f"resume={config.resume}: {said}; allowed: the options of the run in {folder}"
        )
