"""Run the seeds of a recipe that were not run yet, keep a row of each beside it, and sum them up.

python scripts/measure.py fashion_92 [seeds=10] [slots=1 ...]       further words are those of the sweep

A row counts as done as long as the config is the same, which its hash tells.
"""

import csv
import io
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from statistics import mean, median, stdev
from types import MappingProxyType
from typing import Any, NamedTuple

from omegaconf import DictConfig

from tricklab.cli.compose import compose_each
from tricklab.cli.config import CONF, list_options, to_plain
from tricklab.cli.launch import launch
from tricklab.cli.messages import unknown_name
from tricklab.cli.overrides import quote
from tricklab.errors import UserError
from tricklab.files import write_text
from tricklab.run.build import build_data, build_net
from tricklab.run.experiment import quiet_lightning
from tricklab.run.folder import read_result
from tricklab.run.identity import config_hash, is_excluded_from_hash
from tricklab.run.plan import make_plan

Row = dict[str, str]
Rows = dict[str, dict[int, Row]]  # by arm and seed
Arms = Mapping[str, Sequence[str]]  # by name, the words that tell them apart


class Recipe(NamedTuple):
    """An experiment, its arms, and the metrics that are kept of each of its runs."""

    name: str
    arms: Arms = MappingProxyType({"": ()})
    metrics: Sequence[str] = ("val/acc", "test/acc", "test/loss", "test/ece")

    @property
    def file(self) -> Path:
        return CONF / "experiment" / f"{self.name}.csv"

    @property
    def folder(self) -> Path:
        return CONF.parent / "sweeps" / self.name


def main() -> None:
    name, seeds, words = arguments(list_options(CONF / "experiment"), lambda _: 10)
    rows = [row for seed, row in measure(Recipe(name), seeds, words)[""].items() if seed < seeds]
    print(summary(rows, flops(compose(name))))
    if len(rows) < seeds:
        sys.exit(f"error: {len(rows)} of {seeds} seeds are done; the same command again goes on")


def arguments(known: Sequence[str], seeds: Callable[[str], int]) -> tuple[str, int, list[str]]:
    """Return the experiment, the seeds, by default its own, and the words of the sweep.

    They are taken from sys.argv, as the names of folders are made of what is left. Raises UserError: one is wrong.
    """
    sys.argv, (name, *words) = sys.argv[:1], sys.argv[1:] or [""]
    if name not in known:
        raise UserError(unknown_name(f"experiment={name}", name, known))
    given = next((word[6:] for word in words if word.startswith("seeds=")), str(seeds(name)))
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"seeds={given}; allowed: 1 or more")
    words = [word for word in words if not word.startswith("seeds=")]
    if wrong := next(
        (word for word in words if not is_excluded_from_hash(word.lstrip("+~").partition("=")[0])),
        None,
    ):
        raise UserError(
            f"{wrong} would change what is measured; allowed: seeds=N, and words of the sweep, as slots=2"
        )
    return name, int(given), words


def measure(recipe: Recipe, seeds: int, words: Sequence[str]) -> Rows:
    """Return the rows of each arm by seed, after those were run that there was none of."""
    found = known(recipe, seeds)
    left = {arm: lacks for arm, rows in found.items() if (lacks := set(range(seeds)) - rows.keys())}
    if not left:
        return found
    missing = ",".join(map(str, sorted(set.union(*left.values()))))
    of_sweep = [
        f"experiment={recipe.name}",
        f"seed={missing}",
        f"hydra.sweep.dir={quote(recipe.folder)}",
        *words,
    ]
    if any(recipe.arms.values()):
        of = ",".join(f"{arm}:[{','.join(map(quote, recipe.arms[arm]))}]" for arm in left)
        of_sweep += ["sweep=arms", f"sweep.of={{{of}}}"]
    subprocess.run([sys.executable, "train.py", "-m", *of_sweep], cwd=CONF.parent)
    return known(recipe, seeds)


def compose(name: str, words: Sequence[str] = ()) -> DictConfig:
    (config,) = compose_each([f"experiment={name}", *words]).values()
    return config


def known(recipe: Recipe, seeds: int) -> Rows:
    """Return the rows that there are, by arm and seed: of so many seeds, and of more where the file has them."""
    found: Rows = {arm: {} for arm in recipe.arms}
    if not recipe.file.is_file() and not recipe.folder.is_dir():
        return found
    most = max([seeds, *(int(row["seed"]) + 1 for row in read_rows(recipe.file).values())])
    hashes: dict[tuple[str, int], str] = {}
    for arm, words in recipe.arms.items():
        config = to_plain(compose(recipe.name, words))
        hashes |= {(arm, seed): config_hash(config | {"seed": seed}) for seed in range(most)}
    rows = gather(recipe, {*hashes.values()})
    for (arm, seed), key in hashes.items():
        if whole(rows.get(key, {}), recipe):
            found[arm][seed] = rows[key]
    return found


def gather(recipe: Recipe, wanted: Set[str]) -> dict[str, Row]:
    """Return the rows of a recipe by their hash, after those of its `wanted` runs that are done were added."""
    before = read_rows(recipe.file)
    rows = dict(before)
    for run in sorted(recipe.folder.glob("*/")):
        result = read_result(run)
        of_run = result.get("config_hash", "")
        if (
            result.get("status") == "done"
            and of_run in wanted
            and not whole(rows.get(of_run, {}), recipe)
        ):
            rows[of_run] = to_row(run, recipe)
    if rows != before:
        ordered = sorted(
            rows.values(), key=lambda row: (row.get("words", ""), row["date"], int(row["seed"]))
        )
        write_text(recipe.file, to_text(ordered))
    return rows


def whole(row: Row, recipe: Recipe) -> bool:
    """Whether a row has all that is kept of a run."""
    return all(row.get(name) for name in recipe.metrics)


def read_table(file: Path) -> list[Row]:
    return list(csv.DictReader(file.read_text("utf-8").splitlines()))


def read_rows(file: Path) -> dict[str, Row]:
    """Read the rows of a file by their hash."""
    return {row["config_hash"]: row for row in (read_table(file) if file.is_file() else [])}


def to_text(rows: Sequence[Row]) -> str:
    """Return rows as CSV, with all columns that any has."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_row(run: Path, recipe: Recipe) -> Row:
    """Return what is kept of a run."""
    result = read_result(run)
    words = {word.partition("=")[0]: word for word in result["overrides"]}
    own = [
        word
        for key, word in words.items()
        if key not in ("experiment", "seed") and not is_excluded_from_hash(key)
    ]
    row = {"config_hash": result["config_hash"]} | (
        {"words": " ".join(own)} if len(recipe.arms) > 1 else {}
    )
    row |= {"seed": words["seed"].partition("=")[2], "seconds": result["seconds"]}
    row |= {name: round(read_metric(run, name), 6) for name in recipe.metrics}
    row |= {
        "commit": (result["git"] or {}).get("commit", "")[:10],
        "torch": result["versions"]["torch"],
    }
    return {key: str(value) for key, value in {**row, "date": result["started"][:10]}.items()}


def read_metric(run: Path, name: str) -> float:
    """Return a result of a run, that of its best epoch; X@last is the last value logged, ood/NOISE/Y evaluate.py's."""
    if name.endswith("@last"):
        column = [row[name.removesuffix("@last")] for row in read_table(run / "metrics.csv")]
        return float([value for value in column if value][-1])
    if name.startswith("ood/"):
        _, images, measure = name.split("/")
        if not (run / "ood.csv").is_file():
            command = ["scripts/evaluate.py", f"ckpt={run}/checkpoints/best.ckpt", "suite=ood"]
            subprocess.run(
                [sys.executable, *command],
                cwd=CONF.parent,
                check=True,
                stdout=subprocess.DEVNULL,
            )
        return next(
            float(row[measure]) for row in read_table(run / "ood.csv") if row["images"] == images
        )
    return float(read_result(run)["metrics"][name])


def flops(config: Any) -> float:
    """Return the floating-point operations of all training steps, forwards and backwards, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    quiet_lightning()
    data = build_data(config)
    net = build_net(config, data.shape, len(data.classes)).train()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(2, *data.shape)).sum().backward()
    return (
        counter.get_total_flops() / 2 * make_plan(config, data, ranks=1).last_step * data.batch_size
    )


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
    launch(main, __doc__)
