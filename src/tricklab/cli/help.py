"""`--help`: every option of `conf/` with the first comment of its file."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.config import CONF, description, list_options


def format_help(conf: Path = CONF) -> str:
    """List every option of every group with the first comment in its file, and the top-level keys."""
    lines = ["python train.py [GROUP=OPTION] [KEY=VALUE] ...    (* is the default)"]
    train = OmegaConf.load(conf / "train.yaml")
    defaults = {
        k: v for entry in train.defaults if isinstance(entry, DictConfig) for k, v in entry.items()
    }
    groups = sorted(path.name for path in conf.iterdir() if path.is_dir() and path.name != "hydra")
    for group in [*groups, "hydra/launcher"]:
        lines += ["", group]
        for option in list_options(conf / group):
            star = (
                "*" if option in (defaults.get(group), defaults.get(f"override {group}")) else " "
            )
            lines.append(
                f" {star}{group}={option}".ljust(30) + description(conf / group / f"{option}.yaml")
            )
    keys = {
        str(k): "null" if v is None else v
        for k, v in train.items()
        if k not in ("defaults", "hydra") and v != {}
    }
    lines += ["", "keys", *(f"  {key}={value}" for key, value in keys.items())]
    lines += ["", "python train.py --cfg job    every key of the chosen options with its value"]
    lines += ["python train.py -m seed=0,1,2    one run for each value"]
    return "\n".join(lines)
