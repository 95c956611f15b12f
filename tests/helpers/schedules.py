"""Schedules of conf/scheduler, built without composing a whole config."""

from omegaconf import OmegaConf

from helpers.paths import CONF
from tricklab.cli.config import list_options
from tricklab.run.instantiate import build

NAMES = list_options(CONF / "scheduler")
EXACT = {"rel": 0, "abs": 1e-12}


def multiplier(*overrides, length):
    """Build a schedule from overrides; read without Hydra, which takes 50 ms."""
    name, *values = (override.removeprefix("scheduler").lstrip("=.") for override in overrides)
    files = [OmegaConf.load(CONF / "scheduler" / f"{file}.yaml") for file in ("_options", name)]
    config = OmegaConf.merge(*files, OmegaConf.from_dotlist(values))
    del config["defaults"]
    return build(config)(length)
