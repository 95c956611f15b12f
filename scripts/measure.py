"""Run the seeds of a recipe that were not run yet, keep a row of each beside it, and sum them up.

python scripts/measure.py fashion_92 [seeds=10] [slots=1 ...]       further words are those of the sweep

A row counts as done as long as the recipe still computes the same, which the hash of its config tells.
"""

import csv
import io
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from types import MappingProxyType
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir

from tricklab import cli
from tricklab.check import check
from tricklab.errors import UserError, nearest
from tricklab.jobs import Composer
from tricklab.resume import VOLATILE, config_hash, read_result, task, write_whole

METRICS = ("val/acc", "test/acc", "test/loss", "test/ece")
LAST = "@last"  # behind the name of a metric: its last value in metrics.csv, not that of the best epoch
Row = dict[str, str]
Arms = Mapping[str, Sequence[str]]  # by name, the words that tell them apart


class Recipe(NamedTuple):
    """An experiment, its arms, and the metrics that are kept of each of its runs."""

    name: str
    arms: Arms = MappingProxyType({"": ()})
    metrics: Sequence[str] = METRICS

    @property
    def words(self) -> list[str]:
        return [f"experiment={self.name}"]

    @property
    def file(self) -> Path:
        return cli.CONF / "experiment" / f"{self.name}.csv"

    @property
    def folder(self) -> Path:
        return cli.CONF.parent / "sweeps" / self.name


def main() -> None:
    name, seeds, words = arguments(sys.argv[1:], cli.options(cli.CONF / "experiment"))
    sys.argv = sys.argv[:1]  # the names of folders are made of the rest
    recipe = Recipe(name)
    rows = measure(recipe, seeds, words)[""]
    print(summary(list(rows.values()), flops(configs(recipe, 1)["", 0])))
    if len(rows) < seeds:
        sys.exit(f"error: {len(rows)} of {seeds} seeds are done; the same command again goes on")


def arguments(words: list[str], known: Sequence[str], seeds: int = 10) -> tuple[str, int, list[str]]:
    """Return the experiment, the number of seeds, and the words of the sweep."""
    name, more = (words or [""])[0], words[1:]
    if name not in known:
        raise UserError(f"experiment={name} does not exist; allowed: {', '.join(known)}.{nearest(name, known)}")
    given = next((word.partition("=")[2] for word in more if word.startswith("seeds=")), str(seeds))
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"seeds={given}; allowed: 1 or more")
    return name, int(given), [word for word in more if not word.startswith("seeds=")]


def measure(recipe: Recipe, seeds: int, words: Sequence[str]) -> dict[str, dict[int, Row]]:
    """Return the row of each seed of each arm, after those were run that there was none of."""
    found = known(recipe, seeds)
    missing = [seed for seed in range(seeds) if any(seed not in rows for rows in found.values())]
    if not missing:
        return found
    of_sweep = [f"seed={','.join(map(str, missing))}", f"hydra.sweep.dir={recipe.folder}", *words]
    subprocess.run([sys.executable, "train.py", "-m", *recipe.words, *of_sweep], cwd=cli.CONF.parent)
    return known(recipe, seeds)


def known(recipe: Recipe, seeds: int) -> dict[str, dict[int, Row]]:
    """Return the rows that there are, by arm and seed."""
    rows = gather(recipe)
    found: dict[str, dict[int, Row]] = {arm: {} for arm in recipe.arms}
    for (arm, seed), config in configs(recipe, seeds if rows else 0).items():
        if row := rows.get(config_hash(task(config))):
            found[arm][seed] = row
    return found


def configs(recipe: Recipe, seeds: int) -> dict[tuple[str, int], Any]:
    """Compose and check the config of each arm and seed."""
    composed: dict[tuple[str, int], Any] = {}
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        composer = Composer(
            lambda words: compose("train", words, return_hydra_config=True), lambda key: (cli.CONF / key).is_dir()
        )
        for arm, words in recipe.arms.items():
            for seed in range(seeds):
                check(composed.setdefault((arm, seed), composer([*recipe.words, *words, f"seed={seed}"])))
    return composed


def gather(recipe: Recipe) -> dict[str, Row]:
    """Return the rows of a recipe by their hash, after those of its runs that are done were added to its file."""
    before = recipe.file.read_text("utf-8") if recipe.file.is_file() else ""
    kept = [row for row in csv.DictReader(before.splitlines()) if all(row.get(name) for name in recipe.metrics)]
    done = [run for run in sorted(recipe.folder.glob("*/")) if read_result(run).get("status") == "done"]
    rows = {row["config_hash"]: row for row in [*(to_row(run, recipe) for run in done), *kept]}
    after = to_text(sorted(rows.values(), key=lambda row: (row.get("words", ""), row["date"], int(row["seed"]))))
    if rows and after != before:
        write_whole(recipe.file, after)
    return rows


def to_text(rows: Sequence[Row]) -> str:
    """Return rows as CSV; nothing where there is none."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def to_row(run: Path, recipe: Recipe) -> Row:
    """Return what is kept of a run."""
    result = read_result(run)
    words = dict(word.split("=", 1) for word in result["overrides"])
    own = [f"{key}={value}" for key, value in words.items() if key not in ("experiment", "seed", *VOLATILE)]
    facts = {"config_hash": result["config_hash"]} | ({"words": " ".join(own)} if len(recipe.arms) > 1 else {})
    facts |= {"seed": words["seed"], "seconds": result["seconds"]}
    facts |= {name: round(read_metric(run, name), 6) for name in recipe.metrics}
    facts |= {"commit": (result["git"] or {}).get("commit", "")[:10], "torch": result["versions"]["torch"]}
    return {key: str(value) for key, value in {**facts, "date": result["started"][:10]}.items()}


def read_metric(run: Path, name: str) -> float:
    """Return a result of a run; X@last is the last value of X that was logged, ood/NOISE/Y what evaluate.py finds."""
    if name.endswith(LAST):
        with (run / "metrics.csv").open(newline="") as file:
            column = [row[name.removesuffix(LAST)] for row in csv.DictReader(file)]
        return float([value for value in column if value][-1])
    if name.startswith("ood/"):
        _, images, measure = name.split("/")
        if not (run / "ood.csv").is_file():
            command = ["scripts/evaluate.py", f"ckpt={run}/checkpoints/best.ckpt", "suite=ood"]
            subprocess.run([sys.executable, *command], cwd=cli.CONF.parent, check=True, stdout=subprocess.DEVNULL)
        with (run / "ood.csv").open(newline="") as file:
            return next(float(row[measure]) for row in csv.DictReader(file) if row["images"] == images)
    return float(read_result(run)["metrics"][name])


def flops(config: Any) -> float:
    """Return the floating-point operations of all training steps, forwards and backwards, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tricklab.assemble import build_data
    from tricklab.experiment import hush
    from tricklab.network import build_net
    from tricklab.plan import make_plan

    hush()
    data = build_data(config)
    net = build_net(config, data.shape, len(data.classes)).train()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(2, *data.shape)).sum().backward()
    steps = make_plan(config, data, ranks=1).last_step
    return counter.get_total_flops() / 2 * steps * data.batch_size


def summary(rows: list[Row], flops: float) -> str:
    """Return mean and standard deviation of the accuracies, the median of the seconds, and FLOPs, as a line."""
    if not rows:
        return "no run is done"
    parts = []
    for name in ("test/acc", "val/acc"):
        values = [float(row[name]) for row in rows]
        parts.append(f"{name} {mean(values):.4f} ± {stdev(values) if len(values) > 1 else 0:.4f}")
    seconds = [float(row["seconds"]) for row in rows]
    spread = f"{median(seconds):.0f} s a run ({min(seconds):.0f} to {max(seconds):.0f})"
    return f"{len(rows)} seeds: {', '.join(parts)}, {spread}, {flops:.2g} FLOPs"


if __name__ == "__main__":
    cli.launch(main, __doc__)
