"""Run folders: the one to resume, its lock, status and result. Known without importing torch."""

import fcntl
import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.config import flatten, to_plain
from tricklab.cli.escape import for_terminal
from tricklab.cli.redact import redact_secrets
from tricklab.cli.specs import neutral_values
from tricklab.cli.values import show
from tricklab.errors import UserError
from tricklab.files import UnreadableError, parse_yaml, read_json, read_text, read_yaml
from tricklab.run.automatic import is_automatic
from tricklab.run.identity import config_hash, is_excluded_from_hash

NOT_REPEATED = ("resume", "stop_after")  # overrides of an earlier start that a resume leaves out
OWN_FOLDERS = ("checkpoints", ".hydra", "tensorboard", "wandb")  # created by a run in its folder


def check_folder(folder: Path, config: DictConfig) -> None:
    """Raise UserError: the folder is not writable, or holds a run that `resume` can't continue."""
    check_writable(folder)
    refuse_links(folder)
    if config.resume not in ("none", "auto"):
        check_resumable(folder, config)
    if not (folder / "config.yaml").exists():
        return
    if config.resume == "none":
        message = f"hydra.run.dir={folder} holds a run already"
        raise UserError(f"{message}; resume it with resume=auto, or choose another folder")
    check_same_options(folder, config)


def check_writable(folder: Path) -> None:
    resolved = folder.resolve()
    parent = next(path for path in (folder, resolved, *resolved.parents) if path.exists())
    if not os.access(parent, os.W_OK):
        message = f"hydra.run.dir={folder}: {parent} can't be written"
        raise UserError(f"{message}; choose another folder")


def check_resumable(folder: Path, config: DictConfig) -> None:
    """Raise UserError: `resume` names no run, one without a checkpoint, or another folder."""
    run = Path(run_folder("", _root_=config))
    if not Path(str(config.resume)).exists() or not (run / "config.yaml").exists():
        allowed = "none, auto, the folder of a run or a checkpoint in it"
        raise UserError(f"resume={show(config.resume)}; allowed: {allowed}")
    is_done = read_result(run).get("status") == "done"
    if is_done and not find_checkpoint(str(config.resume), run):
        hint = "to start from its weights: model.weights=.../best.ckpt"
        raise UserError(f"resume={config.resume}: it has no last.ckpt; {hint}")
    if run != folder:
        both = f"hydra.run.dir={folder} and resume={config.resume}"
        raise UserError(f"{both} are different folders; leave out one of them")


def check_same_options(folder: Path, config: DictConfig) -> None:
    """Raise UserError: the run in the folder has other options. More epochs are allowed."""
    before, now = flatten(read_config(folder)), flatten(redact_secrets(to_plain(config)))
    if not before:
        message = f"resume={config.resume}: {folder}/config.yaml is damaged"
        raise UserError(f"{message}; choose another hydra.run.dir")
    keys = [key for key in sorted(before | now) if not is_excluded_from_hash(key)]
    before = neutral_values() | before  # the run may be older than these keys
    changed = [key for key in keys if key != "stop_after" and before.get(key) != now.get(key)]
    changed = [key for key in changed if not is_automatic(key, now.get(key))]
    if changed == ["trainer.max_epochs"] and now[changed[0]] > before[changed[0]]:
        epochs = f"{before[changed[0]]} epochs become {now[changed[0]]}"
        print(f"resume: {epochs}; the schedule is planned again for all of them")
    elif changed:
        differences = ", ".join(
            f"{key}={show(now.get(key))} (was {show(before.get(key))})" for key in changed[:5]
        )
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        command = resume_command(folder, str(config.resume))
        message = f"resume={config.resume}: {differences}{more}; to resume that run: {command}"
        raise UserError(for_terminal(message))


def resume_command(folder: Path, resume: str) -> str:
    """Return the command that resumes the run in a folder, with the overrides of its start."""
    path = folder / ".hydra" / "overrides.yaml"  # a list, possibly a stranger's
    try:
        found = parse_yaml(f"overrides:\n{read_text(path)}", str(path))["overrides"]
    except UnreadableError:
        found = read_result(folder).get("overrides")
    overrides = [str(override) for override in found] if isinstance(found, list) else []
    kept = [o for o in overrides if o.partition("=")[0].lstrip("+") not in NOT_REPEATED]
    return shlex.join(["python", "train.py", *kept, f"resume={resume}"])


def run_folder(new: str, *, _root_: DictConfig) -> str:
    """Return the folder of the run that `resume` names or finds; otherwise `new`."""
    if _root_.resume == "none":
        return new
    if _root_.resume == "auto":
        return find_unfinished(Path(new).parent, config_hash(to_plain(_root_))) or new
    path = Path(str(_root_.resume))
    return str(path.parent.parent if path.suffix == ".ckpt" else path)


def find_unfinished(root: Path, wanted: str) -> str:
    """Return the newest run below `root` with a config hash that can be resumed, "" if none."""
    for folder in find_runs(root):
        if status(folder) in ("done", "running"):
            continue
        if config_hash(read_config(folder)) == wanted:
            return str(folder)
    return ""


def find_runs(root: Path) -> list[Path]:
    """Find the folders of runs in `root`, or one folder further down, the newest first."""
    files = [*root.glob("[!.]*/config.yaml"), *root.glob("[!.]*/[!.]*/config.yaml")]
    configs = [path for path in files if "\nchoices:" in path.read_text("utf-8", "replace")]
    configs.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent for path in configs]


def read_config(folder: Path) -> dict[str, Any]:
    """Read the resolved config of a run; empty if it is damaged."""
    try:
        return read_yaml(folder / "config.yaml")
    except UnreadableError:
        return {}


def status(folder: Path) -> str:
    """Return the status of a run: that of its result, "running", or "unfinished" if killed."""
    result = read_result(folder)
    with suppress(PermissionError):  # another user's lock can't be tried
        # A held lock counts, whatever result an earlier start has left
        if (folder / ".lock").exists() and not lock_run(folder):
            return "running"
    found = result.get("status", "killed")
    return "unfinished" if found == "killed" else str(found)


def read_result(folder: Path) -> dict[str, Any]:
    """Read the `result.json` of a run; empty if it is missing or incomplete."""
    try:
        result = read_json(folder / "result.json")
    except UnreadableError:
        return {}
    return result if "status" in result else {}


def lock_run(folder: Path) -> Any:
    """Return an open file that locks a folder until it is closed; None if it is locked already."""
    flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW
    file = open(os.open(folder / ".lock", flags, 0o666), "a")  # noqa: SIM115  # holds the lock
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:  # as on some network file systems
        message = f"{folder} can't be locked ({error})"
        print(f"warning: {message}; make sure that no other process uses it", file=sys.stderr)
    return file


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """Return the checkpoint to resume from; None if there is none yet."""
    path = Path(resume) if resume.endswith(".ckpt") else folder / "checkpoints" / "last.ckpt"
    return path if resume != "none" and path.is_file() else None


def find_best(path: str | Path | None, option: str) -> Path:
    """Return a checkpoint file, the value of `option`; of a run folder, the best checkpoint.

    Raises UserError: there is none.
    """
    expected = "the path of a checkpoint, of an exported file or of a run's folder"
    if not path:
        raise UserError(f"{option} is missing. Expected {expected}")
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "checkpoints" / "best.ckpt"
    if not file.is_file():
        raise UserError(f"{option}={path}: no such file. Expected {expected}")
    return file


def refuse_links(folder: Path) -> None:
    """Raise UserError if a run would write through a link out of its folder.

    Checked are the folder itself and `OWN_FOLDERS`. The links of W&B are its own: it only writes
    into new folders.
    """
    written = [p for p in folder.glob("*") if p.name in OWN_FOLDERS or not p.is_dir()]
    for name in set(OWN_FOLDERS) - {"wandb"}:
        written += (folder / name).rglob("*")
    for path in written:
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} is a link that leads out of the run folder; remove it")


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
