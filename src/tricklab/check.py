"""What can be seen to be wrong in a composed config, before a folder is made or torch is imported: a UserError."""

import functools
import os
import re
import shlex
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from tricklab import lightning, resume
from tricklab.cli import CONF, given, list_overrides, list_values, one_line, swept, unknown_key
from tricklab.duration import parse
from tricklab.errors import UserError, nearest
from tricklab.escape import for_terminal
from tricklab.files import UnreadableError, parse_yaml, read_text
from tricklab.folder import refuse_links
from tricklab.process import is_first, world_size
from tricklab.redact import check_secrets
from tricklab.signatures import find_default
from tricklab.suggest import SEVERAL_OPTIONS as SEVERAL
from tricklab.values import check_value, show

SEVERAL_OPTIONS = (*SEVERAL, "tags")
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
OF_A_SWEEP = re.compile(  # what has no effect on a single run
    r"(sweep|slots|dry|job_timeout|hydra\.sweep|hydra[./](launcher|sweeper))(\.|$)"
)
FIXED = {  # conclude() reads this file, whatever these say
    "callbacks.best._target_": "tricklab.callbacks.BestCheckpoint",
    "callbacks.best.filename": "best",
    "callbacks.best.enable_version_counter": False,
    "callbacks.last._target_": "tricklab.callbacks.LastCheckpoint",
    "trainer._target_": "pytorch_lightning.Trainer",
}
RESUMED = ("resume", "stop_after")  # of an earlier start of a run
INSIDE = ("filename", "tensorboard.name", "tensorboard.version", "tensorboard.sub_dir")
MONITORED = {"val/loss": "min", "val/acc": "max", "val/ece": "min"}  # what callbacks can see


class Check(Callback):
    """Hydra's callback, which runs before the folder of a run is made."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        refuse(config)
        with read_write(
            config.hydra.run
        ):  # or further processes of the run would look for it again, and find others
            config.hydra.run.dir = str(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        exit_on(check_sweep, config)


def check_slurm(dry: bool) -> None:
    """Refuse to queue jobs at SLURM where that is not."""
    missing = [command for command in ("sbatch", "srun") if not shutil.which(command)]
    if missing and not dry:
        where = "start the sweep where SLURM is, or with hydra/launcher=local"
        raise UserError(f"hydra/launcher=slurm: no {missing[0]} on this machine; {where}")


def exit_on(judge: Callable[[DictConfig], None], config: DictConfig) -> None:
    """End the process with one line if anything is wrong; after any other exception Hydra would go on."""
    try:
        with one_line():
            judge(config)
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(1) from error


def refuse(config: DictConfig) -> None:
    exit_on(check_run, config)


def check_run(config: DictConfig) -> None:
    """Check the config of a single run, and the folder that it is for."""
    planned = os.environ.get(resume.HASH)  # by the sweep that this is a job of
    check(config)
    if not planned and is_first():  # Lightning's copies are given hydra.run.dir once more
        check_secrets(config)
        check_command(config)
        check_single()
    if planned and planned != resume.config_hash(resume.task(config)):
        raise UserError("conf/ was changed after this sweep had begun; give its command again")
    check_processes(config)
    if is_first():
        check_folder(Path(config.hydra.run.dir), config)


def check_command(config: DictConfig) -> None:
    """Refuse what no command may hold: two options of a group, and folders without a name.

    Of two values of a key the last one counts, as in Hydra, so that a command can be extended.
    """
    chosen: dict[str, list[str]] = {}
    for word in given():
        if (CONF / str(word.key_or_group)).is_dir() and not str(word.input_line).startswith("~"):
            chosen.setdefault(str(word.key_or_group), []).append(str(word.input_line))
    for key, words in chosen.items():
        if len(set(words)) > 1:
            raise UserError(f"{' '.join(words)}: {key} is given twice")
    if config.hydra.job.chdir:
        raise UserError("hydra.job.chdir=true is not supported: paths would lead elsewhere")
    folders = {"hydra.run.dir": config.hydra.run.dir}
    if config.hydra.mode == RunMode.MULTIRUN:
        folders = {f"hydra.sweep.{key}": config.hydra.sweep[key] for key in ("dir", "subdir")}
    for key, folder in folders.items():
        if not str(folder).strip():
            raise UserError(f"{key}= is empty; expected a folder")
    subdir = str(config.hydra.sweep.subdir) if len(folders) == 2 else ""
    if "/" in subdir or subdir.startswith("."):
        raise UserError(f"hydra.sweep.subdir={subdir}: expected a name without / and leading dots")


def check_single() -> None:
    """Refuse what only a sweep reads."""
    for word in given():
        if OF_A_SWEEP.match(str(word.key_or_group)):
            raise UserError(f"{word.input_line} has an effect on sweeps alone; add -m for a sweep")


def check_sweep(config: DictConfig) -> None:
    """Check what a sweep has of its own; each of its jobs is checked as a run."""
    check_words(list_overrides(config.hydra))
    check_secrets(config)
    check_command(config)
    if "TORCHELASTIC_RUN_ID" in os.environ and world_size() > 1:
        raise UserError("torchrun with -m; use python train.py -m trainer=ddp instead")
    if config.resume != "none":
        raise UserError(f"resume={config.resume} -m: a sweep resumes by itself; leave out resume")
    for word in given():
        is_glob = "glob(" in str(word.input_line)  # needs Hydra's loader: see sweep_plugins.py
        if word.is_sweep_override() and word.is_discrete_sweep() and not is_glob:
            list_values(word)
    if "hydra.run.dir" in {word.key_or_group for word in given()}:
        raise UserError("hydra.run.dir has no effect with -m; use hydra.sweep.dir=FOLDER")
    for key in sorted(swept(given())):
        if key.partition(".")[0] in ("sweep", "slots", "dry"):
            raise UserError(f"{key} has several values; expected one, for the whole sweep")
    chosen = config.hydra.runtime.choices
    if chosen["hydra/launcher"] == "slurm" and find_spec("hydra_plugins.hydra_submitit_launcher"):
        check_slurm(dry=config.dry)
    if chosen["hydra/launcher"] == "local" and chosen["hydra/sweeper"] != "search":
        said = f"hydra/sweeper={chosen['hydra/sweeper']} hydra/launcher=local"
        raise UserError(f"{said}; allowed: hydra/sweeper=search, or another launcher, as basic")


def check(config: DictConfig) -> None:
    """Refuse unknown keys, values of another type than the default or out of range, and contradictions."""
    words = list_overrides(config.hydra)
    check_words(words)
    plain = resume.task(config)
    values = leaves(plain)
    if any(resume.SECRET.search(key) or holds_dicts(value) for key, value in values.items()):
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
    check_together(config)


def holds_dicts(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, dict | list) for part in value)


def check_words(words: Sequence[str]) -> None:
    """Refuse words that can't be taken as they were given."""
    for word in words:
        key, _, value = word.partition("=")
        if value.startswith("[") and "." not in key and key not in SEVERAL_OPTIONS:
            raise UserError(f"{word}; allowed: one option of {key}")
        if word.startswith("~") and (
            word[1:].split(".")[0] not in SEVERAL_OPTIONS
            or re.match(r"~callbacks(\.(best|last))?(=|$)", word)
        ):
            raise UserError(f"{word} would leave out what is needed; give it another value")


def check_lightning(config: Mapping[str, Any]) -> None:
    """Refuse what Lightning has and what would not do here what it says, and files outside of the run folder."""
    for name in config["trainer"]:
        lightning.check_argument(str(name))
    for name, node in config["callbacks"].items():
        if isinstance(node, dict):
            lightning.check_callback(name, str(node.get("_target_")))
            check_monitor(name, node)
    for group in ("callbacks", "logger"):
        for key, value in leaves(config[group]).items():
            if key.endswith(INSIDE) and isinstance(value, str) and leads_out(value):
                said = "is outside of the run folder"
                raise UserError(f"{group}.{key}={value} {said}; expected a name")
    project = str((config["logger"].get("wandb") or {}).get("project", ""))
    if wrong := re.search(r"[/\\#?%:]", project):
        raise UserError(f"logger.wandb.project={project}: W&B takes no {wrong[0]} in it")


def leads_out(path: str) -> bool:
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


def check_together(config: DictConfig) -> None:
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
    chosen = {*choices, *SEVERAL_OPTIONS} - {"tags"}  # Hydra leaves out groups with several options
    words = [word for word in given if word.lstrip("+~").split("=")[0] in chosen]
    if words == given and not choices.get("experiment") and not choices.get("debug"):
        return leaves(resume.task(config))  # which takes no second look at the files
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
    overrides = list_overrides(config.hydra, "hydra")
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
    whole = folder.resolve()
    there = next(path for path in (folder, whole, *whole.parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"hydra.run.dir={folder}: {there} can't be written; choose another folder")
    refuse_links(folder)
    if config.resume not in ("none", "auto"):
        named = Path(resume.run_folder("", _root_=config))
        if not Path(str(config.resume)).exists() or not (named / "config.yaml").exists():
            raise UserError(
                f"resume={show(config.resume)}; allowed: none, auto, the folder of a run or a checkpoint in it"
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
    was = resume.NEUTRAL | was  # of a run from before these keys
    changed = [key for key in kept if was.get(key) != now.get(key)]
    if changed == ["trainer.max_epochs"] and now[changed[0]] > was[changed[0]]:
        print(
            f"resume: {was[changed[0]]} epochs become {now[changed[0]]}, over which the schedule is planned again"
        )
    elif changed:
        said = ", ".join(
            f"{key}={show(now.get(key))} (was {show(was.get(key))})" for key in changed[:5]
        )
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        command = command_of(folder, str(config.resume))
        raise UserError(
            for_terminal(f"resume={config.resume}: {said}{more}; to resume that run: {command}")
        )


def command_of(folder: Path, resumed: str) -> str:
    """Return the command that resumes the run in a folder, with the overrides that it was begun with."""
    path = folder / ".hydra" / "overrides.yaml"  # a list, and maybe a stranger's
    try:
        found = parse_yaml(f"overrides:\n{read_text(path)}", str(path))["overrides"]
    except UnreadableError:
        found = resume.read_result(folder).get("overrides")
    words = [str(word) for word in found] if isinstance(found, list) else []
    kept = [word for word in words if word.partition("=")[0].lstrip("+") not in RESUMED]
    return shlex.join(["python", "train.py", *kept, f"resume={resumed}"])
