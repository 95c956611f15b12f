"""List the runs below a folder, find some by what was chosen and how they ended, and delete them.

python scripts/runs.py [root=runs]                                      all of them, the newest first
python scripts/runs.py status=failed                                    done, failed, interrupted or unfinished
python scripts/runs.py scheduler=cosine mixup=on optimizer.lr=0.1       by words and values
python scripts/runs.py status=failed delete=true                        those found are deleted

"unfinished" is a run that was killed, or that runs: such a one is only deleted where status=unfinished asks for it.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab import cli
from tricklab.errors import UserError
from tricklab.resume import find_runs, status

STATUSES = ("done", "failed", "interrupted", "unfinished")


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
    found = [folder for folder in find_runs(root) if fits(folder, asked)]
    doomed = [f for f in found if delete == "true" and (status(f) != "unfinished" or "status" in asked)]
    for folder in found:
        print(line(folder))
    for folder in doomed:
        shutil.rmtree(folder)
    print(f"{len(found)} runs below {root}" + (f", {len(doomed)} deleted" if delete == "true" else ""))


def fits(folder: Path, asked: dict[str, str]) -> bool:
    """Say whether a run ended so, and has each of these options or values."""
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    facts = {**config.get("choices", {}), "status": status(folder)}
    return all(str(facts.get(key, OmegaConf.select(config, key))) == value for key, value in asked.items())


def line(folder: Path) -> str:
    """Describe a run: how it ended, accuracy on validation and test, seconds, folder."""
    path = folder / "result.json"
    result: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    told = [f"{result.get('metrics', {}).get(f'{part}/acc', float('nan')):.4f}" for part in ("val", "test")]
    return f"{status(folder):11}  val {told[0]:6}  test {told[1]:6}  {result.get('seconds') or 0:8.1f} s  {folder}"


if __name__ == "__main__":
    cli.launch_script(main, __doc__)
