"""JSON schemas of the values of a key, by the same specs and defaults as `tricklab.cli.values`."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from tricklab.cli.check import FIXED
from tricklab.cli.config import CONF
from tricklab.cli.grammar import Alternative, Range, Spec, parse_spec
from tricklab.cli.specs import Line, read_lines
from tricklab.cli.values import LARGEST, complete
from tricklab.errors import UserError

Schema = dict[str, Any]

TYPES = {
    "int": "integer",
    "float": "number",
    "str": "string",
    "bool": "boolean",
    "list": "array",
    "dict": "object",
    "null": "null",
}
INTERPOLATION = {"$ref": "#/definitions/interpolation"}
LENGTH = r"([0-9]+(\.[0-9]+)?(ep|it)|0*([0-9]{1,2}(\.[0-9]+)?|100(\.0+)?)%)"
DURATION = {"type": "string", "patternErrorMessage": "Expected a duration, as 5ep, 300it or 10%"}
DEVICE = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+$"}]}
DEVICES: list[Schema] = [  # as check_devices has it
    {"type": "integer", "minimum": 1},
    {"const": -1},
    {"type": "string", "pattern": "^(auto|[0-9]+(,[0-9]+)*)$"},
    {"type": "array", "minItems": 1, "items": DEVICE},
]


def key_schema(key: str, lines: Mapping[str, Line], options: int) -> Schema:
    """Return the schema of a dotted key.

    Args:
        key: the dotted key.
        lines: its line in each option that has it, by option.
        options: the number of options of the group.
    """
    if key in FIXED:
        return {"const": FIXED[key]}
    is_hydras = key.rpartition(".")[2] in ("_target_", "_partial_")
    schema = {"doNotSuggest": True} if is_hydras else describe(lines, options)
    schemas = []
    for line in lines.values():
        schemas += value_schemas(key, line)
    if not any(is_text(schema) for schema in schemas):
        schemas.append(INTERPOLATION)
    return schema | any_of(schemas)


def any_of(schemas: Sequence[Schema]) -> Schema:
    """Return the schema of values that one of some schemas accepts."""
    different: list[Schema] = []
    for schema in schemas:
        if schema not in different:
            different.append(schema)
    return different[0] if len(different) == 1 else {"anyOf": different}


def is_text(schema: Schema) -> bool:
    """Whether any text, or any value, is accepted."""
    return schema in ({}, {"type": "string"}, {"type": "string", "minLength": 1})


def describe(lines: Mapping[str, Line], options: int) -> Schema:
    """Return description and default of a key; if options differ, the lines of their files."""
    texts: dict[str, list[str]] = {}
    for option, line in lines.items():
        texts.setdefault(format_line(line), []).append(option)
    first = next(iter(lines.values()))
    if len(texts) == 1 and len(lines) == options:
        description = first.comment
    else:
        description = "\n\n".join(f"{', '.join(names)}: {text}" for text, names in texts.items())
    schema: Schema = {"description": description} if description else {}
    if len({line.value for line in lines.values()}) == 1 and "${" not in first.value:
        schema["default"] = read_default(first)
    return schema


def format_line(line: Line) -> str:
    return f"{line.value} # {line.comment}" if line.comment else line.value


def read_default(line: Line) -> Any:
    """Return the value in a line. Raises UserError: it continues in the next one."""
    if match := re.fullmatch(r"\$\{(\w+)\}", line.value):
        line = read_lines(CONF / "train.yaml")[match[1]]
    try:
        value = OmegaConf.create(f"value: {line.value}")
    except YAMLError as error:
        raise UserError(f"{line.place}: {line.value}: expected a value on one line") from error
    return OmegaConf.to_container(value)["value"]  # type: ignore[call-overload, index]


def value_schemas(key: str, line: Line) -> list[Schema]:
    """Return a schema of each kind of value that a key takes."""
    if key == "trainer.devices":
        return DEVICES
    default = read_default(line)
    spec = parse_spec(line.spec, line.place) if line.spec else Spec()
    schemas = [alternative_schema(alternative) for alternative in complete(spec, default)]
    if default != "" and not key.startswith("logger."):
        schemas = [s | {"minLength": 1} if is_text(s) else s for s in schemas]
    return schemas or [{}]


def alternative_schema(alternative: Alternative) -> Schema:
    """Return the schema of one kind of value."""
    limits = alternative.range
    if alternative.each:
        one = alternative_schema(alternative._replace(each=False))
        return {"type": "array", "minItems": 1, "items": one}
    match alternative.kind:
        case "[]":
            return {"type": "array", "maxItems": 0}
        case "choice":
            return {"enum": list_choices(alternative)}
        case "duration":
            return any_of(duration_schema(limits))
        case "pair":
            return array_schema(limits) | {"minItems": 2, "maxItems": 2}
        case "list" if limits:
            return array_schema(limits)
        case kind:
            return number_schema(kind, limits)


def array_schema(limits: Range | None) -> Schema:
    return {"type": "array", "items": number_schema("float", limits)}


def list_choices(alternative: Alternative) -> list[str | int]:
    """Return the choices as text, and as numbers where a YAML file has numbers."""
    choices: list[str | int] = []
    for choice in alternative.choices:
        choices.append(choice)
        if choice.isdecimal():
            choices.append(int(choice))
    return choices


def number_schema(kind: str, limits: Range | None) -> Schema:
    """Return the schema of a type, of numbers within limits."""
    schema: Schema = {"type": TYPES[kind]}
    if limits:
        schema["exclusiveMinimum" if limits.low_open else "minimum"] = limits.low
    if limits and limits.high < math.inf:
        schema["exclusiveMaximum" if limits.high_open else "maximum"] = limits.high
    elif kind == "int":
        schema["maximum"] = LARGEST
    return schema


def duration_schema(limits: Range | None) -> list[Schema]:
    """Return the schemas of a duration; of the limits they have whether 0 is within."""
    if limits is None or 0 in limits:
        return [DURATION | {"pattern": f"^(0|{LENGTH})$"}, {"const": 0}]
    return [DURATION | {"pattern": f"^(?!0+(\\.0+)?[a-z%]){LENGTH}$"}]
