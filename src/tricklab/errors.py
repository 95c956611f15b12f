"""The exception for user mistakes, and the suggestion of the nearest valid name."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the options or the data: shown as one line, without a traceback."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'cosine'?" for the most similar of `names`, "" if none is similar."""
    match = closest(name, names)
    return f" Did you mean '{match}'?" if match else ""


def closest(name: str, names: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the most similar of `names`, ignoring case; "" if none is similar."""
    by_lower = {other.lower(): other for other in names}
    match = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[match[0]] if match else ""
