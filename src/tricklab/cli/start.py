"""Checks when Hydra starts a run or a sweep, before its folder exists."""

import os
import re
import shutil
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, read_write

from tricklab.cli.check import check, check_overrides
from tricklab.cli.config import CONF, to_plain
from tricklab.cli.launch import exit_with_message
from tricklab.cli.overrides import (
    list_overrides,
    list_values,
    parse_command_overrides,
    swept_keys,
)
from tricklab.cli.redact import check_secrets
from tricklab.devices import count_devices, is_first, world_size
from tricklab.errors import UserError
from tricklab.run.folder import check_folder
from tricklab.run.identity import PLANNED_HASH, config_hash

# Keys without an effect on a single run
SWEEP_ONLY = re.compile(
    r"(sweep|slots|dry_run|job_timeout|hydra\.sweep|hydra[./](launcher|sweeper))(\.|$)"
)


class Check(Callback):
    """Hydra's callback before the folder of a run is made."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        check_or_exit(check_run, config)
        # Resolve the folder once: Lightning's further processes would look for it again and
        # find another
        with read_write(config.hydra.run):
            config.hydra.run.dir = str(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        check_or_exit(check_sweep, config)


def check_or_exit(check: Callable[[DictConfig], None], config: DictConfig) -> None:
    """Exit with one line if a check fails. Hydra would ignore any other exception."""
    try:
        with exit_with_message():
            check(config)
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(1) from error


def check_run(config: DictConfig) -> None:
    """Check the config, processes and folder of a single run, or of a job of a sweep."""
    planned_hash = os.environ.get(PLANNED_HASH)  # set by the sweep
    check(config)
    if not planned_hash and is_first():  # Lightning gives its processes hydra.run.dir once more
        check_secrets(config)
        check_command(config)
        check_single_run()
    if planned_hash and planned_hash != config_hash(to_plain(config)):
        raise UserError("conf/ was changed after this sweep had begun; give its command again")
    check_processes(config)
    if is_first():
        check_folder(Path(config.hydra.run.dir), config)


def check_command(config: DictConfig) -> None:
    """Check the command line of a run or a sweep.

    Of two values of a key the last one counts, as in Hydra, so that a command can be
    extended. Raises UserError: two options of a group, or a folder without a name.
    """
    check_single_options()
    if config.hydra.job.chdir:
        raise UserError("hydra.job.chdir=true is not supported: paths would lead elsewhere")
    if config.hydra.mode == RunMode.MULTIRUN:
        check_folder_name("hydra.sweep.dir", config.hydra.sweep.dir)
        check_folder_name("hydra.sweep.subdir", config.hydra.sweep.subdir)
        subdir = str(config.hydra.sweep.subdir)
        if "/" in subdir or subdir.startswith("."):
            expected = "expected a name without / and leading dots"
            raise UserError(f"hydra.sweep.subdir={subdir}: {expected}")
    else:
        check_folder_name("hydra.run.dir", config.hydra.run.dir)


def check_single_options() -> None:
    """Raise UserError if the command line has two different options of a group."""
    typed: dict[str, list[str]] = {}
    for override in parse_command_overrides():
        group = str(override.key_or_group)
        text = str(override.input_line)
        if (CONF / group).is_dir() and not text.startswith("~"):
            typed.setdefault(group, []).append(text)
    for group, overrides in typed.items():
        if len(set(overrides)) > 1:
            raise UserError(f"{' '.join(overrides)}: {group} is given twice")


def check_folder_name(key: str, folder: Any) -> None:
    if not str(folder).strip():
        raise UserError(f"{key}= is empty. Expected a folder")


def check_single_run() -> None:
    """Raise UserError for an override that only a sweep reads."""
    for override in parse_command_overrides():
        if SWEEP_ONLY.match(str(override.key_or_group)):
            problem = "has an effect on sweeps alone; add -m for a sweep"
            raise UserError(f"{override.input_line} {problem}")


def check_sweep(config: DictConfig) -> None:
    """Check a sweep's command line and launcher; each of its jobs is checked as a run."""
    check_overrides(list_overrides(config.hydra))
    check_secrets(config)
    check_command(config)
    if "TORCHELASTIC_RUN_ID" in os.environ and world_size() > 1:
        raise UserError("torchrun with -m; use python train.py -m trainer=ddp instead")
    if config.resume != "none":
        raise UserError(f"resume={config.resume} -m: a sweep resumes by itself; leave out resume")
    check_swept()
    check_launcher(config)


def check_swept() -> None:
    """Raise UserError for a sweep over no values, or over a key of the whole sweep."""
    overrides = parse_command_overrides()
    for override in overrides:
        is_glob = "glob(" in str(override.input_line)  # needs Hydra's loader: sweep_plugins.py
        if override.is_sweep_override() and override.is_discrete_sweep() and not is_glob:
            list_values(override)
    if "hydra.run.dir" in {override.key_or_group for override in overrides}:
        raise UserError("hydra.run.dir has no effect with -m; use hydra.sweep.dir=FOLDER")
    for key in sorted(swept_keys(overrides)):
        if key.partition(".")[0] in ("sweep", "slots", "dry_run"):
            raise UserError(f"{key} has several values. Expected one, for the whole sweep")


def check_launcher(config: DictConfig) -> None:
    """Raise UserError for a launcher that can't run here, or not with the sweeper."""
    choices = config.hydra.runtime.choices
    launcher = choices["hydra/launcher"]
    sweeper = choices["hydra/sweeper"]
    if launcher == "slurm" and find_spec("hydra_plugins.hydra_submitit_launcher"):
        check_slurm(dry_run=config.dry_run)
    check_nodes(config, launcher)
    if launcher == "local" and sweeper != "search":
        options = f"hydra/sweeper={sweeper} hydra/launcher=local"
        raise UserError(f"{options}: expected hydra/sweeper=search, or another launcher, as basic")


def check_slurm(dry_run: bool) -> None:
    """Raise UserError if jobs would be queued at SLURM on a machine without it."""
    missing = [command for command in ("sbatch", "srun") if not shutil.which(command)]
    if missing and not dry_run:
        where = "start the sweep where SLURM is, or with hydra/launcher=local"
        raise UserError(f"hydra/launcher=slurm: no {missing[0]} on this machine; {where}")


def check_nodes(config: DictConfig, launcher: str) -> None:
    """Raise UserError if the launcher would start other processes than those of a job."""
    trainer = config.trainer
    if launcher != "slurm":
        if trainer.num_nodes > 1:
            problem = f"trainer.num_nodes={trainer.num_nodes} -m hydra/launcher={launcher}"
            raise UserError(f"{problem}: expected hydra/launcher=slurm, or trainer.num_nodes=1")
        return
    options = config.hydra.launcher
    nodes, tasks = int(options.nodes), int(options.tasks_per_node)
    devices = count_processes(trainer)
    is_one_task = nodes == tasks == 1  # Lightning starts the others
    right_devices = is_one_task or devices in (None, nodes * tasks)
    if nodes != trainer.num_nodes or not right_devices:
        given = f"hydra.launcher.nodes={nodes} hydra.launcher.tasks_per_node={tasks}"
        run = f"trainer.num_nodes={trainer.num_nodes} trainer.devices={trainer.devices}"
        right = f"trainer=ddp trainer.num_nodes={nodes} trainer.devices={tasks}"
        raise UserError(f"{given} does not match {run}. Expected {right}, or as many tasks")


def check_processes(config: DictConfig) -> None:
    """Check the processes that torchrun or srun have started.

    Raises UserError: they share no folder, would train separate runs, or are too few.
    """
    size = world_size()
    overrides = list_overrides(config.hydra, "hydra")
    is_parallel = "TORCHELASTIC_RUN_ID" in os.environ or size > 1
    if is_parallel and not any(o.startswith("hydra.run.dir=") for o in overrides):
        problem = "processes of torchrun or srun must share a folder"
        raise UserError(f"{problem}. Expected hydra.run.dir=FOLDER")
    if not is_parallel and config.trainer.num_nodes > 1 and "NODE_RANK" not in os.environ:
        problem = f"trainer.num_nodes={config.trainer.num_nodes} waits for other machines"
        raise UserError(f"{problem}. Expected a start by torchrun or srun")
    expected = count_processes(config.trainer)
    if size == 1 or expected in (None, size):
        check_tasks(size)
        return
    per_node = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("SLURM_NTASKS_PER_NODE")
    local_size = int(per_node or size)
    nodes = size // local_size
    options = (
        f"trainer.devices={config.trainer.devices} trainer.num_nodes={config.trainer.num_nodes}"
    )
    problem = f"does not match the {size} processes that were started"
    right = f"trainer=ddp trainer.devices={local_size} trainer.num_nodes={nodes}"
    raise UserError(f"{options} {problem}. Expected {right}")


def check_tasks(size: int) -> None:
    """Raise UserError if SLURM did not say how many of the `size` tasks each node has."""
    is_srun = "LOCAL_RANK" not in os.environ
    if size > 1 and is_srun and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(f"srun --ntasks={size}: expected --nodes and --ntasks-per-node instead")


def count_processes(trainer: DictConfig) -> int | None:
    """Return the number of processes of a run; None if only Lightning can tell."""
    devices = count_devices(trainer.devices)
    if devices:
        return devices * int(trainer.num_nodes)
    return int(trainer.num_nodes) if trainer.accelerator == "cpu" else None
