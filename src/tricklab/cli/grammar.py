"""The grammar of the comments behind the keys in `conf/`: `# SPEC; prose`, or prose alone.

    dropout: 0.0 # [0, 1)
    widths: [16, 32] # int [1, inf) or []; one convolution block each
    resize: 32 # int [1, inf) or null; null keeps the size of the images
    shape: linear # {linear, cosine, 1-sqrt}
    class_weights: null # {balanced} or list [0, inf) or null; a word, or a number for each class
    warmup: 0 # duration; 5ep, 300it or 10%
    background: white # {white, black}, neutral white; of transparent pixels

A SPEC joins alternatives by "or": a range of numbers, choices in braces, `null`, `[]`, or a type
(`str`, `bool`, or one that a range may follow: `int`, `float`, `list`, `pair`, `duration`).
A range alone has the type of the default, an int may stand for a float, and the elements of a list
are checked one by one. A key without a SPEC takes values of its default's type. Prose without a
SPEC has no semicolon.

`neutral VALUE` is for keys that are added later: at this value they leave `config_hash` unchanged.
"""

import functools
import math
import re
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from tricklab.errors import UserError

HELP = (
    "Expected a range as [0, 1) or int [1, inf), choices as {a, b}, a type or null, "
    "joined by 'or'; prose without a spec has no semicolon"
)

NUMBER = r"-?(?:inf|2\*\*\d+|\d+(?:\.\d+)?(?:e-?\d+)?)"
RANGE = rf"([\[(])({NUMBER}), ({NUMBER})([\])])"
ALTERNATIVE = re.compile(
    r"(?P<literal>null|\[\]|str|bool)"
    r"|\{(?P<choices>[^{}]+)\}"
    rf"|(?P<kind>int|float|list|pair|duration)?(?:(?:^|(?<=\w) )(?P<range>{RANGE}))?"
)
SPEC = re.compile(r"(?P<alternatives>.*?)(?:(?:^|, )neutral (?P<neutral>.+))?")


class Range(NamedTuple):
    """The numbers from `low` to `high`; an end that is `open` is not one of them."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int | float)
        above = number > self.low if self.low_open else number >= self.low
        below = number < self.high if self.high_open else number <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"more than {self.low}" if self.low_open else f"{self.low} or more"
        if self.high == math.inf:
            return low
        if not self.low_open and not self.high_open:
            return f"{self.low} to {self.high}"
        return f"{low}, {'less than' if self.high_open else 'at most'} {self.high}"


class Alternative(NamedTuple):
    """One kind of value that a key takes; `kind` "" is the type of the key's default."""

    kind: str = ""
    range: Range | None = None
    choices: tuple[str, ...] = ()
    each: bool = False  # applies to the elements of a list


class Spec(NamedTuple):
    """The values that a key takes; without alternatives those of its default's type."""

    alternatives: tuple[Alternative, ...] = ()
    neutral: tuple[Any, ...] = ()  # one value, or none

    @property
    def nullable(self) -> bool:
        return any(alternative.kind == "null" for alternative in self.alternatives)


def extract_spec(comment: str) -> str:
    """Return the SPEC in a comment; "" if it is prose alone."""
    text, semicolon, _ = comment.partition(";")
    text = text.strip()
    is_spec = semicolon or text[:1] in tuple("[({") or parse(text)
    return text if is_spec else ""


@functools.cache
def parse_spec(text: str, place: str) -> Spec:
    """Parse a SPEC. Raises UserError, which begins with its `place`: it is none."""
    spec = parse(text)
    if spec is None:
        raise UserError(f"{place}: '{text}' is not a spec. {HELP}")
    return spec


@functools.cache
def parse(text: str) -> Spec | None:
    """Parse a SPEC; None if it is none."""
    match = SPEC.fullmatch(text)
    if not text or not match:
        return None
    alternatives = []
    for part in match["alternatives"].split(" or ") if match["alternatives"] else []:
        alternative = ALTERNATIVE.fullmatch(part)
        if not alternative or not part:
            return None
        alternatives.append(to_alternative(alternative))
    return Spec(tuple(alternatives), parse_neutral(match["neutral"]))


def parse_neutral(text: str | None) -> tuple[Any, ...]:
    return () if text is None else (OmegaConf.create(f"value: {text}").value,)


def to_alternative(match: re.Match[str]) -> Alternative:
    if match["choices"]:
        choices = tuple(choice.strip() for choice in match["choices"].split(","))
        return Alternative("choice", choices=choices)
    return Alternative(match["literal"] or match["kind"] or "", to_range(match["range"]))


def to_range(text: str | None) -> Range | None:
    match = re.fullmatch(RANGE, text or "")
    if not match:
        return None
    return Range(to_number(match[2]), to_number(match[3]), match[1] == "(", match[4] == ")")


def to_number(text: str) -> float:
    if "**" in text:
        base, exponent = text.split("**")
        return int(base) ** int(exponent)
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
