"""Whether rows are evidence: of known configs and untouched seeds, by committed code, none dropped.

Of a claim, what was expected must be older than the rows: its file had the same arms, expectations,
differences and seeds at the commit of each row.
"""

import functools
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tricklab.analysis.recipes import Recipe, hash_configs
from tricklab.analysis.rows import FIRST_SEED, Row, is_published, read_rows
from tricklab.cli.config import CONF
from tricklab.files import parse_yaml, read_text

BEGINNING = "582a9f11"  # the first commit with claims, which a copy without the history lacks
NOT_PLANNED = ("minutes",)  # keys of a claim that decide nothing
REQUIRED = ("commit", "python", "torch", "data", "processor", "cores", "threads", "date")


def find_problems(recipe: Recipe) -> list[str]:
    """Return what is wrong with the rows of a recipe, a line for each.

    Nothing is known of rows that came here without their history, as those of a template.
    """
    rows = read_rows(recipe.csv_file)
    if is_foreign(rows):
        return []
    hashes = hash_configs(recipe, (), rows) if rows else {}
    known = {key: str(seed) for (_, seed), key in hashes.items()}
    problems = []
    for row in rows.values():
        problem = check_config(row, known) or check_origin(recipe, row)
        if problem:
            problems.append(f"{recipe.csv_file.name}, {row['config_hash']}: {problem}")
    return problems + find_gaps(recipe, rows)


def is_foreign(rows: Mapping[str, Row]) -> bool:
    """Whether the history of the rows is that of another repository."""
    commits = {row["commit"] for row in rows.values()}
    return not any(map(is_ancestor, [BEGINNING, *sorted(commits)]))


def check_config(row: Row, known: Mapping[str, str]) -> str:
    """Return why a row is not one of its recipe, "" if it is; `known` are the seeds by hash."""
    if known.get(row["config_hash"]) == row["seed"]:
        return ""
    return f"no config of this recipe with seed {row['seed']} has that hash"


def check_origin(recipe: Recipe, row: Row) -> str:
    """Return what is not known of a published row, or older than what it should show."""
    if not is_published(row):
        return ""
    if missing := [name for name in REQUIRED if not row.get(name)]:
        return f"no {', '.join(missing)}"
    if not is_ancestor(row["commit"]):
        return f"commit {row['commit']} is not in the history"
    path = recipe.csv_file.with_suffix(".yaml").relative_to(CONF.parent)
    if plan_at(row["commit"], path) != plan_now(CONF.parent / path):
        return f"what was expected has changed since commit {row['commit']}"
    return ""


def find_gaps(recipe: Recipe, rows: Mapping[str, Row]) -> list[str]:
    """Return the seeds that are missing among the published rows of each arm, a line for each."""
    by_arm: dict[str, set[int]] = {}
    for row in filter(is_published, rows.values()):
        by_arm.setdefault(row.get("overrides", ""), set()).add(int(row["seed"]))
    problems = []
    for overrides, seeds in by_arm.items():
        if missing := set(range(FIRST_SEED, max(seeds))) - seeds:
            listed = ", ".join(map(str, sorted(missing)))
            problems.append(f"{recipe.csv_file.name}, {overrides}: seeds {listed} are missing")
    return problems


def plan_now(path: Path) -> Any:
    return select_plan(read_text(path))


def plan_at(commit: str, path: Path) -> Any:
    """Return what the file of a recipe expected at a commit; None if there was no such file."""
    text = run_git("show", f"{commit}:{path.as_posix()}")
    return select_plan(text) if text else None


def select_plan(text: str) -> Any:
    """Return the part of a recipe's file that must not change after the first run."""
    claim = parse_yaml(text, "the file of a recipe").get("claim", {})
    return {key: value for key, value in claim.items() if key not in NOT_PLANNED}


@functools.cache
def is_ancestor(commit: str) -> bool:
    command = ["git", "merge-base", "--is-ancestor", commit, "HEAD"]
    return subprocess.run(command, cwd=CONF.parent, capture_output=True).returncode == 0


def has_history() -> bool:
    """Whether this is a repository with all its commits, and no shallow clone."""
    return run_git("rev-parse", "--is-shallow-repository").strip() == "false"


def run_git(*arguments: str) -> str:
    """Return the output of git in the project, "" if it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=CONF.parent, capture_output=True, text=True, encoding="utf-8"
    )
    return done.stdout if done.returncode == 0 else ""
