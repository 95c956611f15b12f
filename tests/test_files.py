"""Files that a stranger may have written, and those that a disk has damaged."""

import random
import shutil
from contextlib import suppress

import pytest
import torch
from omegaconf import OmegaConf

from tricklab.analysis.trained import load_checkpoint
from tricklab.errors import UserError
from tricklab.files import (
    UnreadableError,
    atomic_open,
    parse_yaml,
    read_checkpoint,
    read_json,
    read_safetensors,
    read_table,
    read_yaml,
    write_text,
)
from tricklab.run.folder import refuse_links

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "aliases and tags are not allowed"),
        ("a: !!python/object/apply:os.mkdir [x]", "aliases and tags are not allowed"),
        ("a: !!python/name:os.mkdir", "aliases and tags are not allowed"),
        (
            "a: !<tag:yaml.org,2002:python/object/apply:pathlib.Path> [x]",
            "aliases and tags are not allowed",
        ),
        ("- a\n- b", "not a mapping"),
        ("1: a", "not a mapping of names"),
        ("a: [" + "[" * 5000, "RecursionError|expected|recursion"),
        ("a: 1\na: 2", "duplicate key"),
        ("a: " + "9" * 5000, "damaged"),
        ("a: x" * 2**19, "larger than"),
        ("a: \x00", "special characters"),
    ],
)
def test_yaml_of_a_stranger_is_bounded_and_plain(text, reason):
    with pytest.raises(UnreadableError, match=reason) as caught:
        parse_yaml(text, "x.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_yaml_keeps_an_interpolation_as_text():
    assert parse_yaml("a: ${oc.env:HOME}\nb: 1e-3\nc: 2020-01-01", "x") == {
        "a": "${oc.env:HOME}",
        "b": 0.001,
        "c": "2020-01-01",
    }


@pytest.mark.parametrize("read", [read_yaml, read_json, read_table, read_checkpoint])
@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"{", b"[1]", b"\x80\x02."])
def test_a_file_that_is_something_else_is_named(tmp_path, read, content):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    if read is read_table and content in (b"{", b"[1]"):
        assert read(path) == []  # one line is the head of an empty table
        return
    with pytest.raises(UnreadableError, match=str(path)):
        read(path)


def test_a_table_with_rows_of_any_length_is_read(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1\n1,2,3\n")
    assert read_table(tmp_path / "t.csv") == [{"a": "1", "b": ""}, {"a": "1", "b": "2"}]


def flip(path, content, place, rng):
    """Change one byte of a file."""
    changed = bytearray(content)
    changed[place] ^= rng.randrange(1, 256)
    path.write_bytes(changed)


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt", "best.safetensors"])
def test_a_flipped_byte_is_noticed_or_changes_nothing(cached_run, run_script, tmp_path, name):
    """Half of the places are within the tensors, where torch and safetensors notice nothing."""
    run = cached_run("model=mlp", "model.widths=[4]", "stop_after=2it").folder
    assert run_script("export.py", str(run)).returncode == 0
    path, rng = run / "checkpoints" / name, random.Random(0)
    content, read = path.read_bytes(), (read_checkpoint, read_safetensors)["saf" in name]
    honest, noticed = read(path), 0
    weights = load_checkpoint(path).state
    weight = next(tensor for tensor in weights.values() if tensor.ndim == 2).numpy().tobytes()
    tensors = range(begin := content.index(weight), begin + len(weight))
    places = [*rng.sample(tensors, 100), *rng.sample(range(len(content)), 100)]
    for n, place in enumerate(places):
        flip(path, content, place, rng)
        try:
            same = same_content(read(path), honest)
        except UnreadableError:
            noticed += 1
        else:
            assert same, f"byte {place}"
            assert n >= 100
    assert noticed >= 150


def same_content(one, other):
    """Compare nested dicts, lists and tensors."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_content(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_content, one, other))
    return one == other


@pytest.mark.parametrize("changed", ["mean", "std", "classes", "input"])
def test_a_config_that_was_edited_is_refused(cached_run, run_script, changed):
    run = cached_run("model=mlp", "model.widths=[4]", "stop_after=2it").folder
    config = read_yaml(run / "config.yaml")
    config["dataset"][changed] = [*config["dataset"][changed][::-1], "x"]
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config))
    said = run_script("evaluate.py", str(run))
    assert said.returncode == 1
    assert "config.yaml: dataset differs from best.ckpt" in said.stderr


def test_a_file_is_written_whole_and_not_through_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("keep")
    link.symlink_to(target)
    write_text(link, "new")
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("keep", "new", False)
    with suppress(RuntimeError), atomic_open(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]
    assert link.stat().st_mode & 0o777 == shutil.os.stat(target).st_mode & 0o777


@pytest.mark.parametrize(
    "change",
    [
        lambda c: [c],
        lambda c: {k: v for k, v in c.items() if k != "optimizer_states"},
        lambda c: c | {"optimizer_states": []},
        lambda c: c | {"state_dict": None},
        lambda c: c | {"state_dict": c["state_dict"] | {"net.1.weight": torch.zeros(2, 2)}},
        lambda c: c | {"state_dict": dict(list(c["state_dict"].items())[1:])},
        lambda c: c | {"callbacks": {"best": {}, "last": 3}},
        lambda c: c | {"callbacks": {"best": {"best_model_path": 3}}},
        lambda c: c | {"loops": {}},
        lambda c: c | {"global_step": "three"},
        lambda c: c | {"lr_schedulers": None},
        lambda c: c | {"dataset": {}},
        lambda c: c | {"temperature": "hot"},
        lambda c: c["optimizer_states"][0]["state"][0].update(momentum_buffer=torch.zeros(7)) or c,
    ],
)
def test_a_checkpoint_of_another_shape_is_named(cached_run, run, tmp_path, change):
    done = cached_run("model=mlp", "model.widths=[4]", "stop_after=2it")
    last = done.folder / "checkpoints" / "last.ckpt"
    metrics = (done.folder / "metrics.csv").read_bytes()
    torch.save(change(torch.load(last, weights_only=True)), last)
    with pytest.raises(UserError, match=r"last\.ckpt|config\.yaml: dataset|checkpoint") as caught:
        run("model=mlp", "model.widths=[4]", f"resume={done.folder}")
    assert len(str(caught.value).splitlines()) == 1
    assert (done.folder / "metrics.csv").read_bytes() == metrics


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("metrics.csv", True),
        (".lock", True),
        ("checkpoints", True),
        ("checkpoints/last.ckpt", True),
        (".hydra/config.yaml", True),
        ("wandb", True),
        ("wandb/run/logs/core.log", False),  # its own
        ("data", False),  # of a run in the working directory: nothing is written there
        (".venv/bin/python", False),
    ],
)
def test_links_out_of_a_run_folder_are_refused_where_it_writes(tmp_path, name, refused):
    outside, link = tmp_path / "outside", tmp_path / "run" / name
    outside.mkdir() if name in ("checkpoints", "wandb", "data") else outside.touch()
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    (tmp_path / "run" / "inside").symlink_to(tmp_path / "run")
    if refused:
        with pytest.raises(UserError, match=f"{name} is a link that leads out"):
            refuse_links(tmp_path / "run")
    else:
        refuse_links(tmp_path / "run")
