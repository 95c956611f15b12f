"""Specs of config keys: types, ranges and choices, read from the comments of the YAMLs in `conf/`.

The grammar is in `tricklab.cli.grammar`. A comment may continue in the lines below its key, if they
are indented further than the key.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from tricklab.cli.config import CONF, MULTI_OPTION_GROUPS
from tricklab.cli.grammar import Spec, extract_spec, parse_spec

ARGUMENTS = {  # specs of arguments that no YAML lists, for +KEY=VALUE
    "trainer.gradient_clip_algorithm": "{norm, value}",
}
WITHOUT_SPECS = ("debug", "experiment", "hydra", "local")  # folders that only override keys

KEY = re.compile(
    r"""^(?P<indent>\s*)(?P<key>[^\s#:'"]+):(?=\s|$)"""
    r"""(?P<value>(?:"(?:\\.|[^"\\])*"|'[^']*'|(?!\s\#).)*)(?:\s+\#\s*(?P<comment>.*))?$"""
)
DEFAULTS_LIST = re.compile(r"^defaults:\s*(\[[^\]]*\]|(?:\s*- .*\n?)*)", re.MULTILINE)


class Line(NamedTuple):
    """A key's line in a YAML file: value and comment as text, the SPEC in it, and FILE:LINE."""

    value: str
    comment: str
    spec: str
    place: str


class Node(NamedTuple):
    """The keys of an option; `name` is its node in groups that take several options, else ""."""

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
        if inherited and not line.comment:
            line = line._replace(comment=inherited.comment)
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
        comment = (match["comment"] or "").strip()
        place = f"{'/'.join(path.parts[-3:])}:{number}"
        lines[dotted] = Line(match["value"].strip(), comment, extract_spec(comment), place)
    return lines


def join_comments(text: str) -> list[str]:
    """Return the lines of a YAML, with continued comments joined; numbers of lines stay."""
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
    """Whether a comment with an indentation continues the comment of the line above it."""
    match = KEY.match(line) if indent else None
    if not match or not match["value"].strip() or not match["comment"]:
        return False
    return len(match["indent"]) < indent


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
