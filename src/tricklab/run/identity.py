"""The identity of a run: the hash of everything that affects its result."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.config import task
from tricklab.cli.redact import masked

VOLATILE = (  # not part of what is computed
    *("hydra", "sweep", "claim", "resume", "name", "tags", "logger", "slots", "dry", "job_timeout"),
    *("data.num_workers", "data.cache", "callbacks.progress", "callbacks.last"),
    *("choices", "dataset"),  # facts that a run adds to its config.yaml
)


NEUTRAL: dict[str, Any] = {  # keys that came later, at the value which computes the same as without
    "data.background": "white",
}


PACKAGE = __name__.partition(".")[0]
HASH = "PLANNED_CONFIG_HASH"  # in the environment of a sweep's job: that of the config it was planned with


def is_volatile(key: str) -> bool:
    """Whether a dotted key is no part of what is computed."""
    return any(f"{key.replace('/', '.')}.".startswith(f"{volatile}.") for volatile in VOLATILE)


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 12 hex digits that tell apart configs which compute something else.

    Whatever the package is called, and without the keys of `NEUTRAL` at their value there.
    """
    kept = {
        key: {k: v for k, v in value.items() if not _left_out(f"{key}.{k}", v)}
        if isinstance(value, dict)
        else value
        for key, value in masked(config).items()
        if key not in VOLATILE
    }
    text = json.dumps(kept, sort_keys=True, default=str).replace(f'"{PACKAGE}.', '".')
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _left_out(key: str, value: Any) -> bool:
    return key in VOLATILE or (key in NEUTRAL and value == NEUTRAL[key])


def _hash_of_run(*, _root_: DictConfig) -> str:
    return config_hash(task(_root_))


OmegaConf.register_new_resolver("config_hash", _hash_of_run, replace=True)
