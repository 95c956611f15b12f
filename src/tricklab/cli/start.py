"""What is checked when Hydra starts a run or a sweep, before its folder exists."""

import os
import re
import shutil
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, read_write

from tricklab.cli.check import check, check_overrides
from tricklab.cli.config import CONF, to_plain
from tricklab.cli.launch import exit_with_message
from tricklab.cli.overrides import list_overrides, list_values, parse_command_overrides, swept_keys
from tricklab.cli.redact import check_secrets
from tricklab.devices import is_first, world_size
from tricklab.errors import UserError
from tricklab.run.folder import check_folder
from tricklab.run.identity import PLANNED_HASH, config_hash

SWEEP_ONLY = re.compile(  # what has no effect on a single run
    r"(sweep|slots|dry|job_timeout|hydra\.sweep|hydra[./](launcher|sweeper))(\.|$)"
)


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
        with exit_with_message():
            judge(config)
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(1) from error


def refuse(config: DictConfig) -> None:
    exit_on(check_run, config)


def check_run(config: DictConfig) -> None:
    """Check the config of a single run, and the folder that it is for."""
    planned = os.environ.get(PLANNED_HASH)  # by the sweep that this is a job of
    check(config)
    if not planned and is_first():  # Lightning's copies are given hydra.run.dir once more
        check_secrets(config)
        check_command(config)
        check_single()
    if planned and planned != config_hash(to_plain(config)):
        raise UserError("conf/ was changed after this sweep had begun; give its command again")
    check_processes(config)
    if is_first():
        check_folder(Path(config.hydra.run.dir), config)


def check_command(config: DictConfig) -> None:
    """Refuse what no command may hold: two options of a group, and folders without a name.

    Of two values of a key the last one counts, as in Hydra, so that a command can be extended.
    """
    chosen: dict[str, list[str]] = {}
    for word in parse_command_overrides():
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
    for word in parse_command_overrides():
        if SWEEP_ONLY.match(str(word.key_or_group)):
            raise UserError(f"{word.input_line} has an effect on sweeps alone; add -m for a sweep")


def check_sweep(config: DictConfig) -> None:
    """Check what a sweep has of its own; each of its jobs is checked as a run."""
    check_overrides(list_overrides(config.hydra))
    check_secrets(config)
    check_command(config)
    if "TORCHELASTIC_RUN_ID" in os.environ and world_size() > 1:
        raise UserError("torchrun with -m; use python train.py -m trainer=ddp instead")
    if config.resume != "none":
        raise UserError(f"resume={config.resume} -m: a sweep resumes by itself; leave out resume")
    for word in parse_command_overrides():
        is_glob = "glob(" in str(word.input_line)  # needs Hydra's loader: see sweep_plugins.py
        if word.is_sweep_override() and word.is_discrete_sweep() and not is_glob:
            list_values(word)
    if "hydra.run.dir" in {word.key_or_group for word in parse_command_overrides()}:
        raise UserError("hydra.run.dir has no effect with -m; use hydra.sweep.dir=FOLDER")
    for key in sorted(swept_keys(parse_command_overrides())):
        if key.partition(".")[0] in ("sweep", "slots", "dry"):
            raise UserError(f"{key} has several values; expected one, for the whole sweep")
    chosen = config.hydra.runtime.choices
    if chosen["hydra/launcher"] == "slurm" and find_spec("hydra_plugins.hydra_submitit_launcher"):
        check_slurm(dry=config.dry)
    if chosen["hydra/launcher"] == "local" and chosen["hydra/sweeper"] != "search":
        said = f"hydra/sweeper={chosen['hydra/sweeper']} hydra/launcher=local"
        raise UserError(f"{said}; allowed: hydra/sweeper=search, or another launcher, as basic")


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
