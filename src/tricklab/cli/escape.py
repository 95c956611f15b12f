"""A stranger's text, escaped for the place where it is shown. For HTML there is `html.escape`."""

import re

# What acts within a line of Markdown: a `_` inside of a word does not, nor brackets without a link
MARKDOWN = re.compile(r"([\\`*<>|$&]|~(?=~)|\](?=[(\[:])|(?<!\w)_|_(?!\w))")


FORMULA = ("=", "+", "-", "@", "\t", "\r")  # at the beginning of a cell, a spreadsheet computes it


def for_terminal(text: object) -> str:
    r"""Return one line without characters that a terminal acts on: "\x1b[2J" for ESC [ 2 J.

    These are control characters, line ends, and those that change the direction of writing.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in str(text)
    )


def for_markdown(text: object) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return MARKDOWN.sub(r"\\\1", for_terminal(text))


def for_csv(cell: object) -> object:
    """Return a cell that a spreadsheet takes as text, unless it is a number."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA) or is_number(cell):
        return cell
    return f"'{cell}"


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.strip() == text
