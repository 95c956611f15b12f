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

MISSING = object()
STATUSES = ("done", "failed", "interrupted", "unfinished", "running")


def main() -> None:
    words = [word.partition("=") for word in sys.argv[1:]]
    if wrong := next((word for word, equals, _ in words if not equals), None):
        raise UserError(f"{wrong}; allowed: WORD=VALUE, as status=failed or scheduler=cosine")
    asked = {key: value for key, _, value in words}
    root, delete = Path(asked.pop("root", "runs")), asked.pop("delete", "false")
    if asked.get("status", "done") not in STATUSES or delete not in ("true", "false") or not root.is_dir():
        raise UserError(f"root={root} (a folder), delete={delete} (true, false), status: {', '.join(STATUSES)}")
    if delete == "true" and not asked:
        raise UserError("delete=true; allowed: with what to find, as status=failed")
    facts = {folder: read_facts(folder) for folder in find_runs(root)}
    known = {"status"}.union(*facts.values())
    if facts and (strange := next((key for key in asked if key not in known), None)):
        raise UserError(f"{strange} is no word or key of any run below {root}.{nearest(strange, known)}")
    found = [folder for folder in facts if all(fits(facts[folder].get(k, MISSING), v) for k, v in asked.items())]
    kept = ("running",) if "status" in asked else ("running", "unfinished")
    doomed = [folder for folder in found if delete == "true" and facts[folder]["status"] not in kept]
    for folder in found:
        print(line(folder))
    for folder in doomed:
        folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
    print(f"{len(found)} runs below {root}" + (f", {len(doomed)} deleted" if delete == "true" else ""))


def read_facts(folder: Path) -> dict[str, Any]:
    """Read how a run ended, the words chosen, and its options by dotted key."""
    config: Any = OmegaConf.load(folder / "config.yaml")
    return {**leaves(config), **(config.choices or {}), "status": status(folder)}


def fits(fact: Any, value: str) -> bool:
    """Compare as text, or as what YAML reads: 0.1 is 1e-1, null is None."""
    return fact == value or (fact is not MISSING and fact == OmegaConf.from_dotlist([f"v={value}"]).v)


def line(folder: Path) -> str:
    """Describe a run: how it ended, accuracy on validation and test, seconds, folder."""
    result = read_result(folder)
    told = [f"{result.get('metrics', {}).get(f'{part}/acc', float('nan')):.4f}" for part in ("val", "test")]
    return f"{status(folder):11}  val {told[0]:6}  test {told[1]:6}  {result.get('seconds') or 0:8.1f} s  {folder}"


if __name__ == "__main__":
    cli.launch(main, __doc__)
