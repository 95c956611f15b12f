"""What comes from strangers is data: nothing named in it runs."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import torch
from conftest import ONE_BATCH
from omegaconf import OmegaConf
from PIL import Image

from tricklab.build import check_target
from tricklab.errors import UserError

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
    {"_target_": "tricklab.record.os.mkdir", "path": MARK},
    {"_target_": "tricklab.model.nn.modules.module.torch.load", "f": "bad"},
    {"_target_": "hydra.utils.get_method", "path": "os.mkdir"},
    {"_target_": "tricklab.build.get_object", "path": "os.mkdir"},
    {"_target_": "tricklab.record.run_git", "_args_": [".", "-c", f"alias.x=!mkdir {MARK}", "x"]},
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


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("target", TARGETS, ids=lambda node: node["_target_"])
def test_a_config_beside_a_checkpoint_builds_networks_alone(
    trained, script, tmp_path, target, nested
):
    run = trained(*RUN).folder
    file = run / "config.yaml"
    config = OmegaConf.load(file)
    config.model = (
        OmegaConf.to_container(config.model) | {"more": [{"deeper": target}]} if nested else target
    )
    OmegaConf.save(config, file)
    done = script("evaluate.py", f"ckpt={run}/checkpoints/last.ckpt")
    assert done.returncode == 1
    assert (
        f"_target_={target['_target_']} is not allowed; allowed: what tricklab.augment, "
        in done.stderr
    )
    assert not list(tmp_path.rglob(MARK))


def test_an_augmentation_beside_a_checkpoint_writes_nothing(trained, script, tmp_path):
    run = trained(*RUN).folder
    file = run / "config.yaml"
    config = OmegaConf.load(file)
    config.augment = {"x": {"_target_": "tricklab.logger.Wandb", "save_dir": MARK, "project": "x"}}
    OmegaConf.save(config, file)
    done = script("evaluate.py", f"ckpt={run}/checkpoints/last.ckpt", "tta=2")
    assert "_target_=tricklab.logger.Wandb is not allowed" in done.stderr
    assert not list(tmp_path.rglob(MARK))


@pytest.mark.parametrize("target", [t["_target_"] for t in TARGETS if "Wandb" not in t["_target_"]])
def test_no_config_calls_them(target):
    with pytest.raises(UserError, match="is not allowed"):
        check_target(target)


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
    assert f"{root}/cat/x.png can't be decoded: it is no JPEG, PNG, " in done.stderr
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
