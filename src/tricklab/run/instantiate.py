"""The one place where a config becomes objects: resolved first, judged then, and the judged is built.

Hydra's own `instantiate` resolves what it builds once more, so that a text could become a target
after it was judged; and it takes further keys, such as `_args_`, that no option here needs.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from tricklab.errors import UserError

PACKAGES = ("tricklab", "torch", "pytorch_lightning")  # may be imported; a fork adds its own


PARTS = (
    *("augment", "callbacks", "data.datasets", "logger", "mixup", "model", "penalty"),
    *("scheduler", "sweep"),
)


OURS = tuple(f"tricklab.{part}" for part in PARTS)


LIGHTNING = tuple(
    f"pytorch_lightning.{part}" for part in ("trainer", "callbacks", "loggers", "profilers")
)


CLASSES = ("torch.nn.modules", "torch.optim", *LIGHTNING)


KEYS = ("_target_", "_partial_")  # that say how to build; all others are arguments


def build(config: Mapping[str, Any], *args: Any, **options: Any) -> Any:
    """Build what a config names, with its values, `args` and `options` as arguments.

    Lists and nested configs are plain lists and dicts, or built too where they have a `_target_`.
    Raises UserError: a target that is not allowed, arguments that it does not take.
    """
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    try:
        return _make(config, args, options)
    except (TypeError, ValueError, ModuleNotFoundError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(str(error)) from error
    except Exception as error:
        from pytorch_lightning.utilities.exceptions import (
            MisconfigurationException,
        )  # takes seconds

        if isinstance(error, MisconfigurationException):
            raise UserError(str(error)) from error
        raise


def _make(node: Mapping[str, Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    if "_target_" not in node:
        raise UserError(f"{dict(node)} has no _target_ that says what it is")
    if wrong := [key for key in node if key.startswith("_") and key not in KEYS]:
        raise UserError(f"{wrong[0]}={node[wrong[0]]}; allowed: {', '.join(KEYS)}")
    target = find_target(str(node["_target_"]))
    values = {key: _make_value(value) for key, value in node.items() if key not in KEYS}
    values |= options
    if not node.get("_partial_"):
        return target(*args, **values)
    return functools.partial(target, *args, **values) if args or values else target


def _make_value(value: Any) -> Any:
    if isinstance(value, dict):
        if "_target_" in value:
            return _make(value, (), {})
        return {key: _make_value(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_make_value(part) for part in value]
    return value


def build_each(config: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Build every entry of a group that takes several options at once, such as penalties."""
    return {str(name): build(node, **options) for name, node in config.items()}


def without(config: DictConfig, *keys: str) -> DictConfig:
    """Leave out the keys that stand with an option but are not its arguments."""
    return DictConfig({key: value for key, value in config.items() if key not in keys})


def find_target(target: str) -> Any:
    """Return what a name stands for, which is judged itself, as the name may be an alias.

    Functions and classes of our modules are allowed, and of other packages classes alone: a method
    may load a pickle. Raises UserError: it does not exist or is not allowed.
    """
    if target.startswith(tuple(f"{package}." for package in PACKAGES)):
        try:
            found = get_object(target)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"_target_={target}: {error}") from error
        homes = (*OURS, *CLASSES) if isinstance(found, type) else OURS
        home, name = f"{getattr(found, '__module__', '')}.", getattr(found, "__qualname__", ".")
        if home.startswith(tuple(f"{allowed}." for allowed in homes)) and "." not in name:
            return found
    allowed = f"what {', '.join(OURS)} define, and classes of {', '.join(CLASSES)}"
    raise UserError(f"_target_={target} is not allowed; allowed: {allowed}")
