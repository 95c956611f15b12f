"""The signature of an option: a function, and the decorator that turns it into an option."""

import inspect
from collections.abc import Callable
from typing import Any


def declare(option: Callable[..., Any], fn: Callable[..., Any], skip: int) -> None:
    """Give `option(..., **options)` the signature of its config keys.

    These are its own arguments, and in place of `**options` those of `fn`, except for the first
    `skip`, which training passes to `fn`.
    """
    own = list(inspect.signature(option, follow_wrapped=False).parameters.values())
    keys = list(inspect.signature(fn).parameters.values())[skip:]
    named = [key.replace(kind=key.KEYWORD_ONLY) for key in keys if key.kind != key.VAR_KEYWORD]
    parameters = [key for key in own if key.kind != key.VAR_KEYWORD]
    parameters = sorted([*parameters, *named], key=lambda key: key.kind)
    option.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
