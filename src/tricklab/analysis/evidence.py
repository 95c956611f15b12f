"""Whether rows are evidence: of known configs and untouched seeds, by committed code, none dropped.

Of a claim, what was expected must be older than the rows: its file had the same arms, expectations,
differences and seeds at the commit of each row.
"""

import functools
import math
import re
import subprocess
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tricklab.analysis.recipes import Recipe, hash_configs
from tricklab.analysis.rows import COMMIT_LENGTH, FIRST_SEED, Row, is_published, read_rows
from tricklab.cli.config import CONF
from tricklab.files import parse_yaml, read_table, read_text

BEGINNING = "582a9f11"  # the first commit with claims, which a copy without the history lacks
COMMIT = re.compile(rf"[0-9a-f]{{{COMMIT_LENGTH}}}")  # no branch or other revision
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
    known = {key: run for run, key in hashes.items()}
    problems = find_duplicates(recipe)
    for row in rows.values():
        problem = check_config(recipe, row, known) or check_origin(recipe, row)
        if problem:
            problems.append(f"{recipe.csv_file.name}, {row['config_hash']}: {problem}")
    return problems + find_gaps(recipe, rows)


def find_duplicates(recipe: Recipe) -> list[str]:
    """Return the hashes of which there are several rows, a line for each."""
    rows = read_table(recipe.csv_file) if recipe.csv_file.is_file() else []
    counts = Counter(row["config_hash"] for row in rows)
    return [f"{recipe.csv_file.name}, {key}: {n} rows" for key, n in counts.items() if n > 1]


def is_foreign(rows: Mapping[str, Row]) -> bool:
    """Whether the history of the rows is that of another repository."""
    commits = {row["commit"] for row in rows.values()}
    return not any(map(is_ancestor, [BEGINNING, *sorted(commits)]))


def check_config(recipe: Recipe, row: Row, known: Mapping[str, tuple[str, int]]) -> str:
    """Return why a row is not one of its recipe, "" if it is; `known`: arms and seeds by hash."""
    arm, seed = known.get(row["config_hash"], ("", -1))
    if str(seed) != row["seed"]:
        return f"no config of this recipe with seed {row['seed']} has that hash"
    if set(row.get("overrides", "").split()) != set(recipe.arms[arm]):
        return f"the hash is that of the arm {arm}"
    return ""


def check_origin(recipe: Recipe, row: Row) -> str:
    """Return what is not known of a published row, or older than what it should show."""
    if not is_published(row):
        return ""
    if missing := [name for name in REQUIRED if not row.get(name)]:
        return f"no {', '.join(missing)}"
    if wrong := [name for name in recipe.metrics if not is_finite(row.get(name, ""))]:
        return f"no number: {', '.join(wrong)}"
    if not COMMIT.fullmatch(row["commit"]) or not is_ancestor(row["commit"]):
        return f"commit {row['commit']} is not in the history"
    path = recipe.csv_file.with_suffix(".yaml").relative_to(CONF.parent)
    if plan_at(row["commit"], path) != plan_now(CONF.parent / path):
        return f"what was expected has changed since commit {row['commit']}"
    return ""


def is_finite(text: str) -> bool:
    return bool(text) and math.isfinite(float(text))


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
