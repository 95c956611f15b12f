"""Reading files that may be hostile or damaged, and writing them whole."""

import pytest
import yaml
from omegaconf._utils import get_yaml_loader

from helpers.paths import CONF
from tricklab.errors import UserError
from tricklab.files import (
    UnreadableError,
    atomic_open,
    parse_yaml,
    read_checkpoint,
    read_json,
    read_table,
    read_yaml,
    use_libyaml,
    write_text,
)
from tricklab.run.folder import refuse_links


def make_alias_bomb():
    """Return a YAML text of 300 characters that expands to 9 ** 7 nodes."""
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    for previous, name in zip("abcdef", "bcdefg"):
        aliases = ",".join([f"*{previous}"] * 9)
        lines.append(f"{name}: &{name} [{aliases}]")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (make_alias_bomb(), "aliases and tags are not allowed"),
        ("a: !!python/object/apply:os.mkdir [x]", "aliases and tags are not allowed"),
        ("a: !!python/name:os.mkdir", "aliases and tags are not allowed"),
        (
            "a: !<tag:yaml.org,2002:python/object/apply:pathlib.Path> [x]",
            "aliases and tags are not allowed",
        ),
        ("- a\n- b", "not a mapping"),
        ("1: a", "not a mapping of names"),
        ("a: [" + "[" * 5000, "nested levels|nesting depth"),
        ("a: " + "{a: " * 500 + "}" * 500, "more than 100 nested levels"),
        ("a: 1\na: 2", "duplicate key"),
        ("a: " + "9" * 5000, "damaged"),
        ("a: x" * 2**19, "larger than"),
        ("a: \x00", "special characters|control characters"),
    ],
)
def test_parse_yaml_refuses_hostile_text(text, reason):
    with pytest.raises(UnreadableError, match=reason) as error:
        parse_yaml(text, "x.yaml")
    assert len(str(error.value).splitlines()) == 1


def test_parse_yaml_resolves_nothing():
    text = "a: ${oc.env:HOME}\nb: 1e-3\nc: 2020-01-01"
    assert parse_yaml(text, "x") == {"a": "${oc.env:HOME}", "b": 0.001, "c": "2020-01-01"}


def test_libyaml_reads_the_same_values(monkeypatch):
    texts = [path.read_text("utf-8") for path in CONF.rglob("*.yaml")]
    use_libyaml()
    fast = [yaml.load(text, Loader=get_yaml_loader()) for text in texts]
    assert yaml.SafeLoader is yaml.CSafeLoader
    monkeypatch.setattr(yaml, "SafeLoader", yaml.loader.SafeLoader)
    assert fast == [yaml.load(text, Loader=get_yaml_loader()) for text in texts]


@pytest.mark.parametrize("read", [read_yaml, read_json, read_table, read_checkpoint])
@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"{", b"[1]", b"\x80\x02."])
def test_reader_names_a_file_of_another_format(tmp_path, read, content):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    if read is read_table and content in (b"{", b"[1]"):
        assert read(path) == []  # one line is the header of an empty table
        return
    with pytest.raises(UnreadableError, match=str(path)):
        read(path)


def test_read_table_takes_rows_of_any_length(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1\n1,2,3\n")
    assert read_table(tmp_path / "t.csv") == [{"a": "1", "b": ""}, {"a": "1", "b": "2"}]


def test_atomic_write_keeps_the_old_file_on_an_error(tmp_path):
    path = tmp_path / "file"
    write_text(path, "before")

    def write_half():
        with atomic_open(path) as file:
            file.write(b"half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_replaces_a_link_and_not_its_target(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("keep")
    link.symlink_to(target)
    write_text(link, "new")
    assert target.read_text() == "keep"
    assert link.read_text() == "new"
    assert not link.is_symlink()
    assert link.stat().st_mode == target.stat().st_mode


@pytest.mark.parametrize(
    ("name", "is_refused"),
    [
        ("metrics.csv", True),
        (".lock", True),
        ("checkpoints", True),
        ("checkpoints/last.ckpt", True),
        (".hydra/config.yaml", True),
        ("wandb", True),
        ("wandb/run/logs/core.log", False),  # W&B links its own logs
        ("data", False),  # of a run in the working directory: nothing is written there
        (".venv/bin/python", False),
    ],
)
def test_links_out_of_a_run_folder_are_refused_where_it_writes(tmp_path, name, is_refused):
    outside, link = tmp_path / "outside", tmp_path / "run" / name
    if name in ("checkpoints", "wandb", "data"):
        outside.mkdir()
    else:
        outside.touch()
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    (tmp_path / "run" / "inside").symlink_to(tmp_path / "run")
    if is_refused:
        with pytest.raises(UserError, match=f"{name} is a link that leads out"):
            refuse_links(tmp_path / "run")
    else:
        refuse_links(tmp_path / "run")
