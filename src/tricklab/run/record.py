"""What a run leaves in its folder, besides metrics and checkpoints: config.yaml, git.diff and result.json."""

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

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from tricklab.cli.redact import masked, redact_patch
from tricklab.errors import UserError
from tricklab.files import write_text, write_yaml
from tricklab.run.folder import lock_run, read_config, refuse_links
from tricklab.run.identity import HASH, config_hash

PACKAGES = ("tricklab", "torch", "pytorch-lightning", "hydra-core", "numpy")


class Record:
    """The description of one run: what was asked for at its start, what came of it at its end."""

    def __init__(
        self,
        cfg: DictConfig,
        folder: Path,
        overrides: Sequence[str] = (),
        choices: Mapping[str, Any] | None = None,
    ):
        self.folder, self.started = folder, time.time()
        self.lock: Any = None
        self.dataset: dict[str, Any] = read_config(folder).get(
            "dataset", {}
        )  # as an earlier start of this run left it
        self.new = (
            all(path.name in (".hydra", "train.log") for path in folder.glob("*"))
            and HASH not in os.environ
        )
        self.choices = {
            group: option
            for group, option in (choices or {}).items()
            if not group.startswith("hydra/")
        }
        self.config: dict[str, Any] = masked(OmegaConf.to_container(cfg, resolve=True))
        self.result: dict[str, Any] = {
            "status": "",
            "reason": None,
            "metrics": {},
            **dict.fromkeys(("objective", "seconds", "images_per_second")),
            "config_hash": config_hash(self.config),
            "overrides": list(overrides),
            "devices": [],
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "started": datetime.now(UTC).isoformat(),
            "versions": {
                "python": platform.python_version(),
                **{name: find_version(name) for name in PACKAGES},
            },
            "git": git_state(Path(__file__).parent),
        }

    @property
    def origin(self) -> dict[str, Any]:
        """Where the numbers come from, for loggers that keep it beside the config."""
        command = shlex.join(["python", "train.py", *self.result["overrides"]])
        return {"choices": self.choices, "command": command, "git": self.result["git"]}

    @rank_zero_only
    def start(self) -> None:
        """Write the resolved config and what is not committed. Raises UserError: the run is running already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        refuse_links(self.folder)
        self.lock = lock_run(self.folder)
        if not self.lock:
            raise UserError(
                f"the run in {self.folder} is running; wait for it, or choose another folder"
            )
        self.describe(self.dataset)
        if self.result["git"] and self.result["git"]["dirty"]:
            write_text(self.folder / "git.diff", uncommitted(Path(__file__).parent))

    @rank_zero_only
    def describe(self, dataset: Mapping[str, Any]) -> None:
        """Write `config.yaml`, with the facts of the data set: so a checkpoint can be used without the data."""
        facts = {"choices": self.choices, **({"dataset": dict(dataset)} if dataset else {})}
        write_yaml(self.folder / "config.yaml", {**self.config, **facts})

    @rank_zero_only
    def train(self) -> None:
        """Remove an earlier result, which no longer holds."""
        self.new = False
        (self.folder / "result.json").unlink(missing_ok=True)

    @rank_zero_only
    def discard(self) -> None:
        """Leave no folder of a run that was refused before it trained; the job of a sweep leaves its result."""
        if self.new and self.lock:
            shutil.rmtree(self.folder, ignore_errors=True)
            remove_empty(self.folder.absolute().parent)

    @rank_zero_only
    def finish(self, status: str, reason: str | None = None, **facts: Any) -> None:
        """Write `result.json`, whole or not at all; an earlier one stays if it failed before training went on."""
        self.result |= {
            "status": status,
            "reason": reason,
            "seconds": round(time.time() - self.started, 3),
            **facts,
        }
        metrics = {
            k: v if math.isfinite(v) else None for k, v in self.result["metrics"].items()
        }  # JSON has no NaN
        text = json.dumps(
            self.result | {"metrics": metrics}, indent=2, ensure_ascii=False, allow_nan=False
        )
        if self.lock:
            if status == "done" or not (self.folder / "result.json").exists():
                write_text(self.folder / "result.json", text + "\n")
            self.lock.close()


def remove_empty(folder: Path) -> None:
    """Remove a folder and those above it, up to the working directory, as long as they are empty."""
    while Path.cwd() in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def find_version(package: str) -> str:
    """Return the version that is installed; of tricklab, with `PYTHONPATH=src`, there may be none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return the commit that is checked out and whether files differ from it; None outside a repository."""
    commit = run_git(folder, "rev-parse", "HEAD").strip()
    return (
        {"commit": commit, "dirty": bool(run_git(folder, "status", "--porcelain"))}
        if commit
        else None
    )


def uncommitted(folder: Path) -> str:
    """Return what differs from the commit, as a patch; of files that git does not know, only code and configs."""
    top = Path(run_git(folder, "rev-parse", "--show-toplevel").strip())
    new = run_git(
        top, "ls-files", "-z", "--others", "--exclude-standard", "--", "*.py", "*.yaml"
    ).split("\0")[:-1]
    patches = [run_git(top, "diff", "--binary", "--no-index", "/dev/null", path) for path in new]
    return redact_patch("".join([run_git(top, "diff", "--binary", "HEAD"), *patches]))


def run_git(folder: Path, *arguments: str) -> str:
    """Return what git prints; nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True)
    except OSError:
        return ""
    return (
        done.stdout.decode("utf-8", "replace") if done.returncode <= 1 else ""
    )  # 1 says that files differ
