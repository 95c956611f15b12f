"""Keys that were renamed: an old name answers with the new one, and older checkpoints are read."""

import re
from collections.abc import Mapping
from typing import Any

RENAMED = {  # regular expressions of old dotted keys
    r"data\.resize": "data.size",
    r"data\.skip_damaged": "data.skip_corrupt",
    r"loss\.weight": "loss.class_weights",
    r"mixup\.begin": "mixup.start",
    r"mixup\.end": "mixup.stop",
    r"augment\.erase\.(smallest|largest)": "augment.erase.scale=[LOW,HIGH]",
    r"penalty\.(\w+)\.only": r"penalty.\1.params",
    r"optimizer\.lr_per": "optimizer.lr_base_batch_size",
    r"model\.body_lr": "model.backbone_lr_mult",
    r"scheduler\.hold": "scheduler.update_every",
    r"scheduler\.mult": "scheduler.period_mult",
    r"sweep\.of": "sweep.arms",
    r"logger\.wandb\.(mistakes|checkpoint)": r"logger.wandb.log_\1",
    r"logger\.wandb\.confusion": "logger.wandb.log_confusion_matrix",
    r"dry": "dry_run",
}


def find_new_name(key: str) -> str:
    """Return the present name of a renamed dotted key, "" if it was not renamed."""
    for old, new in RENAMED.items():
        if match := re.fullmatch(old, key):
            return match.expand(new)
    return ""


def rename_keys(path: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node of an older config with the present names; `path` is its dotted key."""
    renamed = {}
    for key, value in node.items():
        new = find_new_name(f"{path}.{key}")
        if "=" not in new:
            renamed[new.rpartition(".")[2] or key] = value
    if path == "augment.erase" and {"smallest", "largest"} <= node.keys():
        renamed["scale"] = [node["smallest"], node["largest"]]
    return renamed
