"""Calibration metrics against loops, scikit-learn, SciPy and torchmetrics, and at their edges."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.functional import accuracy

from tricklab.metrics import (
    Calibration,
    calibration_metrics,
    evaluate,
    evaluate_briefly,
    fit_temperature,
    reliability,
    weight_stats,
)
from tricklab.run.figures import draw_calibration

CASES = [  # images, classes, std of the logits
    (1, 2, 1),
    (10, 3, 0.1),
    (1000, 10, 3),
    (500, 100, 10),
    (50, 1, 1),
    (300, 4, 0.0),
    (200, 3, 1e4),
]


def sample(images, classes, std):
    """Return logits that are informative about the labels, a quarter of them equal; float32."""
    random = np.random.default_rng(images)
    labels = random.integers(0, classes, images)
    logits = random.normal(0, std, (images, classes)) + std * np.eye(classes)[labels]
    logits[: images // 4] = logits[0]
    return logits.astype(np.float32), labels


def sample_tensors(images, classes, std):
    logits, labels = sample(images, classes, std)
    return torch.tensor(logits), torch.tensor(labels)


def loop_ece(confidence, correct, bins):
    ece = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            ece += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return ece


def loop_oe(confidence, correct, bins):
    oe = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            conf, acc = confidence[inside].mean(), correct[inside].mean()
            oe += inside.mean() * conf * max(conf - acc, 0)
    return oe


def loop_metrics(logits, labels, bins=15):
    """Compute the metrics image by image and bin by bin, in NumPy."""
    logits = logits.astype(np.float64)
    p, log_p = softmax(logits, axis=1), log_softmax(logits, axis=1)
    one_hot = np.eye(logits.shape[1])[labels]
    confidence, correct = p.max(1), (p.argmax(1) == labels).astype(float)
    # Images of the same confidence count as their mean
    fair = np.array([correct[confidence == c].mean() for c in confidence])
    order = np.argsort(-confidence, kind="stable")
    risks = [np.mean(1 - fair[order][:n]) for n in range(1, len(order) + 1)]
    adaptive_bins = np.array_split(fair[order] - confidence[order], bins)
    return {
        "ece": loop_ece(confidence, correct, bins),
        "oe": loop_oe(confidence, correct, bins),
        "ece_mass": sum(abs(part.sum()) for part in adaptive_bins) / len(labels),
        "gap": confidence.mean() - correct.mean(),
        "nll": -np.mean([row[label] for row, label in zip(log_p, labels, strict=True)]),
        "brier": np.mean([np.sum((a - b) ** 2) for a, b in zip(p, one_hot, strict=True)]),
        "aurc": np.mean(risks),
    }


@pytest.mark.parametrize(("images", "classes", "std"), CASES)
def test_calibration_metrics_equal_a_loop(images, classes, std):
    logits, labels = sample(images, classes, std)
    metrics = calibration_metrics(torch.tensor(logits), torch.tensor(labels))
    assert metrics == pytest.approx(loop_metrics(logits, labels), abs=1e-9)


@pytest.mark.parametrize("in_unit_interval", [False, True])
def test_calibration_metrics_equal_those_of_other_libraries(in_unit_interval):
    """Logits that happen to lie in [0, 1] are not taken for probabilities."""
    logits, labels = sample(1000, 10, 3)
    if in_unit_interval:
        logits = (logits - logits.min()) / np.ptp(logits)
    metrics = calibration_metrics(torch.tensor(logits), torch.tensor(labels))
    p = softmax(logits.astype(np.float64), axis=1)
    nll = log_loss(labels, p, labels=range(10))
    brier = brier_score_loss(labels, p, labels=range(10))
    ece = MulticlassCalibrationError(10, n_bins=15)(
        torch.tensor(p, dtype=torch.float), torch.tensor(labels)
    )
    assert metrics["nll"] == pytest.approx(nll, abs=1e-6)
    assert metrics["brier"] == pytest.approx(brier, abs=1e-6)
    assert metrics["ece"] == pytest.approx(float(ece), abs=1e-6)


def test_overconfidence_error_counts_overconfident_bins_alone():
    """Confidences 0.6 and 0.9 of 10 images each, of which 9 and 5 are correct."""
    p = torch.tensor([[0.6, 0.4]] * 10 + [[0.9, 0.1]] * 10, dtype=torch.double)
    labels = torch.tensor([0] * 9 + [1] + [0] * 5 + [1] * 5)
    metrics = calibration_metrics(p.log(), labels)
    assert metrics["oe"] == pytest.approx(0.5 * 0.9 * 0.4)
    assert metrics["ece"] == pytest.approx(0.5 * 0.3 + 0.5 * 0.4)


def test_calibration_metrics_of_certain_predictions():
    certain = torch.tensor([[1000.0, 0.0]] * 4)  # a confidence of exactly 1
    metrics = calibration_metrics(certain, torch.tensor([0, 0, 0, 1]))
    expected = {"ece": 0.25, "gap": 0.25, "brier": 0.5, "nll": 250}
    assert {name: metrics[name] for name in expected} == expected
    perfect = calibration_metrics(certain.half(), torch.tensor([0, 0, 0, 0]))
    assert perfect == dict.fromkeys(metrics, 0.0)


def test_calibration_metrics_of_one_class_are_zero():
    metrics = calibration_metrics(torch.randn(5, 1), torch.zeros(5, dtype=torch.long))
    assert metrics == dict.fromkeys(metrics, 0.0)


def test_bins_include_their_upper_end():
    uniform = torch.zeros(4, 5)  # 0.2 = 3 / 15 belongs to the third bin
    labels = torch.tensor([0, 1, 2, 3])
    assert reliability(uniform, labels)[0].nonzero().tolist() == [[2]]
    assert calibration_metrics(uniform, labels, bins=1)["ece"] == pytest.approx(0.05)


def test_calibration_metrics_do_not_depend_on_the_order_of_images():
    logits, labels = sample_tensors(300, 4, 1)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = calibration_metrics(logits[order], labels[order])
    assert calibration_metrics(logits, labels) == pytest.approx(shuffled, abs=1e-12)


def test_brief_evaluation_has_the_same_values():
    logits, labels = sample_tensors(300, 4, 1)
    brief = evaluate_briefly(logits, labels)
    whole = evaluate(logits, labels, temperature=2.0)
    assert brief == {name: whole[name] for name in ("loss", "acc", "ece")}


def test_calibration_metric_accumulates_batches():
    logits, labels = sample_tensors(1000, 10, 3)
    metric = Calibration(temperature=2.0)
    for indices in torch.arange(1000).split(300):
        metric.update(logits[indices], labels[indices])
    assert metric.compute() == calibration_metrics(logits.double() / 2, labels)
    metric.reset()
    metric(logits[:10], labels[:10])
    assert metric.compute() == calibration_metrics(logits[:10].double() / 2, labels[:10])


@pytest.mark.parametrize(("images", "classes", "std"), CASES)
def test_temperature_equals_scipys_minimum(images, classes, std, monkeypatch):
    """The NLL is never higher than without a temperature, and no prediction changes."""
    monkeypatch.setattr("tricklab.metrics.MIN_TEMPERATURE_IMAGES", 1)
    logits, labels = sample_tensors(images, classes, std)

    def nll(temperature):
        return calibration_metrics(logits.double() / temperature, labels)["nll"]

    temperature = fit_temperature(logits, labels)
    assert 0.01 <= temperature <= 100
    assert torch.equal((logits.double() / temperature).argmax(1), logits.argmax(1))
    reference = minimize_scalar(
        lambda log_t: nll(math.exp(log_t)),
        bounds=(math.log(0.01), math.log(100)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert nll(temperature) <= min(reference.fun + 1e-9, nll(1.0))


@pytest.mark.parametrize("factor", [0.2, 1.0, 4.0])
def test_temperature_recovers_a_factor_of_the_logits(factor):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=random)
    labels = logits.softmax(1).multinomial(1, generator=random)[:, 0]
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.03)
    assert calibration_metrics(logits, labels)["ece"] < 0.02
    assert calibration_metrics(logits * 4, labels)["ece"] > 0.2


def test_weight_stats_count_zeros_and_measure_the_norm():
    weights = [torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0], [4.0]])]
    assert weight_stats(weights) == {"train/zeros": 0.5, "train/weight_norm": 5.0}


def test_calibration_figure_names_the_number_of_images(monkeypatch, tmp_path):
    figures = []

    def keep(figure, path):
        figures.append(figure)

    monkeypatch.setattr("tricklab.run.figures.save_figure", keep)
    labels = torch.zeros(1360, dtype=torch.long)
    draw_calibration(torch.randn(1360, 3), labels, 1.5, tmp_path / "c.png")
    assert figures[0].get_suptitle() == "test set, 1,360 images"
    assert (tmp_path / "c.csv").read_bytes().startswith(b"images,right,confidence\n")


def test_top5_accuracy_equals_torchmetrics():
    logits = torch.randn(500, 20)
    labels = torch.randint(20, (500,))
    metrics = evaluate(logits, labels)
    for name, k in (("acc", 1), ("acc_top5", 5)):
        expected = accuracy(
            logits, labels, task="multiclass", num_classes=20, top_k=k, average="micro"
        )
        assert metrics[name] == pytest.approx(float(expected))
