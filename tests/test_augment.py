import pytest
import torch
import torch.nn.functional as F

from tricklab.augment import flip_crop, none, rotate_crop_flip
from tricklab.randomness import generator, per_image


def rand(images, seed=0):
    return per_image(generator(seed, "augment"), len(images))


IMAGES = torch.randint(256, (64, 3, 9, 7), dtype=torch.uint8, generator=generator(0, "images"))


def test_none():
    assert none(IMAGES, rand(IMAGES)) is IMAGES


def test_flip_crop_is_pad_cut_and_mirror():
    out = flip_crop(IMAGES, rand(IMAGES), padding=2, flip=0.5)
    padded = F.pad(IMAGES, [2] * 4)
    numbers = rand(IMAGES)(3)
    assert out.dtype == torch.uint8
    for image, big, (top, left, mirror) in zip(out, padded, numbers.tolist()):
        cut = big[:, int(top * 5) : int(top * 5) + 9, int(left * 5) : int(left * 5) + 7]
        assert torch.equal(image, cut.flip(2) if mirror < 0.5 else cut)


def test_flip_crop_reaches_every_place_and_both_sides():
    spot = torch.zeros(4000, 1, 9, 9, dtype=torch.uint8)
    spot[:, :, 4, 4] = 1
    places = flip_crop(spot, rand(spot), padding=2, flip=0.0).flatten(1).argmax(1)
    assert len(places.unique()) == 25
    sides = torch.zeros(4000, 1, 1, 2, dtype=torch.uint8)
    sides[..., 0] = 1
    assert flip_crop(sides, rand(sides), padding=0, flip=0.3)[..., 1].float().mean() == pytest.approx(0.3, abs=0.03)


def test_no_padding_and_no_flip_changes_nothing():
    assert torch.equal(flip_crop(IMAGES, rand(IMAGES), padding=0, flip=0.0), IMAGES)
    turned = rotate_crop_flip(IMAGES, rand(IMAGES), degrees=0.0, padding=0, flip=0.0)
    assert torch.allclose(turned, IMAGES.float(), atol=1e-2)


@pytest.mark.parametrize("shape", [(9, 9), (9, 7)])
def test_rotation_by_half_a_turn(shape):
    images = torch.randint(256, (4, 3, *shape), dtype=torch.uint8)
    half = rotate_crop_flip(images, lambda *s: torch.full((4, *s), 1 - 1e-7), degrees=180.0, padding=0, flip=0.0)
    assert torch.allclose(half, images.float().flip(2, 3), atol=1e-2)


def test_rotation_by_a_quarter_turn_keeps_pixels_square():
    images = torch.randint(256, (4, 1, 5, 9), dtype=torch.uint8)
    quarter = rotate_crop_flip(images, lambda *s: torch.full((4, *s), 1 - 1e-7), degrees=90.0, padding=0, flip=0.0)
    middle = images[:, :, :, 2:7].float()
    ways = [torch.allclose(quarter[:, :, :, 2:7], torch.rot90(middle, k, (2, 3)), atol=1e-1) for k in (1, 3)]
    assert any(ways)
    assert quarter[:, :, :, :2].abs().max() < 1e-1  # black where there was nothing


def test_numbers_belong_to_the_image_and_not_to_the_rank():
    whole = flip_crop(IMAGES, rand(IMAGES), padding=2)
    for rank in range(2):
        part = flip_crop(IMAGES[rank::2], per_image(generator(0, "augment"), 64, rank, ranks=2), padding=2)
        assert torch.equal(part, whole[rank::2])
