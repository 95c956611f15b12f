"""A job of a sweep: the command that starts it, its folder, and the result it leaves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from tricklab.cli.config import to_plain
from tricklab.cli.overrides import parse_command_overrides, quote, swept_keys
from tricklab.files import UnreadableError, read_table
from tricklab.run.folder import read_result
from tricklab.run.identity import config_hash

MAX_WANDB_NAME = 128  # characters of a group or a name in W&B


class JobSpec(NamedTuple):
    """What a process needs to run a job.

    When the job starts, the hash of its config must be `planned_hash`. It is killed after
    `timeout` seconds, if that is not None.
    """

    overrides: list[str]
    folder: Path
    planned_hash: str
    timeout: float | None

    @property
    def arguments(self) -> list[str]:
        """The arguments of `python train.py` that start or resume the job."""
        return [*self.overrides, f"hydra.run.dir={quote(self.folder)}", "resume=auto"]


class RunLength(NamedTuple):
    """The options that end a run."""

    max_epochs: int
    max_steps: int
    check_val_every_n_epoch: int
    stop_after: str | None
    early_stopping: bool


class Job(list[str]):
    """A run of the sweep in the folder `root`; as a list, the overrides for Hydra's launchers.

    With an `epoch_budget` above 0 it stops after that many epochs.
    """

    def __init__(
        self, overrides: Sequence[str], config: DictConfig, root: Path, epoch_budget: int = 0
    ):
        self.overrides = strip_sweep_overrides(overrides)
        self.epoch_budget = epoch_budget
        self.length = read_length(config)
        # Before stop_after is set: the subdir has the hash of the whole run
        self.folder = root / config.hydra.sweep.subdir
        added = []
        if epoch_budget:
            config.stop_after = f"{epoch_budget}ep"
            added.append(f"stop_after={epoch_budget}ep")
        added += name_in_wandb(self.overrides, config, root)
        planned_hash = config_hash(to_plain(config))
        added += repeat_searchpath(config)
        self.spec = JobSpec(
            [*self.overrides, *added], self.folder, planned_hash, config.job_timeout
        )
        super().__init__(self.spec.overrides)
        self.append(f"hydra.sweep.dir={quote(root)}")
        self.append(f"hydra.sweep.subdir={quote(self.folder.name)}")

    def __str__(self) -> str:
        return " ".join(self.overrides)

    @property
    def result(self) -> dict[str, Any]:
        """The job's `result.json`; without one, its status is "killed" or "open"."""
        if result := read_result(self.folder):
            return result
        has_started = (self.folder / "job.log").exists()
        return {
            "status": "killed" if has_started else "open",
            "reason": last_line(self.folder),
            "objective": None,
        }

    @property
    def value(self) -> float | None:
        """The job's objective; with an epoch budget, the best val/acc within it.

        None if the job is not done, or has not reached its budget.
        """
        return self.best_accuracy() if self.epoch_budget else self.objective()

    def objective(self) -> float | None:
        result = self.result
        stops = {o for o in result.get("overrides", ()) if o.startswith("stop_after=")}
        was_cut_short = bool(stops - {*self.overrides})  # by the epoch budget of a round before
        return result.get("objective") if result["status"] == "done" and not was_cut_short else None

    def best_accuracy(self) -> float | None:
        is_complete = False
        accuracies = []
        try:
            for row in read_table(self.folder / "metrics.csv", growing=True):
                if row.get("epoch") and row.get("val/acc"):
                    epoch = int(row["epoch"])
                    is_complete |= epoch >= self.epoch_budget - 1
                    if epoch < self.epoch_budget:
                        accuracies.append(float(row["val/acc"]))
        except (UnreadableError, ValueError):
            return None
        return max(accuracies) if is_complete else None


def strip_sweep_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those of the sweep itself."""
    return [o for o in overrides if not o.startswith(("sweep=", "sweep.", "slots=", "dry_run="))]


def read_length(config: DictConfig) -> RunLength:
    trainer = config.trainer
    return RunLength(
        trainer.max_epochs,
        trainer.max_steps,
        trainer.check_val_every_n_epoch,
        config.stop_after,
        "early_stopping" in config.callbacks,
    )


def name_in_wandb(overrides: Sequence[str], config: DictConfig, root: Path) -> list[str]:
    """Return overrides that group the jobs of a sweep in W&B, each named by what varies."""
    if "wandb" not in config.logger:
        return []
    keys = {"seed", *swept_keys(parse_command_overrides())}
    name = " ".join(override for override in overrides if override.split("=")[0] in keys)
    group = config.logger.wandb.group or root.name[:MAX_WANDB_NAME]
    return [
        f"logger.wandb.group={quote(group)}",
        f"logger.wandb.name={quote(name[:MAX_WANDB_NAME])}",
    ]


def repeat_searchpath(config: DictConfig) -> list[str]:
    """Return an override with the config folders given on the command line, for a job."""
    urls = []
    for source in config.hydra.runtime.config_sources:
        if source.schema == "file" and "command-line" in source.provider:
            urls.append(quote(f"file://{source.path}"))
    return [f"hydra.searchpath=[{','.join(urls)}]"] if urls else []


def last_line(folder: Path) -> str:
    """Return the last line of a job's log."""
    try:
        return (folder / "job.log").read_text("utf-8", "replace").strip().rpartition("\n")[2]
    except OSError:
        return "no job.log"
