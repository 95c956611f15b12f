"""Names of run folders and sweeps, as resolvers of Hydra."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.overrides import list_overrides, parse_command_overrides, swept_keys
from tricklab.devices import visible_devices

MAX_LENGTH = 120  # characters of a name

# Overrides that a name leaves out, as they change no result or stand elsewhere in it
NOT_IN_NAME = re.compile(
    r"(data|model|sweep(\..*)?|seed|name|tags|resume|slots|dry_run|job_timeout"
    r"|data\.(root|num_workers|cache))=|logger|hydra"
)


def run_name(*, _root_: DictConfig) -> str:
    """Name a run by `name`, or by its overrides; and by its seed."""
    if not _root_.name:
        return job_name(_root_=_root_)
    return f"{slug(_root_.name)}_seed-{_root_.seed}"


def job_name(*, _root_: DictConfig) -> str:
    """Name a run by its overrides and its seed."""
    name = name_from_overrides(_root_, list_overrides(_root_.hydra))
    return f"{name[:MAX_LENGTH]}_seed-{_root_.seed}"


def sweep_name(*, _root_: DictConfig) -> str:
    """Name a sweep by `name`, or by its fixed overrides and swept keys.

    The values are left out, so that a grid keeps its folder when it grows.
    """
    name = slug(_root_.name) if _root_.name else name_from_sweep(_root_)
    if len(name) <= MAX_LENGTH:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name[: MAX_LENGTH - 13]}_{digest}"


def name_from_sweep(config: DictConfig) -> str:
    overrides = parse_command_overrides()
    fixed = [str(o.input_line) for o in overrides if not o.is_sweep_override()]
    keys = map(slug, sorted(swept_keys(overrides)))
    return "_".join([name_from_overrides(config, fixed), "by", *keys])


def name_from_overrides(config: DictConfig, overrides: Sequence[str]) -> str:
    """Return a name of the options of data and model, and the overrides that belong in it."""
    choices = config.hydra.runtime.choices
    included = [o for o in overrides if not NOT_IN_NAME.match(o.lstrip("+~"))]
    return "_".join(map(slug, [choices.data, choices.model, *sorted(included)]))


def slug(text: Any) -> str:
    """Return text of A-Za-z0-9._- only, for a file name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(text)).strip("-.") or "_"


for resolver in (run_name, job_name, sweep_name):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
OmegaConf.register_new_resolver("gpus_a_job", lambda: min(1, len(visible_devices())), replace=True)
