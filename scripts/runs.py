"""List the runs below a folder, find some by what was chosen and how they ended, and delete them.

python scripts/runs.py [root=runs]                                      all of them, the newest first
python scripts/runs.py status=failed                                    by how they ended
python scripts/runs.py scheduler=cosine mixup=on optimizer.lr=0.1       by words and values
python scripts/runs.py status=failed delete=true                        those found are deleted

status is done, failed, interrupted, unfinished (killed), running or unreadable (a damaged
config.yaml). What is unfinished or unreadable is only deleted where status=... asks for it, what is
running never.
"""

import math
import shutil
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tricklab.cli.config import flatten
from tricklab.cli.escape import for_terminal
from tricklab.cli.launch import launch
from tricklab.errors import UserError, nearest
from tricklab.files import UnreadableError, numbers, read_yaml
from tricklab.run.folder import find_runs, read_result, status

STATUSES = ("done", "failed", "interrupted", "unfinished", "running", "unreadable")


def main() -> None:
    if wrong := next((word for word in sys.argv[1:] if "=" not in word), None):
        raise UserError(f"{wrong}; allowed: WORD=VALUE, as status=failed or scheduler=cosine")
    asked = dict(word.split("=", 1) for word in sys.argv[1:])
    root, delete = Path(asked.pop("root", "runs")), asked.pop("delete", "false")
    if (
        asked.get("status", "done") not in STATUSES
        or delete not in ("true", "false")
        or not root.is_dir()
    ):
        raise UserError(
            f"root={root} (a folder), delete={delete} (true, false), status: {', '.join(STATUSES)}"
        )
    if delete == "true" and not asked:
        raise UserError("delete=true; allowed: with what to find, as status=failed")
    facts = {folder: read_facts(folder) for folder in find_runs(root)}
    known = {"status"}.union(*facts.values())
    if facts and (strange := next((key for key in asked if key not in known), None)):
        raise UserError(
            f"{strange} is no word or key of any run below {root}.{nearest(strange, known)}"
        )
    values = {
        key: (value, OmegaConf.from_dotlist([f"v={value}"]).v) for key, value in asked.items()
    }  # 0.1 is 1e-1
    found = [
        folder
        for folder, of in facts.items()
        if all(key in of and of[key] in values[key] for key in values)
    ]
    kept = {"running"} if "status" in asked else {"running", "unfinished", "unreadable"}
    doomed = [
        folder for folder in found if delete == "true" and facts[folder]["status"] not in kept
    ]
    if outside := [folder for folder in doomed if not is_below(folder, root)]:
        raise UserError(f"delete=true: {outside[0]} is a link that leads out of {root}")
    for folder in found:
        print(for_terminal(describe(folder, str(facts[folder]["status"]))))
    for folder in doomed:
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    ending = f", {len(doomed)} deleted" if delete == "true" else ""
    print(f"{len(found)} runs below {root}{ending}")


def is_below(folder: Path, root: Path) -> bool:
    """Whether a folder lies below the root; if it is a link itself, that alone is deleted."""
    return folder.parent.resolve().is_relative_to(root.resolve())


def describe(folder: Path, ended: str) -> str:
    """Return how a run ended, its accuracies and seconds, and its folder."""
    result = read_result(folder)
    metrics, seconds = numbers(result.get("metrics")), numbers(result).get("seconds", 0.0)
    val, test = (f"{metrics.get(f'{part}/acc', math.nan):.4f}" for part in ("val", "test"))
    return f"{ended:11}  val {val:6}  test {test:6}  {seconds:8.1f} s  {folder}"


def read_facts(folder: Path) -> dict[str, Any]:
    """Read how a run ended, the words chosen, and its options by dotted key."""
    try:
        config = read_yaml(folder / "config.yaml")
    except UnreadableError:
        return {"status": "unreadable"}
    choices = config.get("choices")
    return {
        **flatten(config),
        **(choices if isinstance(choices, dict) else {}),
        "status": status(folder),
    }


if __name__ == "__main__":
    launch(main, __doc__)
