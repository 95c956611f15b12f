"""Escapes untrusted text for the place where it is shown. For HTML there is `html.escape`."""

import re

# Characters that format a line of Markdown. A `_` inside a name does not, nor do brackets
# without a link.
MARKDOWN = re.compile(r"([\\`*<>|$&]|~(?=~)|\](?=[(\[:])|(?<!\w)_|_(?!\w))")

# A cell that starts with one of these is computed by spreadsheets
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")


# Characters that LaTeX interprets. `[` and `*` are options of the `\\` before a row.
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "`": r"\textasciigrave{}",
        '"': r"\char34{}",
        "[": "{[}",
        "]": "{]}",
        "*": "{*}",
    }
    | {char: f"\\{char}" for char in "&%$#_{}"}
)
LIGATURE = re.compile(r"([-',])(?=\1)")  # two of these become a dash or a quotation mark


def for_terminal(text: object) -> str:
    r"""Return one line without characters that a terminal interprets: "\x1b[2J" for ESC [ 2 J.

    Escaped are control characters, line ends, and changes of the writing direction.
    """
    return "".join(map(_escape_unprintable, str(text)))


def _escape_unprintable(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode("ascii")


def for_markdown(text: object) -> str:
    """Return one line that Markdown shows literally."""
    return MARKDOWN.sub(r"\\\1", for_terminal(text))


def for_latex(text: object) -> str:
    """Return one line that LaTeX shows literally in text."""
    return LIGATURE.sub(r"\1{}", for_terminal(text).translate(LATEX))


def for_csv(cell: object) -> object:
    """Return a cell that a spreadsheet reads as text, unless it is a number."""
    if not isinstance(cell, str) or not cell.startswith(FORMULA_PREFIXES) or is_number(cell):
        return cell
    return f"'{cell}"


def is_number(text: str) -> bool:
    """Whether a text is a number without blanks around it."""
    try:
        float(text)
    except ValueError:
        return False
    return text.strip() == text
