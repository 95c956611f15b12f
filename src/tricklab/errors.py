"""The one exception for what a user can mend."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the options or the data: shown as one line, without a traceback."""


def nearest(word: str, words: Iterable[str]) -> str:
    """Return " Did you mean 'cosine'?" for the most similar of `words`, or nothing if none is similar."""
    match = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f" Did you mean '{match[0]}'?" if match else ""
