"""Recipes: an experiment, its arms, the runs that are missing, and rows of those that are done."""

import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from types import MappingProxyType
from typing import NamedTuple

from omegaconf import DictConfig

from tricklab.analysis.results import read_run
from tricklab.analysis.rows import (
    FIRST_SEED,
    Row,
    is_complete,
    make_row,
    read_rows,
    write_rows,
)
from tricklab.cli.compose import compose_each
from tricklab.cli.config import CONF, to_plain
from tricklab.cli.messages import unknown_name
from tricklab.cli.overrides import quote, split_arguments
from tricklab.errors import UserError
from tricklab.run.identity import config_hash, is_excluded_from_hash

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


class Command(NamedTuple):
    """The arguments of a script that runs recipes."""

    name: str
    options: dict[str, int]
    overrides: list[str]  # of the sweep


def read_command(experiments: Sequence[str], **defaults: int) -> Command:
    """Return NAME [OPTION=NUMBER] [OVERRIDE] ..., for options with these default numbers.

    They are taken out of sys.argv, as the names of run folders are made of it. Raises UserError:
    one is wrong.
    """
    sys.argv, arguments = sys.argv[:1], sys.argv[1:]
    names, options = split_arguments(arguments)
    name = names[0] if names else ""
    if name not in experiments:
        raise UserError(unknown_name(f"experiment={name}", name, experiments))
    counts = {key: parse_count(key, options.get(key), default) for key, default in defaults.items()}
    overrides = [
        text for text in arguments if text != name and text.partition("=")[0] not in defaults
    ]
    for override in overrides:
        check_override(override, defaults)
    return Command(name, counts, overrides)


def parse_count(key: str, text: str | None, default: int) -> int:
    """Return a number of seeds. Raises UserError: it is none."""
    if text is None:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= FIRST_SEED:
        raise UserError(f"{key}={text}: expected a number of seeds, 1 to {FIRST_SEED}")
    return int(text)


def check_override(override: str, options: Collection[str]) -> None:
    """Raise UserError: it is no option of the sweep."""
    if not is_excluded_from_hash(override.lstrip("+~").partition("=")[0]):
        allowed = "".join(f"{key}=N, " for key in options)
        raise UserError(
            f"{override} would change the measured config. Expected {allowed}or options of the "
            "sweep, e.g. slots=2"
        )


def compose_recipe(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    (config,) = compose_each([f"experiment={name}", *overrides]).values()
    return config


def load_results(recipe: Recipe, seeds: Collection[int] = ()) -> Results:
    """Return the complete rows in a recipe's CSV file by arm and seed.

    Of `seeds`, and of all others in the file.
    """
    rows = read_rows(recipe.csv_file)
    if not rows:
        return {arm: {} for arm in recipe.arms}
    return select_rows(rows, recipe, hash_configs(recipe, seeds, rows))


def update_results(recipe: Recipe, seeds: Collection[int]) -> Results:
    """Add the finished runs of `seeds` to the recipe's CSV file, then load it."""
    rows = read_rows(recipe.csv_file)
    if not rows and not recipe.folder.is_dir():
        return {arm: {} for arm in recipe.arms}
    hashes = hash_configs(recipe, seeds, rows)
    rows = collect_runs(recipe, set(hashes.values()))
    return select_rows(rows, recipe, hashes)


def run_missing(recipe: Recipe, seeds: Collection[int], overrides: Sequence[str]) -> Results:
    """Run the seeds that lack a row, as one sweep; return the results of all `seeds`."""
    results = select_seeds(update_results(recipe, seeds), seeds)
    missing = {arm: set(seeds) - rows.keys() for arm, rows in results.items()}
    missing = {arm: lacking for arm, lacking in missing.items() if lacking}
    if not missing:
        return results
    if recipe.teacher and "dry_run=true" not in overrides:
        train_teacher(recipe)
    command = sweep_overrides(recipe, list(missing), set.union(*missing.values()))
    subprocess.run(
        [sys.executable, "train.py", "-m", *command, *overrides], cwd=CONF.parent, check=False
    )
    return select_seeds(update_results(recipe, seeds), seeds)


def select_seeds(results: Results, seeds: Collection[int]) -> Results:
    """Return the rows of these seeds alone."""
    return {
        arm: {seed: row for seed, row in rows.items() if seed in seeds}
        for arm, rows in results.items()
    }


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


def count_missing(results: Results, seeds: Collection[int]) -> int:
    """Return how many runs are missing to have all `seeds` of each arm."""
    return sum(len(set(seeds) - rows.keys()) for rows in results.values())


def hash_configs(recipe: Recipe, seeds: Collection[int], rows: Mapping[str, Row]) -> Hashes:
    """Return the config hash of each run, of `seeds` and of those in `rows`."""
    all_seeds = {*seeds, *(int(row["seed"]) for row in rows.values())}
    hashes: Hashes = {}
    for arm, overrides in recipe.arms.items():
        config = to_plain(compose_recipe(recipe.name, overrides))
        for seed in sorted(all_seeds):
            hashes[arm, seed] = config_hash(config | {"seed": seed})
    return hashes


def select_rows(rows: Mapping[str, Row], recipe: Recipe, hashes: Hashes) -> Results:
    """Arrange the complete rows by arm and seed."""
    results: Results = {arm: {} for arm in recipe.arms}
    for (arm, seed), key in hashes.items():
        if is_complete(rows.get(key, {}), recipe.metrics):
            results[arm][seed] = rows[key]
    return results


def collect_runs(recipe: Recipe, wanted: Collection[str]) -> dict[str, Row]:
    """Add rows of finished runs with a `wanted` config hash to the CSV; return all by hash."""
    before = read_rows(recipe.csv_file)
    rows = dict(before)
    for folder in sorted(recipe.folder.glob("*/")):
        run = read_run(folder)
        lacking = not is_complete(rows.get(run.config_hash, {}), recipe.metrics)
        if not (run.done and run.config_hash in wanted and lacking):
            continue
        try:
            rows[run.config_hash] = make_row(run, recipe.metrics, len(recipe.arms) > 1)
        except UserError as error:
            print(f"warning: no row, {error}", file=sys.stderr)
    if rows != before:
        write_rows(recipe.csv_file, rows.values())
    return rows


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
