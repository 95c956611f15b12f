"""Copies of the project, as rows of results are written beside their recipes."""

import os
import shutil
from pathlib import Path
from typing import Any

from helpers.paths import ROOT


def copy_project(folder: Path) -> Path:
    """Copy the project without results."""
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__", "*.csv")
    for part in ("src", "conf", "scripts"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    shutil.copy(ROOT / "train.py", folder)
    return folder


def popen_options(copy: Path) -> dict[str, Any]:
    return {"cwd": copy, "env": os.environ | {"PYTHONPATH": str(copy / "src")}, "text": True}
