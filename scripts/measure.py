"""Run the seeds of a recipe that were not run yet, keep a row of each beside it, and sum them up.

python scripts/measure.py fashion_92 [seeds=10] [slots=1 ...]       further words are those of the sweep

A row counts as done as long as the config is the same, which its hash tells.
"""

import csv
import io
import subprocess
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from statistics import mean, median, stdev
from types import MappingProxyType
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir

from tricklab import cli
from tricklab.check import check
from tricklab.errors import UserError, nearest
from tricklab.jobs import Composer
from tricklab.process import quoted
from tricklab.resume import config_hash, is_volatile, read_result, task, write_whole

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
    rows = {seed: row for seed, row in measure(recipe, seeds, words)[""].items() if seed < seeds}
    print(summary(list(rows.values()), flops(configs(recipe, 1)["", 0])))
    if len(rows) < seeds:
        sys.exit(f"error: {len(rows)} of {seeds} seeds are done; the same command again goes on")


def arguments(words: list[str], known: Sequence[str], seeds: int = 10) -> tuple[str, int, list[str]]:
    """Return the experiment, the number of seeds, and the words of the sweep. Raises UserError: one is wrong."""
    name, more = (words or [""])[0], words[1:]
    if name not in known:
        raise UserError(f"experiment={name} does not exist; allowed: {', '.join(known)}.{nearest(name, known)}")
    given = next((word.partition("=")[2] for word in more if word.startswith("seeds=")), str(seeds))
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"seeds={given}; allowed: 1 or more")
    words = [word for word in more if not word.startswith("seeds=")]
    if wrong := next((word for word in words if not is_volatile(word.lstrip("+~").partition("=")[0])), None):
        raise UserError(f"{wrong} would change what is measured; allowed: seeds=N, and words of the sweep, as slots=2")
    return name, int(given), words


def measure(recipe: Recipe, seeds: int, words: Sequence[str]) -> dict[str, dict[int, Row]]:
    """Return the rows of each arm by seed, after those were run that there was none of."""
    found = known(recipe, seeds)
    left = {arm: lacks for arm, rows in found.items() if (lacks := set(range(seeds)) - rows.keys())}
    if not left:
        return found
    missing = ",".join(map(str, sorted(set.union(*left.values()))))
    of_sweep = [f"seed={missing}", f"hydra.sweep.dir={quoted(recipe.folder)}", *words]
    if any(recipe.arms.values()):
        of = ",".join(f"{arm}:[{','.join(map(quoted, recipe.arms[arm]))}]" for arm in left)
        of_sweep += ["sweep=arms", f"sweep.of={{{of}}}"]
    subprocess.run([sys.executable, "train.py", "-m", *recipe.words, *of_sweep], cwd=cli.CONF.parent)
    return known(recipe, seeds)


def known(recipe: Recipe, seeds: int) -> dict[str, dict[int, Row]]:
    """Return the rows that there are, by arm and seed: of so many seeds, and of more where the file has them."""
    found: dict[str, dict[int, Row]] = {arm: {} for arm in recipe.arms}
    if not recipe.file.is_file() and not recipe.folder.is_dir():
        return found
    most = max([seeds, *(int(row["seed"]) + 1 for row in read_rows(recipe.file).values())])
    hashes = {key: config_hash(task(config)) for key, config in configs(recipe, most).items()}
    rows = gather(recipe, {*hashes.values()})
    for (arm, seed), of_config in hashes.items():
        if whole(rows.get(of_config, {}), recipe):
            found[arm][seed] = rows[of_config]
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


def gather(recipe: Recipe, wanted: Set[str]) -> dict[str, Row]:
    """Return the rows of a recipe by their hash, after those of its `wanted` runs that are done were added."""
    before = read_rows(recipe.file)
    rows = dict(before)
    for run in sorted(recipe.folder.glob("*/")):
        result = read_result(run)
        of_run = result.get("config_hash", "")
        if result.get("status") == "done" and of_run in wanted and not whole(rows.get(of_run, {}), recipe):
            rows[of_run] = to_row(run, recipe)
    if rows != before:
        ordered = sorted(rows.values(), key=lambda row: (row.get("words", ""), row["date"], int(row["seed"])))
        write_whole(recipe.file, to_text(ordered))
    return rows


def whole(row: Row, recipe: Recipe) -> bool:
    """Whether a row has all that is kept of a run."""
    return all(row.get(name) for name in recipe.metrics)


def read_rows(file: Path) -> dict[str, Row]:
    """Read the rows of a file by their hash."""
    text = file.read_text("utf-8") if file.is_file() else ""
    return {row["config_hash"]: row for row in csv.DictReader(text.splitlines())}


def to_text(rows: Sequence[Row]) -> str:
    """Return rows as CSV, with all columns that any has."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_row(run: Path, recipe: Recipe) -> Row:
    """Return what is kept of a run."""
    result = read_result(run)
    words = {word.partition("=")[0]: word for word in result["overrides"]}
    own = [word for key, word in words.items() if key not in ("experiment", "seed") and not is_volatile(key)]
    facts = {"config_hash": result["config_hash"]} | ({"words": " ".join(own)} if len(recipe.arms) > 1 else {})
    facts |= {"seed": words["seed"].partition("=")[2], "seconds": result["seconds"]}
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
