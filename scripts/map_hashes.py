"""Map the config hashes of the committed rows to those of the renamed keys, once.

python scripts/map_hashes.py

For each row its config is composed with today's keys, and hashed as it is and under the old names.
The old hash must be that of the row, or the row is named and left as it is.
"""

import sys
from typing import Any

from tricklab.analysis.recipes import compose_recipe, format_rows
from tricklab.cli.config import CONF, to_plain
from tricklab.cli.launch import launch
from tricklab.files import read_table, write_text
from tricklab.run.identity import config_hash

OLD_NAMES = {  # of a key: by group, or by option where only that has it
    "data": {"size": "resize", "skip_corrupt": "skip_damaged"},
    "loss": {"class_weights": "weight"},
    "mixup": {"start": "begin", "stop": "end"},
    "optimizer": {"lr_base_batch_size": "lr_base_batch_size"},
    "model": {"backbone_lr_mult": "backbone_lr_mult"},
    "scheduler": {"update_every": "hold", "period_mult": "mult"},
}
OLD_TARGETS = {"tricklab.loss.cross_entropy": "torch.nn.CrossEntropyLoss"}


def main() -> None:
    experiments = CONF / "experiment"
    unknown = 0
    for path in sorted(experiments.rglob("*.csv")):
        rows = read_table(path)
        name = path.relative_to(experiments).with_suffix("").as_posix()
        unknown += sum(not map_row(row, name) for row in rows)
        write_text(path, format_rows(rows))
        print(f"{path.relative_to(CONF)}: {len(rows)} rows")
    if unknown:
        sys.exit(f"error: {unknown} rows have the hash of no config")


def map_row(row: dict[str, str], recipe: str) -> bool:
    """Put the new hash of a row for its old one; return whether that was the hash of its config."""
    overrides = [*row.get("overrides", "").split(), f"seed={row['seed']}"]
    config = to_plain(compose_recipe(recipe, overrides))
    new, old = config_hash(config), config_hash(to_old_names(config))
    if row["config_hash"] not in (old, new):
        print(f"  {recipe} {' '.join(overrides)}: {row['config_hash']} is not {old}")
        return False
    row["config_hash"] = new
    return True


def to_old_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return a plain config with the names from before."""
    old = dict(config)
    for group, names in OLD_NAMES.items():
        old[group] = {names.get(key, key): value for key, value in old[group].items()}
    target = old["loss"]["_target_"]
    old["loss"]["_target_"] = OLD_TARGETS.get(target, target)
    old["penalty"] = {
        name: {"only" if key == "params" else key: value for key, value in node.items()}
        for name, node in old["penalty"].items()
    }
    old["augment"] = {name: split_scale(node) for name, node in old["augment"].items()}
    return old


def split_scale(node: dict[str, Any]) -> dict[str, Any]:
    if not node["_target_"].endswith(".erase"):
        return node
    smallest, largest = node["scale"]
    rest = {key: value for key, value in node.items() if key != "scale"}
    return {**rest, "smallest": smallest, "largest": largest}


if __name__ == "__main__":
    launch(main, __doc__)
