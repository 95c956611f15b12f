"""Photographs as data: what is kept, cached and cropped, by any cache, worker and rank."""

import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.configs import configure
from helpers.datasets import write_photographs
from tricklab.data.batches import LabeledImages
from tricklab.data.fit import Fit
from tricklab.data.image_files import ImageFiles
from tricklab.data.images import decode
from tricklab.data.kept import KeptImages
from tricklab.errors import UserError
from tricklab.run.build import build_data

CROPPED = ("augment=[resized_crop,flip]", "data.size=16", "data.batch_size=8")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder of 40 pictures of two classes in many sizes and shapes."""
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, images=20)
    return folder


def build_photographs(root, *overrides):
    options = ("data=folder", f"data.root='{root}'", "data.num_workers=0", *CROPPED)
    return build_data(configure(*options, *overrides))


def epoch(data, number=0, first=0, rank=0, ranks=1):
    """Return the training batches of an epoch: images, labels and indices of each."""
    return list(data.training_batches(lambda: (number, first), rank, ranks))


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_training_images_keep_their_aspect_and_others_are_fitted(root):
    data = build_photographs(root)
    assert isinstance(data.train.images, KeptImages)
    shapes = {tuple(image.shape) for image in data.train.images.index_select(0, torch.arange(32))}
    assert len(shapes) > 10
    assert all(min(shape[1:]) <= 2 * 16 for shape in shapes)
    for part in (data.val, data.clean, data.splits.test):
        assert part.images.shape[1:] == (3, 16, 16)
    assert len(data.val.labels) == len(data.val_indices) == 3
    assert len(data.clean.labels) == len(data.train_indices) == 29


def test_evaluated_images_are_fitted_from_the_files(root):
    """Not from what is kept for training, also if they are training images."""
    data = build_photographs(root, "data.keep=17")
    files = data.splits.train.images
    originals = build_photographs(root, "data.cache=none").train.images.files
    indices = torch.tensor([3, 30])
    fitted = data.splits.fitted(indices)
    for index, image in zip(indices.tolist(), fitted):
        expected = decode(originals[index].path, Fit((16, 16)), "RGB")
        assert torch.equal(image, expected)
    assert files[3].shape[1:].count(17) == 1  # the short side


def test_loader_crops_to_the_size_of_the_network(root):
    for images, _, _ in epoch(build_photographs(root)):
        assert images.shape[1:] == (3, 16, 16)
        assert images.dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["memory", "none", "folder"])
def test_crops_do_not_depend_on_cache_and_workers(root, tmp_path, monkeypatch, cache, workers):
    monkeypatch.setattr("tricklab.data.image_files.BLOCK", 8)
    cache = f"'{tmp_path / 'cache'}'" if cache == "folder" else cache
    one = build_photographs(root)
    other = build_photographs(root, f"data.cache={cache}", f"data.num_workers={workers}")
    before = torch.get_rng_state()
    for number in (0, 3):
        assert_same(epoch(one, number, first=1), epoch(other, number, first=1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.val.images, other.val.images[torch.arange(3)])
    assert (one.mean, one.std) == (other.mean, other.std)


def test_crops_resume_at_any_batch_and_differ_between_epochs(root):
    data = build_photographs(root)
    assert_same(epoch(data, 2)[2:], epoch(data, 2, first=2))
    assert not torch.equal(epoch(data, 0)[0][0], epoch(data, 1)[0][0])


def test_crops_do_not_depend_on_the_number_of_ranks(root):
    whole = epoch(build_photographs(root, "data.batch_size=8"))
    parts = [
        epoch(build_photographs(root, "data.batch_size=4"), rank=rank, ranks=2) for rank in (0, 1)
    ]
    for batch, first, second in zip(whole, *parts):
        assert torch.equal(batch[0][0::2][: len(first[0])], first[0])
        assert torch.equal(batch[0][1::2][: len(second[0])], second[0])


def test_crops_move_no_other_random_stream(root):
    """The order, and whether an image is flipped, are those without crops."""
    data = build_photographs(root)
    plain = build_photographs(root, "augment=flip")
    for (_, _, ours), (_, _, theirs) in zip(epoch(data), epoch(plain), strict=True):
        assert torch.equal(ours, theirs)
    assert list(data.augment_on_device.steps) == list(plain.augment_on_device.steps) == ["flip"]


@pytest.mark.parametrize(
    ("augment", "in_loader"),
    [
        ("[flip,resized_crop]", ["resized_crop"]),
        ("[resized_crop,flip,randaugment,erase]", ["resized_crop", "flip", "randaugment"]),
        ("[flip,trivialaugment]", ["flip", "trivialaugment"]),
        ("[flip,erase]", []),
    ],
)
def test_slow_augmentations_run_in_the_loader_with_all_before_them(root, augment, in_loader):
    data = build_photographs(root, f"augment={augment}")
    assert list(data.augment_in_loader.steps) == in_loader
    assert [*data.augment_in_loader.steps, *data.augment_on_device.steps] == list(data.augment)


def test_randaugment_in_workers_is_that_of_the_main_process(root):
    options = ("augment=[resized_crop,randaugment]",)
    one = build_photographs(root, *options)
    other = build_photographs(root, *options, "data.num_workers=2")
    assert_same(epoch(one), epoch(other))


def test_arrays_are_cropped_from_their_own_size(run):
    data = build_data(configure("data=digits", "augment=resized_crop", "data.size=12"))
    images, _, _ = epoch(data)[0]
    assert images.shape[1:] == (1, 12, 12)
    assert data.shape == (1, 12, 12)
    result = run("augment=resized_crop", "stop_after=2ep", "model=mlp").result
    assert result["status"] == "done"


# Size, mean and std


def test_size_follows_the_network_and_crops_large_images(root):
    options = ("data=folder", f"data.root='{root}'", "data.num_workers=0")
    for overrides, side, crop_fraction in (
        (["model=convnet"], 32, 1.0),
        (["model=torchvision"], 224, 224 / 256),
        (["model=convnet", "data.size=128"], 128, 0.875),
        (["model=convnet", "data.size=127"], 127, 1.0),
        (["model=convnet", "data.size=128", "data.fit=pad"], 128, 1.0),
        (["model=convnet", "data.size=128", "data.crop_fraction=1"], 128, 1.0),
    ):
        data = build_data(configure(*options, *overrides))
        assert data.shape == (3, side, side)
        assert data.spec.crop_fraction == pytest.approx(crop_fraction, abs=1e-12)


def test_mean_and_std_are_options(root):
    data = build_photographs(root, "data.mean=[0.5]", "data.std=[0.1,0.2,0.3]")
    assert (data.mean, data.std) == ([0.5] * 3, [0.1, 0.2, 0.3])
    with pytest.raises(UserError, match=r"data\.mean=\[0\.5, 0\.5\]: expected one number, or one"):
        build_photographs(root, "data.mean=[0.5,0.5]")


def test_mean_and_std_are_those_that_evaluation_sees(root):
    """The same with and without crops."""
    cropped = build_photographs(root)
    plain = build_photographs(root, "augment=none")
    assert (cropped.mean, cropped.std) == (plain.mean, plain.std)
    pixels = plain.train.images[plain.train_indices].double() / 255
    assert cropped.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_enlarged_images_are_warned_of(tmp_path, capsys, cache):
    write_photographs(tmp_path, images=20, smallest=40)
    build_photographs(tmp_path, "data.size=80", f"data.cache={cache}")
    assert "enlarged" not in capsys.readouterr().err
    Image.new("RGB", (50, 10)).save(tmp_path / "cat" / "small.png")
    build_photographs(tmp_path, "data.size=80", f"data.cache={cache}")
    (line,) = capsys.readouterr().err.splitlines()
    expected = "warning: data.size=80: 1 of 41 images are enlarged by more than 2, most of all"
    assert line.startswith(f"{expected} cat/small.png (10 x 50 pixels) by 8;")


# Caches


def image_files(root, workers=0):
    return build_photographs(root, "data.cache=none", f"data.num_workers={workers}").train.images


def test_kept_images_are_those_that_are_decoded(root, tmp_path):
    files = image_files(root)
    assert isinstance(files, ImageFiles)
    kept = build_photographs(root, f"data.cache='{tmp_path}'").train.images
    assert len(kept) == len(files)
    for index in range(len(files)):
        assert torch.equal(kept[index], files.decode(index))


def build_in_another_process(root, cache, results):
    data = build_photographs(root, f"data.cache='{cache}'")
    results.put([int(image.sum()) for image in data.train.images.index_select(0, torch.arange(9))])


def test_cache_is_written_once_by_jobs_that_start_together(root, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = (root, tmp_path / "cache", results)
    jobs = [context.Process(target=build_in_another_process, args=arguments) for _ in range(3)]
    for job in jobs:
        job.start()
    sums = [results.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    assert sums[0] == sums[1] == sums[2]
    # training, test, validation, and the part of training that is evaluated
    assert len(list((tmp_path / "cache").iterdir())) == 4


def test_cache_that_was_cut_short_is_removed(root, tmp_path):
    cache = f"data.cache='{tmp_path}'"
    build_photographs(root, cache)
    before = sorted(tmp_path.iterdir())
    name = before[0].stem
    before[0].unlink()
    (tmp_path / f"{name}.0123abcd").write_bytes(b"killed while it was written")
    build_photographs(root, cache)
    assert sorted(tmp_path.iterdir()) == before


def test_blocks_hold_no_open_files(root):
    """Sizes from workers lie in shared memory, a file each, until they are copied."""
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    if before is None:
        pytest.skip("needs /proc")
    data = build_photographs(root, "data.num_workers=2")
    assert len(data.train.images) == 32
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_images_of_a_list_and_of_a_tensor_have_the_same_labels(root):
    data = build_photographs(root)
    plain = build_photographs(root, "augment=none")
    assert isinstance(data.train, LabeledImages)
    assert torch.equal(data.train.labels, plain.train.labels)
    assert torch.equal(data.train_indices, plain.train_indices)
    assert np.array_equal(data.val.labels, plain.val.labels[plain.val_indices])
