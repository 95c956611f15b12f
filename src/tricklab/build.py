"""The one place where a config becomes objects."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from tricklab.errors import UserError

PACKAGES = (
    "tricklab",
    "torch",
    "pytorch_lightning",
)  # that may be imported; a fork adds its own, here and below
PARTS = (
    "augment",
    "callbacks",
    "data.datasets",
    "logger",
    "mixup",
    "model",
    "penalty",
    "scheduler",
    "sweep",
)
OURS = tuple(f"tricklab.{part}" for part in PARTS)
HARMLESS = tuple(
    part for part in OURS if part not in ("tricklab.callbacks", "tricklab.logger")
)  # write nothing
LIGHTNING = tuple(
    f"pytorch_lightning.{part}" for part in ("trainer", "callbacks", "loggers", "profilers")
)
CLASSES = ("torch.nn.modules", "torch.optim", *LIGHTNING)


def build(config: DictConfig, *args: Any, **options: Any) -> Any:
    """Instantiate a config, its lists and dicts as plain ones. Raises UserError: a wrong target, or arguments of it."""
    for target in targets(OmegaConf.to_container(config)):
        check_target(target)
    try:
        made = instantiate(config, *args, _convert_="all", **options)
    except InstantiationException as error:
        from pytorch_lightning.utilities.exceptions import (
            MisconfigurationException,
        )  # takes seconds

        if isinstance(
            error.__cause__,
            TypeError | ValueError | ModuleNotFoundError | MisconfigurationException,
        ):
            raise UserError(str(error.__cause__)) from error
        raise error.__cause__ or error from None
    if isinstance(
        made, functools.partial
    ):  # Hydra's own judges its target anew at every call, which takes 0.1 ms
        return (
            functools.partial(made.func, *made.args, **made.keywords)
            if made.args or made.keywords
            else made.func
        )
    return made


def build_each(config: DictConfig, **options: Any) -> dict[str, Any]:
    """Build every entry of a group that takes several options at once, such as penalties."""
    return {str(name): build(node, **options) for name, node in config.items()}


def without(config: DictConfig, *keys: str) -> DictConfig:
    """Leave out the keys that stand with an option but are not its arguments."""
    return DictConfig({key: value for key, value in config.items() if key not in keys})


def targets(node: Any) -> Iterator[str]:
    """Find every `_target_` in a nested config."""
    if isinstance(node, dict):
        yield from (str(value) for key, value in node.items() if key == "_target_")
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from targets(value)


def check_target(target: str, ours: Sequence[str] = OURS, classes: Sequence[str] = CLASSES) -> None:
    """Judge what a name stands for, as it may be an alias. Raises UserError: it does not exist or is not allowed.

    Functions and classes of `ours` are allowed, and of other packages the `classes` alone: a method may load a pickle.
    """
    if target.startswith(tuple(f"{package}." for package in PACKAGES)):
        try:
            found = get_object(target)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"_target_={target}: {error}") from error
        homes = (*ours, *classes) if isinstance(found, type) else ours
        home, name = f"{getattr(found, '__module__', '')}.", getattr(found, "__qualname__", ".")
        if home.startswith(tuple(f"{allowed}." for allowed in homes)) and "." not in name:
            return
    allowed = f"what {', '.join(ours)} define, and classes of {', '.join(classes)}"
    raise UserError(f"_target_={target} is not allowed; allowed: {allowed}")
