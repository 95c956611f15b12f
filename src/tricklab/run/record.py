"""The files that describe a run: `config.yaml`, `git.diff` and `result.json`."""

import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from tricklab.cli.redact import redact_patch, redact_secrets
from tricklab.devices import count_cores, name_processor
from tricklab.errors import UserError
from tricklab.files import write_text, write_yaml
from tricklab.run.automatic import Choice, find_recorded
from tricklab.run.folder import lock_run, read_config, refuse_links
from tricklab.run.identity import PLANNED_HASH, config_hash

PACKAGES = ("tricklab", "torch", "pytorch-lightning", "hydra-core", "numpy")
HERE = Path(__file__).parent
# Measured rows, their pictures and text: they change while runs are measured, and affect none
NOT_CODE = (
    ":(top,exclude,glob)conf/experiment/**/*.csv",
    ":(top,exclude,glob)conf/experiment/*.svg",
    ":(top,exclude,glob)**/*.md",
)


class Record:
    """The description of one run: its config and provenance at the start, its result at the end."""

    def __init__(
        self,
        cfg: DictConfig,
        folder: Path,
        overrides: Sequence[str] = (),
        choices: Mapping[str, Any] | None = None,
    ):
        self.folder = folder
        self.started = time.time()
        self.lock: Any = None
        # Left by an earlier start, if this run is resumed
        recorded = read_config(folder)
        self.dataset: dict[str, Any] = recorded.get("dataset", {})
        self.automatic = find_recorded(recorded)
        self.new = is_new(folder)
        self.choices = {
            group: option
            for group, option in (choices or {}).items()
            if not group.startswith(("hydra/", "local"))
        }
        self.config: dict[str, Any] = redact_secrets(OmegaConf.to_container(cfg, resolve=True))
        self.result = self._describe_start(overrides)

    def _describe_start(self, overrides: Sequence[str]) -> dict[str, Any]:
        versions = {name: find_version(name) for name in PACKAGES}
        return {
            "status": "",
            "reason": None,
            "metrics": {},
            **dict.fromkeys(("objective", "seconds", "images_per_second")),
            "config_hash": config_hash(self.config),
            "overrides": list(overrides),
            "devices": [],
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "started": datetime.now(UTC).isoformat(),
            "versions": {"python": platform.python_version(), **versions},
            "git": git_state(HERE),
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """Options, command and commit, for loggers that keep them beside the config."""
        command = shlex.join(["python", "train.py", *self.result["overrides"]])
        return {"choices": self.choices, "command": command, "git": self.result["git"]}

    @rank_zero_only
    def start(self) -> None:
        """Write the resolved config and uncommitted changes.

        Raises UserError: another process runs in this folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        refuse_links(self.folder)
        self.lock = lock_run(self.folder)
        if not self.lock:
            message = f"the run in {self.folder} is running"
            raise UserError(f"{message}; wait for it, or choose another folder")
        self.describe(self.dataset, self.automatic)
        if self.result["git"] and self.result["git"]["dirty"]:
            write_text(self.folder / "git.diff", uncommitted_changes(HERE))

    @rank_zero_only
    def describe(self, dataset: Mapping[str, Any], automatic: Choice) -> None:
        """Write `config.yaml`. Its `dataset` makes a checkpoint usable without the data.

        `automatic` is what `auto` stands for in this run.
        """
        content = {**self.config, "choices": self.choices}
        content |= {"automatic": automatic} if automatic else {}
        content |= {"dataset": dict(dataset)} if dataset else {}
        write_yaml(self.folder / "config.yaml", content)

    @rank_zero_only
    def mark_running(self) -> None:
        """Remove the result of an earlier start: training changes the run from here on."""
        self.new = False
        (self.folder / "result.json").unlink(missing_ok=True)

    @rank_zero_only
    def discard(self) -> None:
        """Delete the folder if the run was refused before training. Jobs of a sweep keep theirs."""
        if self.new and self.lock:
            shutil.rmtree(self.folder, ignore_errors=True)
            remove_empty(self.folder.absolute().parent)

    @rank_zero_only
    def finish(self, status: str, reason: str | None = None, **results: Any) -> None:
        """Write `result.json` atomically. A failure before training keeps an earlier result."""
        self.result |= {"status": status, "reason": reason, "machine": describe_machine()}
        self.result |= {"seconds": round(time.time() - self.started, 3), **results}
        if not self.lock:
            return
        path = self.folder / "result.json"
        if status == "done" or not path.exists():
            write_text(path, to_json(self.result))
        self.lock.close()


def describe_machine() -> dict[str, Any]:
    """Return the processor, the cores that may be used, and the threads of this process in use."""
    threads = torch.get_num_threads()
    return {"processor": name_processor(), "cores": count_cores(), "threads": threads}


def is_new(folder: Path) -> bool:
    """Whether a folder holds no run yet, and belongs to no sweep."""
    empty = all(path.name in (".hydra", "train.log") for path in folder.glob("*"))
    return empty and PLANNED_HASH not in os.environ


def to_json(result: Mapping[str, Any]) -> str:
    """Return a result as JSON, with null for the NaN and the infinities that JSON lacks."""
    metrics = {k: v if math.isfinite(v) else None for k, v in result["metrics"].items()}
    finite = {**result, "metrics": metrics}
    return json.dumps(finite, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def remove_empty(folder: Path) -> None:
    """Remove a folder and its parents, up to the working directory, as long as they are empty."""
    while Path.cwd() in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def find_version(package: str) -> str:
    """Return the installed version; with `PYTHONPATH=src`, tricklab itself may have none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit and whether code or configs differ from it; None without a repository.

    `dirty` is None if git fails to tell.
    """
    commit = run_git(folder, "rev-parse", "HEAD").strip()
    if not commit:
        return None
    lines = run_git(folder, "status", "--porcelain", "--branch", "--", ":/", *NOT_CODE).splitlines()
    # the first one names the branch
    return {"commit": commit, "dirty": len(lines) > 1 if lines else None}


def uncommitted_changes(folder: Path) -> str:
    """Return a patch of all changes to tracked files, and of untracked code and configs."""
    top = Path(run_git(folder, "rev-parse", "--show-toplevel").strip())
    list_untracked = ("ls-files", "-z", "--others", "--exclude-standard", "--", "*.py", "*.yaml")
    patches = [run_git(top, "diff", "--binary", "HEAD")]
    for path in run_git(top, *list_untracked).split("\0")[:-1]:
        patches.append(run_git(top, "diff", "--binary", "--no-index", "/dev/null", path))
    return redact_patch("".join(patches))


def run_git(folder: Path, *arguments: str) -> str:
    """Return the output of git; nothing if there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True)
    except OSError:
        return ""
    differs = 1  # exit code of `git diff`, not an error
    return done.stdout.decode("utf-8", "replace") if done.returncode <= differs else ""
