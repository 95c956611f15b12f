"""Recipes and their measured results: a row per run, in a CSV file beside the recipe.

A row counts as long as the run's config is the same, known by its hash.
"""

import csv
import io
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from types import MappingProxyType
from typing import Any, NamedTuple

from omegaconf import DictConfig

from tricklab.analysis.results import Run, read_run
from tricklab.analysis.run_metrics import read_metric
from tricklab.cli.compose import compose_each
from tricklab.cli.config import CONF, to_plain
from tricklab.cli.messages import unknown_name
from tricklab.cli.overrides import quote, split_arguments
from tricklab.errors import UserError
from tricklab.files import read_table, write_text
from tricklab.run.identity import config_hash, is_excluded_from_hash

Row = dict[str, str]
Results = dict[str, dict[int, Row]]  # by arm and seed
Arms = Mapping[str, Sequence[str]]  # overrides by name
Hashes = dict[tuple[str, int], str]  # config hashes by arm and seed

TEACHER = "TEACHER"  # in an arm: the folder of the recipe's teacher
INCOMPLETE = "the same command runs the others"


class Recipe(NamedTuple):
    """An experiment, its arms (variants), and the metrics to keep of each run.

    `teacher`: overrides of a run that precedes the others, as they distill it.
    """

    name: str
    arms: Arms = MappingProxyType({"": ()})
    metrics: Sequence[str] = ("val/acc", "test/acc", "test/loss", "test/ece")
    teacher: Sequence[str] = ()

    @property
    def csv_file(self) -> Path:
        return CONF / "experiment" / f"{self.name}.csv"

    @property
    def folder(self) -> Path:
        return CONF.parent / "sweeps" / self.name


def read_command(
    experiments: Sequence[str], default_seeds: Callable[[str], int]
) -> tuple[str, int, list[str]]:
    """Return experiment, number of seeds and sweep overrides of NAME [seeds=N] [OVERRIDE] ...

    They are taken out of sys.argv, as the names of run folders are made of it. Raises UserError:
    one is wrong.
    """
    sys.argv, arguments = sys.argv[:1], sys.argv[1:]
    names, options = split_arguments(arguments)
    name = names[0] if names else ""
    if name not in experiments:
        raise UserError(unknown_name(f"experiment={name}", name, experiments))
    seeds = options.pop("seeds", None) or str(default_seeds(name))
    if not seeds.isdecimal() or int(seeds) < 1:
        raise UserError(f"seeds={seeds}: expected a number of seeds, 1 or more")
    overrides = [text for text in arguments if text != name and not text.startswith("seeds=")]
    for override in overrides:
        if not is_excluded_from_hash(override.lstrip("+~").partition("=")[0]):
            raise UserError(
                f"{override} would change the measured config. Expected seeds=N, or options of the "
                "sweep, e.g. slots=2"
            )
    return name, int(seeds), overrides


def compose_recipe(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    (config,) = compose_each([f"experiment={name}", *overrides]).values()
    return config


def load_results(recipe: Recipe, seeds: int) -> Results:
    """Return the complete rows in a recipe's CSV file by arm and seed.

    Of seeds 0 to `seeds` - 1, and of further ones in the file.
    """
    rows = read_rows(recipe.csv_file)
    if not rows:
        return {arm: {} for arm in recipe.arms}
    return select_rows(rows, recipe, hash_configs(recipe, seeds, rows))


def update_results(recipe: Recipe, seeds: int) -> Results:
    """Add the finished runs in the recipe's folder to its CSV file, then load it."""
    rows = read_rows(recipe.csv_file)
    if not rows and not recipe.folder.is_dir():
        return {arm: {} for arm in recipe.arms}
    hashes = hash_configs(recipe, seeds, rows)
    rows = collect_runs(recipe, set(hashes.values()))
    return select_rows(rows, recipe, hashes)


def run_missing(recipe: Recipe, seeds: int, overrides: Sequence[str]) -> Results:
    """Run the seeds that lack a row, as one sweep; return the results."""
    results = update_results(recipe, seeds)
    missing = {arm: set(range(seeds)) - rows.keys() for arm, rows in results.items()}
    missing = {arm: lacking for arm, lacking in missing.items() if lacking}
    if not missing:
        return results
    if recipe.teacher and "dry_run=true" not in overrides:
        train_teacher(recipe)
    command = sweep_overrides(recipe, list(missing), set.union(*missing.values()))
    subprocess.run(
        [sys.executable, "train.py", "-m", *command, *overrides], cwd=CONF.parent, check=False
    )
    return update_results(recipe, seeds)


def find_teacher(name: str, teacher: Sequence[str]) -> str:
    """Return the folder of an experiment's teacher, by the hash of its config.

    It is relative to the project, as it is a part of the config of the runs that distill it.
    """
    return f"sweeps/teachers/{config_hash(to_plain(compose_recipe(name, teacher)))}"


def make_recipe(
    name: str, arms: Arms, metrics: Sequence[str], teacher: Sequence[str] = ()
) -> Recipe:
    """Return a recipe in whose arms TEACHER stands for the folder of its teacher."""
    if teacher:
        folder = find_teacher(name, teacher)
        arms = {
            arm: [text.replace(TEACHER, folder) for text in overrides]
            for arm, overrides in arms.items()
        }
    return Recipe(name, arms, metrics, teacher)


def train_teacher(recipe: Recipe) -> None:
    """Train the teacher of a recipe, if that has not been done. Raises UserError: it failed."""
    folder = find_teacher(recipe.name, recipe.teacher)
    if read_run(CONF.parent / folder).done:
        return
    print(f"teacher: {folder}", flush=True)
    options = [f"hydra.run.dir={folder}", "resume=auto"]
    command = ["train.py", f"experiment={recipe.name}", *recipe.teacher, *options]
    done = subprocess.run([sys.executable, *command], cwd=CONF.parent, check=False)
    if done.returncode:
        raise UserError(f"the teacher of {recipe.name} is not trained")


def sweep_overrides(recipe: Recipe, arms: Sequence[str], seeds: Collection[int]) -> list[str]:
    """Return the overrides of a sweep over some arms and seeds of a recipe."""
    overrides = [
        f"experiment={recipe.name}",
        f"seed={','.join(map(str, sorted(seeds)))}",
        f"hydra.sweep.dir={quote(recipe.folder)}",
    ]
    if any(recipe.arms.values()):
        lists = [f"{arm}:[{','.join(map(quote, recipe.arms[arm]))}]" for arm in arms]
        overrides += ["sweep=arms", f"sweep.arms={{{','.join(lists)}}}"]
    return overrides


def count_missing(results: Results, seeds: int) -> int:
    """Return how many runs are missing to have `seeds` seeds of each arm."""
    return sum(max(0, seeds - len(rows)) for rows in results.values())


def hash_configs(recipe: Recipe, seeds: int, rows: Mapping[str, Row]) -> Hashes:
    """Return the config hash of each run, up to the largest seed in `rows` where that is more."""
    seeds = max([seeds, *(int(row["seed"]) + 1 for row in rows.values())])
    hashes: Hashes = {}
    for arm, overrides in recipe.arms.items():
        config = to_plain(compose_recipe(recipe.name, overrides))
        for seed in range(seeds):
            hashes[arm, seed] = config_hash(config | {"seed": seed})
    return hashes


def select_rows(rows: Mapping[str, Row], recipe: Recipe, hashes: Hashes) -> Results:
    """Arrange the complete rows by arm and seed."""
    results: Results = {arm: {} for arm in recipe.arms}
    for (arm, seed), key in hashes.items():
        if is_complete(rows.get(key, {}), recipe):
            results[arm][seed] = rows[key]
    return results


def is_complete(row: Row, recipe: Recipe) -> bool:
    """Return whether a row has all metrics of its recipe."""
    return all(row.get(name) for name in recipe.metrics)


def collect_runs(recipe: Recipe, wanted: Collection[str]) -> dict[str, Row]:
    """Add rows of finished runs with a `wanted` config hash to the CSV; return all by hash."""
    before = read_rows(recipe.csv_file)
    rows = dict(before)
    for folder in sorted(recipe.folder.glob("*/")):
        run = read_run(folder)
        lacking = not is_complete(rows.get(run.config_hash, {}), recipe)
        if not (run.done and run.config_hash in wanted and lacking):
            continue
        try:
            rows[run.config_hash] = make_row(run, recipe)
        except UserError as error:
            print(f"warning: no row, {error}", file=sys.stderr)
    if rows != before:
        write_text(recipe.csv_file, format_rows(sorted(rows.values(), key=row_order)))
    return rows


def row_order(row: Row) -> tuple[str, str, int]:
    return row.get("overrides", ""), row["date"], int(row["seed"])


def read_rows(path: Path) -> dict[str, Row]:
    """Return the rows of a CSV file by config hash; none where there is no file."""
    return {row["config_hash"]: row for row in read_table(path)} if path.is_file() else {}


def format_rows(rows: Sequence[Row]) -> str:
    """Return rows as CSV, with all columns that any of them has."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def make_row(run: Run, recipe: Recipe) -> Row:
    """Return the row of a finished run."""
    row: dict[str, Any] = {"config_hash": run.config_hash}
    if len(recipe.arms) > 1:
        row["overrides"] = " ".join(arm_overrides(run))
    row |= {"seed": run.options["seed"], "seconds": run.seconds}
    row |= {name: round(read_metric(run, name), 6) for name in recipe.metrics}
    row |= {"commit": run.commit[:10], "torch": run.torch, "date": run.started[:10]}
    return {column: str(value) for column, value in row.items()}


def arm_overrides(run: Run) -> list[str]:
    """Return the overrides that make a run's arm, the last one of each key."""
    by_key = {override.partition("=")[0]: override for override in run.overrides}
    return [
        override
        for key, override in by_key.items()
        if key not in ("experiment", "seed") and not is_excluded_from_hash(key)
    ]


def format_summary(rows: Sequence[Row], flops: float) -> str:
    """Return a line with accuracies (mean ± std over seeds), seconds (median, range) and FLOPs."""
    if not rows:
        return "no run is done"
    parts = [f"{name} {format_mean_std(rows, name)}" for name in ("test/acc", "val/acc")]
    seconds = [float(row["seconds"]) for row in rows]
    parts.append(f"{median(seconds):.0f} s a run ({min(seconds):.0f} to {max(seconds):.0f})")
    return f"{len(rows)} seeds: {', '.join(parts)}, {flops:.2g} FLOPs"


def format_mean_std(rows: Sequence[Row], name: str) -> str:
    values = [float(row[name]) for row in rows]
    std = stdev(values) if len(values) > 1 else 0.0
    return f"{mean(values):.4f} ± {std:.4f}"
