"""Which run goes on: known from the files of run folders, before torch is imported."""

import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.files import UnreadableError, read_json, read_yaml

VOLATILE = (  # not part of what is computed
    *("hydra", "sweep", "claim", "resume", "name", "tags", "logger", "slots", "dry", "job_timeout"),
    *("data.num_workers", "data.cache", "callbacks.progress", "callbacks.last"),
    *("choices", "dataset"),  # facts that a run adds to its config.yaml
)
NEUTRAL: dict[str, Any] = {  # keys that came later, at the value which computes the same as without
    "data.background": "white",
}
HASH = "PLANNED_CONFIG_HASH"  # in the environment of a sweep's job: that of the config it was planned with
SECRET = re.compile(
    r"(^|[._-])((api|access|private|secret)[_-]?key|token|secret|password|passwd|passphrase|credentials?)$",
    re.IGNORECASE,
)


def masked(config: Any) -> Any:
    """Put stars for the values of keys that are secrets, at any depth."""
    if isinstance(config, list):
        return [masked(part) for part in config]
    if not isinstance(config, Mapping):
        return config
    return {
        key: "***" if is_secret(str(key), value) else masked(value) for key, value in config.items()
    }


def is_secret(key: str, value: Any) -> bool:
    """Whether a value is nobody's business: a text under a name that says so."""
    return (
        isinstance(value, str)
        and value not in ("", "true", "false", "null")
        and bool(SECRET.search(key))
    )


def is_volatile(key: str) -> bool:
    """Whether a dotted key is no part of what is computed."""
    return any(f"{key.replace('/', '.')}.".startswith(f"{volatile}.") for volatile in VOLATILE)


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 12 hex digits that tell apart configs which compute something else.

    Whatever the package is called, and without the keys of `NEUTRAL` at their value there.
    """
    kept = {
        key: {k: v for k, v in value.items() if not _left_out(f"{key}.{k}", v)}
        if isinstance(value, dict)
        else value
        for key, value in masked(config).items()
        if key not in VOLATILE
    }
    text = json.dumps(kept, sort_keys=True, default=str).replace(f'"{__package__}.', '".')
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _left_out(key: str, value: Any) -> bool:
    return key in VOLATILE or (key in NEUTRAL and value == NEUTRAL[key])


def task(config: DictConfig) -> dict[str, Any]:
    """Return a composed config as plain values, without Hydra's own."""
    part = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return dict(OmegaConf.to_container(part, resolve=True))  # type: ignore[arg-type]


def run_folder(new: str, *, _root_: DictConfig) -> str:
    """Return the folder of the run that `resume` names or finds, or else `new`."""
    if _root_.resume == "none":
        return new
    if _root_.resume == "auto":
        wanted = config_hash(task(_root_))
        open_ended = (
            f for f in find_runs(Path(new).parent) if status(f) not in ("done", "running")
        )
        return next(
            (str(folder) for folder in open_ended if config_hash(read_config(folder)) == wanted),
            new,
        )
    path = Path(str(_root_.resume))
    return str(path.parent.parent if path.suffix == ".ckpt" else path)


def find_runs(root: Path) -> list[Path]:
    """Find the folders of runs in `root`, or one folder further down, the newest first."""
    files = [*root.glob("[!.]*/config.yaml"), *root.glob("[!.]*/[!.]*/config.yaml")]
    runs = [path for path in files if "\nchoices:" in path.read_text("utf-8", "replace")]
    return [
        path.parent for path in sorted(runs, key=lambda path: path.stat().st_mtime, reverse=True)
    ]


def read_config(folder: Path) -> dict[str, Any]:
    """Read the resolved config of a run, with the facts that it added; nothing where it is damaged."""
    try:
        return read_yaml(folder / "config.yaml")
    except UnreadableError:
        return {}


def status(folder: Path) -> str:
    """Return how a run ended, or "running"; "unfinished" is one that was killed."""
    result = read_result(folder)
    with suppress(PermissionError):  # of another user, whose lock can't be tried
        if (folder / ".lock").exists() and not lock_run(
            folder
        ):  # whatever an earlier start has left
            return "running"
    return "unfinished" if result.get("status", "killed") == "killed" else str(result["status"])


def read_result(folder: Path) -> dict[str, Any]:
    """Read the `result.json` of a run; nothing where there is none, or not a whole one."""
    try:
        result = read_json(folder / "result.json")
    except UnreadableError:
        return {}
    return result if "status" in result else {}


def lock_run(folder: Path) -> Any:
    """Return a file that holds the run's folder for this process until it is closed; None where another one does."""
    flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW
    file = open(os.open(folder / ".lock", flags, 0o666), "a")  # noqa: SIM115  # it holds the lock
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:  # as on some network file systems
        said = f"{folder} can't be locked ({error})"
        print(f"warning: {said}; see yourself that no other process runs it", file=sys.stderr)
    return file


def checkpoint(resume: str, folder: Path) -> Path | None:
    """Return the checkpoint that training goes on from; None where there is none yet."""
    path = Path(resume) if resume.endswith(".ckpt") else folder / "checkpoints" / "last.ckpt"
    return path if resume != "none" and path.is_file() else None
