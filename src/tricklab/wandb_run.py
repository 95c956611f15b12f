"""Starting and ending a run of Weights & Biases: never a prompt, never a wait without end."""

import os
import secrets
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from tricklab.errors import UserError


@rank_zero_only
def start_wandb(**options: Any) -> Any:
    """Start a W&B run, or resume the one in `dir`; offline without an API key or a connection.

    Raises UserError: W&B rejects the options.
    """
    import wandb  # half a second

    is_agent = "WANDB_SWEEP_ID" in os.environ  # sets an id itself
    if not is_agent and not options.get("id"):
        options["id"] = find_run_id(Path(options["dir"])) or secrets.token_hex(4)
    try:
        return connect_wandb(**options)
    except (wandb.errors.UsageError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"logger.wandb: W&B rejects its options: {reason}") from error


def find_run_id(folder: Path) -> str | None:
    """Return the id of the last W&B run in a folder, None if there is none."""
    runs = list(folder.glob("wandb/*run-*-*"))
    if not runs:
        return None
    return max(runs, key=lambda path: path.stat().st_mtime).name.rpartition("-")[2]


def connect_wandb(**options: Any) -> Any:
    """Call `wandb.init`, offline if it can't connect. The environment's WANDB_MODE is respected."""
    import wandb

    mode: Any = os.environ.get("WANDB_MODE")
    reason = f"WANDB_MODE={mode}" if mode else "no API key"
    if not mode:
        mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
    settings = wandb.Settings(init_timeout=10)  # seconds
    try:
        run = wandb.init(mode=mode, resume="allow", settings=settings, **options)
    except wandb.Error as error:
        mode = "offline"
        reason = "no connection: " + " ".join(str(error).split())[:200]
        wandb.teardown()  # else the id counts as in use
        run = wandb.init(mode=mode, **options)
    if mode == "offline":
        command = f"wandb sync {options['dir']}/wandb/offline-run-*"
        print(f"W&B is offline ({reason}); to upload this run later: {command}")
    return run


def close_wandb(exit_code: int) -> None:
    """Finish the W&B run, if there is one, as successful (0) or failed."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish(exit_code=exit_code)
