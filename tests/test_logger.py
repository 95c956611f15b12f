"""metrics.csv, and W&B and TensorBoard, read back from their own files."""

import json
import math
import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from conftest import ONE_BATCH, ROOT
from pytorch_lightning.callbacks import LearningRateMonitor

from tricklab.errors import UserError
from tricklab.logger import MetricsFile, Wandb, confusion_chart
from tricklab.run import experiment

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


ROWS = [
    "epoch,step,lr,train/loss,val/loss,lr-SGD",
    ",0,,,,0.1",
    "0,0,0.1,2.3,,",
    ",10,,,,0.1",
    "0,10,0.1,2.2,,",
    "0,11,,,2.1,",
    ",11,,,,0.1",
    ",20,,,,0.1",
    "1,20,0.1,2.0,,",
    "1,22,,,1.9,",
]


def write_rows(path, rows, end="\n"):
    path.write_text("\n".join(rows) + end)


def test_metrics_file_takes_what_callbacks_log(tmp_path):
    file = MetricsFile(str(tmp_path))
    file.log_metrics({"epoch": 0, "lr": 0.1, "train/loss": 1 / 3}, 0)
    file.log_metrics({"lr-SGD": 0.1}, 0)
    file.log_metrics({"epoch": 0, "ok": torch.tensor(True), "n": torch.tensor(3)}, None)
    file.log_metrics({"lr": math.nan, "train/loss": torch.tensor(math.inf), "step": 7})
    file.log_metrics({"epoch": 1, "test/acc": 0.5}, 9)
    assert (tmp_path / "metrics.csv").read_bytes().decode().split("\n") == [
        "epoch,step,lr,train/loss,lr-SGD,ok,n",
        "0,0,0.1,0.3333333333333333,,,",
        ",0,,,0.1,,",
        "0,,,,,1,3",
        ",7,nan,inf,,,",
        "",
    ]


class LogsByItself(pl.Callback):
    """As a user's callback may."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("mine", float(batch_idx), logger=True)


def test_a_run_logs_what_its_callbacks_log(run, monkeypatch):
    monkeypatch.setattr(experiment, "build_trainer", with_callbacks(experiment.build_trainer))
    done = run("model=mlp", "trainer.max_epochs=1", "trainer.log_every_n_steps=5")
    assert done.column("mine") == [4.0, 9.0, 10.0]  # each fifth, and the last of an epoch
    assert done.column("lr-SGD/no_decay") == [0.1, 0.1, 0.1]
    assert done.column("lr") == [0.1, 0.1, 0.1]
    assert len(done.column("val/acc")) == 1


def with_callbacks(build):
    def build_more(*arguments):
        trainer = build(*arguments)
        trainer.callbacks[:0] = [LearningRateMonitor(), LogsByItself()]
        return trainer

    return build_more


@pytest.mark.parametrize(
    ("steps", "epochs", "kept"),
    [(0, 0, 0), (5, 0, 2), (10, 0, 2), (11, 1, 5), (21, 1, 8), (22, 1, 9), (22, 2, 9)],
)
def test_resume_keeps_the_rows_before_its_checkpoint(tmp_path, capsys, steps, epochs, kept):
    """Also those of callbacks, which have no epoch; a row of the coming step will be written again."""
    write_rows(tmp_path / "metrics.csv", ROWS)
    file = MetricsFile(str(tmp_path))
    file.resume(steps, epochs, 10, 1)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert rows == ROWS[1 : kept + 1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("rows", "end", "lost"),
    [
        (None, "", "3 logged steps (0 to 20) and 2 validations (epochs 0 to 1)"),
        ([], "", "3 logged steps (0 to 20) and 2 validations (epochs 0 to 1)"),
        (ROWS[:1], "\n", "3 logged steps (0 to 20) and 2 validations (epochs 0 to 1)"),
        (ROWS[:4], "\n", "2 logged steps (10 to 20) and 2 validations (epochs 0 to 1)"),
        (ROWS, "", "1 validations (epochs 1 to 1)"),  # the last line is not whole
        ([*ROWS[:2], *ROWS[5:]], "\n", "2 logged steps (0 to 10)"),
        (["epoch,step,lr,val/loss", "0,0,0.1\udcff"], "\n", "3 logged steps (0 to 20) and"),
    ],
)
def test_resume_says_which_rows_are_lost(tmp_path, capsys, rows, end, lost):
    path = tmp_path / "metrics.csv"
    if rows is not None:
        path.write_text("\n".join(rows) + end, errors="surrogateescape")
    file = MetricsFile(str(tmp_path))
    file.resume(22, 2, 10, 1)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"warning: {path} lacks the rows of {lost}")
    file.log_metrics({"epoch": 2, "lr": 0.1}, 30)
    assert path.read_text().splitlines()[-1].startswith("2,30,")


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
    logger.log_predictions(logits, torch.tensor([0, 0, 0, 0]), images, ["a", "b"])
    assert sorted(seen) == [1, 3]


@pytest.mark.parametrize(("classes", "rows"), [(150, 450), (1000, 3000)])
def test_confusion_of_many_classes_is_whole(classes, rows):
    """Each class is found twice, and taken once for each of its two neighbours."""
    labels = torch.arange(classes).repeat(4)
    shift = torch.tensor([0, 0, 1, 2]).repeat_interleave(classes)
    predicted = (labels + shift) % classes
    table = confusion_chart(labels, predicted, [str(n) for n in range(classes)])
    assert len(table.data) == rows
    assert table.data[:classes] == [[str(n), str(n), 2] for n in range(classes)]
    assert sum(count for _, _, count in table.data) == 4 * classes


def test_confusion_of_too_many_pairs_is_that_of_the_most_frequent(capsys):
    labels = torch.arange(200).repeat(100)  # 20,000 images
    predicted = torch.cat([torch.arange(200).roll(n) for n in (0, 0, *range(98))])
    table = confusion_chart(labels, predicted, [str(n) for n in range(200)])
    assert len(table.data) == 10_000
    assert table.data[0] == ["0", "0", 3]
    said = "W&B: test/confusion has the 10,000 most frequent of 19,600 pairs\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["logger.wandb.project=a/b:c"], "Invalid project name 'a/b:c'"),
        (["tags=[" + "x" * 70 + "]"], "is 70 characters"),
        (["+logger.wandb.nonsense=1"], "unexpected keyword argument 'nonsense'"),
    ],
)
def test_what_wandb_does_not_take_is_a_line(run, offline, tmp_path, options, says):
    with pytest.raises(UserError, match="W&B rejects its options") as caught:
        run("model=mlp", "logger=wandb", *options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_sweep_is_a_group_of_wandb_and_keeps_its_ids(train, offline, tmp_path):
    words = ("-m", "logger=wandb", "model=mlp", "optimizer.lr=0.1,1e20", "name=s", *ONE_BATCH)
    assert train(*words).returncode == 1
    jobs = sorted((tmp_path / "sweeps" / "s").glob("*/job.log"))
    good, bad = (job.parent for job in jobs)
    (first,), (second,) = records(good, "run"), records(bad, "run")
    assert first["run_group"] == second["run_group"] == "s"
    assert first["run_id"] != second["run_id"]
    assert [first["display_name"], second["display_name"]] == [
        "optimizer.lr=0.1",
        "optimizer.lr=1e+20",
    ]
    assert (exits(good), exits(bad)) == ([0], [1])
    (good / "result.json").unlink()  # as if it was killed at its very end
    assert train(*words).returncode == 1
    for folder, run, codes in ((good, first, [0, 0]), (bad, second, [1, 1])):
        assert [record["run_id"] for record in records(folder, "run")] == [run["run_id"]] * 2
        assert exits(folder) == codes


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
        patch.setattr("tricklab.training.ImageClassifier.on_train_batch_end", stop)
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
    assert said.count(b"W&B is offline (no API key)") == 1
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
    assert said[0].startswith("W&B is offline (no connection: ")
    assert exits(tmp_path / "run")[-1] == 0


def test_tensorboard_has_the_same_names(run):
    pytest.importorskip("tensorboard", reason="needs the extra [tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = run(*ONE_BATCH, "logger=tensorboard", "penalty=l1")
    events = EventAccumulator(str(done.folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= CURVES
    assert events.Scalars("val/loss")[0].value == pytest.approx(done.column("val/loss")[0])
