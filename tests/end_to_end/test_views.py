"""Averaging over views: Monte-Carlo dropout and test-time augmentation."""

import math

import pytest
import torch
from torch import nn

from tricklab.analysis.views import ViewEnsemble
from tricklab.augment import alternating_flip, crop
from tricklab.errors import UserError
from tricklab.randomness import Rand, generator, seed_default

NET = nn.Sequential(
    nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 3)
).eval()
IMAGES = torch.randint(256, (5, 1, 3, 4), dtype=torch.uint8, generator=generator(0, "images"))


class Scale(nn.Module):
    """Stands for the preprocessing of a run."""

    def forward(self, images):
        return images.float() / 128


def make_ensemble(views, dropout=False, augment=None, net=NET):
    return ViewEnsemble(net, Scale(), views, dropout, augment or {}, seed=7).eval()


def predict(net, images):
    """Return probabilities [B, K]."""
    return net(images.float() / 128).softmax(1)


def entropy(p):
    return -(p * p.log()).sum(-1)


def padded_crop(images, rand):
    return crop(images, rand, padding=1)


@torch.no_grad()
def test_mc_dropout_averages_probabilities_and_measures_entropies():
    ensemble = make_ensemble(4, dropout=True)
    logits = [ensemble(IMAGES), ensemble(IMAGES)]
    for batch in range(2):
        views = []
        for view in range(4):
            seed_default(7, "mc", batch, view)
            views.append(predict(NET.train(), IMAGES))
        mean = torch.stack(views).mean(0)
        mutual_information = entropy(mean) - torch.stack([entropy(p) for p in views]).mean(0)
        assert torch.allclose(logits[batch].softmax(1), mean, atol=1e-6)
        assert torch.allclose(ensemble.entropy[batch], entropy(mean), atol=1e-5)
        assert torch.allclose(ensemble.mutual_information[batch], mutual_information, atol=1e-5)
        assert (mutual_information > 0).all()
    NET.eval()
    assert not torch.equal(*logits)  # each batch has random numbers of its own


@torch.no_grad()
def test_mc_dropout_without_dropout_is_refused():
    with pytest.raises(UserError, match="mc=4: the network has no dropout"):
        make_ensemble(4, dropout=True, net=NET[:3])(IMAGES)


@torch.no_grad()
def test_mc_dropout_of_one_image_may_be_the_same_twice():
    """Dropout can leave a single image unchanged by chance."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout(0.0))
    make_ensemble(2, dropout=True, net=net)(IMAGES[:1])


class FunctionalDropout(nn.Module):
    """Drops units without a layer for it, as many networks of timm do."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        x = self.norm(x).flatten(1)
        return self.out(nn.functional.dropout(x, 0.5, self.training))


@torch.no_grad()
def test_mc_dropout_without_a_layer_works_and_leaves_batch_norm_alone():
    net = FunctionalDropout().eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    ensemble = make_ensemble(4, dropout=True, net=net)
    ensemble(IMAGES)
    assert (ensemble.mutual_information[0] > 0).all()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@torch.no_grad()
def test_tta_averages_augmented_views():
    ensemble = make_ensemble(3, augment={"crop": padded_crop})
    views = []
    for view in range(3):
        rand = Rand(generator(7, "view crop", 0, view), 5)
        views.append(predict(NET, padded_crop(IMAGES, rand)))
    mean = torch.stack(views).mean(0)
    assert torch.allclose(ensemble(IMAGES).softmax(1), mean, atol=1e-6)


@torch.no_grad()
def test_tta_with_two_alternating_flips_averages_both_sides():
    ensemble = make_ensemble(2, augment={"flip": alternating_flip})
    mean = (predict(NET, IMAGES) + predict(NET, IMAGES.flip(3))) / 2
    assert torch.allclose(ensemble(IMAGES).softmax(1), mean, atol=1e-6)


@torch.no_grad()
def test_equal_views_have_no_mutual_information():
    ensemble = make_ensemble(3)
    assert torch.allclose(ensemble(IMAGES).softmax(1), predict(NET, IMAGES), atol=1e-6)
    assert ensemble.mutual_information[0].abs().max() < 1e-6
    assert (ensemble.entropy[0] < math.log(3)).all()


def evaluate(run_script, run, *options):
    """Return the results that evaluate.py prints."""
    output = run_script("evaluate.py", str(run.folder), "resamples=0", *options).stdout
    pairs = [line.split() for line in output.splitlines()[1:]]
    return {name: float(value) for name, value in pairs}


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_evaluate_augments_views_in_full_precision(cached_run, run_script, precision):
    run = cached_run("model=mlp", "augment=rotate", "trainer.max_epochs=3")
    rotate = ("tta=4", "augment=rotate", "augment.rotate.degrees=30")
    single = evaluate(run_script, run, *rotate, "trainer.precision=32-true")
    other = evaluate(run_script, run, *rotate, f"trainer.precision={precision}")
    assert other["test/loss"] == pytest.approx(single["test/loss"], rel=0.03)
    assert evaluate(run_script, run, "tta=4") != single  # augmented as in training


def test_evaluate_averages_over_views(run, run_script):
    run = run("model=mlp", "model.dropout=0.5", "augment=crop", "trainer.max_epochs=4")
    plain = evaluate(run_script, run)
    mc = evaluate(run_script, run, "mc=16")
    tta = evaluate(run_script, run, "tta=8")
    rotated = evaluate(run_script, run, "tta=8", "augment=rotate")
    assert plain == {name: run.result["metrics"][name] for name in plain}
    assert mc == evaluate(run_script, run, "mc=16")
    assert mc.keys() == plain.keys() | {"test/entropy", "test/mutual_information"}
    assert 0 < mc["test/mutual_information"] < mc["test/entropy"] < math.log(10)
    assert len({results["test/loss"] for results in (plain, mc, tta, rotated)}) == 4
    assert min(results["test/acc"] for results in (mc, tta, rotated)) > 0.6
