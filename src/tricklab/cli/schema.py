"""The JSON schema of YAML files that override options, `conf/schema.json`: editors read it.

It describes experiments, `conf/debug` and `conf/local/default.yaml`. A group has the keys of all
its options, as an editor does not know which one is selected; `tricklab.cli.check` checks the
composed config. An option's own file has no schema: its keys are those of its function, and its
values and comments are what this schema is made of. In JSON 2.0 is an int, too.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tricklab.cli.config import (
    CONF,
    META_GROUPS,
    MULTI_OPTION_GROUPS,
    description,
    list_groups,
    list_options,
)
from tricklab.cli.json_values import Schema, any_of, key_schema
from tricklab.cli.specs import Line, Node, read_lines, read_nodes
from tricklab.files import read_text, write_text

SCHEMA = CONF / "schema.json"

Fields = dict[str, dict[str, Line]]  # the lines of a dotted key, by option

OVERRIDES = {
    "type": "array",
    "items": {"type": "string", "pattern": "^(~|[^=]+=)"},
    "description": "Overrides, as typed on the command line: [scheduler=cosine, model.depth=3]",
}
NAMED_OVERRIDES = {"type": "object", "additionalProperties": OVERRIDES}
NUMBER = {"type": "number"}
PAIR = {"type": "array", "minItems": 2, "maxItems": 2, "items": NUMBER}
EXPECTATION = {
    "type": "object",
    "required": ["of", "metric"],
    "additionalProperties": False,
    "properties": {
        "of": {"type": "string", "description": "An arm, or a sum of arms: a + b"},
        "than": {"type": "string", "description": "The arm, or sum of arms, that is subtracted"},
        "metric": {"type": "string", "description": "test/acc; val/acc@last is of the last epoch"},
        "above": NUMBER | {"description": "Lower bound of the mean over the seeds"},
        "below": NUMBER | {"description": "Upper bound of the mean over the seeds"},
        "within": NUMBER | {"description": "Bound on both sides of 0"},
    },
}
BY_METRIC = {"type": "object", "additionalProperties": NUMBER | {"minimum": 0}}
CLAIM = {
    "type": "object",
    "description": "What scripts/claims.py and scripts/ablate.py run",
    "additionalProperties": False,
    "properties": {
        "teacher": OVERRIDES,
        "arms": NAMED_OVERRIDES | {"description": "The configurations of a claim, by name"},
        "tricks": NAMED_OVERRIDES | {"description": "The tricks of an ablation, in order"},
        "paper": {
            "type": "object",
            "additionalProperties": {"anyOf": [NUMBER, PAIR]},
            "description": "Accuracy of a paper with each trick and those before, in %, "
            "or this and that before the trick",
        },
        "delta": BY_METRIC | {"description": "The smallest difference that matters, by metric"},
        "spread": BY_METRIC | {"description": "Std over the seeds in earlier runs, by metric"},
        "seeds": {"type": "integer", "minimum": 1, "description": "Of each arm, from 1000 on"},
        "minutes": NUMBER | {"minimum": 0, "description": "Of all runs together, planned"},
        "expect": {"type": "array", "items": EXPECTATION},
    },
}
EXPERIMENT = {
    "type": "string",
    "pattern": "^(/experiment/)?[^/ ][^ ]*$",
    "description": "Another experiment, as fashion_91 or /experiment/fashion_91",
}


def update_schema() -> bool:
    """Rewrite `conf/schema.json`; return whether it has changed."""
    after = format_schema(make_schema())
    if SCHEMA.is_file() and read_text(SCHEMA) == after:
        return False
    write_text(SCHEMA, after)
    return True


def format_schema(schema: Schema) -> str:
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def make_schema() -> Schema:
    """Return the schema of a file that overrides options."""
    groups = [group for group in list_groups(CONF) if group not in META_GROUPS]
    properties = {"defaults": defaults_schema(groups)}
    properties |= top_properties(("defaults", "hydra", "claim", *groups))
    for group in groups:
        properties[group] = group_schema(group)
    properties |= {"claim": CLAIM, "hydra": {"type": "object", "description": "Hydra's own"}}
    definitions = {"interpolation": {"type": "string", "pattern": r"\$\{.+\}"}}
    definitions |= {group: options_schema(CONF / group) for group in groups}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "Written by scripts/schema.py",
        **closed_object(properties),
        "definitions": definitions,
    }


def closed_object(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties)}


def top_properties(others: Sequence[str]) -> dict[str, Schema]:
    """Return the schemas of the keys at the top of `train.yaml`, without some `others`."""
    properties = {}
    for key, line in read_lines(CONF / "train.yaml").items():
        if key.split(".")[0] not in others:
            properties[key] = key_schema(key, {"": line}, 1)
    return properties


def defaults_schema(groups: Sequence[str]) -> Schema:
    """Return the schema of a defaults list."""
    added = ["_self_"]
    for group in MULTI_OPTION_GROUPS:
        added += [f"/{group}/{option}" for option in list_options(CONF / group)]
    return {
        "type": "array",
        "description": "Options of groups, as `- override /scheduler: cosine`",
        "items": {
            "if": {"type": "string"},
            "then": any_of([{"enum": added}, EXPERIMENT]),
            "else": override_schema(groups),
        },
    }


def override_schema(groups: Sequence[str]) -> Schema:
    """Return the schema of `override /GROUP: OPTION`."""
    properties: dict[str, Schema] = {}
    for group in groups:
        option = {"$ref": f"#/definitions/{group}"}
        if group in MULTI_OPTION_GROUPS:
            option = any_of([option, {"type": "array", "items": option}])
        properties[f"override /{group}"] = option
    properties["override /hydra/launcher"] = options_schema(CONF / "hydra" / "launcher")
    return closed_object(properties) | {"minProperties": 1, "maxProperties": 1}


def options_schema(group: Path) -> Schema:
    """Return the schema of the name of an option of a group."""
    names = list_options(group)
    texts = [description(group / f"{name}.yaml") for name in names]
    return {"type": "string", "enum": names, "markdownEnumDescriptions": texts}


def group_schema(group: str) -> Schema:
    """Return the schema of the node of a group: the keys of any of its options."""
    nodes = [node for node in read_nodes(group, (CONF,)) if node.name != "defaults"]
    if group in MULTI_OPTION_GROUPS:
        schema = closed_object(named_schemas(group, nodes))
    else:
        schema = option_schema(group, [node for node in nodes if node.option[0] != "_"])
    texts = []
    for option in list_options(CONF / group):
        texts.append(f"{option}: {description(CONF / group / f'{option}.yaml')}")
    return schema | {"description": "\n\n".join(texts)}


def named_schemas(group: str, nodes: Sequence[Node]) -> dict[str, Schema]:
    """Return the schemas of the nodes of a group that takes several options, by name."""
    schemas = {}
    for name in dict.fromkeys(node.name for node in nodes):
        named = [node for node in nodes if node.name == name]
        schemas[name] = option_schema(f"{group}.{name}", named)
        if name in list_options(CONF / group):
            schemas[name]["description"] = description(CONF / group / f"{name}.yaml")
    return schemas


def option_schema(place: str, nodes: Sequence[Node]) -> Schema:
    """Return the schema of the keys that any of some options has."""
    fields: Fields = {}
    for node in nodes:
        for key, line in node.lines.items():
            if key not in ("", "defaults"):
                fields.setdefault(key, {})[node.option] = line
    return fields_schema(place, fields, len(nodes))


def fields_schema(place: str, fields: Fields, options: int) -> Schema:
    """Return the schema of dotted keys below a node of the config, nested where they are."""
    properties = {}
    for key, lines in fields.items():
        inner = {}
        for other in fields:
            if other.startswith(f"{key}."):
                inner[other.removeprefix(f"{key}.")] = fields[other]
        if inner:
            properties[key] = fields_schema(f"{place}.{key}", inner, options)
        elif "." not in key:
            properties[key] = key_schema(f"{place}.{key}", lines, options)
    return closed_object(properties)
