"""Images that a network does not know: how they are made, and how well its confidence tells them."""

import csv

import numpy as np
import pytest
import torch
from conftest import Run
from sklearn.metrics import roc_auc_score, roc_curve

from tricklab.analysis.ood import Noise, blur, ood_detection_metrics, rotate

EDGES = {
    "apart": ([0.9, 1.0, 1.0], [0.1, 0.2]),
    "the wrong way round": ([0.1, 0.2], [0.9, 1.0]),
    "all equal": ([0.5] * 4, [0.5] * 3),
    "ties": ([0.5, 0.5, 0.7, 1.0], [0.5, 0.7, 0.7, 0.1, 1.0]),
    "one each": ([1.0], [1.0]),
    "random": (torch.rand(500).tolist(), (torch.rand(300) * 0.9).tolist()),
    "few values": ((torch.rand(200) * 5).round().tolist(), (torch.rand(100) * 4).round().tolist()),
}


@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("dtype", [torch.double, torch.float16])
def test_separation_is_that_of_sklearn(case, dtype):
    inside, outside = (torch.tensor(values, dtype=dtype) for values in EDGES[case])
    truth = [1] * len(inside) + [0] * len(outside)
    scores = torch.cat([inside, outside]).double().numpy()
    found = ood_detection_metrics(inside, outside)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found["fpr95"] == pytest.approx(np.min(false[true >= 0.95]), abs=1e-9)


def test_noise_has_numbers_of_its_own_for_each_batch():
    images = torch.zeros(50, 3, 8, 8)
    first, second = (noise := Noise(0))(images), noise(images)
    assert torch.equal(first, Noise(0)(images))
    assert not torch.equal(first, second)
    assert (first.float().mean() - 127.5).abs() < 2
    assert first.float().std() == pytest.approx(255 / 12**0.5, rel=0.02)


def test_a_quarter_turn_and_a_blur():
    images = torch.randint(256, (2, 1, 6, 8), dtype=torch.uint8)
    assert torch.equal(rotate(images)[:, :, 0], images[:, :, :, -1])
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 255
    blurred = blur(point)
    assert blurred.sum() == pytest.approx(255, rel=0.01)
    assert blurred[..., 10, 10] < 20
    assert torch.equal(blurred, blurred.flip(2))
    assert blur(images).shape == images.shape
    line = torch.zeros(1, 1, 1, 40)
    line[..., 20] = 255
    assert blur(line).max() < 60


@pytest.fixture
def best(trained):
    done: Run = trained("trainer.max_epochs=3", "model.dropout=0.3", "model=mlp", "callbacks=ema")
    return done.folder / "checkpoints" / "best.ckpt"


def test_views_of_a_checkpoint_side_by_side(best, script):
    done = script(
        "evaluate.py", f"ckpt={best}", "suite=ood", "mc=4", "tta=2", "augment=rotate", "other=fake"
    )
    assert done.returncode == 0, done.stderr
    with (best.parents[1] / "ood.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    of = {(row["view"], row["images"]): row for row in rows}
    assert [*dict.fromkeys(view for view, _ in of)] == ["average", "last weights", "mc=4", "tta=2"]
    assert [*dict.fromkeys(images for _, images in of)] == [
        "test",
        "noise",
        "rotation",
        "blur",
        "fake",
    ]
    for images in ("test", "noise"):  # each view sees something else
        assert len({of[view, images]["confidence"] for view, name in of if name == images}) == 4
    assert all(float(of["average", name]["auroc"]) > 0.8 for name in ("noise", "blur", "fake"))
    assert of["average", "test"]["auroc"] == ""
    assert len(done.stdout.splitlines()) == len(rows) + 1
    assert (best.parents[1] / "ood.png").stat().st_size > 10_000
    again = script("evaluate.py", f"ckpt={best}", "suite=ood", "other=fake").stdout.splitlines()
    assert again[:6] == done.stdout.splitlines()[:6]


def test_the_confidence_on_the_test_set_is_that_of_its_logits(best, script):
    script("evaluate.py", f"ckpt={best}", "suite=ood")
    said = script("evaluate.py", f"ckpt={best}", "resamples=0").stdout
    results = {line.split()[0]: float(line.split()[1]) for line in said.splitlines()[1:]}
    with (best.parents[1] / "ood.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert float(row["confidence"]) == pytest.approx(
        results["test/gap"] + results["test/acc"], abs=1e-9
    )


@pytest.mark.parametrize("words", [["suite=odd"], ["suite=ood", "other=nothing"]])
def test_the_suite_refuses(words, best, script):
    done = script("evaluate.py", f"ckpt={best}", *words)
    assert done.returncode == 1
    assert f"{words[-1].replace('other', 'data')}" in done.stderr
    assert not (best.parents[1] / "ood.csv").exists()
