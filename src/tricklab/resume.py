"""Which run goes on: known from the files of run folders, before torch is imported."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

VOLATILE = ("hydra", "resume", "name", "tags", "logger", "slots", "num_workers")  # not part of what is computed
FACTS = ("choices", "dataset")  # what a run adds to its config.yaml


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 12 hex digits that tell apart configs which compute something else."""
    return hashlib.sha256(json.dumps(_kept(config), sort_keys=True, default=str).encode()).hexdigest()[:12]


def run_folder(new: str, *, _root_: DictConfig) -> str:
    """Return the folder of the run that `resume` names or finds, or else `new`."""
    if _root_.resume == "none":
        return new
    if _root_.resume == "auto":
        task = OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"])
        wanted = config_hash(OmegaConf.to_container(task, resolve=True))  # type: ignore[arg-type]
        return next((str(folder) for folder in find_runs(Path(new).parent) if goes_on(folder, wanted)), new)
    path = Path(_root_.resume)
    return str(path.parent.parent if path.suffix == ".ckpt" else path)


def find_runs(root: Path) -> list[Path]:
    """Find the folders of runs in `root`, or one folder further down, the newest first."""
    files = [*root.glob("*/config.yaml"), *root.glob("*/*/config.yaml")]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in files if path.parent.name != ".hydra"]


def read_config(folder: Path) -> dict[str, Any]:
    """Read the resolved config of a run, without the facts that it added."""
    config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))  # type: ignore[assignment]
    return {key: value for key, value in config.items() if key not in FACTS}


def status(folder: Path) -> str:
    """Return how a run ended; "unfinished" is one that runs, or that was killed."""
    path = folder / "result.json"
    return str(json.loads(path.read_text("utf-8"))["status"]) if path.is_file() else "unfinished"


def goes_on(folder: Path, wanted: str) -> bool:
    return status(folder) != "done" and config_hash(read_config(folder)) == wanted


def checkpoint(resume: str, folder: Path) -> Path | None:
    """Return the checkpoint that training goes on from; None where there is none yet."""
    path = Path(resume) if resume.endswith(".ckpt") else folder / "checkpoints" / "last.ckpt"
    return path if resume != "none" and path.is_file() else None


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in config.items() if k not in VOLATILE}
    return kept | {"data": {k: v for k, v in kept.get("data", {}).items() if k not in VOLATILE}}
