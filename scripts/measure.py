"""Run the seeds of a recipe that were not run yet, keep a row of each beside it, and sum them up.

python scripts/measure.py fashion_92 [seeds=10] [slots=1 ...]       further words are those of the sweep

A row counts as done as long as the recipe still computes the same, which the hash of its config tells.
"""

import csv
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from tricklab import cli
from tricklab.errors import UserError, nearest
from tricklab.resume import config_hash, read_result, task

METRICS = ("val/acc", "test/acc", "test/loss", "test/ece")
Row = dict[str, str]


def main() -> None:
    name, seeds, words = arguments(sys.argv[1:])
    sys.argv = sys.argv[:1]  # the names of folders are made of the rest
    file, folder = cli.CONF / "experiment" / f"{name}.csv", cli.CONF.parent / "sweeps" / name
    recipe = [f"experiment={name}", f"seed={','.join(map(str, range(seeds)))}"]
    configs = {config_hash(task(config)): config for config in cli.compose_each(recipe).values()}
    rows = gather(file, folder)
    if missing := [str(config.seed) for key, config in configs.items() if key not in rows]:
        command = ["train.py", "-m", recipe[0], f"seed={','.join(missing)}", f"hydra.sweep.dir={folder}", *words]
        subprocess.run([sys.executable, *command], cwd=cli.CONF.parent)
        rows = gather(file, folder)
    found = [rows[key] for key in configs if key in rows]
    print(summary(found, flops(next(iter(configs.values())))))
    if len(found) < seeds:
        sys.exit(f"error: {len(found)} of {seeds} seeds are done; the same command again goes on")


def arguments(words: list[str]) -> tuple[str, int, list[str]]:
    """Return the recipe, the number of seeds, and the words of the sweep."""
    known = cli.options(cli.CONF / "experiment")
    name, more = (words or [""])[0], words[1:]
    if name not in known:
        raise UserError(f"experiment={name} does not exist; allowed: {', '.join(known)}.{nearest(name, known)}")
    seeds = next((word.partition("=")[2] for word in more if word.startswith("seeds=")), "10")
    if not seeds.isdigit() or int(seeds) < 1:
        raise UserError(f"seeds={seeds}; allowed: 1 or more")
    return name, int(seeds), [word for word in more if not word.startswith("seeds=")]


def gather(file: Path, folder: Path) -> dict[str, Row]:
    """Return the rows of a file by their hash, after those of the runs in a folder that are done were added to it."""
    lines = file.read_text().splitlines() if file.is_file() else []
    rows = {row["config_hash"]: row for row in csv.DictReader(lines)}
    results = [read_result(run) for run in sorted(folder.glob("*/"))]
    rows = {r["config_hash"]: to_row(r) for r in results if r.get("status") == "done"} | rows
    if rows:
        with file.open("w", newline="") as text:
            writer = csv.DictWriter(text, list(next(iter(rows.values()))), lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(rows.values(), key=lambda row: (row["date"], int(row["seed"]))))
    return rows


def to_row(result: Mapping[str, Any]) -> Row:
    """Return what of a `result.json` is kept."""
    seed = next(word.partition("=")[2] for word in result["overrides"] if word.startswith("seed="))
    facts = {"config_hash": result["config_hash"], "seed": seed, "seconds": result["seconds"]}
    facts |= {name: round(result["metrics"][name], 6) for name in METRICS}
    facts |= {"commit": (result["git"] or {}).get("commit", "")[:10], "torch": result["versions"]["torch"]}
    return {key: str(value) for key, value in {**facts, "date": result["started"][:10]}.items()}


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
