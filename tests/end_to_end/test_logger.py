"""metrics.csv, W&B, TensorBoard and MLflow, read back from their files."""

import json
import math
import os
import pty
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import LearningRateMonitor

from helpers.configs import ONE_BATCH, configure
from helpers.paths import ROOT
from helpers.runs import Run
from tricklab.analysis.preview import preview
from tricklab.errors import UserError
from tricklab.files import read_table
from tricklab.logger import Wandb, confusion_chart
from tricklab.metrics_file import MetricsFile
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
    "val/balanced_acc",
    "test/loss",
    "test/acc",
    "test/balanced_acc",
    "test/f1_macro",
}


def read_records(folder, kind):
    """Return all records of a kind from the files of the W&B runs in a folder, oldest first."""
    records = []
    for file in sorted(folder.glob("wandb/*run-*/*.wandb")):
        command = [WANDB, "leet", "inspect", "--json", file]
        lines = subprocess.check_output(command, text=True).splitlines()
        records += map(json.loads, lines)
    return [record[kind] for record in records if record["type"] == kind]


def read_exit_codes(folder):
    return [record["exit_code"] for record in read_records(folder, "exit")]


def read_merged(folder, kind):
    """Return the updates of all records of a kind, merged."""
    merged = {}
    for record in read_records(folder, kind):
        merged |= record.get("update", {})
    return merged


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


def test_metrics_file_keeps_doubles_and_adds_columns(tmp_path):
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


class BatchLogger(pl.Callback):
    """Logs a metric of its own, as a user's callback may."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.log("mine", float(batch_idx), logger=True)


def test_callbacks_log_to_the_metrics_file(run, monkeypatch):
    build_trainer = experiment.build_trainer

    def build_with_callbacks(*arguments):
        trainer = build_trainer(*arguments)
        trainer.callbacks[:0] = [LearningRateMonitor(), BatchLogger()]
        return trainer

    monkeypatch.setattr(experiment, "build_trainer", build_with_callbacks)
    done = run("model=mlp", "trainer.max_epochs=1", "trainer.log_every_n_steps=5")
    assert done.column("mine") == [4.0, 9.0, 10.0]  # each fifth batch, and the last of an epoch
    assert done.column("lr-SGD/no_decay") == [0.1, 0.1, 0.1]
    assert done.column("lr") == [0.1, 0.1, 0.1]
    assert len(done.column("val/acc")) == 1


@pytest.mark.parametrize(
    ("steps", "epochs", "kept"),
    [(0, 0, 0), (5, 0, 2), (10, 0, 2), (11, 1, 5), (21, 1, 8), (22, 1, 9), (22, 2, 9)],
)
def test_resume_drops_the_rows_after_the_checkpoint(tmp_path, capsys, steps, epochs, kept):
    """Rows of callbacks have no epoch; a row of the next step will be written again."""
    write_rows(tmp_path / "metrics.csv", ROWS)
    file = MetricsFile(str(tmp_path))
    file.resume(steps, epochs, 10, 1)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
    assert rows == ROWS[1 : kept + 1]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("rows", "end", "missing"),
    [
        (None, "", "3 logged steps (0 to 20) and 2 validations (epochs 0 to 1)"),
        ([], "", "3 logged steps (0 to 20) and 2 validations (epochs 0 to 1)"),
        (ROWS[:1], "\n", "3 logged steps (0 to 20) and 2 validations (epochs 0 to 1)"),
        (ROWS[:4], "\n", "2 logged steps (10 to 20) and 2 validations (epochs 0 to 1)"),
        (ROWS, "", "1 validations (epochs 1 to 1)"),  # the last line is incomplete
        ([*ROWS[:2], *ROWS[5:]], "\n", "2 logged steps (0 to 10)"),
        (["epoch,step,lr,val/loss", "0,0,0.1\udcff"], "\n", "3 logged steps (0 to 20) and"),
    ],
)
def test_resume_warns_of_missing_rows(tmp_path, capsys, rows, end, missing):
    path = tmp_path / "metrics.csv"
    if rows is not None:
        path.write_text("\n".join(rows) + end, errors="surrogateescape")
    file = MetricsFile(str(tmp_path))
    file.resume(22, 2, 10, 1)
    warning = capsys.readouterr().err.splitlines()[-1]
    assert warning.startswith(f"warning: {path} lacks the rows of {missing}")
    file.log_metrics({"epoch": 2, "lr": 0.1}, 30)
    assert path.read_text().splitlines()[-1].startswith("2,30,")


def test_resume_with_metrics_that_the_file_lacks_keeps_its_rows(tmp_path):
    """Rows of an earlier version, or from before a callback was added."""
    write_rows(tmp_path / "metrics.csv", ROWS[:6])
    file = MetricsFile(str(tmp_path))
    file.resume(11, 1, 10, 1)
    file.log_metrics({"epoch": 1, "lr": 0.1, "train/loss": 2.0}, 20)
    file.log_metrics({"epoch": 1, "val/loss": 1.9, "val/balanced_acc": 0.7}, 22)
    file.log_metrics({"epoch": 2, "lr": 0.1}, 30)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        f"{ROWS[0]},val/balanced_acc",
        *(f"{row}," for row in ROWS[1:6]),
        "1,20,0.1,2.0,,,",
        "1,22,,,1.9,,0.7",
        "2,30,0.1,,,,",
    ]


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_mistakes_are_logged_with_their_images():
    """Fewer images may have been evaluated than there are."""
    logger = Wandb.__new__(Wandb)
    logger.log_mistakes = 5
    logger.log_confusion_matrix = False
    logged = []

    def log_image(key, images, caption):
        logged.extend((int(image[0, 0]), text) for image, text in zip(images, caption, strict=True))

    logger.log_image = log_image
    images = torch.arange(12, dtype=torch.uint8)[:, None, None, None].expand(12, 1, 2, 2)
    logits = torch.tensor([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0], [0.0, 9.0]])
    logger.log_predictions(logits, torch.tensor([0, 0, 0, 0]), images, ["a", "b"])
    assert logged == [(3, "b (1.00), true: a"), (1, "b (0.99), true: a")]


@pytest.mark.parametrize(("classes", "rows"), [(150, 450), (1000, 3000)])
def test_confusion_of_many_classes_lists_all_pairs(classes, rows):
    """Each class is predicted correctly twice, and once as each of its two neighbours."""
    labels = torch.arange(classes).repeat(4)
    shift = torch.tensor([0, 0, 1, 2]).repeat_interleave(classes)
    names = [str(n) for n in range(classes)]
    table = confusion_chart(labels, (labels + shift) % classes, names)
    assert len(table.data) == rows
    assert table.data[:classes] == [[name, name, 2] for name in names]
    assert sum(count for _, _, count in table.data) == 4 * classes


def test_confusion_of_too_many_pairs_lists_the_most_frequent(capsys):
    labels = torch.arange(200).repeat(100)  # 20,000 images
    predicted = torch.cat([torch.arange(200).roll(n) for n in (0, 0, *range(98))])
    table = confusion_chart(labels, predicted, [str(n) for n in range(200)])
    assert len(table.data) == 10_000
    assert table.data[0] == ["0", "0", 3]
    message = "W&B: test/confusion has the 10,000 most frequent of 19,600 pairs\n"
    assert capsys.readouterr().out == message


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["logger.wandb.project=a/b:c"], "Invalid project name 'a/b:c'"),
        (["tags=[" + "x" * 70 + "]"], "is 70 characters"),
        (["+logger.wandb.nonsense=1"], "unexpected keyword argument 'nonsense'"),
    ],
)
def test_invalid_wandb_options_are_a_user_error(run, offline, tmp_path, overrides, reason):
    with pytest.raises(UserError, match="W&B rejects its options") as error:
        run("model=mlp", "logger=wandb", *overrides)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sweep_is_a_wandb_group_and_keeps_its_ids(train, offline, tmp_path):
    options = ("-m", "logger=wandb", "model=mlp", "optimizer.lr=0.1,1e20", "name=s", *ONE_BATCH)
    assert train(*options).returncode == 1
    logs = sorted((tmp_path / "sweeps" / "s").glob("*/job.log"))
    good, bad = (log.parent for log in logs)
    (first,), (second,) = read_records(good, "run"), read_records(bad, "run")
    assert first["run_group"] == second["run_group"] == "s"
    assert first["run_id"] != second["run_id"]
    assert first["display_name"] == "optimizer.lr=0.1"
    assert second["display_name"] == "optimizer.lr=1e+20"
    assert (read_exit_codes(good), read_exit_codes(bad)) == ([0], [1])
    (good / "result.json").unlink()  # as if it was killed at its very end
    assert train(*options).returncode == 1
    for folder, run, codes in ((good, first, [0, 0]), (bad, second, [1, 1])):
        ids = [record["run_id"] for record in read_records(folder, "run")]
        assert ids == [run["run_id"]] * 2
        assert read_exit_codes(folder) == codes


@pytest.fixture
def wandb_run(run, offline):
    """A run of one batch with all that W&B can log."""
    return run(
        *ONE_BATCH,
        "logger=wandb",
        "penalty=l1",
        "model=mlp",
        "tags=[a,b]",
        "logger.wandb.group=g",
        "logger.wandb.notes=why",
        "logger.wandb.job_type=try",
        "logger.wandb.log_checkpoint=true",
        "logger.wandb.log_mistakes=3",
        "logger.wandb.log_confusion_matrix=true",
        "logger.wandb.log_classes=true",
        "logger.wandb.log_preview=true",
        choices={"model": "mlp"},
    )


def test_wandb_has_config_curves_and_results(wandb_run):
    folder, result = wandb_run.folder, wandb_run.result
    (about,) = read_records(folder, "run")
    expected = {"project": "tricklab", "run_group": "g", "job_type": "try", "notes": "why"}
    expected |= {"tags": ["a", "b"], "display_name": folder.name}
    assert {key: about[key] for key in expected} == expected
    config = read_merged(folder, "config")
    assert config["optimizer"]["lr"] == 0.1
    assert config["choices"] == {"model": "mlp"}
    assert config["command"].startswith("python train.py stop_after=1it")
    assert config["git"] == result["git"]
    history = {}
    for row in read_records(folder, "history"):
        history |= row["item"]
    assert set(history) >= CURVES
    assert history["lr"] == 0.1
    summary = read_merged(folder, "summary")
    best = {f"best/{name}": value for name, value in result["metrics"].items()}
    assert {name: summary[name] for name in best} == best
    assert summary["val/acc"] == wandb_run.column("val/acc")[-1]
    # Artifacts, images and the confusion matrix
    types = [artifact["type"] for artifact in read_records(folder, "artifact")]
    assert types == ["run_table", "model", "run_table"]
    images = list(folder.glob("wandb/*run-*/files/media/images/test/*.png"))
    assert len(images) == 4  # three mistakes and the reliability diagram
    (table,) = folder.glob("wandb/*run-*/files/media/table/test/confusion*.json")
    cells = json.loads(table.read_text())["data"]
    assert sum(count for _, _, count in cells) == 128
    correct = sum(count for actual, predicted, count in cells if actual == predicted)
    assert correct / 128 == result["metrics"]["test/acc"]
    assert read_exit_codes(folder) == [0]
    # Each class of the test, and the first batch of training
    (table,) = folder.glob("wandb/*run-*/files/media/table/test/classes*.json")
    content = json.loads(table.read_text())
    rows = read_table(folder / "classes.csv")
    assert content["columns"] == list(rows[0])
    assert [row[1] for row in content["data"]] == [float(row["n"]) for row in rows]
    examples = preview(configure("model=mlp", "penalty=l1"))[:32]
    assert history["train/first_batch.captions"] == [caption for _, caption in examples]
    (files,) = folder.glob("wandb/*run-*/files")
    for name, (image, _) in zip(history["train/first_batch.filenames"], examples):
        with Image.open(files / name) as logged:
            assert np.array_equal(np.asarray(logged), (255 * image[..., 0]).round())


@pytest.mark.slow
def test_wandb_gets_the_exit_code_of_a_failure(run, offline, tmp_path):
    with pytest.raises(UserError):
        run("model=mlp", "logger=wandb", "optimizer.lr=1e20", "optimizer.weight_decay=0")
    assert read_exit_codes(tmp_path / "run") == [1]
    assert read_merged(tmp_path / "run", "config")["optimizer"]["lr"] == 1e20


@pytest.mark.slow
def test_resumed_run_keeps_its_wandb_id(run, offline, monkeypatch, tmp_path):
    def stop(self, outputs, batch, batch_idx):
        if self.global_step == 15:
            raise KeyboardInterrupt

    options = ("logger=wandb", "model=mlp", "trainer.max_epochs=2")
    with monkeypatch.context() as patch:
        patch.setattr("tricklab.training.ImageClassifier.on_train_batch_end", stop)
        with pytest.raises(SystemExit):
            run(*options)
    run(*options, "resume=auto")
    first, second = read_records(tmp_path / "run", "run")
    assert first["run_id"] == second["run_id"]
    assert read_exit_codes(tmp_path / "run") == [1, 0]


@pytest.mark.slow
@pytest.mark.xdist_group("servers")
def test_wandb_without_a_key_does_not_prompt_on_a_terminal(fork_script, tmp_path):
    """The terminal is at its end, so reading from it would fail."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    env["HOME"] = str(tmp_path)
    ours, theirs = pty.openpty()
    os.write(ours, b"\4" * 9)  # Ctrl-D
    command = [str(ROOT / "train.py"), *ONE_BATCH, "model=mlp", "logger=wandb", "hydra.run.dir=run"]
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: b"".join(iter(lambda: read(ours), b"")))
        done = fork_script(*command, env=env, terminal=os.ttyname(theirs))
        os.close(theirs)
        output = reading.result()
    assert done.returncode == 0
    assert output.count(b"W&B is offline (no API key)") == 1
    assert read_exit_codes(tmp_path / "run") == [0]
    choices = read_merged(tmp_path / "run", "config")["choices"]
    expected = {"model": "mlp", "scheduler": "constant", "logger": "wandb"}
    assert {group: choices[group] for group in expected} == expected


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # on Linux, the other end is closed
        return b""


@pytest.mark.slow
def test_wandb_without_a_connection_is_offline_soon(fork_script, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    options = (*ONE_BATCH, "logger=wandb", "model=mlp", "hydra.run.dir=run")
    done = fork_script(str(ROOT / "train.py"), *options)  # wandb remembers the lack of a key
    assert done.returncode == 0
    assert Run(tmp_path / "run").result["seconds"] < 40
    (message,) = [line for line in done.stdout.splitlines() if line.startswith("W&B")]
    assert message.startswith("W&B is offline (no connection: ")
    assert read_exit_codes(tmp_path / "run")[-1] == 0


def test_tensorboard_has_the_same_metrics(run):
    pytest.importorskip("tensorboard", reason="needs the extra [tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = run(*ONE_BATCH, "logger=tensorboard", "penalty=l1")
    events = EventAccumulator(str(done.folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= CURVES
    assert events.Scalars("val/loss")[0].value == pytest.approx(done.column("val/loss")[0])


# MLflow


@pytest.fixture
def client(tmp_path, monkeypatch):
    """A client of a database of its own."""
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)  # artifacts go to mlruns
    return mlflow.tracking.MlflowClient(uri)


def find_mlflow_runs(client, experiment="tricklab"):
    found = client.get_experiment_by_name(experiment)
    return client.search_runs([found.experiment_id]) if found else []


@pytest.mark.slow
def test_mlflow_has_config_curves_results_and_files(run, client):
    done = run("logger=mlflow", "model=mlp", "trainer.max_epochs=2")
    (logged,) = find_mlflow_runs(client)
    assert logged.info.run_name == done.folder.name
    assert logged.info.status == "FINISHED"
    assert logged.data.params["optimizer/lr"] == "0.1"
    metrics = done.result["metrics"]
    assert logged.data.metrics["best/test/acc"] == metrics["test/acc"]
    curve = client.get_metric_history(logged.info.run_id, "val/acc")
    assert [point.value for point in curve] == done.column("val/acc")
    names = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert names >= {"classes.csv", "config.yaml"}
    assert "checkpoints" not in names


@pytest.mark.slow
def test_resumed_run_continues_in_mlflow(run, client):
    options = ("logger=mlflow", "model=mlp", "logger.mlflow.log_checkpoint=true")
    run(*options, "trainer.max_epochs=1")
    run(*options, "trainer.max_epochs=2", "resume=auto")
    (logged,) = find_mlflow_runs(client)
    curve = client.get_metric_history(logged.info.run_id, "val/acc")
    assert len(curve) == 2
    names = [file.path for file in client.list_artifacts(logged.info.run_id, "checkpoints")]
    assert names == ["checkpoints/best.ckpt"]


@pytest.mark.slow
def test_mlflow_that_can_not_be_reached_is_answered_in_one_line(run, client, tmp_path):
    options = ("logger=mlflow", "model=mlp", "logger.mlflow.tracking_uri=nonsense://x")
    with pytest.raises(UserError, match=r"logger\.mlflow\.tracking_uri=nonsense://x: ") as error:
        run(*options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
