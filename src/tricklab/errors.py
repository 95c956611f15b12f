"""The exception for user mistakes, and what its messages are made of."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the options or the data: shown as one line, without a traceback."""


def nearest(word: str, words: Iterable[str]) -> str:
    """Return " Did you mean 'cosine'?" for the most similar of `words`, or nothing if none is similar."""
    match = closest(word, words)
    return f" Did you mean '{match}'?" if match else ""


def closest(word: str, words: Iterable[str], cutoff: float = 0.5) -> str:
    """Return the most similar of `words`, whatever the case; "" if none is similar."""
    by_lower = {other.lower(): other for other in words}
    match = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[match[0]] if match else ""
