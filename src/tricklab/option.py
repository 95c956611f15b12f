"""The last step of the decorators that turn a function into an option, such as `@schedule`."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def keys_after(fn: Callable[..., Any], position: int) -> list[inspect.Parameter]:
    """Return the arguments of `fn` that its config sets, after those that training passes."""
    keys = list(inspect.signature(fn).parameters.values())[position:]
    return [key for key in keys if key.kind != key.VAR_KEYWORD]


def keyword_only(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the keyword-only arguments of `fn`."""
    return [key for key in keys_after(fn, 0) if key.kind == key.KEYWORD_ONLY]


def as_option(
    wrapper: Callable[..., T], fn: Callable[..., Any], keys: Iterable[inspect.Parameter]
) -> Callable[..., T]:
    """Give `wrapper(..., **options)` name and docstring of `fn`, and its own true signature.

    The signature has `keys` in place of `**options`, so it lists all keys of the config.
    """
    signature = inspect.signature(wrapper)
    parameters = [key for key in signature.parameters.values() if key.kind != key.VAR_KEYWORD]
    parameters += [key.replace(kind=key.KEYWORD_ONLY) for key in keys]
    parameters.sort(key=lambda key: key.kind)
    functools.update_wrapper(wrapper, fn)
    wrapper.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return wrapper
