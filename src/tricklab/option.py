"""The signature of an option: a function, and the decorator that turns it into an option."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

Keys = Iterable[inspect.Parameter]


def keys_after(fn: Callable[..., Any], position: int) -> list[inspect.Parameter]:
    """Return the arguments of `fn` that its config sets, after those that training passes."""
    return list(inspect.signature(fn).parameters.values())[position:]


def keyword_only(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the keyword-only arguments of `fn`."""
    return [key for key in keys_after(fn, 0) if key.kind == key.KEYWORD_ONLY]


def declare_keys(option: Callable[..., Any], keys: Keys) -> None:
    """Put `keys` into the signature of `option(..., **options)`, in place of `**options`."""
    own = inspect.signature(option, follow_wrapped=False).parameters.values()
    parameters = [key for key in own if key.kind != key.VAR_KEYWORD]
    parameters += [key.replace(kind=key.KEYWORD_ONLY) for key in keys]
    parameters.sort(key=lambda key: key.kind)
    option.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
