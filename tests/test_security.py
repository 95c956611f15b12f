"""What comes from strangers is data: nothing named in it runs."""

import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from conftest import ONE_BATCH, configure
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from tricklab.analysis.untrusted import validate_config
from tricklab.errors import UserError
from tricklab.files import read_safetensors
from tricklab.run.instantiate import find_target

CPU = "trainer.accelerator=cpu"
MARK = "this-has-run"


class Payload:
    def __reduce__(self):
        return os.mkdir, (MARK,)


RUN = (*ONE_BATCH, "model=mlp")


@pytest.mark.parametrize(
    "command",
    [
        ("../train.py", CPU, "model=mlp", "model.weights=bad/checkpoints/last.ckpt"),
        ("../train.py", CPU, *RUN, "resume=run"),
        ("evaluate.py", "ckpt=run/checkpoints/last.ckpt"),
        ("predict.py", "ckpt=run/checkpoints/last.ckpt", "input=run"),
        ("export.py", "ckpt=run/checkpoints/last.ckpt", "output=out.safetensors"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_checkpoint_with_a_payload(trained, script, tmp_path, command):
    last = trained(*RUN).folder / "checkpoints" / "last.ckpt"
    for place in (last, tmp_path / "bad" / "checkpoints" / "last.ckpt"):
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {**torch.load(last, weights_only=True), "extra": Payload()}
            if place == last
            else Payload(),
            place,
        )
        if place == last:
            content = place.read_bytes()
    last.write_bytes(content)
    done = script(*command)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.rglob(MARK))


TARGETS = [
    {"_target_": "os.mkdir", "path": MARK},
    {"_target_": "tricklab.run.record.os.mkdir", "path": MARK},
    {"_target_": "tricklab.model.nn.modules.module.torch.load", "f": "bad"},
    {"_target_": "hydra.utils.get_method", "path": "os.mkdir"},
    {"_target_": "tricklab.run.instantiate.get_object", "path": "os.mkdir"},
    {
        "_target_": "tricklab.run.record.run_git",
        "_args_": [".", "-c", f"alias.x=!mkdir {MARK}", "x"],
    },
    {"_target_": "tricklab.callbacks.CheckpointFiles.save_checkpoint", "_args_": [None, {}, MARK]},
    {
        "_target_": "pytorch_lightning.LightningModule.load_from_checkpoint",
        "checkpoint_path": "bad",
    },
    {"_target_": "torch.hub.load", "_args_": ["a/b", "c"]},
    {"_target_": "torch.nn.modules.module.Module.register_forward_hook", "hook": None},
    {"_target_": "functools.partial", "_args_": ["os.mkdir"]},
    {"_target_": "builtins.eval", "_args_": [f"__import__('os').mkdir('{MARK}')"]},
    {"_target_": "tricklab.logger.Wandb", "save_dir": MARK},
]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("model", "model._target_='{target}' does not exist; allowed: tricklab.model.convnet, "),
        ("model.widths", "model.widths is nested; expected a plain value"),
        ("data", "data._target_='{target}' does not exist; allowed: tricklab.data.datasets."),
        ("augment.flip", "augment.flip._target_='{target}' does not exist; allowed: tricklab.augm"),
        ("trainer.precision", "trainer.precision is nested; expected a plain value"),
    ],
)
@pytest.mark.parametrize("target", TARGETS, ids=lambda node: node["_target_"])
def test_a_strangers_config_names_our_options_alone(target, place, message):
    config = OmegaConf.to_container(configure())
    group, _, key = place.partition(".")
    config[group] = {**config[group], key: target} if key else target
    with pytest.raises(UserError, match=re.escape(message.format(target=target["_target_"]))):
        validate_config(config, "x")


@pytest.mark.parametrize("node", [{"_target_": "joblib.load", "filename": "x"}, [1], "text"])
@pytest.mark.parametrize("key", ["data.batch_size", "model.dropout", "seed", "trainer.precision"])
def test_a_strangers_interpolation_is_text(key, node):
    """It was resolved after it had been judged, and what it named was built."""
    config = OmegaConf.to_container(configure())
    group, _, name = key.partition(".")
    config |= {"claim": node, group: {**config[group], name: "${claim}"} if name else "${claim}"}
    with pytest.raises(UserError, match=r"\$\{claim\}"):
        validate_config(config, "x")


def test_our_own_config_is_judged_to_be_itself():
    config = configure(
        "model=resnet", "augment=medium", "data=fake", "trainer.precision=bf16-mixed"
    )
    ours = validate_config(OmegaConf.to_container(config), "x")
    for group in ("model", "data", "augment", "seed"):
        assert ours[group] == config[group]
    assert ours.trainer.precision == "bf16-mixed"


def test_a_config_in_an_exported_file_runs_nothing(trained, script, tmp_path):
    """What `evaluate` built of an interpolation once loaded a pickle."""
    best = trained(*RUN).folder / "checkpoints" / "best.ckpt"
    assert script("export.py", f"ckpt={best}", "output=honest.safetensors").returncode == 0
    tensors, metadata = read_safetensors(Path("honest.safetensors"))
    config = OmegaConf.create(metadata["config"])
    config.claim = {"_target_": "os.mkdir", "_args_": [MARK]}
    config.data.batch_size = "${claim}"
    save_file(tensors, "evil.safetensors", {"config": OmegaConf.to_yaml(config)})
    for name in ("evaluate.py", "predict.py", "export.py"):
        done = script(name, "ckpt=evil.safetensors", *["input=."] * (name == "predict.py"))
        assert done.returncode == 1
        assert "data.batch_size='${claim}'" in done.stderr
    assert not list(tmp_path.rglob(MARK))


@pytest.mark.slow
def test_two_thousand_strange_configs_reach_nothing(trained, script, tmp_path):
    """Judged by what Python itself reports of imports, files, processes and sockets."""
    best = trained(*RUN, "model.widths=[4]").folder / "checkpoints" / "best.ckpt"
    assert script("export.py", f"ckpt={best}", f"output={tmp_path}/m.safetensors").returncode == 0
    done = audit("fuzz", f"{tmp_path}/m.safetensors", "0", "2000")
    assert done.returncode == 0, done.stderr
    *seen, last = done.stdout.splitlines()
    assert not seen
    assert sum(int(n) for n in re.findall(r"\d+", last)) == 2000
    noticed = audit("hydra", str(tmp_path)).stdout  # what it would have seen
    assert len(re.findall(r"^\S+ [1-9]\d*$", noticed, re.MULTILINE)) >= 8


def audit(*arguments):
    script = str(Path(__file__).parent / "helpers" / "audit.py")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)


def test_a_checkpoint_names_no_files_to_remove(trained, train, tmp_path):
    """Lightning removes the best checkpoint that a state names."""
    run = trained("model=mlp", "model.widths=[4]", "trainer.max_epochs=1").folder
    victim = tmp_path / "victim"
    victim.mkdir()
    last = run / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            evil = f"{run}/checkpoints/../../victim"
            state |= {"best_model_path": evil, "best_k_models": {evil: torch.tensor(-1.0)}}
            state |= {
                "kth_best_model_path": evil,
                "last_model_path": evil,
                "dirpath": str(tmp_path),
            }
    torch.save(content, last)
    options = ("model=mlp", "model.widths=[4]", "callbacks.progress.refresh_rate=0")
    done = train(CPU, *options, "trainer.max_epochs=3", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert victim.is_dir()
    assert (run / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "checkpoints", ".hydra", ".lock"])
def test_a_run_folder_with_a_link_out_of_it_is_refused(trained, train, tmp_path, name):
    run = trained("model=mlp", "stop_after=2it").folder
    outside = tmp_path / "outside"
    if (run / name).exists():
        (run / name).rename(outside)
    else:
        outside.write_text("keep")
    before = [path.read_bytes() for path in [outside, *outside.glob("**/*")] if path.is_file()]
    (run / name).symlink_to(outside)
    done = train(CPU, "model=mlp", f"resume={run}")
    assert done.returncode == 1
    assert f"{run}/{name} is a link that leads out of the run folder" in done.stderr
    after = [path.read_bytes() for path in [outside, *outside.glob("**/*")] if path.is_file()]
    assert after == before


def test_results_are_not_written_through_a_link(trained, script, tmp_path):
    run = trained("model=mlp", "stop_after=2it").folder
    victim = tmp_path / "victim.txt"
    victim.write_text("keep")
    for name in ("ood.csv", "ood.png", "config.yaml.tmp", "checkpoints/best.safetensors"):
        (run / name).symlink_to(victim)
    assert script("evaluate.py", str(run), "suite=ood").returncode == 0
    assert script("export.py", str(run)).returncode == 0
    assert victim.read_text() == "keep"
    assert not (run / "ood.csv").is_symlink()


@pytest.mark.parametrize("target", [t["_target_"] for t in TARGETS if "Wandb" not in t["_target_"]])
def test_no_config_calls_them(target):
    with pytest.raises(UserError, match="is not allowed"):
        find_target(target)


def test_an_image_of_2500_million_pixels_is_not_decoded(train, tree):
    """50,000 x 50,000: a PNG of a few bytes, which would take 7.5 GB."""
    root = tree({"": 6})

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )
    (root / "cat" / "bomb.png").write_bytes(content)
    done = train(CPU, "data=folder", f"data.root='{root}'", "data.num_workers=0")
    assert done.returncode == 1
    assert (
        f"{root}/cat/bomb.png can't be decoded: Image size (2500000000 pixels) exceeds limit"
        in done.stderr
    )


def test_an_image_starts_no_program(train, tree, tmp_path, monkeypatch):
    """Pillow has Ghostscript draw an EPS, whatever the ending of the file."""
    root = tree({"": 6})
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\nmkdir '{tmp_path}/{MARK}'\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    Image.new("RGB", (8, 8)).save(root / "cat" / "x.png", "EPS")
    done = train(CPU, "data=folder", f"data.root='{root}'", "data.num_workers=0")
    assert done.returncode == 1
    assert f"{root}/cat/x.png can't be decoded: not a JPEG, PNG, " in done.stderr
    assert not (tmp_path / MARK).exists()


@pytest.mark.xdist_group("servers")
def test_a_folder_named_like_a_script_is_text(train, script, tree, tmp_path):
    """That of the data, which the report names, and that of a class."""
    name = "<script>alert(1)<"
    tree({"": 8}, classes=("cat", name)).rename(tmp_path / name)
    shutil.copytree(tmp_path / name, tmp_path / "plain")
    roots = f"data.root='{tmp_path}/plain','{tmp_path}/{name}'"
    words = (
        "-m",
        CPU,
        "model=mlp",
        "stop_after=1it",
        "data=folder",
        roots,
        "data.num_workers=0",
        "data.batch_size=4",
    )
    done = train(*words, "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stdout
    assert all(name in path.read_text() for path in Path("s").glob("*/config.yaml"))
    assert script("report.py", "s").returncode == 0
    page = (tmp_path / "s" / "report.html").read_text()
    assert name not in page
    assert "&lt;script&gt;alert(1)" in page
