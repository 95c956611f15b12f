"""List the runs below a folder, find some by what was chosen and how they ended, and delete them.

python scripts/runs.py [root=runs]                                      all of them, the newest first
python scripts/runs.py status=failed                                    by how they ended
python scripts/runs.py scheduler=cosine mixup=on optimizer.lr=0.1       by words and values
python scripts/runs.py status=failed delete=true                        those found are deleted

status is done, failed, interrupted, unfinished (killed) or running. What is unfinished is only deleted where
status=unfinished asks for it, what is running never.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tricklab import cli
from tricklab.check import leaves
from tricklab.errors import UserError, nearest
from tricklab.resume import find_runs, read_result, status

STATUSES = ("done", "failed", "interrupted", "unfinished", "running")


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
    kept = ("running",) if "status" in asked else ("running", "unfinished")
    doomed = [
        folder for folder in found if delete == "true" and facts[folder]["status"] not in kept
    ]
    for folder in found:
        result, ended = read_result(folder), facts[folder]["status"]
        val, test = (
            f"{result.get('metrics', {}).get(f'{part}/acc', float('nan')):.4f}"
            for part in ("val", "test")
        )
        print(
            f"{ended:11}  val {val:6}  test {test:6}  {result.get('seconds') or 0:8.1f} s  {folder}"
        )
    for folder in doomed:
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    print(
        f"{len(found)} runs below {root}" + (f", {len(doomed)} deleted" if delete == "true" else "")
    )


def read_facts(folder: Path) -> dict[str, Any]:
    """Read how a run ended, the words chosen, and its options by dotted key."""
    config: Any = OmegaConf.load(folder / "config.yaml")
    return {**leaves(config), **(config.choices or {}), "status": status(folder)}


if __name__ == "__main__":
    cli.launch(main, __doc__)
