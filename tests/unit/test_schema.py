"""The JSON schema of YAML files: fresh, and of the same mind as the checks of the command line."""

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft7Validator
from omegaconf import DictConfig, OmegaConf

from helpers.configs import configure
from helpers.paths import CONF, ROOT
from tricklab.analysis.claims import Expectation
from tricklab.cli import schema
from tricklab.cli.check import FIXED
from tricklab.cli.config import META_GROUPS, description, list_groups, list_options
from tricklab.cli.grammar import Spec
from tricklab.cli.json_values import read_default
from tricklab.cli.schema import EXPECTATION, SCHEMA, format_schema, make_schema
from tricklab.cli.specs import Line, find_spec
from tricklab.cli.values import check_value
from tricklab.errors import UserError
from tricklab.files import read_text, read_yaml

FILES = sorted([*CONF.glob("experiment/**/*.yaml"), *CONF.glob("debug/*.yaml")])
GROUPS = [group for group in list_groups(CONF) if group not in META_GROUPS]
SETTINGS = json.loads((ROOT / ".vscode" / "settings.json").read_text("utf-8"))

KEYS_OF_TRAIN = ("seed", "name", "tags", "resume", "slots", "job_timeout", "dry_run", "stop_after")

RIGHT = [
    "defaults: [fashion_91, /experiment/claims/adam, /callbacks/ema, _self_]",
    "defaults: [{override /scheduler: cosine}, {override /augment: [flip, crop]}]",
    'defaults: [{override /mixup: "off"}, {override /hydra/launcher: slurm}]',
    "optimizer: {lr: 1e-4, betas: [0.9, 0.99], momentum: 0}",
    "optimizer: {lr: '${oc.env:LR}'}",
    "scheduler: {warmup: 5ep, update_every: 0, milestones: [50%, 7.5ep]}",
    "trainer: {precision: 16, devices: [0, 1], limit_val_batches: 3}",
    "augment: {flip: {horizontal: 0.3}}",
    "data: {root: /data, classes: [0, cat]}",
    "logger: {wandb: {entity: lab, notes: ''}}",
    "hydra: {launcher: {partition: gpu}}",
    "sweep: {arms: {a: [mixup=on], b: []}}",
    "claim: {arms: {a: []}, expect: [{of: a, metric: test/acc, above: 0.9}]}",
]
WRONG = [  # a file, and the place of its mistake
    ("sed: 1", ""),
    ("seed: -1", "seed"),
    ("seed: 1.5", "seed"),
    ("stop_after: 0ep", "stop_after"),
    ("data:", "data"),
    ("optimizer: {rl: 0.1}", "optimizer"),
    ("optimizer: {lr: -0.1}", "optimizer.lr"),
    ("optimizer: {lr: high}", "optimizer.lr"),
    ("optimizer: {betas: [0.9]}", "optimizer.betas"),
    ("optimizer: {momentum: 1.0}", "optimizer.momentum"),
    ("scheduler: {warmup: 5}", "scheduler.warmup"),
    ("scheduler: {warmup: 5 ep}", "scheduler.warmup"),
    ("scheduler: {warmup: 101%}", "scheduler.warmup"),
    ("scheduler: {warmup_shape: lin}", "scheduler.warmup_shape"),
    ("trainer: {devices: 0}", "trainer.devices"),
    ("trainer: {precision: 17}", "trainer.precision"),
    ("trainer: {_target_: mine.Trainer}", "trainer._target_"),
    ("model: {widths: [16, 0]}", "model.widths"),
    ("model: {widths: 16}", "model.widths"),
    ("data: {batch_size: 2147483648}", "data.batch_size"),
    ("augment: {flip: 0.5}", "augment.flip"),
    ("augment: {horizontal: 0.5}", "augment"),
    ("defaults: [{override /scheduler: cosin}]", "defaults.0.override /scheduler"),
    ("defaults: [{override /schedule: cosine}]", "defaults.0"),
    ("defaults: [{override /mixup: off}]", "defaults.0.override /mixup"),
    ("defaults: [{override /scheduler: [cosine]}]", "defaults.0.override /scheduler"),
    ("defaults: [{override /augment: [flip, corp]}]", "defaults.0.override /augment"),
    ("defaults: [{scheduler: cosine}]", "defaults.0"),
    ("defaults: [/callbacks/emma]", "defaults.0"),
    ("defaults: {override /scheduler: cosine}", "defaults"),
    ("claim: {arm: {}}", "claim"),
    ("claim: {paper: {a: [76.2]}}", "claim.paper.a"),
    ("claim: {arms: {a: [cosine]}}", "claim.arms.a.0"),
    ("claim: {expect: [{of: a, above: 0}]}", "claim.expect.0"),
]
# Without 1.0 and 2**31, which JSON does not tell from 1 and 2.0**31
VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 31, -1, -2, 0.5, 0.05, 1.5, -0.5, 1e-9, 181, 2**31 - 1),
    *("", "a", "auto", "balanced", "none", "cosine", "L", "1-sqrt", "16", 16, "gpu", "0,1", "0"),
    *("5ep", "0ep", "0.5it", "5.it", "100%", "100.0%", "100.5%", "007%", "101%", "5", "5 ep"),
    *([], [1], [-1], [0.5], [0.1, 0.9], [0.9, 1.5], [0, 1, 2], [16, 0], ["a"], [1, "a"], [True]),
    *(["5ep"], ["5ep", "0%"], ["5ep", 1], [0], ["0"], [None], ["balanced"]),
]


@functools.cache
def read_schema() -> dict[str, Any]:
    return json.loads(SCHEMA.read_text("utf-8"))


def find_error(content: Any) -> str | None:
    """Return the place of the first mistake in a file, None if there is none."""
    for error in Draft7Validator(read_schema()).iter_errors(content):
        return ".".join(map(str, error.absolute_path))
    return None


def test_schema_is_fresh():
    message = "conf/schema.json is out of date; update it with: python scripts/schema.py"
    assert read_text(SCHEMA) == format_schema(make_schema()), message


def test_schema_is_rewritten_only_if_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "SCHEMA", tmp_path / "schema.json")
    assert schema.update_schema()
    assert not schema.update_schema()
    assert read_text(tmp_path / "schema.json") == read_text(SCHEMA)


def test_schema_is_valid_and_names_nothing_of_this_machine():
    Draft7Validator.check_schema(read_schema())
    text = read_text(SCHEMA)
    assert text.endswith("}\n")
    assert str(ROOT) not in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_schema_accepts_every_committed_file(path):
    assert find_error(read_yaml(path)) is None


@pytest.mark.parametrize("text", RIGHT)
def test_schema_accepts(text):
    assert find_error(parse(text)) is None


@pytest.mark.parametrize(("text", "place"), WRONG)
def test_schema_refuses(text, place):
    assert find_error(parse(text)) == place


def parse(text: str) -> Any:
    return OmegaConf.to_container(OmegaConf.create(text))


def walk(node: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the dotted keys of a schema, with the schema of each."""
    for name, value in node["properties"].items():
        if "properties" in value:
            yield from walk(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


@functools.cache
def compose_option(group: str, option: str) -> DictConfig:
    return configure(f"{group}={option}") if option else configure()


def find_defaults(key: str) -> list[tuple[Any, Spec | None]]:
    """Return default and spec of a dotted key in each option that has it."""
    group = key.partition(".")[0]
    found = []
    for option in list_options(CONF / group) if group in GROUPS else [""]:
        default = OmegaConf.select(compose_option(group, option), key, default="missing")
        if OmegaConf.is_config(default):
            default = OmegaConf.to_container(default)
        if default != "missing":
            found.append((default, find_spec(key, choice=option)))
    return found


def is_checked(key: str, value: Any, defaults: list[tuple[Any, Spec | None]]) -> bool:
    """Whether the command line takes a value, with any of the options that have the key."""
    for default, spec in defaults:
        try:
            check_value(key, value, default, spec)
            return True
        except UserError:
            pass
    return False


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_schema_and_check_accept_the_same_values(group):
    whole = read_schema()
    node = whole["properties"][group] if group else whole
    if not group:
        node = {"properties": {key: node["properties"][key] for key in KEYS_OF_TRAIN}}
    different = []
    for key, of_key in walk(node, f"{group}." if group else ""):
        if key in FIXED or key == "sweep.arms":
            continue
        validator = Draft7Validator(of_key | {"definitions": whole["definitions"]})
        defaults = find_defaults(key)
        for value in VALUES:
            is_valid = validator.is_valid(value)
            if is_valid != is_checked(key, value, defaults):
                different.append((key, value, is_valid))
    assert different == []


def test_schema_has_the_keys_of_every_option():
    known = {key for key, _ in walk(read_schema())}
    for group in GROUPS:
        for option in list_options(CONF / group):
            content = OmegaConf.to_container(compose_option(group, option)[group])
            assert find_error({group: content}) is None, f"{group}={option}"
    assert {"scheduler.period", "augment.erase.scale", "callbacks.last.every_n_steps"} <= known


def test_description_has_the_comment_of_each_option():
    optimizer = dict(walk(read_schema()["properties"]["optimizer"]))
    expected = "adamw: 1.0e-3 # [0, inf); base LR\n\nsgd: 0.1 # [0, inf); base LR"
    assert optimizer["lr"]["description"] == expected
    assert "default" not in optimizer["lr"]
    assert optimizer["layer_decay"]["default"] == 1.0


def test_expectation_has_the_keys_that_claims_read():
    assert tuple(EXPECTATION["properties"]) == ("of", "than", "metric", "above", "below", "within")
    assert EXPECTATION["properties"].keys() == set(Expectation._fields)


def test_default_on_several_lines_names_file_and_line():
    with pytest.raises(UserError, match=r"conf/data/mine\.yaml:2: \[1,: expected a value on one"):
        read_default(Line("[1,", "", "", "conf/data/mine.yaml:2"))


def test_editor_settings_map_the_schema_to_the_files_it_is_for():
    ((path, patterns),) = SETTINGS["yaml.schemas"].items()
    assert (ROOT / path) == SCHEMA
    mapped = {file for pattern in patterns for file in ROOT.glob(pattern)}
    assert set(FILES) == {file for file in mapped if file.parent.name != "local"}
    assert "conf/local/*.yaml" in patterns
    assert SETTINGS["yaml.yamlVersion"] == "1.1"  # in which off is a bool, as for Hydra


def test_line_for_editors_is_no_description(tmp_path):
    readme = (CONF / "README.md").read_text("utf-8")
    line = re.search(r"`(# yaml-language-server: \$schema=\S+)`", readme)[1]
    path = tmp_path / "mine.yaml"
    path.write_text(f"# @package _global_\n{line}\n# Mine\n")
    assert description(path) == "Mine"
    assert (CONF / "experiment" / line.partition("=")[2]).resolve() == SCHEMA
