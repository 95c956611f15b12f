"""The one place where a config becomes objects: resolve it, check it, build the checked values.

Hydra's own `instantiate` resolves the config a second time, so that a string could become a target
after it was judged; it also takes keys such as `_args_`, which no option here needs.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from tricklab.errors import UserError

PACKAGES = ("tricklab", "torch", "pytorch_lightning")  # may be imported; a fork adds its own
OWN_MODULES = tuple(
    f"tricklab.{module}"
    for module in (
        *("augment", "callbacks", "data.datasets", "logger", "loss", "mixup", "model", "penalty"),
        *("scheduler", "sweep"),
    )
)
CLASS_MODULES = (  # modules of other packages whose classes are allowed
    *("torch.nn.modules", "torch.optim"),
    *("pytorch_lightning.trainer", "pytorch_lightning.callbacks"),
    *("pytorch_lightning.loggers", "pytorch_lightning.profilers"),
)
SPECIAL_KEYS = ("_target_", "_partial_")  # all other keys are arguments


def build(config: Mapping[str, Any], *args: Any, **options: Any) -> Any:
    """Build the object of a config from its values, `args` and `options`.

    Lists and nested configs become plain lists and dicts; nested configs with a `_target_` are
    built too. Raises UserError: a target that is not allowed, or that rejects its arguments.
    """
    if isinstance(config, DictConfig):
        config = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    try:
        return _build_node(config, args, options)
    except (TypeError, ValueError, ModuleNotFoundError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(str(error)) from error
    except Exception as error:
        # Imported here, as it takes seconds
        from pytorch_lightning.utilities.exceptions import MisconfigurationException

        if isinstance(error, MisconfigurationException):
            raise UserError(str(error)) from error
        raise


def _build_node(node: Mapping[str, Any], args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    if "_target_" not in node:
        raise UserError(f"{dict(node)} has no _target_ to build")
    for key in node:
        if key.startswith("_") and key not in SPECIAL_KEYS:
            raise UserError(f"{key}={node[key]}; allowed: {', '.join(SPECIAL_KEYS)}")
    target = find_target(str(node["_target_"]))
    values = {key: _build_value(value) for key, value in node.items() if key not in SPECIAL_KEYS}
    values |= options
    if not node.get("_partial_"):
        return target(*args, **values)
    return functools.partial(target, *args, **values) if args or values else target


def _build_value(value: Any) -> Any:
    if isinstance(value, dict):
        if "_target_" in value:
            return _build_node(value, (), {})
        return {key: _build_value(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_build_value(part) for part in value]
    return value


def build_each(config: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Build every entry of a group that takes several options at once, such as penalties."""
    return {str(name): build(node, **options) for name, node in config.items()}


def omit(config: DictConfig, *keys: str) -> DictConfig:
    """Return a config without the keys that are not arguments of its target."""
    return DictConfig({key: value for key, value in config.items() if key not in keys})


def find_target(target: str) -> Any:
    """Return the object with a dotted name. The object itself is judged, as a name may be an alias.

    Functions and classes of our modules are allowed, but only classes of other packages: a method
    may load a pickle. Raises UserError: the object does not exist or is not allowed.
    """
    if target.startswith(tuple(f"{package}." for package in PACKAGES)):
        try:
            found = get_object(target)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"_target_={target}: {error}") from error
        if _is_allowed(found):
            return found
    allowed = f"definitions of {', '.join(OWN_MODULES)}, and classes of {', '.join(CLASS_MODULES)}"
    raise UserError(f"_target_={target} is not allowed; allowed: {allowed}")


def _is_allowed(found: Any) -> bool:
    modules = (*OWN_MODULES, *CLASS_MODULES) if isinstance(found, type) else OWN_MODULES
    module = f"{getattr(found, '__module__', '')}."
    is_top_level = "." not in getattr(found, "__qualname__", ".")
    return is_top_level and module.startswith(tuple(f"{allowed}." for allowed in modules))
