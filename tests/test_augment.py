"""Each augmentation against its definition or torchvision's, and what all have in common, found by globbing."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import CONF, configure
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as theirs

from tricklab.augment import (
    affine,
    alternating_flip,
    crop,
    erase,
    flip,
    jitter,
    randaugment,
    rotate,
    trivialaugment,
    warp,
)
from tricklab.cli.config import list_options
from tricklab.errors import UserError
from tricklab.randomness import Rand, generator
from tricklab.run.instantiate import build_each

IMAGES = torch.randint(256, (64, 3, 9, 7), dtype=torch.uint8, generator=generator(0, "images"))


def rand(images, seed=0, **more):
    return Rand(generator(seed, "augment"), len(images), **more)


def test_crop_is_pad_and_cut():
    out = crop(IMAGES, rand(IMAGES), padding=2)
    padded = F.pad(IMAGES, [2] * 4)
    assert out.dtype == torch.uint8
    for image, big, (top, left) in zip(out, padded, rand(IMAGES)(2).tolist()):
        assert torch.equal(
            image, big[:, int(top * 5) : int(top * 5) + 9, int(left * 5) : int(left * 5) + 7]
        )


@pytest.mark.parametrize(
    ("padding", "places"), [(2, 25), (0.25, 25), (0.125, 9), (1, 9), (0, 1), (0.0, 1)]
)
def test_crop_reaches_every_place(padding, places):
    spot = torch.zeros(4000, 1, 9, 9, dtype=torch.uint8)
    spot[:, :, 4, 4] = 1
    assert len(crop(spot, rand(spot), padding).flatten(1).argmax(1).unique()) == places


def test_flip_is_mirror_with_the_probability():
    out = flip(IMAGES, rand(IMAGES), horizontal=0.5, vertical=0.3)
    for before, after, (x, y) in zip(IMAGES, out, rand(IMAGES)(2).tolist()):
        assert torch.equal(
            after, before.flip([d for d, done in ((2, x < 0.5), (1, y < 0.3)) if done])
        )
    sides = torch.zeros(4000, 1, 2, 2, dtype=torch.uint8)
    sides[:, :, 0, 0] = 1
    turned = flip(sides, rand(sides), horizontal=0.3, vertical=0.6).float().mean((0, 1))
    assert turned.flatten().tolist() == pytest.approx([0.28, 0.12, 0.42, 0.18], abs=0.03)


def test_alternating_flip_turns_every_image_in_every_other_epoch():
    lasting = torch.rand(64, generator=generator(0, "lasting"))
    epochs = [
        alternating_flip(IMAGES, rand(IMAGES, seed=n, epoch=n, lasting=lasting)) for n in range(4)
    ]
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
    expected = theirs.affine(
        images, degrees, [right, down], scale, [shear, 0.0], v2.InterpolationMode.BILINEAR
    )
    assert torch.allclose(warp(images, *numbers, shift), expected, atol=0.02)


def test_affine_draws_each_within_its_limits(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "tricklab.augment.warp", lambda images, *moves: seen.append(moves) or images
    )
    many = torch.zeros(5000, 1, 2, 2)
    affine(many, rand(many), degrees=20, translate=0.25, scale=0.1, shear=5)
    degrees, shear, scale, shift = seen[0]
    for values, low, high in (
        (degrees, -20, 20),
        (shear, -5, 5),
        (scale, 0.9, 1.1),
        (shift, -0.5, 0.5),
    ):
        assert values.min() == pytest.approx(low, abs=0.01 * (high - low))
        assert values.max() == pytest.approx(high, abs=0.01 * (high - low))
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    rotate(many, rand(many), degrees=20)
    assert torch.equal(seen[1][0], degrees)
    assert all((values == neutral).all() for values, neutral in zip(seen[1][1:], (0, 1, 0)))


def test_erase_fills_boxes_of_the_area():
    images = torch.full((4000, 3, 32, 32), 200, dtype=torch.uint8)
    out = erase(images, rand(images), probability=0.4, smallest=0.1, largest=0.3, value=7)
    gone = (out == 7).all(1)
    assert out.dtype == torch.uint8
    assert ((out == 7) | (out == 200)).all()
    share = gone.float().mean((1, 2))
    assert (share > 0).float().mean() == pytest.approx(0.4, abs=0.03)
    hit = share[share > 0]
    assert 0.08 < hit.min() < 0.11
    assert 0.28 < hit.max() < 0.32
    assert hit.mean() == pytest.approx(0.2, abs=0.01)
    rows, columns = gone.any(2).sum(1), gone.any(1).sum(1)
    assert torch.equal(gone.sum((1, 2)), rows * columns)  # boxes
    ratio = (rows / columns)[share > 0].log()
    assert ratio.mean().abs() < 0.05
    assert ratio.max() == pytest.approx(1.2, abs=0.2)
    assert (gone.sum(0) > 0).all()  # everywhere


def test_jitter_equals_torchvision():
    images = torch.randint(60, 160, (16, 1, 9, 7), generator=generator(0, "images")).float()
    out = jitter(images, rand(images), brightness=0.3, contrast=0.4)
    for before, after, (x, y) in zip(images / 255, out / 255, (rand(images)(2) * 2 - 1).tolist()):
        expected = theirs.adjust_contrast(
            theirs.adjust_brightness(before, 1 + 0.3 * x), 1 + 0.4 * y
        )
        assert torch.allclose(after, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("ours", "transform"),
    [
        (randaugment, v2.RandAugment(2, 9)),
        (lambda x, r: randaugment(x, r, operations=3, magnitude=20), v2.RandAugment(3, 20)),
        (trivialaugment, v2.TrivialAugmentWide()),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_image_by_image_equals_torchvision_and_leaves_the_generator(ours, transform, channels):
    images = IMAGES[:16, :channels]
    before = torch.get_rng_state()
    out = ours(images, rand(images))
    assert torch.equal(torch.get_rng_state(), before)
    for image, after, number in zip(images, out, rand(images)().tolist()):
        torch.manual_seed(int(number * 2**24))
        assert torch.equal(after, transform(image))
    assert torch.equal(
        ours(images.float() + 0.2, rand(images)), out
    )  # as another augmentation may leave them
    assert not torch.equal(out, images)


@pytest.mark.parametrize(
    "off",
    [
        lambda x, r: crop(x, r, padding=0),
        lambda x, r: flip(x, r, horizontal=0.0),
        lambda x, r: rotate(x, r, degrees=0.0),
        lambda x, r: affine(x, r, degrees=0, translate=0, scale=0, shear=0),
        lambda x, r: erase(x, r, probability=0.0),
        lambda x, r: jitter(x, r, brightness=0.0, contrast=0.0),
    ],
)
def test_off_changes_nothing(off):
    assert torch.equal(off(IMAGES, rand(IMAGES)), IMAGES)


@pytest.mark.parametrize("name", [o for o in list_options(CONF / "augment") if o != "none"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 7)])
def test_every_word_changes_images_of_any_shape_and_belongs_to_the_image(name, shape):
    images = torch.randint(256, (32, *shape), dtype=torch.uint8, generator=generator(0, "images"))
    lasting = torch.rand(32, generator=generator(0, "lasting"))
    for change in build_each(configure(f"augment={name}").augment).values():
        whole = change(images, rand(images, lasting=lasting))
        assert whole.shape == images.shape
        assert not torch.equal(whole, images)
        assert whole.min() >= 0
        assert whole.max() <= 255.001
        for rank in range(2):
            one = Rand(generator(0, "augment"), 32, rank, ranks=2, lasting=lasting[rank::2])
            assert torch.allclose(change(images[rank::2], one), whole[rank::2], atol=1e-3)


def test_the_ladder_rises():
    names = [
        list(configure(f"augment={step}").augment) for step in ("none", "light", "medium", "strong")
    ]
    assert all(set(lower) < set(higher) for lower, higher in pairwise(names))
    assert list(configure("augment=[erase,crop]").augment) == ["erase", "crop"]  # in this order


def test_what_an_augmentation_refuses_is_said_before_training(run, capsys):
    for words, says in (
        (
            ("augment=randaugment", "data=fake", "data.channels=4"),
            "do not take 4 channels; allowed: 1, 3",
        ),
        (("augment=crop", "augment.crop.padding=9"), r"augment.crop.padding=9 of images of 8 x 8"),
    ):
        with pytest.raises(UserError, match=says):
            run("debug=batch", *words)
        assert "steps" not in capsys.readouterr().out


def test_numbers_are_the_same_in_any_precision():
    plain = rand(IMAGES)(2)
    torch.set_default_dtype(torch.double)
    try:
        assert torch.equal(rand(IMAGES)(2), plain)
    finally:
        torch.set_default_dtype(torch.float)


@pytest.mark.parametrize("shape", [(4, 256), (256, 4), (8, 8), (28, 28), (32, 32), (64, 48)])
def test_erased_areas_are_those_drawn_on_any_shape(shape):
    """Boxes that did not fit were cut off: a mean area of 0.053 on 4 x 256 instead of 0.175."""
    images = torch.zeros(20_000, 1, *shape, dtype=torch.uint8)
    erased = erase(images, Rand(generator(0, "erase"), len(images)), probability=1.0, value=1)
    area = erased.double().mean((1, 2, 3))
    assert area.mean() == pytest.approx(0.175, abs=0.01)
    assert area.min() > 0.02 - 2 / sum(shape)
    assert area.max() < 0.33 + 2 / sum(shape)


def test_erased_boxes_of_squares_have_the_aspects_of_the_paper():
    """Compared with torchvision, which draws boxes again that do not fit, of squares hardly any."""
    from torchvision.transforms.v2 import RandomErasing

    images = torch.zeros(4000, 1, 32, 32, dtype=torch.uint8)
    ours = erase(images, Rand(generator(0, "erase"), len(images)), probability=1.0, value=1)
    torch.manual_seed(0)
    change = RandomErasing(p=1.0, value=1)
    theirs = torch.stack([change(image) for image in images])
    for found, known in ((ours.amax(2).sum(2), theirs.amax(2).sum(2)),):
        assert found.double().mean() == pytest.approx(known.double().mean().item(), rel=0.03)
        assert found.double().std() == pytest.approx(known.double().std().item(), rel=0.05)


@pytest.mark.parametrize("side", [8, 9, 28, 32])
def test_erased_boxes_that_fit_are_as_drawn(side):
    """Bit for bit, also those that rounding makes as high as the image."""
    images = torch.zeros(5000, 1, side, side, dtype=torch.uint8)
    erased = erase(images, rand(images), probability=1.0, value=1)
    _, size, shape, y, x = rand(images)(5).T
    area, ratio = (0.02 + (0.33 - 0.02) * size) * side * side, 0.3 ** (2 * shape - 1)
    height, width = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (height <= side) & (width <= side)
    assert fits.float().mean() > 0.99
    assert torch.equal(erased.amax(3).sum((1, 2))[fits].float(), height[fits])
    assert torch.equal(erased.amax(2).sum((1, 2))[fits].float(), width[fits])
    top, left = erased.amax(3)[:, 0].argmax(1), erased.amax(2)[:, 0].argmax(1)
    assert torch.equal(top[fits].float(), (y * (side + 1 - height)).floor()[fits])
    assert torch.equal(left[fits].float(), (x * (side + 1 - width)).floor()[fits])


def test_erase_needs_a_smallest_area_below_the_largest():
    with pytest.raises(UserError, match=r"erase\.smallest=0\.5 is above augment\.erase\.largest"):
        erase(IMAGES, rand(IMAGES), smallest=0.5)
