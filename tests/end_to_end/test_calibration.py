"""Calibration and results per class of whole runs: recorded and evaluated alike."""

import csv
import math

import numpy as np
import pandas
import pytest
import torch

from helpers.runs import Run
from tricklab.metrics import fit_temperature


def test_temperature_needs_50_images(run, capsys):
    torch.manual_seed(0)
    logits, labels = 5 * torch.randn(200, 3), torch.randint(3, (200,))
    assert fit_temperature(logits[:49], labels[:49]) == 1.0
    assert fit_temperature(logits[:50], labels[:50]) > 1.5
    done = run("model=mlp", "trainer.max_epochs=1", "data.val_size=5")
    assert done.result["metrics"]["test/temperature"] == 1.0
    output = capsys.readouterr().out
    assert "temperature: 1, as 5 validation images are too few to fit it\n" in output


def test_run_and_evaluate_record_the_same_results(train, run_script, tmp_path):
    options = ("trainer.accelerator=cpu", "model=mlp", "trainer.max_epochs=2")
    assert train(*options, "hydra.run.dir=run").returncode == 0
    done = Run(tmp_path / "run")
    metrics = done.result["metrics"]
    assert metrics["val/nll"] >= metrics["val/nll_t"]
    assert metrics["val/temperature"] == metrics["test/temperature"] != 1
    assert done.column("val/ece")[-1] == metrics["val/ece"]
    assert done.column("val/brier_t")[-1] == metrics["val/brier_t"]
    assert (done.folder / "calibration.png").read_bytes().startswith(b"\x89PNG")
    with (done.folder / "calibration.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    bins = np.array([[float(value) for value in row.values()] for row in rows])
    images, correct, _ = bins.sum(0)
    assert (len(bins), images) == (15, 359)
    assert correct / images == pytest.approx(metrics["test/acc"])
    ece = np.abs(bins[:, 1] - bins[:, 2]).sum() / images
    assert ece == pytest.approx(metrics["test/ece"])
    check_classes(done)
    output = run_script("evaluate.py", f"ckpt={done.folder}/checkpoints/best.ckpt", "resamples=50")
    intervals = read_intervals(output.stdout)
    for name in ("test/acc", "test/f1_macro", "test/ece", "test/ece_t", "test/aurc"):
        value, low, high = intervals[name]
        assert value == metrics[name]
        assert low < high
    _, low, high = intervals["test/acc"]
    normal = 2 * 1.96 * math.sqrt(metrics["test/acc"] * (1 - metrics["test/acc"]) / 360)
    assert high - low == pytest.approx(normal, rel=0.35)


def check_classes(done):
    """The files per class agree with each other and with `result.json`."""
    metrics = done.result["metrics"]
    classes = pandas.read_csv(done.folder / "classes.csv", index_col="class")
    counts = pandas.read_csv(done.folder / "confusion.csv", index_col="true class")
    names = [str(digit) for digit in range(10)]
    assert list(classes.index.astype(str)) == list(counts.index.astype(str)) == names
    assert list(counts.columns) == names
    matrix = counts.to_numpy()
    assert np.trace(matrix) / matrix.sum() == pytest.approx(metrics["test/acc"], abs=1e-12)
    assert list(classes["n"]) == list(matrix.sum(1))
    assert list(classes["recall"]) == pytest.approx(list(np.diag(matrix) / matrix.sum(1)))
    assert classes["recall"].mean() == pytest.approx(metrics["test/balanced_acc"], abs=1e-12)
    assert classes["f1"].mean() == pytest.approx(metrics["test/f1_macro"], abs=1e-12)
    assert metrics["test/balanced_acc"] != metrics["test/acc"]
    assert done.column("val/balanced_acc")[-1] == metrics["val/balanced_acc"]
    assert (done.folder / "confusion.png").read_bytes().startswith(b"\x89PNG")


def read_intervals(output):
    """Read lines `test/acc  0.95  (0.93 to 0.97)` into value, lower and upper limit."""
    intervals = {}
    for line in output.splitlines():
        name, *cells = line.split()
        if len(cells) == 4 and cells[2] == "to":
            intervals[name] = [float(cell.strip("()")) for cell in (cells[0], cells[1], cells[3])]
    return intervals
