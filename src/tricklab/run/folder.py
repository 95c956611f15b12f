"""Run folders: which one to resume, its lock, its status and its result."""

import fcntl
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.config import leaves, task
from tricklab.cli.escape import for_terminal
from tricklab.cli.redact import masked
from tricklab.cli.values import show
from tricklab.errors import UserError
from tricklab.files import UnreadableError, parse_yaml, read_json, read_text, read_yaml
from tricklab.run.identity import NEUTRAL, config_hash, is_volatile

RESUMED = ("resume", "stop_after")  # of an earlier start of a run


def check_folder(folder: Path, config: DictConfig) -> None:
    """Refuse a folder that can't be written, or holds a run that `resume` does not name or that has other options."""
    whole = folder.resolve()
    there = next(path for path in (folder, whole, *whole.parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"hydra.run.dir={folder}: {there} can't be written; choose another folder")
    refuse_links(folder)
    if config.resume not in ("none", "auto"):
        named = Path(run_folder("", _root_=config))
        if not Path(str(config.resume)).exists() or not (named / "config.yaml").exists():
            raise UserError(
                f"resume={show(config.resume)}; allowed: none, auto, the folder of a run or a checkpoint in it"
            )
        if read_result(named).get("status") == "done" and not checkpoint(str(config.resume), named):
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
    was, now = leaves(read_config(folder)), leaves(masked(task(config)))
    if not was:
        raise UserError(
            f"resume={config.resume}: {folder}/config.yaml is damaged; allowed: another hydra.run.dir"
        )
    kept = [key for key in sorted(was | now) if key != "stop_after" and not is_volatile(key)]
    was = NEUTRAL | was  # of a run from before these keys
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
        found = read_result(folder).get("overrides")
    words = [str(word) for word in found] if isinstance(found, list) else []
    kept = [word for word in words if word.partition("=")[0].lstrip("+") not in RESUMED]
    return shlex.join(["python", "train.py", *kept, f"resume={resumed}"])


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


OWN = ("checkpoints", ".hydra", "tensorboard", "wandb")  # folders that a run makes in its own


def refuse_links(folder: Path) -> None:
    """Raise UserError if a link leads out of a run folder from where a run writes.

    That is right in the folder and in the folders `OWN`. Links within W&B's are its own, which
    writes into new folders alone.
    """
    written = [path for path in folder.glob("*") if path.name in OWN or not path.is_dir()]
    for name in set(OWN) - {"wandb"}:
        written += (folder / name).rglob("*")
    for path in written:
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} is a link that leads out of the run's folder; remove it")


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
