"""Mixing against its formulas and torchvision, all options by globbing, and runs."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torchvision.transforms import v2

from helpers.configs import configure
from helpers.paths import CONF
from tricklab import mixup as options_of_mixup
from tricklab.cli.config import list_options
from tricklab.data.batches import mixup_window
from tricklab.data.module import ImageData
from tricklab.duration import Length
from tricklab.errors import UserError
from tricklab.metrics import soft_accuracy
from tricklab.mixup import (
    alternate,
    blend,
    centred_boxes,
    cutmix,
    identity,
    images_only,
    mixing,
    mixup,
    sample_lam,
    sample_partners_and_lam,
)
from tricklab.randomness import generator
from tricklab.run.build import build_data
from tricklab.run.instantiate import build
from tricklab.run.plan import make_plan

OPTIONS = [option for option in list_options(CONF / "mixup") if option != "off"]
ALPHAS = {
    mixup: {"alpha": 1.0},
    cutmix: {"alpha": 1.0},
    alternate: {"alpha": 1.0, "cutmix_alpha": 1.0},
}
NO_ALPHAS = {
    mixup: {"alpha": 0},
    cutmix: {"alpha": 0},
    alternate: {"alpha": 0, "cutmix_alpha": 0},
}


def batch(size=8, height=9, width=7):
    """Image i is i everywhere, and of class i."""
    values = torch.arange(size, dtype=torch.float)[:, None, None, None]
    return values.expand(size, 3, height, width).clone(), torch.eye(size)


def doubles(*values):
    return torch.tensor(values, dtype=torch.double)


def test_mixup_is_its_formula():
    images, targets = torch.randn(8, 3, 5, 5), torch.eye(8)
    mixed, mixed_targets = mixup(images, targets, generator(0, "mix"), alpha=0.7)
    source = generator(0, "mix")
    partner = torch.randperm(8, generator=source)
    lam = sample_lam(0.7, source, 1).item()
    assert torch.equal(mixed, lam * images + (1 - lam) * images[partner])
    assert torch.equal(mixed_targets, lam * targets + (1 - lam) * targets[partner])
    assert 0 < lam < 1


def test_mixup_of_given_partners_and_lam_needs_no_generator():
    images, targets = batch(3)
    pure = inspect.unwrap(mixup)
    mixed, mixed_targets = pure(images, targets, torch.tensor([1, 2, 0]), doubles(0.75, 0.5, 1))
    assert mixed[:, 0, 0, 0].tolist() == [0.25, 1.5, 2]
    assert mixed_targets.tolist() == [[0.75, 0.25, 0], [0, 0.5, 0.5], [0, 0, 1]]


def test_cutmix_of_a_given_centre_needs_no_generator():
    """A quarter of 4 x 4 about (2, 2), then about a corner, where a quarter of it remains."""
    images, targets = batch(2, 4, 4)
    pure = inspect.unwrap(cutmix)
    centre = doubles([0.5, 0], [0.5, 0])
    mixed, mixed_targets = pure(images, targets, torch.tensor([1, 0]), doubles(0.75, 0.75), centre)
    assert mixed[0, 0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert mixed[1, 0].tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert mixed_targets.tolist() == [[0.75, 0.25], [0.0625, 0.9375]]


def test_mixing_passes_draws_and_keys_to_its_function():
    @mixing
    def darken(images, targets, partner, lam, *, by: float = 1.0):
        return images - by * lam.float().view(-1, 1, 1, 1), targets

    images, targets = batch(4)
    _, lam = sample_partners_and_lam(4, generator(0, "mix"), 0.5, "image", 1.0)
    darker, _ = darken(images, targets, generator(0, "mix"), alpha=0.5, per="image", by=2.0)
    assert torch.allclose(darker, images - 2 * lam.float().view(-1, 1, 1, 1))
    assert "by" in inspect.signature(darken).parameters


@pytest.mark.parametrize("name", OPTIONS)
def test_option_signature_has_the_keys_of_its_config(name):
    node = configure(f"mixup={name}").mixup
    keys = {key for key in node if not key.startswith("_")}
    option = getattr(options_of_mixup, node._target_.rpartition(".")[2])
    assert set(inspect.signature(option).parameters) == {"images", "targets", "generator", *keys}


@pytest.mark.parametrize("per", ["batch", "image"])
def test_images_only_is_mixup_with_the_target_of_the_larger_weight(per):
    images, targets = torch.randn(64, 3, 5, 5), torch.eye(64)
    ours, labels = images_only(images, targets, generator(0, "mix"), alpha=1.0, per=per)
    mixed, weights = mixup(images, targets, generator(0, "mix"), alpha=1.0, per=per)
    assert torch.equal(ours, mixed)
    assert torch.equal(labels, F.one_hot(weights.argmax(1), 64).float())
    assert per == "batch" or 0 < (labels != targets).any(1).float().mean() < 1


@pytest.mark.parametrize("lam", [0.3, 0.123456789, 0.999, 0.5])
def test_blend_equals_torchvision_bit_for_bit(monkeypatch, lam):
    images, labels = torch.randn(9, 3, 5, 5), torch.arange(9) % 4
    oracle = v2.MixUp(num_classes=4)
    monkeypatch.setattr(oracle._dist, "sample", lambda shape: doubles(lam)[0])
    expected_images, expected_targets = oracle(images, labels)
    partner, lams = torch.arange(9).roll(1), doubles(lam)
    assert torch.equal(blend(images, partner, lams), expected_images)
    assert torch.equal(blend(F.one_hot(labels, 4).float(), partner, lams), expected_targets)
    assert torch.equal(blend(images, partner, lams.expand(9)), expected_images)


def test_loss_of_mixed_targets_is_the_weighted_loss_of_both():
    logits, labels = torch.randn(64, 10), torch.randint(10, (64,))
    partner, lam = sample_partners_and_lam(64, generator(0, "mix"), 1.0, "image", probability=1.0)
    mixed = F.cross_entropy(logits, blend(F.one_hot(labels, 10).float(), partner, lam))
    own = F.cross_entropy(logits, labels, reduction="none")
    other = F.cross_entropy(logits, labels[partner], reduction="none")
    assert mixed.item() == pytest.approx((lam * own + (1 - lam) * other).mean().item(), abs=1e-6)


@pytest.mark.parametrize("shape", [(9, 7), (32, 32), (1, 5)])
def test_cutmix_weights_targets_by_the_pixels_pasted(shape):
    """In 10,000 boxes, most of them clipped at a border."""
    height, width = shape
    labels = torch.arange(10_000) % 10
    images = torch.arange(10_000, dtype=torch.float)[:, None, None, None]
    images = images.expand(10_000, 1, height, width)
    one_hot = F.one_hot(labels, 10).float()
    mixed, targets = cutmix(images, one_hot, generator(0, "mix"), alpha=1.0, per="image")
    own = (mixed == images).float().mean((1, 2, 3))
    partner = torch.randperm(10_000, generator=generator(0, "mix"))
    other = labels != labels[partner]
    assert torch.allclose(targets[torch.arange(10_000), labels][other], own[other], atol=1e-6)
    assert torch.equal(mixed, mixed.round())  # pasted, not blended
    assert torch.allclose(targets.sum(1), torch.ones(10_000))
    assert own.min() < 0.3 or height == 1


@pytest.mark.parametrize("per", ["batch", "image"])
def test_cutmix_weights_each_batch(per):
    for n in range(200):
        images, targets = batch()
        source = generator(0, "mix", n)
        mixed, mixed_targets = cutmix(images, targets, source, alpha=1.0, per=per)
        moved = torch.randperm(8, generator=generator(0, "mix", n)) != torch.arange(8)
        own = (mixed == images).float().mean((1, 2, 3))
        assert torch.allclose(mixed_targets.diagonal()[moved], own[moved], atol=1e-6)


@pytest.mark.parametrize("option", ALPHAS)
@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_option_takes_any_batch_size(option, per, size):
    images, targets = batch(size)
    source = generator(0, "mix")
    mixed, mixed_targets = option(images, targets, source, per=per, **ALPHAS[option])
    assert mixed.shape == images.shape
    assert mixed.dtype == mixed_targets.dtype == torch.float32
    assert torch.allclose(mixed_targets.sum(1), torch.ones(size))


@pytest.mark.parametrize("option", ALPHAS)
@pytest.mark.parametrize("per", ["batch", "image"])
@pytest.mark.parametrize("off", ["alpha", "probability"])
def test_option_of_alpha_or_probability_zero_is_the_identity(option, per, off):
    images, targets = torch.randn(8, 3, 5, 5), torch.eye(8)
    keys = NO_ALPHAS[option] if off == "alpha" else {**ALPHAS[option], "probability": 0.0}
    mixed = option(images, targets, generator(0, "mix"), per=per, **keys)
    for ours, plain in zip(mixed, identity(images, targets, None)):
        assert torch.equal(ours, plain)


def test_per_image_samples_a_lam_for_each_and_per_batch_one():
    for per, number in (("batch", 1), ("image", 500)):
        _, lam = sample_partners_and_lam(500, generator(0, "mix"), 1.0, per, probability=1.0)
        assert len(lam.unique()) == number
    images, targets = batch(500)
    pasted, _ = cutmix(images, targets, generator(0, "mix"), alpha=1.0, per="image")
    boxes = {tuple(image[0].eq(image[0, 0, 0]).flatten().tolist()) for image in pasted}
    assert len(boxes) > 100


@pytest.mark.parametrize("per", ["batch", "image"])
def test_probability_is_of_a_batch_or_an_image(per):
    if per == "image":
        _, lam = sample_partners_and_lam(4000, generator(0, "mix"), 1.0, per, probability=0.3)
    else:
        draws = []
        for n in range(2000):
            source = generator(0, "mix", n)
            draws.append(sample_partners_and_lam(2, source, 1.0, per, probability=0.3)[1])
        lam = torch.cat(draws)
    assert (lam < 1).float().mean() == pytest.approx(0.3, abs=0.03)


def test_alternate_per_image_blends_half_and_pastes_half():
    """Pasted images are odd numbers; the targets are those of the same half."""
    images, targets = batch(2000, 4, 4)
    images = images * 2 + 1
    keys = {"alpha": 1.0, "cutmix_alpha": 1.0, "per": "image"}
    mixed, mixed_targets = alternate(images, targets, generator(0, "mix"), **keys)
    is_even = (mixed[:, 0] == mixed[:, 0, :1, :1]).flatten(1).all(1)
    blended = is_even & (mixed[:, 0, 0, 0] % 2 != 1)
    assert blended.float().mean() == pytest.approx(0.5, abs=0.04)
    own = (mixed == images).float().mean((1, 2, 3))
    assert torch.allclose(mixed_targets.diagonal()[~blended], own[~blended], atol=1e-6)


def test_alternate_per_batch_blends_half_and_pastes_half():
    pasted = 0
    for n in range(400):
        keys = {"alpha": 1.0, "cutmix_alpha": 1.0}
        mixed, _ = alternate(*batch(2, 4, 4), generator(0, "mix", n), **keys)
        pasted += bool(torch.equal(mixed, mixed.round()) and 0 < mixed[0].mean() < 1)
    # half of them, except for empty boxes and images that are their own partner
    assert 0.1 < pasted / 400 < 0.4


def test_alternate_has_an_alpha_for_each():
    """An alpha of 0 leaves a batch as it is when the coin has chosen its option."""
    images, targets = torch.randn(2, 3, 8, 8), torch.eye(2)
    for alpha, cutmix_alpha in ((8.0, 0), (0, 8.0)):
        for n in range(40):
            keys = {"alpha": alpha, "cutmix_alpha": cutmix_alpha}
            mixed, _ = alternate(images, targets, generator(0, "mix", n), **keys)
            is_copied = torch.isclose(mixed, images) | torch.isclose(mixed, images.flip(0))
            is_same = torch.allclose(mixed, images) or torch.allclose(mixed, images.flip(0))
            if cutmix_alpha:
                assert is_copied.all()
            else:
                assert is_same or not is_copied.all()


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.2, 1.0, 8.0])
def test_lam_is_beta_distributed(alpha):
    lams = sample_lam(alpha, generator(0, "mix"), 4000)
    if alpha < 0.1:  # nearly all lie closer to 0 or 1 than a double can resolve
        assert lams.mean() == pytest.approx(0.5, abs=0.03)
        assert ((lams >= 0) & (lams <= 1)).all()
    else:
        assert stats.kstest(lams.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_boxes_have_their_area_unless_clipped():
    centre = torch.rand(2, 300, dtype=torch.double, generator=generator(0, "box"))
    boxes = centred_boxes(40, 40, torch.full((300,), 0.75, dtype=torch.double), centre)
    assert boxes.float().mean((1, 2, 3)).max() == pytest.approx(0.25)
    assert (boxes.float().mean((0, 1)) > 0).all()
    assert not centred_boxes(40, 40, torch.ones(9, dtype=torch.double), centre[:, :9]).any()


@pytest.mark.parametrize("name", OPTIONS)
def test_option_mixes_within_its_window_only(name):
    """Of 4 epochs of 6 batches with 2 a step, from step 3 to the end of step 8."""
    cfg = configure("data=fake", "data.images=100", "data.batch_size=16", f"mixup={name}")
    data = build(cfg.data, mixup=build(cfg.mixup))
    plain = build(cfg.data)
    data.mixup_window = mixup_window("25%", "9it", Length(12, 3), accumulate=2)
    mixed = []
    for n in range(24):
        position = divmod(n, 6)
        raw = next(iter(data.training_batches(lambda position=position: position)))
        targets = data.training_batch(raw, position)[1]
        labels = plain.training_batch(raw, position)[1]
        if targets.ndim == 2 and not torch.equal(targets, F.one_hot(labels, 10).float()):
            mixed.append(n)
    assert set(mixed) <= set(range(6, 18))
    assert len(mixed) > 6


@pytest.mark.parametrize(
    ("start", "stop", "steps"),
    [("50%", "50%", (6, 6)), ("60%", "50%", (7, 6)), (0, "13it", (0, 13))],
)
def test_window_without_a_step_is_refused(start, stop, steps):
    message = (
        rf"mixup\.start={start} \(step {steps[0]}\) must be before "
        rf"mixup\.stop={stop} \(step {steps[1]}\), both within \[0, 12\]"
    )
    with pytest.raises(UserError, match=message):
        mixup_window(start, stop, Length(12, 3), accumulate=2)


@pytest.mark.parametrize(
    ("overrides", "dimensions"),
    [
        ((), 1),
        (("mixup=on",), 2),
        (("mixup=on", "mixup.start=1ep"), 1),
        (("loss=smooth",), 1),
        ((f"loss.class_weights={[1] * 10}",), 1),
    ],
)
def test_targets_are_class_indices_unless_mixed(overrides, dimensions):
    cfg = configure("data=fake", "data.images=100", *overrides)
    data = build_data(cfg)
    data.mixup_window = make_plan(cfg, data, ranks=1).mixup_window
    raw = next(iter(data.training_batches(lambda: (0, 0))))
    assert data.training_batch(raw, (0, 0))[1].ndim == dimensions


def test_class_indices_give_the_weights_that_probabilities_do(run, monkeypatch):
    """Bit for bit, with mixing in the second of three epochs."""
    training_batch = ImageData.training_batch

    def with_probabilities(self, batch, *position):
        images, targets = training_batch(self, batch, *position)
        return images, F.one_hot(targets, 10).float() if targets.ndim == 1 else targets

    options = ("model=mlp", "trainer.max_epochs=3", "mixup=on", "mixup.start=1ep", "mixup.stop=2ep")
    done = [run(*options, folder="indices")]
    monkeypatch.setattr(ImageData, "training_batch", with_probabilities)
    done.append(run(*options, folder="probabilities"))
    assert done[0].column("train/acc_mixed") == done[1].column("train/acc_mixed")
    states = []
    for each in done:
        checkpoint = torch.load(each.folder / "checkpoints" / "last.ckpt", weights_only=True)
        states.append(checkpoint["state_dict"])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_soft_accuracy_of_indices_and_probabilities():
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 1], [5, 4, 3]])
    assert soft_accuracy(logits, torch.tensor([0, 2, 0, 1])) == 0.5
    assert soft_accuracy(logits, F.one_hot(torch.tensor([0, 2, 0, 1])).float()) == 0.5
    mixed = torch.tensor([[0.7, 0.3, 0], [0.4, 0, 0.6], [1, 0, 0], [0.9, 0, 0.1]])
    assert soft_accuracy(logits, mixed).item() == pytest.approx((0.7 + 0.6 + 0 + 0.9) / 4)
