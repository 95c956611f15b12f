"""The identity of a run: the hash of everything that affects its result."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.config import to_plain
from tricklab.cli.redact import redact_secrets
from tricklab.cli.specs import neutral_values

PACKAGE = __name__.partition(".")[0]
HASH_EXCLUDED = (  # keys that do not affect the result
    *("hydra", "sweep", "claim", "resume", "name", "tags", "logger"),
    *("slots", "dry_run", "job_timeout"),
    *("data.num_workers", "data.cache", "data.index", "callbacks.progress", "callbacks.last"),
    *("automatic", "choices", "dataset"),  # added to config.yaml by the run itself
)
# Environment variable of a sweep's job: the hash of the config with which the job was planned
PLANNED_HASH = "PLANNED_CONFIG_HASH"


def config_hash(config: Mapping[str, Any]) -> str:
    """Return a hash, 12 hex digits, of everything in a config that affects the result.

    It does not depend on the name of the package, nor on keys at the neutral value that their
    comment in `conf/` declares.
    """
    kept = {
        key: _without_neutral_keys(key, value)
        for key, value in redact_secrets(config).items()
        if not _is_neutral(key, value)
    }
    text = json.dumps(kept, sort_keys=True, default=str).replace(f'"{PACKAGE}.', '".')
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_excluded_from_hash(key: str) -> bool:
    """Whether a dotted key does not affect the result."""
    dotted = f"{key.replace('/', '.')}."
    return any(dotted.startswith(f"{excluded}.") for excluded in HASH_EXCLUDED)


def _without_neutral_keys(path: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {}
    for name, v in value.items():
        key = f"{path}.{name}"
        if not _is_neutral(key, v):
            kept[name] = _without_neutral_keys(key, v)
    return kept


def _is_neutral(key: str, value: Any) -> bool:
    neutral = neutral_values()
    return key in HASH_EXCLUDED or (key in neutral and value == neutral[key])


def _hash_of_root(*, _root_: DictConfig) -> str:
    return config_hash(to_plain(_root_))


OmegaConf.register_new_resolver("config_hash", _hash_of_root, replace=True)
