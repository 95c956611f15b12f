"""Copies of the project, as rows of results are written beside their recipes."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from helpers.paths import ROOT


def copy_project(folder: Path) -> Path:
    """Copy the project without results."""
    ignored = shutil.ignore_patterns("*.egg-info", "__pycache__", "*.csv")
    for part in ("src", "conf", "scripts"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for name in ("train.py", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    return folder


def popen_options(copy: Path) -> dict[str, Any]:
    return {"cwd": copy, "env": os.environ | {"PYTHONPATH": str(copy / "src")}, "text": True}


def commit_all(project: Path) -> None:
    """Make a repository of a copy of the project."""
    author = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run(["git", *author, *arguments], cwd=project, check=True)
