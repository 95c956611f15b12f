"""Sizes of photographs: evaluation as timm and torchvision do it, boxes and pixels of crops."""

import io

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as v2

from tricklab.augment import resized_crop
from tricklab.boxes import draw_boxes
from tricklab.data.fit import MAX_ASPECT, Fit, Keep
from tricklab.data.images import decode
from tricklab.randomness import Rand, generator
from tricklab.run.weights import timm_input, torchvision_input

SHAPES = [(224, 224), (375, 500), (500, 375), (57, 301), (333, 97), (32, 33), (225, 224)]


def random_image(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def to_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("mode", "crop_pct", "interpolation", "size"),
    [
        ("center", 0.875, "bicubic", 224),
        ("center", 0.9, "bilinear", 96),
        ("center", 1.0, "bicubic", 128),
        ("squash", 1.0, "bicubic", 128),
        ("squash", 0.9, "bilinear", 96),
        ("border", 1.0, "bicubic", 128),
    ],
)
def test_fit_is_the_evaluation_of_timm(shape, mode, crop_pct, interpolation, size):
    from timm.data import create_transform

    config = {"input_size": (3, size, size), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    config |= {"crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation}
    black = {"mean": (0, 0, 0), "std": (1, 1, 1)}  # timm pads with the mean
    expected = create_transform(**config | black)(random_image(*shape))
    spec = timm_input(config)
    assert (spec.mean, spec.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    fit = Fit(spec.shape[1:], spec.fit, spec.crop_fraction, spec.interpolation)
    assert torch.equal(to_tensor(fit(random_image(*shape))), (expected * 255).round().byte())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "inception_v3", "efficientnet_b3"])
def test_fit_is_the_evaluation_of_torchvision(shape, name):
    from torchvision.models import get_model_weights

    transforms = get_model_weights(name)["DEFAULT"].transforms()
    spec = torchvision_input(name)
    fit = Fit(spec.shape[1:], spec.fit, spec.crop_fraction, spec.interpolation)
    assert fit.before_crop == (transforms.resize_size[0],) * 2
    transforms.mean, transforms.std = [0.0] * 3, [1.0] * 3
    expected = (transforms(random_image(*shape)) * 255).round().byte()
    assert torch.equal(to_tensor(fit(random_image(*shape))), expected)


@pytest.mark.parametrize("method", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(32, 32), (20, 48)])
@pytest.mark.parametrize("shape", [(1, 1), (8, 3000), (3000, 8), (1, 500), (31, 33)])
def test_fit_has_its_size_for_images_of_any_shape(shape, size, method):
    for crop_fraction in (1.0, 0.5):
        image = Fit(size, method, crop_fraction)(random_image(*shape))
        assert image.size == size[::-1]


def test_fit_of_a_very_long_image_cuts_it_first():
    """It would take gigabytes: 65,000 pixels enlarged by 256."""
    image = random_image(1, 65000)
    fitted = Fit((256, 256))(image)
    middle = image.crop((32500 - MAX_ASPECT // 2, 0, 32500 + MAX_ASPECT // 2, 1))
    assert fitted.tobytes() == Fit((256, 256))(middle).tobytes()


def test_fit_pad_shows_the_whole_image_on_black():
    white = Image.new("RGB", (40, 20), "white")
    pixels = to_tensor(Fit((32, 32), "pad")(white))
    assert pixels[:, 8:24].min() == 255
    assert pixels[:, :8].max() == pixels[:, 24:].max() == 0


def test_enlargement_is_the_factor_of_the_short_side():
    assert Fit((224, 224), "crop", 0.875).enlargement(width=64, height=640) == 4
    assert Fit((224, 224), "pad").enlargement(width=56, height=112) == 2
    assert Fit((224, 224)).enlargement(width=448, height=500) == 0.5


@pytest.mark.parametrize(
    ("shape", "kept"), [((100, 150), (64, 96)), ((200, 80), (160, 64)), ((64, 900), (64, 900))]
)
def test_keep_reduces_the_short_side_alone(shape, kept):
    assert Keep(64)(random_image(*shape)).size == kept[::-1]


def test_jpeg_scaling_reads_no_fewer_pixels_than_are_kept(tmp_path):
    """A smooth picture of 800 x 1,200 is decoded at a quarter, and hardly differs."""
    rows, columns = np.mgrid[:800, :1200]
    waves = 127 + 90 * np.sin(rows / 40) * np.cos(columns / 60)
    Image.fromarray(waves.astype(np.uint8)).convert("RGB").save(tmp_path / "x.jpg", quality=95)
    exact = decode(tmp_path / "x.jpg", Keep(200), "RGB")
    scaled = decode(tmp_path / "x.jpg", Keep(200, jpeg_scaling=True), "RGB")
    assert exact.shape == scaled.shape == (3, 200, 300)
    assert not torch.equal(exact, scaled)
    assert (exact.float() - scaled.float()).abs().mean() < 1


# augment=resized_crop


@pytest.mark.parametrize("shape", [(224, 224), (375, 500), (500, 120), (90, 600)])
@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.3, 0.6), (0.5, 1.2))]
)
def test_boxes_have_the_distribution_of_torchvision(shape, scale, ratio):
    n = 5000
    sizes = torch.tensor(shape).expand(n, 2)
    ours = draw_boxes(torch.rand(n, 22, generator=generator(1, "boxes")), sizes, scale, ratio)
    torch.manual_seed(0)
    image = torch.empty(3, *shape)
    get_params = RandomResizedCrop.get_params
    theirs = torch.tensor([get_params(image, list(scale), list(ratio)) for _ in range(n)])
    measures = {
        "area": lambda boxes: boxes[:, 2] * boxes[:, 3],
        "aspect": lambda boxes: boxes[:, 3] / boxes[:, 2],
        "top": lambda boxes: boxes[:, 0],
        "left": lambda boxes: boxes[:, 1],
    }
    for name, measure in measures.items():
        p = scipy.stats.ks_2samp(measure(ours).numpy(), measure(theirs).numpy()).pvalue
        assert p > 1e-4, name
    top, left, height, width = ours.T
    assert ((top >= 0) & (left >= 0) & (height > 0) & (width > 0)).all()
    assert ((top + height <= shape[0]) & (left + width <= shape[1])).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_has_the_pixels_of_torchvision(interpolation):
    images = [to_tensor(random_image(*shape, seed=i)) for i, shape in enumerate(SHAPES)]
    rand = Rand(generator(0, "crop"), len(images))
    cropped = resized_crop(images, rand, interpolation=interpolation, size=(64, 48))
    sizes = torch.tensor([image.shape[1:] for image in images])
    numbers = Rand(generator(0, "crop"), len(images))(22)
    boxes = draw_boxes(numbers, sizes, (0.08, 1), (3 / 4, 4 / 3))
    mode = v2.InterpolationMode(interpolation)
    for image, box, ours in zip(images, boxes.tolist(), cropped):
        theirs = v2.resized_crop(image, *box, [64, 48], interpolation=mode, antialias=True)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(1, 1), (8, 3000), (3000, 8), (1, 2)])
def test_crop_of_an_image_of_any_shape(shape):
    images = [to_tensor(random_image(*shape))] * 50
    cropped = resized_crop(images, Rand(generator(0, "crop"), 50), size=(16, 16))
    assert cropped.shape == (50, 3, 16, 16)


def test_crop_of_arrays_keeps_their_size_and_type():
    images = torch.randint(256, (20, 1, 12, 16), dtype=torch.uint8)
    rand = Rand(generator(0, "crop"), 20)
    cropped = resized_crop(images, rand)
    assert (cropped.shape, cropped.dtype) == (images.shape, torch.uint8)
    as_floats = resized_crop(images.float(), Rand(generator(0, "crop"), 20))
    assert (as_floats - cropped).abs().max() < 1.01  # pixels of uint8 are rounded


def test_jpegs_of_one_picture_give_the_pixels_of_pillow(tmp_path):
    """Full decoding and Pillow's resizing, whatever the quality."""
    file = io.BytesIO()
    random_image(120, 160).save(file, "JPEG")
    (tmp_path / "x.jpg").write_bytes(file.getvalue())
    expected = Image.open(tmp_path / "x.jpg").resize((64, 48), Image.Resampling.BICUBIC)
    pixels = decode(tmp_path / "x.jpg", Fit((48, 64), interpolation="bicubic"), "RGB")
    assert torch.equal(pixels, to_tensor(expected))
