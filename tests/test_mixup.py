import pytest
import torch
import torch.nn.functional as F
from conftest import CONF, configure
from omegaconf import DictConfig
from scipy import stats
from timm.loss import LabelSmoothingCrossEntropy
from torchvision.transforms import v2

from tricklab.cli.config import options
from tricklab.duration import Length
from tricklab.errors import UserError
from tricklab.metrics import share_right
from tricklab.mixup import (
    alternate,
    blend,
    cutmix,
    draw,
    draw_boxes,
    draw_lam,
    identity,
    images_only,
    mixup,
)
from tricklab.randomness import generator
from tricklab.run.build import build_data, build_loss
from tricklab.run.instantiate import build
from tricklab.run.plan import make_plan
from tricklab.training import ImageClassifier

WAYS = [
    lambda *batch, **more: mixup(*batch, **{"alpha": 1.0, **more}),
    lambda *batch, **more: cutmix(*batch, **{"alpha": 1.0, **more}),
    lambda *batch, **more: alternate(*batch, **{"alpha": 1.0, "cutmix_alpha": 1.0, **more}),
]


def batch(size=8, height=9, width=7):
    images = (
        torch.arange(size, dtype=torch.float)[:, None, None, None]
        .expand(size, 3, height, width)
        .clone()
    )
    return images, torch.eye(size)


def test_mixup_is_its_formula():
    images, targets = torch.randn(8, 3, 5, 5), torch.eye(8)
    mixed, mixed_targets = mixup(images, targets, generator(0, "mix"), alpha=0.7)
    source = generator(0, "mix")
    partner, lam = torch.randperm(8, generator=source), draw_lam(0.7, source, 1).item()
    assert torch.equal(mixed, lam * images + (1 - lam) * images[partner])
    assert torch.equal(mixed_targets, lam * targets + (1 - lam) * targets[partner])
    assert 0 < lam < 1


@pytest.mark.parametrize("per", ["batch", "image"])
def test_images_alone_are_those_of_mixup_with_the_target_that_weighs_more(per):
    images, targets = torch.randn(64, 3, 5, 5), torch.eye(64)
    alone, labels = images_only(images, targets, generator(0, "mix"), alpha=1.0, per=per)
    mixed, weights = mixup(images, targets, generator(0, "mix"), alpha=1.0, per=per)
    assert torch.equal(alone, mixed)
    assert torch.equal(labels, F.one_hot(weights.argmax(1), 64).float())
    assert per == "batch" or 0 < (labels != targets).any(1).float().mean() < 1


@pytest.mark.parametrize("lam", [0.3, 0.123456789, 0.999, 0.5])
def test_mixup_is_torchvisions_bit_for_bit(monkeypatch, lam):
    images, labels = torch.randn(9, 3, 5, 5), torch.arange(9) % 4
    theirs = v2.MixUp(num_classes=4)
    monkeypatch.setattr(theirs._dist, "sample", lambda shape: torch.tensor(lam, dtype=torch.double))
    expected_images, expected_targets = theirs(images, labels)
    partner, lams = torch.arange(9).roll(1), torch.tensor([lam], dtype=torch.double)
    assert torch.equal(blend(images, partner, lams), expected_images)
    assert torch.equal(blend(F.one_hot(labels, 4).float(), partner, lams), expected_targets)
    assert torch.equal(blend(images, partner, lams.expand(9)), expected_images)


def test_the_loss_of_mixed_targets_is_the_weighted_loss_of_both():
    logits, labels = torch.randn(64, 10), torch.randint(10, (64,))
    partner, lam = draw(64, generator(0, "mix"), alpha=1.0, per="image", probability=1.0)
    mixed = F.cross_entropy(logits, blend(F.one_hot(labels, 10).float(), partner, lam))
    own, other = (F.cross_entropy(logits, y, reduction="none") for y in (labels, labels[partner]))
    assert mixed.item() == pytest.approx((lam * own + (1 - lam) * other).mean().item(), abs=1e-6)


@pytest.mark.parametrize("shape", [(9, 7), (32, 32), (1, 5)])
def test_cutmix_weighs_targets_by_the_pixels_pasted(shape):
    """In 10,000 boxes, most of them cut off at a border."""
    height, width = shape
    labels = torch.arange(10_000) % 10
    images = torch.arange(10_000, dtype=torch.float)[:, None, None, None].expand(
        10_000, 1, height, width
    )
    mixed, targets = cutmix(
        images, F.one_hot(labels, 10).float(), generator(0, "mix"), 1.0, per="image"
    )
    own = (mixed == images).float().mean((1, 2, 3))
    partner = torch.randperm(10_000, generator=generator(0, "mix"))
    other = labels != labels[partner]
    assert torch.allclose(targets[torch.arange(10_000), labels][other], own[other], atol=1e-6)
    assert torch.equal(mixed, mixed.round())  # pasted, not blended
    assert torch.allclose(targets.sum(1), torch.ones(10_000))
    assert own.min() < 0.3 or height == 1


@pytest.mark.parametrize("mix", WAYS)
@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_batch_size(mix, per, size):
    images, targets = batch(size)
    mixed, mixed_targets = mix(images, targets, generator(0, "mix"), per=per)
    assert mixed.shape == images.shape
    assert mixed.dtype == mixed_targets.dtype == torch.float32
    assert torch.allclose(mixed_targets.sum(1), torch.ones(size))


@pytest.mark.parametrize("mix", WAYS)
@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("off", [{"alpha": 0, "cutmix_alpha": 0}, {"probability": 0.0}])
def test_off_is_off_bit_for_bit(mix, per, off):
    images, targets = torch.randn(8, 3, 5, 5), torch.eye(8)
    off = (
        off
        if mix is WAYS[2]
        else {key: value for key, value in off.items() if key != "cutmix_alpha"}
    )
    for ours, plain in zip(
        mix(images, targets, generator(0, "mix"), per=per, **off), identity(images, targets, None)
    ):
        assert torch.equal(ours, plain)


def test_per_image_has_a_lam_for_each_and_per_batch_one():
    for per, number in (("batch", 1), ("image", 500)):
        _, lam = draw(500, generator(0, "mix"), alpha=1.0, per=per, probability=1.0)
        assert len(lam.unique()) == number
    images, targets = batch(500)
    pasted, _ = cutmix(images, targets, generator(0, "mix"), 1.0, per="image")
    assert len({tuple(image[0].eq(image[0, 0, 0]).flatten().tolist()) for image in pasted}) > 100


@pytest.mark.parametrize("per", ["batch", "image"])
def test_probability_is_of_a_batch_or_an_image(per):
    _, lam = draw(4000, generator(0, "mix"), 1.0, per, probability=0.3)
    mixed = (lam < 1).float().mean()
    if per == "batch":
        draws = [draw(2, generator(0, "mix", n), 1.0, per, probability=0.3)[1] for n in range(2000)]
        mixed = (torch.cat(draws) < 1).float().mean()
    assert mixed == pytest.approx(0.3, abs=0.03)


def test_alternate_blends_half_and_pastes_half():
    """Each image is either whole numbers (pasted) or not, and the targets are those of the same way."""
    images, targets = batch(2000, 4, 4)
    images = images * 2 + 1
    given = {"alpha": 1.0, "cutmix_alpha": 1.0, "per": "image"}
    mixed, mixed_targets = alternate(images, targets, generator(0, "mix"), **given)
    blended = (mixed[:, 0] == mixed[:, 0, :1, :1]).flatten(1).all(1) & (mixed[:, 0, 0, 0] % 2 != 1)
    assert blended.float().mean() == pytest.approx(0.5, abs=0.04)
    own = (mixed == images).float().mean((1, 2, 3))
    assert torch.allclose(mixed_targets.diagonal()[~blended], own[~blended], atol=1e-6)
    of_batch = [alternate(*batch(2, 4, 4), generator(0, "mix", n), 1.0, 1.0)[0] for n in range(400)]
    pasted = [torch.equal(x, x.round()) and 0 < x[0].mean() < 1 for x in of_batch]
    assert (
        0.1 < sum(pasted) / 400 < 0.4
    )  # half of them, less the empty boxes and an image that is its own partner


def test_each_way_of_alternate_has_its_alpha():
    """An alpha of 0 leaves a batch as it is when the coin has fallen on that way."""
    images, targets = torch.randn(2, 3, 8, 8), torch.eye(2)
    for alphas, kind in (((8.0, 0), "blended"), ((0, 8.0), "pasted")):
        for n in range(40):
            mixed, _ = alternate(images, targets, generator(0, "mix", n), *alphas)
            whole = torch.isclose(mixed, images) | torch.isclose(mixed, images.flip(0))
            idle = torch.allclose(mixed, images) or torch.allclose(mixed, images.flip(0))
            assert whole.all() if kind == "pasted" else idle or not whole.all()


@pytest.mark.parametrize("per", ["batch", "image"])
def test_cutmix_weighs_each_batch_too(per):
    for n in range(200):
        images, targets = batch()
        mixed, mixed_targets = cutmix(images, targets, generator(0, "mix", n), 1.0, per=per)
        moved = torch.randperm(8, generator=generator(0, "mix", n)) != torch.arange(8)
        own = (mixed == images).float().mean((1, 2, 3))
        assert torch.allclose(mixed_targets.diagonal()[moved], own[moved], atol=1e-6)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.2, 1.0, 8.0])
def test_lam_is_beta_distributed(alpha):
    lams = draw_lam(
        alpha, generator(0, "mix"), 4000
    )  # at 0.1, a double is exactly 1 in 1.3 % of the cases
    if alpha < 0.1:  # nearly all of them lie closer to 0 or 1 than a double can tell
        assert lams.mean() == pytest.approx(0.5, abs=0.03)
        assert ((lams >= 0) & (lams <= 1)).all()
    else:
        assert stats.kstest(lams.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_box_has_the_area_when_it_is_not_cut_off():
    boxes = draw_boxes(40, 40, torch.full((300,), 0.75, dtype=torch.double), generator(0, "box"))
    assert boxes.float().mean((1, 2, 3)).max() == pytest.approx(0.25)
    assert (boxes.float().mean((0, 1)) > 0).all()
    assert not draw_boxes(40, 40, torch.ones(9, dtype=torch.double), generator(0, "box")).any()


@pytest.mark.parametrize("name", [o for o in options(CONF / "mixup") if o != "off"])
def test_every_word_mixes_within_its_window_only(name):
    """Of 4 epochs of 6 batches with 2 a step, from step 3 to the end of step 8."""
    cfg = configure("data=fake", "data.images=100", "data.batch_size=16", f"mixup={name}")
    mix = build(
        DictConfig({key: value for key, value in cfg.mixup.items() if key not in ("begin", "end")})
    )
    data, plain = build(cfg.data, mixup=mix), build(cfg.data)
    data.mix_between("25%", "9it", Length(12, 3), accumulate=2)
    mixed = []
    for n in range(24):
        place = divmod(n, 6)
        raw = next(iter(data.training_batches(lambda place=place: place)))
        mixed.append(
            not torch.equal(data.training_batch(raw, place)[1], plain.training_batch(raw, place)[1])
        )
    assert [n for n in range(24) if mixed[n]] == [n for n in range(6, 18) if mixed[n]]
    assert sum(mixed) > 6
    for wrong in (("50%", "50%"), ("60%", "50%"), (0, "13it")):
        with pytest.raises(UserError, match="allowed: the one before the other"):
            data.mix_between(*wrong, Length(12, 3), accumulate=2)


def test_the_window_holds_in_a_run(run):
    given = ("model=mlp", "trainer.max_epochs=3", "trainer.log_every_n_steps=1")
    mixed = (*given, "mixup=on", "mixup.alpha=8.0")
    plain, whole = run(*given, folder="plain"), run(*mixed, folder="whole")
    late = run(*mixed, "mixup.begin=2ep", folder="late")
    assert late.column("train/loss")[:22] == plain.column("train/loss")[:22]
    assert late.column("train/loss")[22] > 2 * plain.column("train/loss")[22]
    assert whole.column("train/loss")[0] != plain.column("train/loss")[0]


def test_training_accuracy_is_named_for_the_mixing(run):
    for name, mixup_is in (("train/acc", "off"), ("train/acc_mixed", "on")):
        header = (
            run("debug=batch", f"mixup={mixup_is}", folder=mixup_is).folder / "metrics.csv"
        ).read_text()
        names = header.split("\n")[0].split(",")
        assert name in names
        assert ({"train/acc", "train/acc_mixed"} - {name}).isdisjoint(names)
        assert "train/acc_clean" in names


@pytest.mark.parametrize(
    ("words", "dimensions"),
    [
        ((), 1),
        (("mixup=on",), 2),
        (("mixup=on", "mixup.begin=1ep"), 1),
        (("loss=smooth",), 2),
        ((f"loss.weight={[1] * 10}",), 2),
        (("loss._target_=torch.nn.BCEWithLogitsLoss", "~loss.label_smoothing"), 2),
    ],
)
def test_targets_are_class_indices_where_the_plain_loss_is_the_same(words, dimensions):
    data = build_data(cfg := configure("data=fake", "data.images=100", *words))
    make_plan(cfg, data, ranks=1)
    raw = next(iter(data.training_batches(lambda: (0, 0))))
    assert data.training_batch(raw, (0, 0))[1].ndim == dimensions


def test_class_indices_give_the_weights_that_probabilities_do(run, monkeypatch):
    """Bit for bit, with mixing in the second of three epochs."""
    options = ("model=mlp", "trainer.max_epochs=3", "mixup=on", "mixup.begin=1ep", "mixup.end=2ep")
    done = [run(*options, folder="indices")]
    monkeypatch.setattr("tricklab.run.build.PLAIN", {})
    done.append(run(*options, folder="probabilities"))
    assert done[0].column("train/acc_mixed") == done[1].column("train/acc_mixed")
    states = [
        torch.load(d.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for d in done
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_the_share_of_right_targets():
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 1], [5, 4, 3]])
    assert share_right(logits, torch.tensor([0, 2, 0, 1])) == 0.5
    assert share_right(logits, F.one_hot(torch.tensor([0, 2, 0, 1])).float()) == 0.5
    mixed = torch.tensor([[0.7, 0.3, 0], [0.4, 0, 0.6], [1, 0, 0], [0.9, 0, 0.1]])
    assert share_right(logits, mixed).item() == pytest.approx((0.7 + 0.6 + 0 + 0.9) / 4)


def test_label_smoothing_is_timms_and_its_formula():
    logits, labels = torch.randn(64, 10), torch.randint(10, (64,))
    ours = build(configure("loss=smooth").loss)(logits, F.one_hot(labels, 10).float())
    assert ours.item() == pytest.approx(
        LabelSmoothingCrossEntropy(0.1)(logits, labels).item(), abs=1e-6
    )
    smooth = 0.9 * F.one_hot(labels, 10) + 0.1 / 10
    assert ours.item() == pytest.approx(
        -(smooth * logits.log_softmax(1)).sum(1).mean().item(), abs=1e-6
    )


def test_mixed_targets_are_smoothed_once(run, monkeypatch):
    """Twice would be as 0.19 once."""
    seen = {}
    step = ImageClassifier.training_step

    def keep(self, batch, index):
        seen["targets"], seen["logits"] = batch[1], self.net(batch[0]).detach()
        return step(self, batch, index)

    monkeypatch.setattr(ImageClassifier, "training_step", keep)
    done = run("debug=batch", "model=mlp", "mixup=on", "mixup.alpha=1.0", "loss=smooth")
    assert 0.1 < seen["targets"].max(1).values.mean() < 0.999  # mixed, not smoothed yet
    losses = [
        -(((1 - eps) * seen["targets"] + eps / 10) * seen["logits"].log_softmax(1))
        .sum(1)
        .mean()
        .item()
        for eps in (0.1, 0.19)
    ]
    assert done.column("train/loss")[0] == pytest.approx(losses[0], abs=1e-6)
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["loss.label_smoothing=1.0"], r"loss\.label_smoothing=1\.0 leaves nothing"),
        (["+loss.reduction=sum"], "is not a mean over the images"),
        (["+loss.reduction=none"], "is not a mean over the images"),
    ],
)
def test_a_loss_is_a_mean_that_depends_on_its_targets(words, says):
    with pytest.raises(UserError, match=says):
        build_loss(configure(*words).loss, 10)
    assert build_loss(configure("loss.label_smoothing=0.99").loss, 10)
