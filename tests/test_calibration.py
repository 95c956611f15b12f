"""Calibration against loops, scikit-learn and torchmetrics, and at its edges."""

import math

import numpy as np
import pytest
import torch
from conftest import Run
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.classification import MulticlassCalibrationError

from tricklab.metrics import Calibration, calibration_metrics, fit_temperature, reliability
from tricklab.run.figures import draw_calibration

CASES = [
    (1, 2, 1),
    (10, 3, 0.1),
    (1000, 10, 3),
    (500, 100, 10),
    (50, 1, 1),
    (300, 4, 0.0),
    (200, 3, 1e4),
]


def draw(n, classes, scale):
    """Logits, some of them equal, and labels that they have something to do with."""
    random = np.random.default_rng(n)
    labels = random.integers(0, classes, n)
    logits = random.normal(0, scale, (n, classes)) + scale * np.eye(classes)[labels]
    logits[: n // 4] = logits[0]
    return logits.astype(np.float32), labels


def by_hand(logits, labels, bins=15):
    """Image by image and bin by bin, in NumPy."""
    p = softmax(logits.astype(np.float64), axis=1)
    confidence, hit = p.max(1), (p.argmax(1) == labels).astype(float)
    ece = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            ece += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    fair = np.array([hit[confidence == c].mean() for c in confidence])  # equal ones in any order
    order = np.argsort(-confidence, kind="stable")
    risks = [np.mean(1 - fair[order][:k]) for k in range(1, len(order) + 1)]
    parts = np.array_split(fair[order] - confidence[order], bins)
    return {
        "ece": ece,
        "ece_mass": sum(abs(part.sum()) for part in parts) / len(labels),
        "gap": confidence.mean() - hit.mean(),
        "nll": -np.mean(
            [
                row[label]
                for row, label in zip(log_softmax(logits.astype(np.float64), axis=1), labels)
            ]
        ),
        "brier": np.mean(
            [np.sum((row - np.eye(len(row))[label]) ** 2) for row, label in zip(p, labels)]
        ),
        "aurc": np.mean(risks),
    }


@pytest.mark.parametrize(("n", "classes", "scale"), CASES)
def test_against_a_loop(n, classes, scale):
    logits, labels = draw(n, classes, scale)
    assert calibration_metrics(torch.tensor(logits), torch.tensor(labels)) == pytest.approx(
        by_hand(logits, labels), abs=1e-9
    )


@pytest.mark.parametrize("shift", [0, 1])
def test_against_others(shift):
    """With logits that happen to lie in [0, 1], too: they are logits."""
    logits, labels = draw(1000, 10, 3)
    if shift:
        logits = (logits - logits.min()) / np.ptp(logits)
    found = calibration_metrics(torch.tensor(logits), torch.tensor(labels))
    p = softmax(logits.astype(np.float64), axis=1)
    assert found["nll"] == pytest.approx(log_loss(labels, p, labels=range(10)), abs=1e-6)
    assert found["brier"] == pytest.approx(brier_score_loss(labels, p, labels=range(10)), abs=1e-6)
    theirs = MulticlassCalibrationError(10, n_bins=15)(
        torch.tensor(p, dtype=torch.float), torch.tensor(labels)
    )
    assert found["ece"] == pytest.approx(float(theirs), abs=1e-6)


def test_edges():
    sure = torch.tensor([[1000.0, 0.0]] * 4)  # a confidence of exactly 1
    found = calibration_metrics(sure, torch.tensor([0, 0, 0, 1]))
    assert (found["ece"], found["gap"], found["brier"], found["nll"]) == (0.25, 0.25, 0.5, 250)
    assert calibration_metrics(sure.half(), torch.tensor([0, 0, 0, 0])) == dict.fromkeys(found, 0.0)
    even = torch.zeros(4, 5)  # 0.2 = 3 / 15 lies in the third bin
    assert reliability(even, torch.tensor([0, 1, 2, 3]))[0].nonzero().tolist() == [[2]]
    assert calibration_metrics(even, torch.tensor([0, 1, 2, 3]), bins=1)["ece"] == pytest.approx(
        0.05
    )
    one = calibration_metrics(torch.randn(5, 1), torch.zeros(5, dtype=torch.long))
    assert one == dict.fromkeys(one, 0.0)


def test_the_order_of_equals_does_not_matter():
    logits, labels = map(torch.tensor, draw(300, 4, 1))
    rows = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert calibration_metrics(logits, labels) == pytest.approx(
        calibration_metrics(logits[rows], labels[rows]), abs=1e-12
    )


@pytest.mark.parametrize(("n", "classes", "scale"), CASES)
def test_temperature_is_scipys_and_never_harms(n, classes, scale, monkeypatch):
    monkeypatch.setattr("tricklab.metrics.MIN_TEMPERATURE_IMAGES", 1)
    logits, labels = map(torch.tensor, draw(n, classes, scale))
    temperature = fit_temperature(logits, labels)
    assert 0.01 <= temperature <= 100
    tempered = logits.double() / temperature
    assert torch.equal(tempered.argmax(1), logits.argmax(1))

    def nll(log_t):
        return calibration_metrics(logits.double() / math.exp(log_t), labels)["nll"]

    theirs = minimize_scalar(
        nll, bounds=(math.log(0.01), math.log(100)), method="bounded", options={"xatol": 1e-10}
    )
    assert calibration_metrics(tempered, labels)["nll"] <= min(
        theirs.fun + 1e-9, calibration_metrics(logits, labels)["nll"]
    )


def test_temperature_finds_what_was_done_to_the_logits():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=random)
    labels = logits.softmax(1).multinomial(1, generator=random)[:, 0]
    for factor in (0.2, 1.0, 4.0):
        assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.03)
    assert (
        calibration_metrics(logits * 4, labels)["ece"]
        > 0.2
        > 0.02
        > calibration_metrics(logits, labels)["ece"]
    )


def test_metric_of_torchmetrics():
    logits, labels = map(torch.tensor, draw(1000, 10, 3))
    metric = Calibration(temperature=2.0)
    for rows in torch.arange(1000).split(300):
        metric.update(logits[rows], labels[rows])
    assert metric.compute() == calibration_metrics(logits.double() / 2, labels)
    metric.reset()
    metric(logits[:10], labels[:10])
    assert metric.compute() == calibration_metrics(logits[:10].double() / 2, labels[:10])


def test_a_run_has_it_and_evaluate_the_same_with_intervals(train, script, tmp_path):
    assert (
        train(
            "trainer.accelerator=cpu", "model=mlp", "trainer.max_epochs=2", "hydra.run.dir=run"
        ).returncode
        == 0
    )
    done = Run(tmp_path / "run")
    metrics = done.result["metrics"]
    assert metrics["val/nll"] >= metrics["val/nll_t"]
    assert metrics["val/temperature"] == metrics["test/temperature"] != 1
    assert done.column("val/ece")[-1] == metrics["val/ece"]
    assert done.column("val/brier_t")[-1] == metrics["val/brier_t"]
    assert (done.folder / "calibration.png").read_bytes().startswith(b"\x89PNG")
    bins = [
        [float(x) for x in line.split(",")]
        for line in (done.folder / "calibration.csv").read_text().split()[1:]
    ]
    images, right, _ = map(sum, zip(*bins, strict=True))
    assert (len(bins), images, right / images) == (15, 359, pytest.approx(metrics["test/acc"]))
    assert sum(abs(b[1] - b[2]) for b in bins) / images == pytest.approx(metrics["test/ece"])
    said = script("evaluate.py", f"ckpt={done.folder}/checkpoints/best.ckpt", "resamples=50").stdout
    for name in ("test/acc", "test/ece", "test/ece_t", "test/aurc", "test/brier_t"):
        value, low, _, high = next(
            line.split()[1:] for line in said.splitlines() if line.split()[0] == name
        )
        assert float(value) == metrics[name]
        assert float(low.strip("(")) < float(high.strip(")"))
    low, high = (float(x.strip("()")) for x in said.split("test/acc ")[1].split()[1:4:2])
    width = 2 * 1.96 * math.sqrt(metrics["test/acc"] * (1 - metrics["test/acc"]) / 360)
    assert high - low == pytest.approx(width, rel=0.35)


def test_no_temperature_is_fitted_on_a_few_images(run, capsys):
    """On 5 images it would be noise."""
    torch.manual_seed(0)
    logits, labels = 5 * torch.randn(200, 3), torch.randint(3, (200,))
    assert fit_temperature(logits[:49], labels[:49]) == 1.0
    assert fit_temperature(logits[:50], labels[:50]) > 1.5
    done = run("model=mlp", "trainer.max_epochs=1", "data.val_size=5")
    assert done.result["metrics"]["test/temperature"] == 1.0
    said = capsys.readouterr().out
    assert "temperature: 1, as 5 validation images are too few to fit it\n" in said


def test_the_picture_of_calibration_says_of_what_it_is(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(
        "tricklab.run.figures.save_figure", lambda figure, path: drawn.append(figure)
    )
    draw_calibration(
        torch.randn(1360, 3), torch.zeros(1360, dtype=torch.long), 1.5, tmp_path / "c.png"
    )
    assert drawn[0].get_suptitle() == "test set, 1,360 images"
    assert (tmp_path / "c.csv").read_bytes().startswith(b"images,right,confidence\n")
