"""What `auto` stands for in the config of a trainer: the memory format and the number of threads.

Both change the order of sums, hence the last digits of results. So a run records what was chosen
(`tricklab.run.hardware`) in its `config.yaml` and its checkpoints; resume, evaluation and
`scripts/reproduce.py` repeat it.
"""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from tricklab.devices import count_cores

AUTO = "auto"
KEYS = ("channels_last", "threads")  # of the trainer
MAX_THREADS = 1024

Choice = dict[str, Any]  # of KEYS


def is_automatic(key: str, value: object) -> bool:
    """Whether a dotted key of a config is left to the run."""
    group, _, name = key.partition(".")
    return group == "trainer" and name in KEYS and value == AUTO


def find_recorded(config: Mapping[str, Any]) -> Choice:
    """Return what is recorded in a `config.yaml` or checkpoint, possibly a stranger's; {} if none.

    Older runs have their memory format in the config of the trainer.
    """
    recorded: Choice = {}
    for name in ("trainer", "automatic"):
        part = config.get(name)
        if isinstance(part, Mapping):
            recorded |= {key: part[key] for key in KEYS if is_valid(key, part.get(key))}
    return recorded


def is_valid(key: str, value: object) -> bool:
    """Whether a value is a choice, not `auto`."""
    if key == "channels_last":
        return isinstance(value, bool)
    return type(value) is int and 0 < value <= MAX_THREADS


def restore(trainer: DictConfig, choice: Choice) -> None:
    """Replace `auto` in the config of a trainer, in place, by what was chosen."""
    for key, value in choice.items():
        if trainer[key] == AUTO:
            trainer[key] = value


def describe(choice: Choice) -> str:
    """Return a choice as text, for the summary of a run."""
    threads = "1 thread" if choice["threads"] == 1 else f"{choice['threads']} threads"
    memory_format = ", channels last" if choice["channels_last"] else ""
    return f"{threads} of {count_cores()} cores{memory_format}"
