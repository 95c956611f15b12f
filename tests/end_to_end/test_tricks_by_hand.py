"""The tricks that the benchmark has by hand: each does what it says, as strongly as ours."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.configs import configure
from tricklab.analysis.benchmark import by_hand, loops, rounds, tricks
from tricklab.analysis.benchmark.cases import CASES, DEFAULTS, GREY, TRICKS
from tricklab.duration import Length
from tricklab.scheduler import cosine

SMALL = (*GREY, "data.images=400", "data.val_size=100", "model=mlp", "model.widths=[8]")
SHAPE = (512, 2, 16, 24)  # [B, C, H, W]


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


def numbered_images():
    """Return images whose pixels tell their position; none is 0."""
    pixels = torch.arange(SHAPE[2] * SHAPE[3]) % 251 + 1
    image = pixels.view(1, 1, *SHAPE[2:]).to(torch.uint8)
    return image.expand(SHAPE).contiguous()


def all_crops(image, pad_h, pad_w):
    """Return the window of a zero-padded image [C, H, W] at each offset."""
    padded = F.pad(image, [pad_w, pad_w, pad_h, pad_h])
    h, w = image.shape[1:]
    return {
        (top, left): padded[:, top : top + h, left : left + w]
        for top in range(2 * pad_h + 1)
        for left in range(2 * pad_w + 1)
    }


def offsets_of(cropped):
    """Return the offset of each cropped image. Raises: one is no window of the padded original."""
    windows = all_crops(numbered_images()[0], pad_h=2, pad_w=3)
    return [next(k for k, v in windows.items() if torch.equal(v, image)) for image in cropped]


def test_crop_cuts_out_a_window_of_each_padded_image():
    offsets = offsets_of(by_hand.crop(numbered_images()))
    assert len(set(offsets)) == 5 * 7  # all there are
    assert {top for top, _ in offsets} == set(range(5))


def test_flip_mirrors_half_of_the_images():
    images = numbered_images()
    flipped = by_hand.flip(images)
    is_mirrored = (flipped == images.flip(3)).flatten(1).all(1)
    is_same = (flipped == images).flatten(1).all(1)
    assert (is_mirrored ^ is_same).all()
    assert 0.4 < is_mirrored.float().mean() < 0.6


def test_erase_sets_boxes_of_the_drawn_areas_to_zero():
    images = numbered_images()
    erased = by_hand.erase(images)
    boxes = erased == 0
    assert torch.equal(erased, images * ~boxes)
    assert torch.equal(boxes[:, 0], boxes[:, 1])  # the same in each channel
    sizes = torch.stack([boxes[:, 0].any(2).sum(1), boxes[:, 0].any(1).sum(1)])
    areas = boxes[:, 0].sum((1, 2))
    assert torch.equal(areas, sizes.prod(0))  # full rectangles
    fractions = areas[areas > 0] / (SHAPE[2] * SHAPE[3])
    assert 0.2 < len(fractions) / len(images) < 0.3
    rounding = 0.02
    assert 0.02 - rounding < fractions.min() < 0.05
    assert 0.28 < fractions.max() < 0.33 + rounding
    assert fractions.mean() == pytest.approx(0.175, abs=0.03)


@pytest.mark.parametrize("name", by_hand.AUGMENT)
def test_torchvision_treats_all_images_of_a_batch_alike(name):
    transform = by_hand.per_batch_transforms(*SHAPE[2:])[name]
    images = numbered_images()
    batches = [transform(images) for _ in range(40)]
    assert all((batch == batch[:1]).all() for batch in batches)
    assert any(not torch.equal(batch, images) for batch in batches)


def test_torchvision_crops_by_as_much():
    transform = by_hand.per_batch_transforms(*SHAPE[2:])["crop"]
    offsets = offsets_of(torch.cat([transform(numbered_images()[:1]) for _ in range(100)]))
    assert {top for top, _ in offsets} == set(range(5))
    assert {left for _, left in offsets} == set(range(7))


def test_penalties_are_sums_over_the_weights_with_their_gradient():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    weights = [net[0].weight, net[3].weight]
    arrays = [weight.detach().double().numpy() for weight in weights]
    penalty = by_hand.l1_and_l2(net)
    expected = sum(1e-5 * abs(w).sum() + 5e-4 / 2 * (w**2).sum() for w in arrays)
    assert penalty.item() == pytest.approx(expected, rel=1e-6)
    penalty.backward()
    for weight, array in zip(weights, arrays):
        gradient = 1e-5 * torch.from_numpy(array).sign() + 5e-4 * torch.from_numpy(array)
        assert torch.allclose(weight.grad.double(), gradient, atol=1e-9)
    assert net[0].bias.grad is None
    assert net[1].weight.grad is None


def test_smoothing_and_penalties_are_in_the_loss():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    images, labels = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    logits = net(images)
    smooth = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean() + by_hand.l1_and_l2(net)
    loss = by_hand.compute_loss(net, by_hand.TRICKS["everything"], images, labels)
    assert torch.isclose(loss, expected)


def test_schedule_is_that_of_the_option():
    ours = cosine(Length(200, 50), warmup="10%")
    assert [by_hand.cosine_with_warmup(step, 200) for step in range(200)] == pytest.approx(
        [ours(step) for step in range(200)], abs=1e-12
    )


def test_strengths_are_the_defaults():
    config = configure(*TRICKS["everything"])
    assert config.augment.erase.probability == by_hand.ERASE_PROBABILITY
    assert list(config.augment.erase.scale) == list(by_hand.ERASE_SCALE)
    assert config.augment.crop.padding == 1 / 8
    assert config.augment.flip.horizontal == 1 / 2
    assert config.mixup.alpha == by_hand.MIXUP_ALPHA
    assert config.penalty.l1.strength == by_hand.L1_STRENGTH
    assert config.penalty.l2.strength == by_hand.L2_STRENGTH
    assert config.loss.label_smoothing == by_hand.SMOOTHING
    assert config.scheduler.warmup == f"{by_hand.WARMUP_FRACTION:.0%}"


def test_each_trick_of_the_table_is_there_by_hand():
    assert [DEFAULTS, *by_hand.TRICKS] == list(TRICKS)


# What the loops call with which batches


@pytest.fixture
def losses(monkeypatch):
    """The arguments of each loss, and the loss."""
    calls = []
    compute_loss = by_hand.compute_loss

    def record(net, tricks, images, targets):
        loss = compute_loss(net, tricks, images, targets)
        calls.append((net, images, targets, loss.item()))
        return loss

    monkeypatch.setattr(by_hand, "compute_loss", record)
    return calls


@pytest.mark.parametrize("trick", by_hand.TRICKS)
def test_loop_by_hand_trains(losses, trick):
    """The loss falls; mixed targets are probabilities."""
    assert by_hand.train_per_image(SMALL, trick, 15) > 0
    first, *_, last = losses
    assert len(losses) == 25
    assert last[3] < first[3]
    _, images, targets, _ = first
    assert images.shape == (128, 1, 28, 28)
    if trick not in ("mixup", "everything"):
        assert targets.dtype == torch.long
        return
    assert torch.allclose(targets.sum(1), torch.ones(128))
    assert ((targets > 0).sum(1) == 2).any()


@pytest.mark.parametrize("trick", by_hand.PER_BATCH_TRICKS)
def test_loop_with_torchvision_trains(losses, trick):
    assert by_hand.train_per_batch(SMALL, trick, 15) > 0
    assert losses[-1][3] < losses[0][3]


def test_augmentation_is_applied_before_the_normalisation(losses, monkeypatch):
    monkeypatch.setitem(by_hand.PER_IMAGE, "crop", lambda images: torch.full_like(images, 255))
    by_hand.train_per_image(SMALL, "crop", 1)
    _, data = loops.compose_and_load(SMALL)
    white = (1 - data.mean[0]) / data.std[0]
    assert losses[0][1].unique().item() == pytest.approx(white, rel=1e-5)


@pytest.mark.parametrize(("trick", "p"), [("dropout", 0.1), ("crop", 0.0)])
def test_dropout_is_in_the_network(losses, trick, p):
    by_hand.train_per_image(SMALL, trick, 1)
    rates = {layer.p for layer in losses[0][0].modules() if isinstance(layer, nn.Dropout)}
    assert max(rates) == p


def test_learning_rate_follows_the_schedule(monkeypatch):
    rates = []

    class Recorder(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])

    monkeypatch.setattr(torch.optim, "SGD", Recorder)
    by_hand.train_per_image(SMALL, "cosine with warmup", 10)
    assert rates == [0.1 * by_hand.cosine_with_warmup(step, 20) for step in range(20)]
    assert math.isclose(rates[1], 0.1)


# The table


def test_table_has_a_row_for_each_trick(monkeypatch):
    """Ratios are medians within a round; a trick without a variant has no cell for it."""
    speeds = [
        (1000.0, 2000.0, 4000.0, 5000.0),
        (3000.0,) * 3 + (6000.0,),
        (900.0, 1000.0, 900.0, 900.0),
    ]

    def alternate(variants, steps, threads, ours):
        order = [tricks.OURS, tricks.PER_IMAGE, tricks.PER_BATCH, tricks.PLAIN]
        return [{name: dict(zip(order, values))[name] for name in variants} for values in speeds]

    monkeypatch.setattr(tricks, "alternate_in_processes", alternate)
    tables = tricks.measure_tricks(threads=1, repeats=1)
    assert len(tables) == len(CASES)
    table = tables["mlp, batches of 128, images/s"]
    assert list(table) == list(TRICKS)
    assert table["crop"] == {
        "ours": 1000,
        "by hand, per image": 2000,
        "v2, per batch": 3000,
        "plain loop": 5000,
        "ours / by hand": 0.9,
        "ours / v2": 1.0,
        "ours / plain loop": 0.5,
    }
    assert list(table["dropout"]) == [key for key in table["crop"] if "v2" not in key]
    assert table[DEFAULTS] == {"ours": 1000, "plain loop": 5000, "ours / plain loop": 0.5}
    header, defaults, crop = rounds.format_table("x", table).splitlines()[1:4]
    assert defaults.split() == [DEFAULTS, "1,000", "-", "-", "5,000", "-", "-", "0.500"]
    assert len(crop) == len(defaults) == len(header)


def test_script_prints_the_tables_of_the_part(run_script, monkeypatch):
    asked = []

    def measure(threads, repeats):
        asked.append((threads, repeats))
        return {"mlp": {"crop": {"ours": 1234.0}}}

    monkeypatch.setattr(tricks, "measure_tricks", measure)
    done = run_script("benchmark.py", "tricks", "--repeats", "1", "--threads", "1")
    assert done.stdout.split("\n", 1)[1].split() == ["mlp", "ours", "crop", "1,234"]
    assert asked == [(1, 1)]


@pytest.mark.parametrize("trick", [DEFAULTS, "everything"])
def test_each_variant_of_a_trick_trains(trick):
    variants = tricks.make_variants(trick, SMALL)
    assert len(variants) == (2 if trick == DEFAULTS else 4)
    assert min(variant(3) for variant in variants.values()) > 0
