"""Names of run folders and sweeps, as resolvers of Hydra."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.overrides import list_overrides, parse_command_overrides, swept_keys
from tricklab.devices import visible_devices

NOT_IN_NAME = re.compile(  # or elsewhere in it
    r"(data|model|sweep(\..*)?|seed|name|tags|resume|slots|dry|job_timeout|data\.(root|num_workers|cache))=|logger|hydra"
)


def run_name(*, _root_: DictConfig) -> str:
    """Name a run by `name`, or by its overrides; and by its seed."""
    return f"{slug(_root_.name)}_seed-{_root_.seed}" if _root_.name else job_name(_root_=_root_)


def job_name(*, _root_: DictConfig) -> str:
    """Name a run by its overrides and its seed."""
    return f"{named(_root_, list_overrides(_root_.hydra))[:120]}_seed-{_root_.seed}"


def sweep_name(*, _root_: DictConfig) -> str:
    """Name a sweep by `name`, or by its overrides and the keys it goes through: a grid that grows keeps its folder."""
    words = parse_command_overrides()
    fixed = named(_root_, [str(word.input_line) for word in words if not word.is_sweep_override()])
    name = (
        slug(_root_.name)
        if _root_.name
        else "_".join([fixed, "by", *map(slug, sorted(swept_keys(words)))])
    )
    return (
        name
        if len(name) <= 120
        else f"{name[:107]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    )


def named(config: DictConfig, words: Sequence[str]) -> str:
    """Return data, model and those of the words that belong into a name."""
    choices, kept = (
        config.hydra.runtime.choices,
        [word for word in words if not NOT_IN_NAME.match(word.lstrip("+~"))],
    )
    return "_".join(map(slug, [choices.data, choices.model, *sorted(kept)]))


def slug(text: Any) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", str(text)).strip("-.") or "_"


for resolver in (run_name, job_name, sweep_name):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
OmegaConf.register_new_resolver("gpus_a_job", lambda: min(1, len(visible_devices())), replace=True)
