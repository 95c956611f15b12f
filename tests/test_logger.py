"""W&B and TensorBoard, read back from their own files."""

import json
import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ONE_BATCH, ROOT

from tricklab.errors import UserError
from tricklab.logger import Wandb

WANDB = Path(sys.executable).with_name("wandb")
CURVES = {
    "lr",
    "train/loss",
    "train/acc",
    "train/grad_norm",
    "train/l1",
    "val/loss",
    "val/acc",
    "test/loss",
    "test/acc",
}


def records(folder, kind):
    """Read all records of a kind from the files of the W&B runs in a folder, oldest first."""
    files = sorted(folder.glob("wandb/*run-*/*.wandb"))
    lines = [
        line
        for file in files
        for line in subprocess.check_output(
            [WANDB, "leet", "inspect", "--json", file], text=True
        ).splitlines()
    ]
    return [record[kind] for record in map(json.loads, lines) if record["type"] == kind]


def exits(folder):
    return [record["exit_code"] for record in records(folder, "exit")]


def merged(folder, kind):
    together = {}
    for record in records(folder, kind):
        together |= record.get("update", {})
    return together


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_a_mistake_is_shown_with_its_own_picture():
    """Also where fewer images were evaluated than there are."""
    seen, logger = [], Wandb.__new__(Wandb)
    logger.mistakes, logger.confusion = 5, False
    logger.log_image = lambda key, images, caption: seen.extend(
        int(image[0, 0]) for image in images
    )
    images = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 1, 2, 2)
    logits = 5 * torch.eye(2)[[0, 1, 0, 1]]
    logger.show(logits, torch.tensor([0, 0, 0, 0]), images, ["a", "b"])
    assert sorted(seen) == [1, 3]


def test_wandb_holds_all_of_a_run(run, offline):
    extra = [
        "logger.wandb.group=g",
        "logger.wandb.notes=why",
        "logger.wandb.job_type=try",
        "tags=[a,b]",
    ]
    shown = [
        "logger.wandb.checkpoint=true",
        "logger.wandb.mistakes=3",
        "logger.wandb.confusion=true",
    ]
    done = run(
        *ONE_BATCH,
        "logger=wandb",
        "penalty=l1",
        "model=mlp",
        *extra,
        *shown,
        choices={"model": "mlp"},
    )
    (about,) = records(done.folder, "run")
    assert (about["project"], about["run_group"], about["job_type"], about["notes"]) == (
        "tricklab",
        "g",
        "try",
        "why",
    )
    assert about["tags"] == ["a", "b"]
    assert about["display_name"] == done.folder.name
    config = merged(done.folder, "config")
    assert config["optimizer"]["lr"] == 0.1
    assert config["choices"] == {"model": "mlp"}
    assert config["command"].startswith("python train.py stop_after=1it")
    assert config["git"] == done.result["git"]
    history = {
        name: value
        for row in records(done.folder, "history")
        for name, value in row["item"].items()
    }
    assert set(history) >= CURVES
    assert history["lr"] == 0.1
    summary = merged(done.folder, "summary")
    best = {f"best/{name}": value for name, value in done.result["metrics"].items()}
    assert {name: summary[name] for name in best} == best
    assert summary["val/acc"] == done.column("val/acc")[-1]
    assert [a["type"] for a in records(done.folder, "artifact")] == ["model", "run_table"]
    assert (
        len(list(done.folder.glob("wandb/*run-*/files/media/images/test/*.png"))) == 4
    )  # and that of calibration
    (table,) = done.folder.glob("wandb/*run-*/files/media/table/test/confusion*.json")
    cells = json.loads(table.read_text())["data"]
    assert sum(count for _, _, count in cells) == 128
    assert (
        sum(count for true, said, count in cells if true == said) / 128
        == done.result["metrics"]["test/acc"]
    )
    assert exits(done.folder) == [0]


def test_wandb_is_told_that_a_run_failed(run, offline, tmp_path):
    with pytest.raises(UserError):
        run("model=mlp", "logger=wandb", "optimizer.lr=1e20", "optimizer.weight_decay=0")
    assert exits(tmp_path / "run") == [1]
    assert merged(tmp_path / "run", "config")["optimizer"]["lr"] == 1e20


def test_a_run_that_goes_on_keeps_its_id(run, offline, monkeypatch, tmp_path):
    def stop(self, outputs, batch, batch_idx):
        if self.global_step == 15:
            raise KeyboardInterrupt

    options = ("logger=wandb", "model=mlp", "trainer.max_epochs=2")
    with monkeypatch.context() as patch:
        patch.setattr("tricklab.module.ImageClassifier.on_train_batch_end", stop)
        with pytest.raises(SystemExit):
            run(*options)
    run(*options, "resume=auto")
    first, second = records(tmp_path / "run", "run")
    assert first["run_id"] == second["run_id"]
    assert exits(tmp_path / "run") == [1, 0]


@pytest.mark.xdist_group("servers")
def test_no_key_and_a_terminal_is_no_question(fresh, tmp_path):
    """What the terminal gives has ended: a question would be an error."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {
        "HOME": str(tmp_path)
    }
    ours, theirs = pty.openpty()
    os.write(ours, b"\4" * 9)  # Ctrl-D
    command = [str(ROOT / "train.py"), *ONE_BATCH, "model=mlp", "logger=wandb", "hydra.run.dir=run"]
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: b"".join(iter(lambda: read(ours), b"")))
        done = fresh(*command, env=env, terminal=os.ttyname(theirs))
        os.close(theirs)
        said = reading.result()
    assert done.returncode == 0
    assert said.count(b"W&B is offline (no key)") == 1
    assert exits(tmp_path / "run") == [0]
    choices = merged(tmp_path / "run", "config")["choices"]
    assert (choices["model"], choices["scheduler"], choices["logger"]) == (
        "mlp",
        "constant",
        "wandb",
    )


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that the other side is closed
        return b""


@pytest.mark.slow
def test_a_key_and_no_network_is_offline_within_40_seconds(train, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    done = train(*ONE_BATCH, "logger=wandb", "model=mlp", "hydra.run.dir=run")
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["seconds"] < 40
    said = [line for line in done.stdout.splitlines() if line.startswith("W&B")]
    assert len(said) == 1
    assert said[0].startswith("W&B is offline (no answer: ")
    assert exits(tmp_path / "run")[-1] == 0


def test_tensorboard_has_the_same_names(run):
    pytest.importorskip("tensorboard", reason="needs the extra [tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = run(*ONE_BATCH, "logger=tensorboard", "penalty=l1")
    events = EventAccumulator(str(done.folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= CURVES
    assert events.Scalars("val/loss")[0].value == pytest.approx(done.column("val/loss")[0])
