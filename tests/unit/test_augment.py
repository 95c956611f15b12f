"""Augmentations against their definitions and torchvision, and all options, found by globbing."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as oracle

from helpers.configs import configure
from helpers.options import RGB_ONLY
from helpers.paths import CONF
from tricklab.augment import (
    affine,
    alternating_flip,
    color,
    crop,
    erase,
    flip,
    jitter,
    pca_noise,
    randaugment,
    rotate,
    trivialaugment,
    warp,
)
from tricklab.cli.config import list_options
from tricklab.color import adjust_hue
from tricklab.errors import UserError
from tricklab.randomness import Rand, generator
from tricklab.run.instantiate import build_each

IMAGES = torch.randint(256, (64, 3, 9, 7), dtype=torch.uint8, generator=generator(0, "images"))
PCA_VALUES = (0.2175, 0.0188, 0.0045)  # as in fb.resnet.torch; the vectors are columns
PCA_VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
ADJUSTMENTS = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")


def rand(images, seed=0, **options):
    return Rand(generator(seed, "augment"), len(images), **options)


def test_crop_pads_and_crops_back():
    cropped = crop(IMAGES, rand(IMAGES), padding=2)
    assert cropped.dtype == torch.uint8
    for image, padded, numbers in zip(cropped, F.pad(IMAGES, [2] * 4), rand(IMAGES)(2).tolist()):
        top, left = (int(number * 5) for number in numbers)
        assert torch.equal(image, padded[:, top : top + 9, left : left + 7])


@pytest.mark.parametrize(
    ("padding", "offsets"), [(2, 25), (0.25, 25), (0.125, 9), (1, 9), (0, 1), (0.0, 1)]
)
def test_crop_reaches_every_offset(padding, offsets):
    dot = torch.zeros(4000, 1, 9, 9, dtype=torch.uint8)
    dot[:, :, 4, 4] = 1
    assert len(crop(dot, rand(dot), padding).flatten(1).argmax(1).unique()) == offsets


def test_crop_refuses_a_padding_above_the_image_size():
    with pytest.raises(UserError, match=r"augment\.crop\.padding=8 exceeds the image size 9 x 7"):
        crop(IMAGES, rand(IMAGES), padding=8)


def test_flip_mirrors_images():
    flipped = flip(IMAGES, rand(IMAGES), horizontal=0.5, vertical=0.3)
    for before, after, (x, y) in zip(IMAGES, flipped, rand(IMAGES)(2).tolist()):
        expected = before.flip(2) if x < 0.5 else before
        expected = expected.flip(1) if y < 0.3 else expected
        assert torch.equal(after, expected)


def test_flip_has_its_probabilities():
    corner = torch.zeros(4000, 1, 2, 2, dtype=torch.uint8)
    corner[:, :, 0, 0] = 1
    flipped = flip(corner, rand(corner), horizontal=0.3, vertical=0.6).float().mean((0, 1))
    assert flipped.flatten().tolist() == pytest.approx([0.28, 0.12, 0.42, 0.18], abs=0.03)


def test_alternating_flip_mirrors_each_image_in_every_other_epoch():
    per_image = torch.rand(64, generator=generator(0, "per_image"))
    epochs = []
    for n in range(4):
        numbers = rand(IMAGES, seed=n, epoch=n, per_image=per_image)
        epochs.append(alternating_flip(IMAGES, numbers))
    assert torch.equal(epochs[0], epochs[2])
    assert torch.equal(epochs[1], epochs[3])
    assert torch.equal(epochs[1], epochs[0].flip(3))
    mirrored = (epochs[0] == IMAGES.flip(3)).flatten(1).all(1).float().mean()
    assert 0.3 < mirrored < 0.7


@pytest.mark.parametrize("shape", [(9, 9), (9, 7), (6, 12)])
@pytest.mark.parametrize(
    "case",
    [(30, 0, 1, 0, 0), (0, 25, 1, 0, 0), (0, 0, 1.3, 0, 0), (0, 0, 1, 2, -1), (20, 10, 0.8, 1, 2)],
)
def test_warp_equals_torchvision(shape, case):
    degrees, shear, scale, right, down = case
    images = torch.rand(2, 3, *shape, generator=generator(0, "images")) * 255
    shift = torch.tensor([[2 * right / shape[1], 2 * down / shape[0]]]).expand(2, 2)
    numbers = (torch.full((2,), float(x)) for x in (degrees, shear, scale))
    expected = oracle.affine(
        images, degrees, [right, down], scale, [shear, 0.0], v2.InterpolationMode.BILINEAR
    )
    assert torch.allclose(warp(images, *numbers, shift), expected, atol=0.02)


def test_affine_is_uniform_within_its_limits(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "tricklab.augment.warp", lambda images, *moves: seen.append(moves) or images
    )
    many = torch.zeros(5000, 1, 2, 2)
    affine(many, rand(many), degrees=20, translate=0.25, scale=0.1, shear=5)
    degrees, shear, scale, shift = seen[0]
    limits = ((degrees, -20, 20), (shear, -5, 5), (scale, 0.9, 1.1), (shift, -0.5, 0.5))
    for values, low, high in limits:
        assert values.min() == pytest.approx(low, abs=0.01 * (high - low))
        assert values.max() == pytest.approx(high, abs=0.01 * (high - low))
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    rotate(many, rand(many), degrees=20)
    assert torch.equal(seen[1][0], degrees)
    assert all((values == neutral).all() for values, neutral in zip(seen[1][1:], (0, 1, 0)))


def test_erase_fills_boxes_of_the_area():
    images = torch.full((4000, 3, 32, 32), 200, dtype=torch.uint8)
    erased = erase(images, rand(images), probability=0.4, scale=(0.1, 0.3), value=7)
    assert erased.dtype == torch.uint8
    assert ((erased == 7) | (erased == 200)).all()
    mask = (erased == 7).all(1)
    area = mask.float().mean((1, 2))
    has_box = area > 0
    assert has_box.float().mean() == pytest.approx(0.4, abs=0.03)
    assert 0.08 < area[has_box].min() < 0.11
    assert 0.28 < area[has_box].max() < 0.32
    assert area[has_box].mean() == pytest.approx(0.2, abs=0.01)
    rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
    assert torch.equal(mask.sum((1, 2)), rows * columns)  # boxes
    log_ratio = (rows / columns)[has_box].log()
    assert log_ratio.mean().abs() < 0.05
    assert log_ratio.max() == pytest.approx(1.2, abs=0.2)
    assert (mask.sum(0) > 0).all()  # everywhere


@pytest.mark.parametrize("shape", [(4, 256), (256, 4), (8, 8), (28, 28), (32, 32), (64, 48)])
def test_erase_has_the_drawn_areas_on_any_shape(shape):
    """Clipped boxes would have a mean area of 0.053 on 4 x 256 instead of 0.175."""
    images = torch.zeros(20_000, 1, *shape, dtype=torch.uint8)
    erased = erase(images, Rand(generator(0, "erase"), len(images)), probability=1.0, value=1)
    area = erased.double().mean((1, 2, 3))
    assert area.mean() == pytest.approx(0.175, abs=0.01)
    assert area.min() > 0.02 - 2 / sum(shape)
    assert area.max() < 0.33 + 2 / sum(shape)


def test_erase_on_squares_has_the_aspect_ratios_of_torchvision():
    """torchvision draws a box again that does not fit; on squares hardly any."""
    images = torch.zeros(4000, 1, 32, 32, dtype=torch.uint8)
    ours = erase(images, Rand(generator(0, "erase"), len(images)), probability=1.0, value=1)
    torch.manual_seed(0)
    transform = v2.RandomErasing(p=1.0, value=1)
    theirs = torch.stack([transform(image) for image in images])
    found = ours.amax(2).sum(2).double()  # widths
    expected = theirs.amax(2).sum(2).double()
    assert found.mean() == pytest.approx(expected.mean().item(), rel=0.03)
    assert found.std() == pytest.approx(expected.std().item(), rel=0.05)


@pytest.mark.parametrize("side", [8, 9, 28, 32])
def test_erase_keeps_boxes_that_fit_as_drawn(side):
    """Bit for bit, also those that rounding makes as high as the image."""
    images = torch.zeros(5000, 1, side, side, dtype=torch.uint8)
    erased = erase(images, rand(images), probability=1.0, value=1)
    _, size, aspect, y, x = rand(images)(5).T
    area = (0.02 + (0.33 - 0.02) * size) * side * side
    ratio = 0.3 ** (2 * aspect - 1)
    height, width = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (height <= side) & (width <= side)
    assert fits.float().mean() > 0.99
    rows, columns = erased.amax(3)[:, 0], erased.amax(2)[:, 0]
    assert torch.equal(rows.sum(1)[fits].float(), height[fits])
    assert torch.equal(columns.sum(1)[fits].float(), width[fits])
    top, left = (y * (side + 1 - height)).floor(), (x * (side + 1 - width)).floor()
    assert torch.equal(rows.argmax(1)[fits].float(), top[fits])
    assert torch.equal(columns.argmax(1)[fits].float(), left[fits])


def test_erase_refuses_a_low_area_above_the_high_one():
    with pytest.raises(UserError, match=r"erase\.scale=\[0\.5, 0\.33\]: low is above high"):
        erase(IMAGES, rand(IMAGES), scale=(0.5, 0.33))


def test_jitter_equals_torchvision():
    images = torch.randint(60, 160, (16, 1, 9, 7), generator=generator(0, "images")).float()
    jittered = jitter(images, rand(images), brightness=0.3, contrast=0.4)
    numbers = (rand(images)(2) * 2 - 1).tolist()
    for before, after, (x, y) in zip(images / 255, jittered / 255, numbers):
        bright = oracle.adjust_brightness(before, 1 + 0.3 * x)
        assert torch.allclose(after, oracle.adjust_contrast(bright, 1 + 0.4 * y), atol=1e-4)


def color_by_torchvision(image, numbers, strengths):
    """Adjust an image in 0 .. 1 by the amounts and in the order of its eight random numbers."""
    lows = [max(0, 1 - strength) for strength in strengths[:3]] + [-strengths[3]]
    highs = [1 + strength for strength in strengths[:3]] + [strengths[3]]
    for n in sorted(range(4), key=lambda n: numbers[4 + n]):
        amount = lows[n] + (highs[n] - lows[n]) * numbers[n]
        image = getattr(oracle, ADJUSTMENTS[n])(image, amount)
    return image


@pytest.mark.parametrize(
    ("channels", "strengths"),
    [
        (3, (0.4, 0.4, 0.4, 0.1)),
        (3, (0.8, 1.5, 1.2, 0.5)),  # factors down to 0, all hues
        (3, (0, 0.4, 0, 0.1)),
        (3, (0.4, 0, 0.4, 0)),
        (1, (0.4, 0.4, 0, 0)),
        (1, (0, 1.5, 0, 0)),
    ],
)
def test_color_equals_torchvision(channels, strengths):
    """Within 0.001 of a pixel's 255 levels: floats in 0 .. 1 are rounded otherwise."""
    images = torch.cat([IMAGES, IMAGES // 64 * 85, IMAGES[:, :1].expand(-1, 3, -1, -1)])
    images = images[:, :channels]  # noise, few colors with equal channels, grey
    adjusted = color(images, rand(images), *strengths)
    assert adjusted.dtype == torch.float32
    assert torch.equal(color(images.float(), rand(images), *strengths), adjusted)
    for before, after, numbers in zip(images, adjusted, rand(images)(8).tolist()):
        expected = color_by_torchvision(before / 255, numbers, strengths) * 255
        assert torch.allclose(after, expected, rtol=0, atol=0.001)


@pytest.fixture
def adjusted_images(monkeypatch):
    """Let the adjustments return their images, and record amounts and images of each call."""
    calls = []

    def record(name):
        def adjust(images, amounts):
            calls.append((name, images.flatten().tolist(), amounts.flatten().tolist()))
            return images

        monkeypatch.setattr(f"tricklab.augment.{name}", adjust)

    for name in ADJUSTMENTS:
        record(name)
    return calls


def test_color_is_uniform_within_its_ranges_and_orders(adjusted_images):
    numbered = torch.arange(4800.0).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    color(numbered, rand(numbered), brightness=0.4, contrast=1.0, saturation=2.5, hue=0.2)
    ranges = ((0.6, 1.4), (0.0, 2.0), (0.0, 3.5), (-0.2, 0.2))
    for name, (low, high) in zip(ADJUSTMENTS, ranges):
        values = torch.tensor(
            [x for called, _, xs in adjusted_images if called == name for x in xs]
        )
        assert len(values) == 4800
        uniform = (values.double() - low) / (high - low)
        expected = torch.linspace(0, 1, 4800, dtype=torch.double)
        assert (uniform.sort()[0] - expected).abs().max() < 0.03  # Kolmogorov-Smirnov: p < 0.001
    orders = {}
    for name, images, _ in adjusted_images:
        for image in images[::3]:
            orders[image] = (*orders.get(image, ()), name)
    counts = Counter(orders.values())
    assert all(set(order) == set(ADJUSTMENTS) for order in counts)
    assert len(counts) == 24
    assert all(130 < count < 270 for count in counts.values())  # 200 +- 5 standard deviations


@pytest.mark.parametrize("off", range(4))
def test_color_of_strength_zero_takes_no_time(adjusted_images, off):
    strengths = [0.4, 0.4, 0.4, 0.1]
    strengths[off] = 0
    color(IMAGES, rand(IMAGES), *strengths)
    assert {name for name, _, _ in adjusted_images} == {*ADJUSTMENTS} - {ADJUSTMENTS[off]}


def test_adjust_hue_turns_the_color_circle():
    cases = [  # shift, color before, after
        (1 / 3, (200, 0, 0), (0, 200, 0)),
        (1 / 3, (0, 200, 0), (0, 0, 200)),
        (-1 / 3, (200, 0, 0), (0, 0, 200)),
        (0.5, (255, 100, 0), (0, 155, 255)),
        (-0.5, (255, 100, 0), (0, 155, 255)),
        (1 / 6, (240, 120, 120), (240, 240, 120)),
        (1 / 12, (240, 120, 120), (240, 180, 120)),
        (0.3, (77, 77, 77), (77, 77, 77)),
        (0.3, (0, 0, 0), (0, 0, 0)),
    ]
    shifts, before, after = (torch.tensor(column).float() for column in zip(*cases))
    adjusted = adjust_hue(before[:, :, None, None], shifts[:, None, None, None])
    assert torch.allclose(adjusted[:, :, 0, 0], after, atol=1e-3)


def test_pca_noise_has_the_covariance_of_imagenet():
    grey = torch.full((20_000, 3, 2, 3), 127, dtype=torch.uint8)
    noise = pca_noise(grey, rand(grey), std=0.2) - 127
    assert torch.equal(noise, noise[:, :, :1, :1].expand_as(noise))  # one shift for all pixels
    shifts = noise[:, :, 0, 0].double()
    eigenvectors = torch.tensor(PCA_VECTORS).double()
    variances = (255 * 0.2 * torch.tensor(PCA_VALUES).double()) ** 2
    expected = eigenvectors @ variances.diag() @ eigenvectors.T
    error = (shifts.T.cov() - expected).abs().max()
    assert error < 0.04 * expected.max()  # 4 standard errors, sqrt(2 / n) of a variance
    along = (shifts @ eigenvectors) / variances.sqrt()  # of each component apart, in its own std
    assert torch.allclose(along.T.cov(), torch.eye(3).double(), atol=0.04)
    assert along.mean(0).abs().max() < 4 / 20_000**0.5
    assert (along**4).mean(0).tolist() == pytest.approx([3, 3, 3], abs=0.3)  # normal


def test_pca_noise_equals_the_formula_and_is_clamped():
    images = IMAGES // 128 * 255
    shifted = pca_noise(images, rand(images), std=0.5)
    assert shifted.min() == 0
    assert shifted.max() == 255
    u, v = rand(images)(2, 3).double().unbind(1)
    alpha = 0.5 * (-2 * (1 - u).log()).sqrt() * (2 * torch.pi * v).cos()
    for before, after, coefficients in zip(images, shifted, alpha.tolist()):
        for channel, vectors in enumerate(PCA_VECTORS):
            terms = zip(coefficients, PCA_VALUES, vectors, strict=True)
            shift = 255 * sum(a * value * component for a, value, component in terms)
            expected = (before[channel] + shift).clamp(0, 255)
            assert torch.allclose(after[channel], expected.float(), atol=1e-3)


@pytest.mark.parametrize(
    ("ours", "transform"),
    [
        (randaugment, v2.RandAugment(2, 9)),
        (lambda x, r: randaugment(x, r, operations=3, magnitude=20), v2.RandAugment(3, 20)),
        (trivialaugment, v2.TrivialAugmentWide()),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_random_ops_equal_torchvision_and_restore_the_generator(ours, transform, channels):
    images = IMAGES[:16, :channels]
    state = torch.get_rng_state()
    augmented = ours(images, rand(images))
    assert torch.equal(torch.get_rng_state(), state)
    for image, after, number in zip(images, augmented, rand(images)().tolist()):
        torch.manual_seed(int(number * 2**24))
        assert torch.equal(after, transform(image))
    # floats, as another augmentation may return them
    assert torch.equal(ours(images.float() + 0.2, rand(images)), augmented)
    assert not torch.equal(augmented, images)


@pytest.mark.parametrize(
    "option",
    [
        lambda x, r: crop(x, r, padding=0),
        lambda x, r: flip(x, r, horizontal=0.0),
        lambda x, r: rotate(x, r, degrees=0.0),
        lambda x, r: affine(x, r, degrees=0, translate=0, scale=0, shear=0),
        lambda x, r: erase(x, r, probability=0.0),
        lambda x, r: jitter(x, r, brightness=0.0, contrast=0.0),
        lambda x, r: color(x, r, brightness=0, contrast=0, saturation=0, hue=0),
        lambda x, r: pca_noise(x, r, std=0.0),
    ],
)
def test_option_of_strength_zero_is_the_identity(option):
    assert torch.equal(option(IMAGES, rand(IMAGES)), IMAGES)


@pytest.mark.parametrize("name", [o for o in list_options(CONF / "augment") if o != "none"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 7)])
def test_option_changes_images_of_any_shape_independently_of_ranks(name, shape):
    if name in RGB_ONLY:
        shape = (3, *shape[1:])
    images = torch.randint(256, (32, *shape), dtype=torch.uint8, generator=generator(0, "images"))
    per_image = torch.rand(32, generator=generator(0, "per_image"))
    for augment in build_each(configure(f"augment={name}").augment).values():
        whole = augment(images, rand(images, per_image=per_image))
        assert whole.shape == images.shape
        assert not torch.equal(whole, images)
        assert whole.min() >= 0
        assert whole.max() <= 255.001
        for rank in range(2):
            numbers = Rand(generator(0, "augment"), 32, rank, ranks=2, per_image=per_image[rank::2])
            part = augment(images[rank::2], numbers)
            assert torch.allclose(part, whole[rank::2], atol=1e-3)


def test_ladder_adds_options_at_each_step():
    ladder = ("none", "light", "medium", "strong")
    names = [list(configure(f"augment={step}").augment) for step in ladder]
    assert all(set(lower) < set(higher) for lower, higher in pairwise(names))


def test_options_are_applied_in_the_given_order():
    assert list(configure("augment=[erase,crop]").augment) == ["erase", "crop"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("augment=randaugment", "data=fake", "data.channels=4"),
            "do not take 4 channels; allowed: 1, 3",
        ),
        (
            ("augment=color",),
            r"augment\.color\.saturation=0\.4 augment\.color\.hue=0\.1: no effect on grey images\. "
            r"Expected augment\.color\.saturation=0 augment\.color\.hue=0$",
        ),
        (
            ("augment=color", "augment.color.saturation=0"),
            r"augment\.color\.hue=0\.1: no effect on grey images",
        ),
        (
            ("augment=color", "augment.color.hue=0"),
            r"augment\.color\.saturation=0\.4 .*: no effect on grey images",
        ),
        (
            ("augment=color", "data=fake", "data.channels=2"),
            r"augment=color: takes grey or RGB images, the data have 2 channels\. Expected 1 or 3$",
        ),
        (
            ("augment=pca_noise",),
            r"augment=pca_noise: takes RGB images, the data have 1 channel\. Expected 3$",
        ),
        (
            ("augment=pca_noise", "data=fake", "data.channels=4"),
            r"takes RGB images, the data have 4 channels\. Expected 3$",
        ),
        (
            ("augment=crop", "augment.crop.padding=9"),
            r"augment.crop.padding=9 exceeds the image size 8 x 8",
        ),
    ],
)
def test_errors_are_raised_before_training(run, capsys, overrides, message):
    with pytest.raises(UserError, match=message):
        run("debug=batch", *overrides)
    assert "steps" not in capsys.readouterr().out


@pytest.mark.parametrize("size", [8, 64, 72, 80])
def test_flip_of_large_images_is_that_of_small_ones(size):
    """From some size on, images are mirrored one by one."""
    images = torch.randint(256, (9, 3, size, size), dtype=torch.uint8)
    before = images.clone()
    flipped = flip(images, rand(images), horizontal=0.5, vertical=0.5)
    x, y = rand(images)(2).T < 0.5
    for image, ours, in_x, in_y in zip(images, flipped, x, y):
        image = image.flip(2) if in_x else image
        assert torch.equal(ours, image.flip(1) if in_y else image)
    assert torch.equal(images, before)
    assert flip(images[:0], Rand(generator(0, "flip"), 0)).shape == (0, 3, size, size)
