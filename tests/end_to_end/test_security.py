"""Files from strangers are data: nothing that they name is run, written or deleted."""

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
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from helpers.configs import ONE_BATCH, configure
from helpers.paths import ROOT
from tricklab.errors import UserError
from tricklab.files import read_safetensors
from tricklab.run.instantiate import find_target
from tricklab.run.untrusted import validate_config

CPU = "trainer.accelerator=cpu"
MARK = "payload-was-run"
RUN = (*ONE_BATCH, "model=mlp")
SMALL = ("model=mlp", "model.widths=[4]")


# Checkpoints


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (MARK,)


@pytest.mark.parametrize(
    "command",
    [
        ("../train.py", CPU, "model=mlp", "model.weights=pickle/checkpoints/last.ckpt"),
        ("../train.py", CPU, *RUN, "resume=run"),
        ("evaluate.py", "ckpt=run/checkpoints/last.ckpt"),
        ("predict.py", "ckpt=run/checkpoints/last.ckpt", "input=run"),
        ("export.py", "ckpt=run/checkpoints/last.ckpt", "output=out.safetensors"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_checkpoint_with_a_pickled_payload_is_refused(cached_run, run_script, tmp_path, command):
    last = cached_run(*RUN).folder / "checkpoints" / "last.ckpt"
    torch.save({**torch.load(last, weights_only=True), "extra": Payload()}, last)
    (tmp_path / "pickle" / "checkpoints").mkdir(parents=True)
    torch.save(Payload(), tmp_path / "pickle" / "checkpoints" / "last.ckpt")
    done = run_script(*command)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.rglob(MARK))


def test_paths_in_a_checkpoint_are_not_deleted(cached_run, train, tmp_path):
    """Lightning deletes the previous best checkpoint, whose path is in the state of a callback."""
    run = cached_run(*SMALL, "trainer.max_epochs=1").folder
    victim = tmp_path / "victim"
    victim.mkdir()
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    path = f"{run}/checkpoints/../../victim"
    for state in checkpoint["callbacks"].values():
        if "best_model_path" in state:
            state["best_model_path"] = path
            state["best_k_models"] = {path: torch.tensor(-1.0)}
            state["kth_best_model_path"] = path
            state["last_model_path"] = path
            state["dirpath"] = str(tmp_path)
    torch.save(checkpoint, last)
    quiet = "callbacks.progress.refresh_rate=0"
    done = train(CPU, *SMALL, quiet, "trainer.max_epochs=3", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert victim.is_dir()
    assert (run / "checkpoints" / "best.ckpt").is_file()


# Configs


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
        ("model.widths", "model.widths is nested. Expected a plain value"),
        ("data", "data._target_='{target}' does not exist; allowed: tricklab.data.datasets."),
        ("augment.flip", "augment.flip._target_='{target}' does not exist; allowed: tricklab.augm"),
        ("trainer.precision", "trainer.precision is nested. Expected a plain value"),
    ],
)
@pytest.mark.parametrize("target", TARGETS, ids=lambda node: node["_target_"])
def test_validate_config_refuses_targets_that_are_no_option(target, place, message):
    config = OmegaConf.to_container(configure())
    group, _, key = place.partition(".")
    config[group] = {**config[group], key: target} if key else target
    with pytest.raises(UserError, match=re.escape(message.format(target=target["_target_"]))):
        validate_config(config, "x")


@pytest.mark.parametrize("node", [{"_target_": "joblib.load", "filename": "x"}, [1], "text"])
@pytest.mark.parametrize("key", ["data.batch_size", "model.dropout", "seed", "trainer.precision"])
def test_validate_config_does_not_resolve_interpolations(key, node):
    config = OmegaConf.to_container(configure())
    config["claim"] = node
    group, _, name = key.partition(".")
    if name:
        config[group][name] = "${claim}"
    else:
        config[group] = "${claim}"
    with pytest.raises(UserError, match=r"\$\{claim\}"):
        validate_config(config, "x")


def test_validate_config_keeps_a_valid_config():
    options = ("model=resnet", "augment=medium", "data=fake", "trainer.precision=bf16-mixed")
    config = configure(*options)
    validated = validate_config(OmegaConf.to_container(config), "x")
    for group in ("model", "data", "augment", "seed"):
        assert validated[group] == config[group]
    assert validated.trainer.precision == "bf16-mixed"


def test_config_in_an_exported_file_runs_nothing(cached_run, run_script, tmp_path):
    run = cached_run(*RUN).folder
    assert run_script("export.py", str(run), "output=honest.safetensors").returncode == 0
    tensors, metadata = read_safetensors(Path("honest.safetensors"))
    config = OmegaConf.create(metadata["config"])
    config.claim = {"_target_": "os.mkdir", "_args_": [MARK]}
    config.data.batch_size = "${claim}"
    save_file(tensors, "evil.safetensors", {"config": OmegaConf.to_yaml(config)})
    for name, *options in (["evaluate.py"], ["predict.py", "input=."], ["export.py"]):
        done = run_script(name, "ckpt=evil.safetensors", *options)
        assert done.returncode == 1
        assert "data.batch_size='${claim}'" in done.stderr
    assert not list(tmp_path.rglob(MARK))


@pytest.mark.slow
def test_random_hostile_configs_import_write_and_start_nothing(cached_run, run_script, tmp_path):
    """Five hundred configs, watched by Python's audit hook."""
    run = cached_run(*RUN, "model.widths=[4]").folder
    exported = f"{tmp_path}/m.safetensors"
    assert run_script("export.py", str(run), f"output={exported}").returncode == 0
    done = run_audit("fuzz", exported, "0", "500")
    assert done.returncode == 0, done.stderr
    *events, summary = done.stdout.splitlines()
    assert not events
    assert sum(int(n) for n in re.findall(r"\d+", summary)) == 500


@pytest.mark.slow
def test_audit_hook_reports_what_hydra_would_run(tmp_path):
    output = run_audit("hydra", str(tmp_path)).stdout
    assert len(re.findall(r"^\S+ [1-9]\d*$", output, re.MULTILINE)) >= 8


def run_audit(*arguments):
    path = str(ROOT / "tests/helpers/audit.py")
    return subprocess.run([sys.executable, path, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("target", [t["_target_"] for t in TARGETS if "Wandb" not in t["_target_"]])
def test_find_target_refuses_what_is_no_option(target):
    with pytest.raises(UserError, match="is not allowed"):
        find_target(target)


# Run folders


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "checkpoints", ".hydra", ".lock"])
def test_run_folder_with_a_link_out_of_it_is_refused(cached_run, train, tmp_path, name):
    run = cached_run("model=mlp", "stop_after=2it").folder
    outside = tmp_path / "outside"
    if (run / name).exists():
        (run / name).rename(outside)
    else:
        outside.write_text("keep")
    before = read_files(outside)
    (run / name).symlink_to(outside)
    done = train(CPU, "model=mlp", f"resume={run}")
    assert done.returncode == 1
    assert f"{run}/{name} is a link that leads out of the run folder" in done.stderr
    assert read_files(outside) == before


def read_files(path):
    """Return the content of a file, or of all files below a folder."""
    files = [path] if path.is_file() else sorted(path.glob("**/*"))
    return [file.read_bytes() for file in files if file.is_file()]


def test_results_are_not_written_through_a_link(cached_run, run_script, tmp_path):
    run = cached_run("model=mlp", "stop_after=2it").folder
    victim = tmp_path / "victim.txt"
    victim.write_text("keep")
    for name in ("ood.csv", "ood.png", "config.yaml.tmp", "checkpoints/best.safetensors"):
        (run / name).symlink_to(victim)
    assert run_script("evaluate.py", str(run), "suite=ood").returncode == 0
    assert run_script("export.py", str(run)).returncode == 0
    assert victim.read_text() == "keep"
    assert not (run / "ood.csv").is_symlink()


# Images and class folders


def png_chunk(kind, data):
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def test_image_of_2500_million_pixels_is_not_decoded(train, class_folders):
    """50,000 x 50,000: a PNG of a few bytes, which would take 7.5 GB."""
    root = class_folders({"": 6})
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [
        png_chunk(b"IHDR", header),
        png_chunk(b"IDAT", zlib.compress(b"")),
        png_chunk(b"IEND", b""),
    ]
    (root / "cat" / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    done = train(CPU, "data=folder", f"data.root='{root}'", "data.num_workers=0")
    assert done.returncode == 1
    reason = "Image size (2500000000 pixels) exceeds limit"
    assert f"{root}/cat/bomb.png can't be decoded: {reason}" in done.stderr


def test_image_starts_no_program(train, class_folders, tmp_path, monkeypatch):
    """Pillow decodes EPS with Ghostscript, whatever the extension of the file."""
    root = class_folders({"": 6})
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


@pytest.mark.slow
@pytest.mark.xdist_group("servers")
def test_folder_named_like_a_script_is_escaped_in_the_report(
    train, run_script, class_folders, tmp_path
):
    """The root of the data, which the report names, and a class."""
    name = "<script>alert(1)<"
    class_folders({"": 8}, classes=("cat", name)).rename(tmp_path / name)
    shutil.copytree(tmp_path / name, tmp_path / "plain")
    roots = f"data.root='{tmp_path}/plain','{tmp_path}/{name}'"
    data = ("data=folder", roots, "data.num_workers=0", "data.batch_size=4")
    done = train("-m", CPU, "model=mlp", "stop_after=1it", *data, "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stdout
    assert all(name in path.read_text() for path in Path("s").glob("*/config.yaml"))
    assert run_script("report.py", "s").returncode == 0
    page = (tmp_path / "s" / "report.html").read_text()
    assert name not in page
    assert "&lt;script&gt;alert(1)" in page
