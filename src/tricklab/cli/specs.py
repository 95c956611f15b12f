"""Types, ranges and choices of the keys in `conf/`, read from the comment behind each key.

A comment is `# SPEC; prose`, or prose without a semicolon; further lines are indented:

    dropout: 0.0 # [0, 1)
    widths: [16, 32] # int [1, inf) or []; one convolution block each
    resize: 32 # int [1, inf) or null; null keeps the size of the images
    shape: linear # {linear, cosine, 1-sqrt}
    warmup: 0 # duration; 5ep, 300it or 10%
    background: white # {white, black}, neutral white; of transparent pixels

A SPEC joins alternatives by "or": a range of numbers, choices in braces, `null`, `[]`, or a type
(`int`, `float`, `str`, `bool`, `list`, `pair` of numbers, `duration`), which a range may follow.
A range alone has the type of the default, an int may stand for a float, and the elements of a list
are checked one by one. A key without a SPEC takes values of its default's type.

`neutral VALUE` is for keys that are added later: at this value they leave `config_hash` unchanged.
"""

import functools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.config import CONF, MULTI_OPTION_GROUPS
from tricklab.errors import UserError

ARGUMENTS = {  # specs of arguments that no YAML lists, for +KEY=VALUE
    "loss.reduction": "{mean}",  # accumulation and the LR rest on a mean over images
    "trainer.gradient_clip_algorithm": "{norm, value}",
}
WITHOUT_SPECS = ("debug", "experiment", "hydra", "local")  # folders that only override keys
HELP = (
    "Expected a range as [0, 1) or int [1, inf), choices as {a, b}, a type or null, "
    "joined by 'or'; prose without a spec has no semicolon"
)

NUMBER = r"-?(?:inf|2\*\*\d+|\d+(?:\.\d+)?(?:e-?\d+)?)"
RANGE = rf"([\[(])({NUMBER}), ({NUMBER})([\])])"
ALTERNATIVE = re.compile(
    r"(?P<word>null|\[\])"
    r"|\{(?P<choices>[^{}]+)\}"
    rf"|(?P<kind>int|float|str|bool|list|pair|duration)?(?:(?:^|(?<=\w) )(?P<range>{RANGE}))?"
)
KEY = re.compile(
    r"""^(?P<indent>\s*)(?P<key>[^\s#:'"]+):(?=\s|$)"""
    r"""(?P<value>(?:"(?:\\.|[^"\\])*"|'[^']*'|(?!\s\#).)*)(?:\s+\#\s*(?P<comment>.*))?$"""
)
DEFAULTS_LIST = re.compile(r"^defaults:\s*(\[[^\]]*\]|(?:\s*- .*\n?)*)", re.MULTILINE)


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
    """A kind of value that a key takes; `kind` "" is the type of the key's default."""

    kind: str = ""
    range: Range | None = None
    choices: tuple[str, ...] = ()
    each: bool = False  # it is about each element of a list


class Spec(NamedTuple):
    """The values that a key takes; without alternatives those of its default's type."""

    alternatives: tuple[Alternative, ...] = ()
    neutral: tuple[Any, ...] = ()  # one value, or none

    @property
    def nullable(self) -> bool:
        return any(alternative.kind == "null" for alternative in self.alternatives)


class Line(NamedTuple):
    """A key's line in a YAML file: its value as text, the SPEC in its comment, and FILE:LINE."""

    value: str
    spec: str
    place: str


class Node(NamedTuple):
    """The keys of an option; `name` is that of its node in groups that take several options."""

    option: str
    name: str
    lines: dict[str, Line]

    @property
    def target(self) -> str:
        return self.lines["_target_"].value if "_target_" in self.lines else ""


def find_specs(
    keys: Iterable[str], config: Mapping[str, Any], runtime: DictConfig
) -> dict[str, Spec]:
    """Return the specs of dotted keys of a plain config, where they have one.

    `runtime` is Hydra's: the option of each group, and the folders of the config files.
    Raises UserError, with file and line: a SPEC that can't be parsed.
    """
    sources = runtime.config_sources
    folders = tuple(Path(source.path) for source in sources if source.schema == "file")
    choices = dict(runtime.choices)
    specs = {}
    for key in keys:
        choice = choices.get(key.partition(".")[0]) or ""
        specs[key] = find_spec(key, find_target(key, config), choice, folders)
    return {key: spec for key, spec in specs.items() if spec}


def find_target(key: str, config: Mapping[str, Any]) -> str:
    """Return the `_target_` of the node that a dotted key belongs to."""
    group, name, _ = split_key(key)
    node = config.get(group, {})
    if name and isinstance(node, Mapping):
        node = node.get(name, {})
    return str(node.get("_target_", "")) if isinstance(node, Mapping) else ""


def find_spec(
    key: str, target: str = "", choice: str = "", folders: tuple[Path, ...] = (CONF,)
) -> Spec | None:
    """Return the spec of a dotted key; None if it has none.

    Of the options with that key it is that of the chosen one, else of one with the same
    `_target_`, else of any: a key that was added with + may be known from another option.
    """
    group, name, rest = split_key(key)
    if key in ARGUMENTS:
        return parse_spec(ARGUMENTS[key], key)
    nodes = [node for node in read_nodes(group, folders) if rest in node.lines]
    if not nodes:
        return None

    def rank(node: Node) -> tuple[bool, ...]:
        chosen = node.option == (name or choice)
        return chosen, node.name == name, node.target == target, bool(node.lines[rest].spec)

    line = max(nodes, key=rank).lines[rest]
    return parse_spec(line.spec, line.place) if line.spec else None


def split_key(key: str) -> tuple[str, str, str]:
    """Split a dotted key into group, node and rest, as "augment", "flip" and "horizontal"."""
    group, dot, rest = key.partition(".")
    if not dot:
        return "", "", key
    if group not in MULTI_OPTION_GROUPS:
        return group, "", rest
    name, _, rest = rest.partition(".")
    return group, name, rest


@functools.cache
def read_nodes(group: str, folders: tuple[Path, ...]) -> list[Node]:
    """Read the options of a group; those of "" are the keys at the top of `train.yaml`."""
    nodes = []
    pattern = f"{group}/*.yaml" if group else "train.yaml"
    for path in [path for folder in folders for path in sorted(folder.glob(pattern))]:
        if group not in MULTI_OPTION_GROUPS:
            nodes.append(Node(path.stem, "", read_option(path)))
            continue
        by_name: dict[str, dict[str, Line]] = {}
        for key, line in read_option(path).items():
            name, _, rest = key.partition(".")
            by_name.setdefault(name, {})[rest] = line
        nodes += [Node(path.stem, name, lines) for name, lines in by_name.items()]
    return nodes


def read_option(path: Path) -> dict[str, Line]:
    """Read the keys of an option, with those of the options in its defaults list."""
    lines: dict[str, Line] = {}
    defaults = DEFAULTS_LIST.search(path.read_text("utf-8"))
    for name in re.findall(r"[\w-]+", defaults[1]) if defaults else []:
        included = path.with_name(f"{name}.yaml")
        if included.is_file() and included != path:
            lines |= read_option(included)
    for key, line in read_lines(path).items():
        inherited = lines.get(key)
        if inherited and not line.spec:
            line = line._replace(spec=inherited.spec, place=inherited.place)
        lines[key] = line
    return lines


@functools.cache
def read_lines(path: Path) -> dict[str, Line]:
    """Read the lines of a YAML file that have a key, by dotted key."""
    lines = {}
    parents: list[tuple[int, str]] = []  # indentation and key of the nodes around a line
    for number, text in enumerate(join_comments(path.read_text("utf-8")), 1):
        match = KEY.match(text)
        if not match:
            continue
        indent = len(match["indent"])
        while parents and parents[-1][0] >= indent:
            parents.pop()
        parents.append((indent, match["key"]))
        dotted = ".".join(key for _, key in parents)
        place = f"{'/'.join(path.parts[-3:])}:{number}"
        lines[dotted] = Line(match["value"].strip(), find_text(match["comment"] or ""), place)
    return lines


def join_comments(text: str) -> list[str]:
    """Return lines in which a comment has its further lines, each of which leaves a blank one."""
    lines: list[str] = []
    last = 0  # index of the last line that is more than a comment
    for line in text.splitlines():
        comment = line.lstrip()
        if not comment.startswith("# "):
            last = len(lines)
        elif lines and is_continued(lines[last], len(line) - len(comment)):
            lines[last] += comment[1:]
            line = ""
        lines.append(line)
    return lines


def is_continued(line: str, indent: int) -> bool:
    """Whether a comment with an indentation continues the comment of a value's line above it."""
    match = KEY.match(line) if indent else None
    if not match or not match["value"].strip() or not match["comment"]:
        return False
    return len(match["indent"]) < indent


def find_text(comment: str) -> str:
    """Return the SPEC in a comment; "" if it is prose alone."""
    text, semicolon, _ = comment.partition(";")
    text = text.strip()
    is_spec = semicolon or text[:1] in tuple("[({") or parse_alternatives(text)
    return text if is_spec else ""


@functools.cache
def parse_spec(text: str, place: str) -> Spec:
    """Parse a SPEC. Raises UserError, which begins with its `place`: it is none."""
    rest, separator, neutral = f", {text}".partition(", neutral ")
    rest = rest.removeprefix(", ")
    alternatives = parse_alternatives(rest)
    if alternatives is None and (rest or not separator):
        raise UserError(f"{place}: '{text}' is not a spec. {HELP}")
    value = (OmegaConf.create(f"value: {neutral}").value,) if separator else ()
    return Spec(alternatives or (), value)


def parse_alternatives(text: str) -> tuple[Alternative, ...] | None:
    """Parse a SPEC without its neutral value; None if it is none."""
    matches = [ALTERNATIVE.fullmatch(part) for part in text.split(" or ")]
    if not text or not all(match and match[0] for match in matches):
        return None
    return tuple(to_alternative(match) for match in matches if match)


def to_alternative(match: re.Match[str]) -> Alternative:
    if match["choices"]:
        choices = tuple(choice.strip() for choice in match["choices"].split(","))
        return Alternative("choice", choices=choices)
    return Alternative(match["word"] or match["kind"] or "", to_range(match["range"]))


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


@functools.cache
def neutral_values(conf: Path = CONF) -> dict[str, Any]:
    """Return the neutral values in `conf/` by dotted key: they leave `config_hash` unchanged."""
    values = {}
    for path in [conf / "train.yaml", *sorted(conf.glob("*/*.yaml"))]:
        group = "" if path.parent == conf else f"{path.parent.name}."
        if group[:-1] in WITHOUT_SPECS or "neutral" not in path.read_text("utf-8"):
            continue
        for key, line in read_lines(path).items():
            if "neutral" in line.spec:
                for value in parse_spec(line.spec, line.place).neutral:
                    values[f"{group}{key}"] = value
    return values
