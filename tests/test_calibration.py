"""Calibration against a loop over bins, and at its edges."""

import numpy as np
import pytest
import torch

from tricklab.calibration import gaps


def by_hand(logits, labels, bins=15):
    """Expected calibration error, bin by bin (lo, hi]."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True)).astype(np.float32).astype(np.float64)
    confidence, hit, error = p.max(1), p.argmax(1) == labels, 0.0
    for b in range(bins):
        inside = (confidence > np.float32(b / bins)) & (confidence <= np.float32((b + 1) / bins))
        if inside.any():
            error += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return error


def ece(logits, labels):
    return float(gaps(logits, labels).abs().sum() / len(labels))


@pytest.mark.parametrize(
    ("n", "classes", "scale"), [(1, 2, 1), (10, 3, 0.1), (1000, 10, 3), (500, 100, 10), (50, 1, 1)]
)
def test_expected_calibration_error(n, classes, scale):
    random = np.random.default_rng(n)
    logits = random.normal(0, scale, (n, classes)).astype(np.float32)
    labels = random.integers(0, classes, n)
    assert ece(torch.tensor(logits), torch.tensor(labels)) == pytest.approx(by_hand(logits, labels), abs=1e-6)


def test_edges():
    sure = torch.tensor([[1000.0, 0.0]] * 4)  # a confidence of exactly 1
    assert ece(sure, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25)
    assert ece(sure.half(), torch.tensor([0, 0, 0, 0])) == 0
    even = torch.zeros(4, 5)  # 0.2 = 3 / 15 lies in the third bin
    assert gaps(even, torch.tensor([0, 1, 2, 3])).abs().nonzero().tolist() == [[2]]


def test_parts_add_up():
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(100, 4, generator=random), torch.randint(0, 4, (100,), generator=random)
    parts = gaps(logits[:30], labels[:30]) + gaps(logits[30:], labels[30:])
    assert torch.allclose(parts, gaps(logits, labels))


def test_a_run_has_it(run):
    done = run("model=mlp", "trainer.max_epochs=1")
    assert 0 < done.result["metrics"]["val/ece"] < 1
    assert 0 < done.result["metrics"]["test/ece"] < 1
    assert done.column("val/ece")[0] == done.result["metrics"]["val/ece"]
