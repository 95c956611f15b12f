"""The mean over views: Monte-Carlo dropout and test-time augmentation."""

import math

import pytest
import torch
from conftest import Run
from torch import nn

from tricklab.analysis.views import ViewEnsemble
from tricklab.augment import alternating_flip, crop
from tricklab.errors import UserError
from tricklab.randomness import Rand, generator, seed_default

NET = nn.Sequential(
    nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, 3)
).eval()
IMAGES = torch.randint(256, (5, 1, 3, 4), dtype=torch.uint8, generator=generator(0, "images"))


class Halved(nn.Module):
    """What a run would prepare, here one number."""

    def forward(self, images):
        return images.float() / 128


def averaged(views, dropout=False, augment=None):
    return ViewEnsemble(NET, Halved(), views, dropout, augment or {}, seed=7).eval()


def entropy(p):
    return -(p * p.log()).sum(-1)


def test_dropout_views_are_averaged_and_measured():
    ours = averaged(4, dropout=True)
    with torch.no_grad():
        logits = [ours(IMAGES), ours(IMAGES)]
        for batch in range(2):
            passes = []
            for view in range(4):
                seed_default(7, "mc", batch, view)
                passes.append(NET.train()(IMAGES.float() / 128).softmax(1))
            mean = torch.stack(passes).mean(0)
            assert torch.allclose(logits[batch].softmax(1), mean, atol=1e-6)
            assert torch.allclose(ours.entropy[batch], entropy(mean), atol=1e-5)
            information = entropy(mean) - torch.stack([entropy(p) for p in passes]).mean(0)
            assert torch.allclose(ours.mutual_information[batch], information, atol=1e-5)
            assert (information > 0).all()
    NET.eval()
    assert not torch.equal(*logits)  # each batch has numbers of its own


def test_one_image_may_look_the_same_twice():
    ours = averaged(2, dropout=True)
    with torch.no_grad():
        ours.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout(0.0))
        with pytest.raises(UserError, match="no dropout"):
            ours(IMAGES)
        ours(IMAGES[:1])


def test_augmented_views_are_averaged():
    ours = averaged(3, augment={"crop": lambda images, rand: crop(images, rand, padding=1)})
    with torch.no_grad():
        views = [
            crop(IMAGES, Rand(generator(7, "view crop", 0, view), 5), padding=1)
            for view in range(3)
        ]
        mean = torch.stack([NET(view.float() / 128).softmax(1) for view in views]).mean(0)
        assert torch.allclose(ours(IMAGES).softmax(1), mean, atol=1e-6)


def test_two_alternating_flips_are_both_sides():
    with torch.no_grad():
        both = averaged(2, augment={"flip": alternating_flip})(IMAGES).softmax(1)
        sides = [NET(side.float() / 128).softmax(1) for side in (IMAGES, IMAGES.flip(3))]
    assert torch.allclose(both, (sides[0] + sides[1]) / 2, atol=1e-6)


def test_views_of_one_kind_have_no_mutual_information():
    with torch.no_grad():
        ours = averaged(3)
        assert torch.allclose(
            ours(IMAGES).softmax(1), NET(IMAGES.float() / 128).softmax(1), atol=1e-6
        )
        assert ours.mutual_information[0].abs().max() < 1e-6
        assert (ours.entropy[0] < math.log(3)).all()
    with pytest.raises(UserError, match="mc=4: the network has no dropout"):
        ViewEnsemble(NET[:3], Halved(), 4, True, {}, seed=0)(IMAGES)


class Functional(nn.Module):
    """Drops units without a layer for it, as many networks of timm do; its batch norm must stay as it is."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm2d(1), nn.Linear(12, 3)

    def forward(self, x):
        return self.out(nn.functional.dropout(self.norm(x).flatten(1), 0.5, self.training))


def test_dropout_without_a_layer_is_found_and_norms_stay():
    net = Functional().eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    ours = ViewEnsemble(net, Halved(), 4, True, {}, seed=0)
    with torch.no_grad():
        ours(IMAGES)
    assert (ours.mutual_information[0] > 0).all()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_views_in_any_precision_are_those_of_training(trained, script, precision):
    done = trained("model=mlp", "augment=rotate", "trainer.max_epochs=3")
    ckpt = f"ckpt={done.folder}/checkpoints/best.ckpt"
    plain, other = (
        values(
            script(
                "evaluate.py",
                ckpt,
                "resamples=0",
                "tta=4",
                "augment.rotate.degrees=30",
                "augment=rotate",
                f"trainer.precision={p}",
            )
        )
        for p in ("32-true", precision)
    )
    assert other["test/loss"] == pytest.approx(plain["test/loss"], rel=0.03)
    assert plain != values(script("evaluate.py", ckpt, "resamples=0", "tta=4"))


def values(said):
    return {
        name: float(value)
        for name, value in (line.split()[:2] for line in said.stdout.splitlines()[1:])
    }


def test_evaluate_with_views(run, script):
    done: Run = run("model=mlp", "model.dropout=0.5", "augment=crop", "trainer.max_epochs=4")
    ckpt = f"ckpt={done.folder}/checkpoints/best.ckpt"
    plain, mc, again, tta, other = (
        values(script("evaluate.py", ckpt, "resamples=0", *more))
        for more in ([], ["mc=16"], ["mc=16"], ["tta=8"], ["tta=8", "augment=rotate"])
    )
    assert plain == {name: done.result["metrics"][name] for name in plain}
    assert mc == again
    assert mc.keys() == plain.keys() | {"test/entropy", "test/mutual_information"}
    assert 0 < mc["test/mutual_information"] < mc["test/entropy"] < math.log(10)
    assert len({view["test/loss"] for view in (plain, mc, tta, other)}) == 4
    assert min(view["test/acc"] for view in (mc, tta, other)) > 0.6
