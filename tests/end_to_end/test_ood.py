"""OOD detection: transformed images, and how well confidence separates them."""

import csv
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from helpers.configs import ONE_BATCH, configure
from tricklab.analysis import ood
from tricklab.analysis.ood import (
    GaussianNoise,
    Noise,
    blur,
    evaluation_sets,
    ood_detection_metrics,
    rotate,
    run_suite,
)
from tricklab.analysis.trained import load_checkpoint
from tricklab.cli.overrides import quote
from tricklab.run.build import build_data

CONFIDENCES = {  # of test images and of others
    "separated": ([0.9, 1.0, 1.0], [0.1, 0.2]),
    "reversed": ([0.1, 0.2], [0.9, 1.0]),
    "all equal": ([0.5] * 4, [0.5] * 3),
    "ties": ([0.5, 0.5, 0.7, 1.0], [0.5, 0.7, 0.7, 0.1, 1.0]),
    "one each": ([1.0], [1.0]),
    "random": (torch.rand(500).tolist(), (torch.rand(300) * 0.9).tolist()),
    "few values": ((torch.rand(200) * 5).round().tolist(), (torch.rand(100) * 4).round().tolist()),
}


@pytest.mark.parametrize("case", CONFIDENCES)
@pytest.mark.parametrize("dtype", [torch.double, torch.float16])
def test_ood_detection_metrics_are_those_of_sklearn(case, dtype):
    inside, outside = (torch.tensor(values, dtype=dtype) for values in CONFIDENCES[case])
    labels = [1] * len(inside) + [0] * len(outside)
    scores = torch.cat([inside, outside]).double().numpy()
    metrics = ood_detection_metrics(inside, outside)
    assert metrics["auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert metrics["fpr95"] == pytest.approx(np.min(fpr[tpr >= 0.95]), abs=1e-9)


def test_noise_is_uniform_and_differs_between_batches():
    images = torch.zeros(50, 3, 8, 8)
    noise = Noise(0)
    first, second = noise(images), noise(images)
    assert torch.equal(first, Noise(0)(images))
    assert not torch.equal(first, second)
    assert (first.float().mean() - 127.5).abs() < 2
    assert first.float().std() == pytest.approx(255 / 12**0.5, rel=0.02)


def test_gaussian_noise_has_the_moments_of_each_channel():
    images = torch.zeros(100, 2, 50, 50, dtype=torch.uint8)
    noise = GaussianNoise([0.1, 0.9], [0.3, 0.2], (40, 60), seed=0)
    first, second = noise(images), noise(images)
    assert first.shape == (100, 2, 40, 60)
    assert not torch.equal(first, second)
    assert first.mean((0, 2, 3)).tolist() == pytest.approx([25.5, 229.5], abs=0.5)
    assert first.std((0, 2, 3)).tolist() == pytest.approx([76.5, 51], rel=0.01)
    assert first.min() < 0  # not clipped


def test_rotate_is_by_90_degrees():
    images = torch.randint(256, (2, 1, 6, 8), dtype=torch.uint8)
    assert torch.equal(rotate(images)[:, :, 0], images[:, :, :, -1])


def test_blur_keeps_the_sum_of_a_point_and_its_symmetry():
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 255
    blurred = blur(point)
    assert blurred.sum() == pytest.approx(255, rel=0.01)
    assert blurred[..., 10, 10] < 20
    assert torch.equal(blurred, blurred.flip(2))


def test_blur_takes_images_that_are_not_square():
    images = torch.randint(256, (2, 1, 6, 8), dtype=torch.uint8)
    assert blur(images).shape == images.shape
    line = torch.zeros(1, 1, 1, 40)
    line[..., 20] = 255
    assert blur(line).max() < 60


@pytest.fixture
def ema_run(cached_run):
    options = ("model=mlp", "model.dropout=0.3", "callbacks=ema", "trainer.max_epochs=3")
    return cached_run(*options).folder


def read_table(run):
    with (run / "ood.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_suite_compares_networks_on_all_sets(ema_run, run_script):
    options = ("suite=ood", "mc=4", "tta=2", "augment=rotate", "other=fake")
    done = run_script("evaluate.py", str(ema_run), *options)
    assert done.returncode == 0, done.stderr
    rows = read_table(ema_run)
    by_key = {(row["view"], row["images"]): row for row in rows}
    views = ["average", "last weights", "mc=4", "tta=2"]
    sets = ["test", "noise", "gaussian", "rotation", "blur", "fake"]
    assert list(by_key) == [(view, name) for view in views for name in sets]
    for name in ("test", "noise"):
        assert len({by_key[view, name]["confidence"] for view in views}) == len(views)
    for name in ("noise", "blur", "fake"):
        assert float(by_key["average", name]["auroc"]) > 0.8
    assert by_key["average", "test"]["auroc"] == ""
    assert len(done.stdout.splitlines()) == len(rows) + 1
    assert (ema_run / "ood.png").stat().st_size > 10_000
    fewer = run_script("evaluate.py", str(ema_run), "suite=ood", "other=fake").stdout
    assert fewer.splitlines()[:7] == done.stdout.splitlines()[:7]


def test_suite_confidence_on_the_test_set_is_accuracy_plus_gap(ema_run, run_script):
    run_script("evaluate.py", str(ema_run), "suite=ood")
    output = run_script("evaluate.py", str(ema_run), "resamples=0").stdout
    results = dict(line.split() for line in output.splitlines()[1:])
    confidence = float(results["test/gap"]) + float(results["test/acc"])
    assert float(read_table(ema_run)[0]["confidence"]) == pytest.approx(confidence, abs=1e-9)


@pytest.mark.parametrize("size", ["null", "16"])
def test_gaussian_noise_is_normalised_to_mean_0_and_std_1(cached_run, size):
    """The data are normalised by their own moments here, so noise of these becomes standard."""
    run = cached_run(*ONE_BATCH, "model=mlp", f"data.size={size}").folder
    checkpoint = load_checkpoint(run)
    data = checkpoint.data()
    sets = {part.name: part for part in evaluation_sets(checkpoint, data, "")}
    noise = data.preprocess(sets["gaussian"].make_transform()(data.splits.test.images))
    assert noise.shape[2] == (8 if size == "null" else 16)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_moments_are_measured_before_any_evaluation(ema_run, monkeypatch):
    """On a GPU the first evaluation moves the images to it."""
    checkpoint = load_checkpoint(ema_run)
    data = checkpoint.data()
    events = []
    measure, evaluate = ood.channel_mean_std, ood.evaluate_on
    monkeypatch.setattr(
        ood, "channel_mean_std", lambda *args: events.append("moments") or measure(*args)
    )
    monkeypatch.setattr(
        ood, "evaluate_on", lambda *args: events.append("evaluation") or evaluate(*args)
    )
    run_suite(checkpoint, data, 0, 0, "")
    assert events[0] == "moments"
    assert events.count("moments") == 1


def test_all_networks_see_the_same_noise(ema_run):
    checkpoint = load_checkpoint(ema_run)
    sets = {part.name: part for part in evaluation_sets(checkpoint, checkpoint.data(), "")}
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    for name in ("noise", "gaussian"):
        first, second = (sets[name].make_transform() for _ in range(2))
        assert torch.equal(first(images), second(images))


@pytest.mark.parametrize("has_images", [True, False])
def test_left_out_classes_of_files_need_test_images_alone(class_folders, run, has_images):
    """Their training images may be damaged, or missing."""
    class_folders({"train": 8}, classes=("ant", "bee", "cow"))
    tested = ("ant", "bee", "cow") if has_images else ("ant", "bee")
    root = class_folders({"test": 3}, classes=tested)
    data = ("data=folder", f"data.root='{root}'", "data.size=12", "data.classes=[ant,bee]")
    folder = run(*ONE_BATCH, *data, "model=mlp").folder
    for path in root.glob("train/cow/*.png"):
        path.write_bytes(b"damaged")
    checkpoint = load_checkpoint(folder)
    rows = run_suite(checkpoint, checkpoint.data(), 0, 0, "")
    numbers = {row[1]: row[-1] for row in rows[1:]}
    assert numbers["test"] == 6
    assert numbers.get("other classes") == (3 if has_images else None)


def test_run_on_some_classes_is_evaluated_on_another_folder(class_folders, run, run_script):
    root = class_folders({"train": 8, "test": 3, "more": 4}, classes=("ant", "bee", "cow"))
    data = ("data=folder", f"data.root='{root}'", "data.size=12", "data.classes=[ant,cow]")
    folder = run(*ONE_BATCH, *data, "model=mlp").folder
    shutil.rmtree(root / "more" / "bee")
    done = run_script("evaluate.py", str(folder), f"data.root={quote(root / 'more')}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("images 8\n")
    suite = run_script("evaluate.py", str(folder), f"data.root={quote(root / 'more')}", "suite=ood")
    assert "other classes" not in suite.stdout  # those of the run are not there
    refused = run_script("evaluate.py", str(folder), "data.classes=[bee,cow]")
    assert "the data have the classes ['bee', 'cow'], the checkpoint" in refused.stderr


def test_suite_has_the_classes_that_the_run_left_out(run_script, cached_run):
    options = ("model=mlp", "trainer.max_epochs=4", "data.classes=[0,1,2,3,4,5,8]")
    run = cached_run(*options).folder
    assert run_script("evaluate.py", str(run), "suite=ood").returncode == 0
    (row,) = [row for row in read_table(run) if row["images"] == "other classes"]
    checkpoint = load_checkpoint(run)
    everything = build_data(configure("data=digits")).splits.test  # independent of data.classes
    is_other = torch.isin(everything.labels, torch.tensor([6, 7, 9]))
    net = checkpoint.net().eval()
    with torch.no_grad():
        logits = net(checkpoint.preprocess()(everything.images))
    confidence = logits.softmax(1).amax(1)
    assert int(row["n"]) == is_other.sum()
    assert float(row["confidence"]) == pytest.approx(confidence[is_other].mean().item(), abs=1e-6)
    auroc = roc_auc_score(~is_other, confidence)
    assert float(row["auroc"]) == pytest.approx(auroc, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["suite=odd"], "suite=odd; allowed: ood"),
        (["suite=ood", "other=nothing"], "data=nothing does not exist; allowed: "),
    ],
)
def test_suite_refuses_unknown_options(options, message, ema_run, run_script):
    done = run_script("evaluate.py", str(ema_run), *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (ema_run / "ood.csv").exists()


def test_figure_names_its_axes_networks_and_sets(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(ood, "save_figure", lambda figure, path: figures.append(figure))
    by_set = {"test": torch.tensor([0.9, 0.8]), "noise": torch.tensor([0.3, 0.2])}
    ood.draw_confidence({"network": by_set, "mc=4": by_set}, tmp_path / "ood.png")
    [figure] = figures
    assert figure.get_supxlabel() == "confidence"
    assert figure.get_supylabel() == "fraction of images"
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["network: test", "mc=4: test", "network: noise", "mc=4: noise"]
