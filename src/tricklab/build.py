"""The one place where a config becomes objects."""

import functools
from collections.abc import Iterator
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from tricklab.errors import UserError

ALLOWED = ("tricklab", "torch.nn", "torch.optim", "pytorch_lightning")  # a fork adds its own packages


def build(config: DictConfig, *args: Any, **options: Any) -> Any:
    """Instantiate a config with `_target_`, with further arguments; lists and dicts become plain ones.

    Raises:
        UserError: a target that does not exist or is not of an allowed package. The object itself is judged,
            since a name may be an alias of anything. Or the arguments do not fit it.
    """
    for target in targets(OmegaConf.to_container(config)):
        check_target(target)
    try:
        made = instantiate(config, *args, _convert_="all", **options)
    except InstantiationException as error:
        from pytorch_lightning.utilities.exceptions import MisconfigurationException  # takes seconds

        if isinstance(error.__cause__, TypeError | ValueError | ModuleNotFoundError | MisconfigurationException):
            raise UserError(str(error.__cause__)) from error
        raise error.__cause__ or error from None
    if isinstance(made, functools.partial):  # Hydra's own judges its target anew at every call, which takes 0.1 ms
        return functools.partial(made.func, *made.args, **made.keywords) if made.args or made.keywords else made.func
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


def check_target(target: str) -> None:
    if _allowed(target):
        try:
            home = get_object(target).__module__
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"_target_={target}: {error}") from error
        if _allowed(str(home)):
            return
    raise UserError(f"_target_={target} is not allowed; allowed: what is defined in {', '.join(ALLOWED)}")


def _allowed(name: str) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in ALLOWED)
