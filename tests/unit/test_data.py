import multiprocessing
import os
import pickle
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from helpers.configs import ONE_BATCH, configure
from helpers.datasets import trust_cifar, write_cifar, write_mnist
from tricklab.augment import affine, crop, erase, flip
from tricklab.data.batches import channel_mean_std
from tricklab.data.datasets import TEST_SIZE
from tricklab.data.evaluation import build_test_data
from tricklab.data.fit import Fit
from tricklab.data.images import decode, decode_with_size
from tricklab.data.inputs import InputSpec, Preprocess
from tricklab.data.module import ImageData, fits_in_memory, to_device
from tricklab.data.progress import with_progress
from tricklab.data.published import MD5
from tricklab.data.splits import VAL_SIZE, add_label_noise, split_off, stratified_order
from tricklab.errors import UserError
from tricklab.mixup import cutmix, mixup
from tricklab.run.build import build_data
from tricklab.run.instantiate import build

FAKE = ("data=fake", "data.images=100", "data.test_images=20")


def build_fake(*overrides, **options):
    return build(configure(*FAKE, *overrides).data, **options)


def build_folder(root, *overrides):
    options = ("data=folder", f"data.root='{root}'", "data.size=8", "data.num_workers=0")
    return build_data(configure(*options, *overrides))


def at_position(module, epoch=0, batch=0, rank=0, ranks=1, device="cpu"):
    """Attach a trainer that is at this position."""
    batch_progress = SimpleNamespace(current=SimpleNamespace(ready=batch))
    module.trainer = SimpleNamespace(
        training=True,
        current_epoch=epoch,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=batch_progress)),
        global_rank=rank,
        world_size=ranks,
        limit_val_batches=1.0,
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )
    module.setup("fit")
    return module


def first_batch(module):
    return next(iter(module.train_dataloader()))


def write_images(root, *names, grey=90):
    """Write an image of 8 x 8 pixels under each name below `root`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), grey).save(root / name)


def write_classes(root, images=5, classes=("a", "b")):
    write_images(root, *(f"{name}/{i}.png" for name in classes for i in range(images)))


# Splits


@pytest.mark.parametrize("size", [10, 33, 64])
def test_stratified_order_has_stratified_prefixes(size):
    labels = torch.arange(400) % 4
    labels[200:] = 3  # 50, 50, 50, 250
    chosen = labels[stratified_order(labels, 0, "val")[:size]]
    fractions = chosen.bincount(minlength=4) / size
    assert torch.allclose(fractions, torch.tensor([0.125, 0.125, 0.125, 0.625]), atol=1.5 / size)


def test_train_size_of_ten_has_one_image_of_each_class():
    module = build_fake("data.train_size=10")
    assert module.train.labels[module.train_indices].sort().values.tolist() == list(range(10))


def test_splits_are_disjoint_and_follow_split_seed_alone():
    module = build_fake(seed=0)
    other_seed = build_fake(seed=1)
    other_split = build_fake("data.split_seed=1")
    assert sorted([*module.train_indices, *module.val_indices]) == list(range(100))
    assert torch.equal(module.val_indices, other_seed.val_indices)
    assert set(module.val_indices.tolist()) != set(other_split.val_indices.tolist())


def test_folds_cover_all_images_once_and_are_stratified():
    folds = [build_fake("data.folds=5", f"data.fold={k}") for k in range(5)]
    assert sorted(torch.cat([fold.val_indices for fold in folds]).tolist()) == list(range(100))
    for fold in folds:
        assert sorted([*fold.val_indices, *fold.train_indices]) == list(range(100))
        assert fold.train.labels[fold.val_indices].bincount(minlength=10).tolist() == [2] * 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data.fold=1", "data.fold=1 requires data.folds, e.g. data.folds=5"),
        ("data.fold=5 data.folds=5", "data.fold=5 data.folds=5; allowed: 2 to 100 folds, counted"),
        ("data.folds=1", "data.fold=0 data.folds=1; allowed: 2 to 100 folds, counted from 0"),
        ("data.folds=101", "data.fold=0 data.folds=101; allowed: 2 to 100 folds"),
        ("data.val_size=0.3 data.folds=3", "data.val_size=0.3: data.folds=3 determines the size"),
        (
            "data.val_size=0",
            "data.val_size=0 of 99 images; allowed: a number from 1 to 99, or a fr",
        ),
        ("data.val_size=100", "data.val_size=100 of 99 images; "),
        ("data.val_size=1.5", "data.val_size=1.5 of 99 images; "),
        ("data.train_size=1000", "data.train_size=1000 of 90 images; "),
        ("data.train_size=abc", "data.train_size=abc of 90 images; "),
    ],
)
def test_split_options_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        build_fake(*overrides.split())


@pytest.mark.parametrize(
    ("splits", "override", "message"),
    [
        ({"train": 9, "val": 3}, "data.val_size=0.3", "these data have a validation split of"),
        ({"train": 9, "val": 3}, "data.folds=5", "these data have a validation split of their own"),
        ({"train": 9, "test": 3}, "data.test_size=4", "/test is the test set; leave test_size out"),
    ],
)
def test_split_options_without_an_effect_are_refused(class_folders, splits, override, message):
    with pytest.raises(UserError, match=f"^{re.escape(override)}: .*{message}"):
        build_folder(class_folders(splits), override)


def test_split_defaults_are_those_of_the_yaml():
    """A size is explicit if it differs from the default."""
    assert configure("data=folder").data.val_size == VAL_SIZE
    assert configure("data=folder").data.test_size == TEST_SIZE


@pytest.mark.parametrize("size", [1, 7, 30, 80])
def test_split_off_takes_the_prefix_if_all_classes_remain(size):
    labels = torch.arange(100) % 4
    order = stratified_order(labels, 3, "val")
    rest, part = split_off(order, labels, size)
    assert torch.equal(part, order[:size])
    assert torch.equal(rest, order[size:])


def test_split_off_leaves_an_image_of_each_class_if_it_can():
    labels = torch.tensor([0] * 10 + [1, 2, 3])
    order = torch.tensor([10, 0, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    rest, part = split_off(order, labels, 5)
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(13))
    assert labels[rest].bincount().tolist() == [5, 1, 1, 1]
    rest, part = split_off(order, labels, 11)  # two images remain for four classes
    assert len(rest) == 2
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(13))


def test_split_trains_on_a_class_of_one_image(tmp_path, capsys):
    write_classes(tmp_path, 20)
    write_images(tmp_path, *(f"r{i:02}/0.png" for i in range(20)))
    for seed in range(5):
        module = build_folder(tmp_path, f"data.split_seed={seed}")
        assert len(module.splits.train.labels[module.train_indices].unique()) == 22
        assert (len(module.train_indices), len(module.val_indices)) == (43, 5)
        assert len(module.splits.test.labels) == 12
    assert "no training image" not in capsys.readouterr().err


def test_split_warns_of_classes_without_a_training_image(tmp_path, capsys):
    write_classes(tmp_path / "train", 20)
    write_images(tmp_path, "train/rare/0.png", "test/a/0.png")
    folds = [build_folder(tmp_path, "data.folds=5", f"data.fold={k}") for k in range(5)]
    assert sorted(len(fold.val_indices) for fold in folds) == [8, 8, 8, 8, 9]
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "no training image" in line]
    assert line == "warning: 1 of 3 classes have no training image: rare"
    assert len(lines) == 1
    build_fake("data.train_size=4")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 6 of 10 classes have no training image: ")


def test_label_noise_is_exact_follows_the_seed_and_is_in_training_only():
    clean = build_fake()
    noisy, again, other = (build_fake("data.label_noise=0.4", seed=seed) for seed in (0, 0, 1))
    wrong = noisy.train.labels != clean.train.labels
    assert wrong.sum() == round(0.4 * len(clean.train_indices))
    assert not wrong[clean.val_indices].any()
    assert torch.equal(noisy.splits.train.labels, clean.splits.train.labels)
    assert torch.equal(noisy.splits.test.labels, clean.splits.test.labels)
    assert torch.equal(noisy.train.labels, again.train.labels)
    assert not torch.equal(noisy.train.labels, other.train.labels)


def test_label_noise_is_uniform_over_the_other_classes():
    noisy = add_label_noise(torch.zeros(10_000, dtype=torch.long), 1.0, classes=5, seed=0)
    counts = noisy.bincount(minlength=5)
    assert counts[0] == 0
    assert counts[1:].float().std() < 100


# Input of the network


def test_channel_mean_std_are_those_of_the_given_images():
    images = torch.randint(256, (50, 3, 4, 5), dtype=torch.uint8)
    images[25:] = 255
    mean, std = channel_mean_std(images, torch.arange(25))
    pixels = images[:25].double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    assert channel_mean_std(images, torch.arange(25, 50)) == ([1.0] * 3, [1 / 255] * 3)


def test_channel_mean_std_are_of_all_classes(class_folders, monkeypatch):
    """Also if they are computed on a part of the images, which are sorted by class."""
    monkeypatch.setattr("tricklab.data.splits.STATS_IMAGES", 10)
    root = class_folders({"train": 0, "val": 1, "test": 1})
    for name, grey in (("cat", 0), ("dog", 100)):
        write_images(root / "train" / name, *(f"{i}.png" for i in range(10)), grey=grey)
    assert build_folder(root, "data.mode=L").mean == pytest.approx([50 / 255])


@pytest.mark.parametrize("width", [4, 2**16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float])
def test_preprocess_normalises_and_leaves_its_argument(dtype, channels, width):
    images = torch.arange(4 * channels * width).view(2, channels, 2, width).to(dtype)
    before = images.clone()
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    expected = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(Preprocess(InputSpec((3, 2, width), mean, std))(images), expected)
    assert torch.equal(images, before)
    # a rank may have no image
    spec = InputSpec((3, 2, width), mean, std)
    assert Preprocess(spec)(images[:0]).shape == (0, 3, 2, width)


def test_summary_has_the_size_of_images_from_files(class_folders, run, capsys):
    root = f"data.root='{class_folders({'train': 9})}'"
    folder = ("data=folder", root, "data.num_workers=0", "data.batch_size=4")
    options = (*ONE_BATCH, "model=mlp", *folder)
    done = run(*options, "data.size=16")
    assert "images: 18 files, 16 x 16 x 3 for the network\n" in capsys.readouterr().out
    weights = f"model.weights={done.folder}/checkpoints/best.ckpt"
    run(*options, weights, folder="other")
    assert "images: 18 files, 16 x 16 x 3 for the network\n" in capsys.readouterr().out
    assert build_fake().summary == ""


# Batches


def test_training_batches_are_normalised_with_class_indices():
    module = at_position(build_fake("data.batch_size=90"))
    batch = first_batch(module)
    images, targets = module.on_after_batch_transfer(batch, 0)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert images.std((0, 2, 3), correction=0).sub(1).abs().max() < 1e-5
    assert targets.dtype == torch.long
    assert torch.equal(targets, batch[1])


def test_training_batches_are_probabilities_if_they_are_mixed():
    received = {}

    def record(images, targets, generator):
        received["targets"] = targets
        return images, targets

    module = at_position(build_fake("data.batch_size=90", mixup=record))
    batch = first_batch(module)
    _, targets = module.on_after_batch_transfer(batch, 0)
    assert targets is received["targets"]
    assert targets.dtype == torch.float32
    assert torch.equal(targets, torch.eye(10)[batch[1]])
    module.mixup_window = ((1, 0), (2, 0))
    _, targets = module.on_after_batch_transfer(batch, 0)
    assert torch.equal(targets, batch[1])


def test_training_batches_are_augmented():
    plain = at_position(build_fake("data.batch_size=90"))
    invert = {"invert": lambda images, rand: 255 - images}
    inverted = at_position(build_fake("data.batch_size=90", augment=invert))
    batch = first_batch(plain)
    images, _ = plain.on_after_batch_transfer(batch, 0)
    assert torch.equal(images, plain.preprocess(batch[0]))
    images, _ = inverted.on_after_batch_transfer(batch, 0)
    assert torch.equal(images, inverted.preprocess(255 - batch[0]))


def test_training_order_changes_with_the_epoch_and_starts_at_any_batch():
    module = build_fake("data.batch_size=16")
    whole = [images for images, _, _ in at_position(module, epoch=2).train_dataloader()]
    rest = [images for images, _, _ in at_position(module, epoch=2, batch=4).train_dataloader()]
    assert len(whole) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not torch.equal(whole[0], first_batch(at_position(module, epoch=3))[0])


def test_training_batches_do_not_depend_on_the_number_of_ranks():
    one = build_fake("data.batch_size=16", augment={"crop": crop})
    two = build_fake("data.batch_size=8", augment={"crop": crop})
    for batch in range(6):
        whole = one.on_after_batch_transfer(first_batch(at_position(one, batch=batch)), 0)
        for rank in range(2):
            part = first_batch(at_position(two, batch=batch, rank=rank, ranks=2))
            images, targets = two.on_after_batch_transfer(part, 0)
            assert torch.equal(images, whole[0][rank::2])
            assert torch.equal(targets, whole[1][rank::2])


def test_training_batches_have_the_same_odd_remainder_on_each_rank():
    options = ("data.batch_size=16", "data.train_size=87")  # 5 x 16 + 7
    module = build_fake(*options, augment={"crop": crop})
    for rank in range(2):
        batches = list(at_position(module, rank=rank, ranks=2).train_dataloader())
        assert [len(labels) for _, labels, _ in batches] == [16, 16, 11]
        at_position(module, batch=len(batches) - 1, rank=rank, ranks=2)
        module.on_after_batch_transfer(batches[-1], 0)


def test_per_image_number_is_the_same_in_all_epochs():
    received = []

    def record(images, rand):
        received.append(rand.per_image)
        return images

    module = build_fake("data.batch_size=30", augment={"record": record})
    for epoch in range(2):
        for images, labels, indices in at_position(module, epoch=epoch).train_dataloader():
            assert torch.equal(images, module.train.images[indices])
            assert torch.equal(labels, module.train.labels[indices])
            module.training_batch((images, labels, indices), (epoch, 0))
            assert torch.equal(received.pop(), module.augment_on_device.per_image[indices])
    assert len(module.augment_on_device.per_image.unique()) > 50


def test_mixing_moves_no_other_random_stream():
    def discard(images, targets, generator):
        mixup(images, targets, generator, alpha=1.0)
        return images, targets

    plain = at_position(build_fake(augment={"crop": crop}))
    mixed = at_position(build_fake(augment={"crop": crop}, mixup=discard))
    images = [m.on_after_batch_transfer(first_batch(m), 0)[0] for m in (plain, mixed)]
    assert torch.equal(*images)


def test_augmentation_moves_no_other_random_stream():
    """Neither the order, nor partners and lams of mixing, nor another augmentation."""

    def idle(images, rand):
        return images + 0 * rand(3).sum().byte()

    def mix(images, targets, generator):
        return mixup(images, targets, generator, alpha=1.0)

    one = at_position(build_fake(augment={"crop": crop}, mixup=mix))
    two = at_position(build_fake(augment={"idle": idle, "crop": crop}, mixup=mix))
    assert torch.equal(first_batch(one)[0], first_batch(two)[0])
    batches = [module.on_after_batch_transfer(first_batch(module), 0) for module in (one, two)]
    assert torch.equal(batches[0][0], batches[1][0])
    assert torch.equal(batches[0][1], batches[1][1])


def test_mixing_differs_between_ranks():
    def draw(images, targets, generator):
        return images, torch.rand(2, generator=generator)

    module = build_fake("data.batch_size=8", mixup=draw)
    draws = []
    for rank in range(2):
        batch = first_batch(at_position(module, rank=rank, ranks=2))
        draws.append(module.on_after_batch_transfer(batch, 0)[1])
    assert not torch.equal(*draws)


def test_evaluation_batches_are_clean_and_complete():
    module = at_position(build_fake("data.batch_size=7", augment={"crop": crop}, seed=3))
    module.trainer.training = False
    batches = list(module.test_dataloader())
    assert torch.equal(torch.cat([images for images, _, _ in batches]), module.splits.test.images)
    images, labels = module.on_after_batch_transfer(batches[0], 0)
    assert torch.equal(images, module.preprocess(batches[0][0]))
    assert torch.equal(labels, batches[0][1])
    of_ranks = []
    for rank in range(3):
        loader = at_position(module, rank=rank, ranks=3).test_dataloader()
        of_ranks += [labels for _, labels, _ in loader]
    assert sorted(torch.cat(of_ranks)) == sorted(module.splits.test.labels)


def test_clean_part_of_training_is_fixed_stratified_and_keeps_label_noise():
    options = ("data.images=5000", "data.label_noise=0.5")
    module = at_position(build_fake(*options, augment={"crop": crop}))
    module.trainer.training = False
    validation, clean = module.val_dataloader()
    indices = torch.cat([indices for _, _, indices in validation])
    assert torch.equal(indices, module.val_indices)
    labels = torch.cat([labels for _, labels, _ in clean])
    assert torch.equal(labels, module.train.labels[module.clean_indices])
    assert len(labels) == 2000
    assert set(module.clean_indices.tolist()) <= set(module.train_indices.tolist())
    assert torch.equal(build_fake(*options, seed=1).clean_indices, module.clean_indices)
    true_labels = module.splits.train.labels[module.clean_indices]
    assert true_labels.bincount().tolist() == [200] * 10


@pytest.mark.parametrize(("fraction", "ranks"), [(0.5, 1), (0.1, 1), (0.01, 1), (0.3, 2)])
def test_clean_part_has_a_batch_with_any_limit(fraction, ranks):
    module = at_position(build_fake("data.images=5000", "data.batch_size=2000"), ranks=ranks)
    module.trainer.limit_val_batches = fraction
    assert len(module.val_dataloader()[1]) * fraction >= 1


def test_images_move_to_a_device_if_they_fit():
    module = build_fake()
    data = [module.train, module.val, module.splits.test]
    size = 120 * 3 * 32 * 32  # training and validation share their images
    assert fits_in_memory(data, size)
    assert not fits_in_memory(data, size - 1)
    train, val, test = to_device(data, torch.device("meta"))
    assert train.images is val.images
    assert all(tensor.is_meta for part in (train, val, test) for tensor in part)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mixing", [mixup, cutmix])
def test_gpu_holds_the_images_and_no_step_waits_for_it(mixing):
    augment = {"crop": crop, "flip": flip, "affine": affine, "erase": erase}
    module = build_fake(augment=augment, mixup=lambda x, y, g: mixing(x, y, g, alpha=1.0))
    batch = first_batch(at_position(module, device="cuda"))
    assert module.val.images is module.train.images
    assert all(part.is_cuda for part in batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        images, targets = module.on_after_batch_transfer(batch, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert images.is_cuda
    assert targets.is_cuda


# Data sets of arrays


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    splits = build(configure("data=digits").data).splits
    expected = load_digits()
    images = torch.cat([splits.train.images, splits.test.images]).flatten(1)
    labels = torch.cat([splits.train.labels, splits.test.labels])
    pixels = (expected.images.reshape(-1, 64) * 255 / 16).round().astype(int)
    ours = sorted(zip(images.tolist(), labels.tolist()))
    assert ours == sorted(zip(pixels.tolist(), expected.target.tolist()))
    assert splits.classes == [str(name) for name in expected.target_names]


def test_digits_have_one_test_set():
    one, other = (build(configure("data=digits").data, seed=seed) for seed in (0, 1))
    assert torch.equal(one.splits.test.images, other.splits.test.images)
    assert len(one.splits.test.labels) == 359
    assert one.splits.test.labels.bincount().min() >= 34
    assert one.train.images.dtype == torch.uint8
    assert one.train.images.max() == 255


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 5, 9), (4, 1, 1)])
def test_fake_has_any_shape(channels, height, width):
    shape = (f"data.channels={channels}", f"data.height={height}", f"data.width={width}")
    module = build_fake(*shape, "data.num_classes=7")
    assert module.shape == (channels, height, width)
    assert module.classes == list("0123456")


def test_num_workers_is_an_option_of_all_data():
    assert len(build_fake("data.num_workers=2").train_indices) == 90


# MNIST and CIFAR


@pytest.mark.parametrize(
    ("folder", "ending"),
    [("", ""), ("", ".gz"), ("FashionMNIST/raw", ""), ("fashion-mnist", ".gz")],
)
@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
def test_mnist_is_read_from_a_local_copy(tmp_path, name, folder, ending):
    if name == "mnist":
        folder = folder.replace("FashionMNIST", "MNIST").replace("fashion-mnist", "mnist")
    pixels = write_mnist(tmp_path / folder, ending)
    module = build(configure(f"data={name}", f"data.root={tmp_path}").data)
    assert np.array_equal(module.splits.train.images[:, 0], pixels[40])
    assert np.array_equal(module.splits.test.images[:, 0], pixels[20])
    assert module.splits.test.labels.tolist() == [i % 10 for i in range(20)]
    assert module.classes[9] == {"fashion_mnist": "Ankle boot", "mnist": "9"}[name]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_that_is_damaged_is_named(tmp_path, ending):
    write_mnist(tmp_path, ending)
    file = tmp_path / f"t10k-images-idx3-ubyte{ending}"
    content = file.read_bytes()
    damaged = content[:12] + b"\xff" * (len(content) - 12) if ending else content[:100]
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{re.escape(file.name)} is not an idx file"):
        build(configure("data=fashion_mnist", f"data.root={tmp_path}").data)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_is_read_from_a_local_copy(tmp_path, monkeypatch, name, classes):
    pixels = write_cifar(tmp_path, classes)
    trust_cifar(tmp_path, monkeypatch)
    splits = build(configure(f"data={name}", f"data.root={tmp_path}").data).splits
    *train, test = (torch.from_numpy(array).view(-1, 3, 32, 32) for array in pixels.values())
    assert torch.equal(splits.train.images, torch.cat(train))
    assert torch.equal(splits.test.images, test)
    assert splits.train.labels.tolist() == [i % classes for i in range(100)]
    assert splits.classes == [f"thing {i}" for i in range(classes)]
    assert len(splits.test.images) == (20 if classes == 10 else 100)


def test_cifar_is_what_torchvision_reads(tmp_path, monkeypatch):
    """The oracle: torchvision, without its checksums, takes what the tests write for CIFAR."""
    from torchvision.datasets import CIFAR10

    write_cifar(tmp_path)
    trust_cifar(tmp_path, monkeypatch)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    theirs = CIFAR10(str(tmp_path), train=True)
    ours = build(configure("data=cifar10", f"data.root={tmp_path}").data).splits
    assert torch.equal(torch.from_numpy(theirs.data).permute(0, 3, 1, 2), ours.train.images)
    assert theirs.targets == ours.train.labels.tolist()
    assert theirs.classes == ours.classes


def test_cifar_checksums_are_those_of_the_published_files():
    assert MD5["data_batch_1"] == "c99cafc152244af753f735de768cd75f"
    assert MD5["batches.meta"] == "5ff9c542aee3614f3951f8cda6e48888"
    assert MD5["test"] == "f0ef6b0ae62326f3e7ffdfab6717acfc"
    assert len(MD5) == 10


def test_cifar_unpickles_only_the_published_files(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tricklab.data.published.DataUnpickler", lambda *a, **k: pytest.fail("unpickled")
    )
    write_cifar(tmp_path)
    message = r"data_batch_1 is not the published file: its MD5 is \w+, not c99cafc1"
    with pytest.raises(UserError, match=message):
        build(configure("data=cifar10", f"data.root={tmp_path}").data)


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (pickle.dumps({"data": Payload()}, protocol=2), r"it refers to __builtin__\.print"),
        (b"cnumpy.f2py.__main__\nencode\n.", r"it refers to numpy\.f2py\.__main__\.encode"),
        (b"cnumpy.core.multiarray\ndtype\n.", r"it refers to numpy\.core\.multiarray\.dtype"),
    ],
    ids=["print", "another module", "another name"],
)
def test_cifar_pickle_runs_nothing(tmp_path, monkeypatch, capsys, payload, message):
    """Even if the checksum is right."""
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(payload)
    trust_cifar(tmp_path, monkeypatch)
    modules = set(sys.modules)
    with pytest.raises(UserError, match=f"data_batch_3 is not a file of CIFAR: {message}"):
        build(configure("data=cifar10", f"data.root={tmp_path}").data)
    assert capsys.readouterr().out == ""
    assert set(sys.modules) == modules


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda batch, meta: batch[:1000], "data_batch_2 is not a file of CIFAR"),
        (lambda batch, meta: meta, "does not hold CIFAR10: KeyError"),
        (lambda batch, meta: batch.replace(b"K\x07", b"K\x63"), "does not hold CIFAR10: ValueErr"),
        (lambda batch, meta: batch.replace(b"K\x07", b""), "does not hold CIFAR10: ValueError"),
    ],
    ids=["cut short", "another file", "a label of 99", "a label too few"],
)
def test_cifar_that_is_damaged_is_named(tmp_path, monkeypatch, damage, message):
    write_cifar(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    batch = (folder / "data_batch_2").read_bytes()
    (folder / "data_batch_2").write_bytes(damage(batch, (folder / "batches.meta").read_bytes()))
    trust_cifar(tmp_path, monkeypatch)
    with pytest.raises(UserError, match=message):
        build(configure("data=cifar10", f"data.root={tmp_path}").data)


def test_cifar_that_can_not_be_downloaded_says_what_it_expects(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", lambda *a, **k: 1 / 0)
    expected = "a folder with cifar-10-batches-py/data_batch_1, "
    with pytest.raises(UserError, match=f"no CIFAR10 there, and no download .*Expected {expected}"):
        build(configure("data=cifar10", f"data.root={tmp_path / 'new'}").data)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "folder"])
def test_root_expands_a_tilde(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_mnist(tmp_path / "x")
    if name == "folder":
        write_classes(tmp_path / "x")
    if name.startswith("cifar"):
        write_cifar(tmp_path / "x", int(name[5:]))
        trust_cifar(tmp_path / "x", monkeypatch)
    build(configure(f"data={name}", "data.root='~/x'").data)
    assert not (tmp_path / "~").exists()
    with pytest.raises(UserError, match=r"data\.root=~nobody-here/x: "):
        build(configure(f"data={name}", "data.root='~nobody-here/x'").data)


# Class folders


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", None])
@pytest.mark.parametrize("test", ["test", "Testing", None])
def test_folder_finds_splits_by_any_of_their_names(tmp_path, train, val, test):
    for split, images in ((train, 20), (val, 3), (test, 4)):
        if split:
            write_classes(tmp_path / split, images)
    module = build_folder(tmp_path)
    assert module.classes == ["a", "b"]
    trained = 40 if test else 32
    assert len(module.splits.test.labels) == 8  # 2 x 4, or a fifth of 40
    assert len(module.val_indices) == (6 if val else round(0.1 * (trained - 1)))
    assert len(module.train_indices) == (trained if val else trained - len(module.val_indices))


def test_folder_takes_sizes_as_numbers_and_resizes(class_folders):
    module = build_folder(
        class_folders({".": 9}), "data.val_size=4", "data.test_size=6", "data.size=32"
    )
    assert len(module.val_indices) == 4
    assert len(module.splits.test.labels) == 6
    assert len(module.train_indices) == 8
    assert module.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (["car", "plane", "train"], ["car", "plane", "train"]),
        (["invalid", "valid"], ["invalid", "valid"]),
        (["invalid/may", "valid/may"], ["invalid", "valid"]),
        (["test", "other"], ["other", "test"]),
        (["a", "b", ".hidden", "@eaDir", "__MACOSX", "lost+found", "#recycle"], ["a", "b"]),
        (["#x", "@y"], ["#x", "@y"]),
        (["train/a", "train/b", "train/.cache", "test/a"], ["a", "b"]),
    ],
)
def test_folder_tells_classes_from_splits(tmp_path, folders, classes):
    write_images(tmp_path, *(f"{folder}/{i}.png" for folder in folders for i in range(6)))
    assert build_folder(tmp_path).classes == classes


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/0.png", "Training/a/0.png"], " has Training and train, both for train; keep "),
        (["train/a/0.png", "val/a/0.png", "valid/a/0.png"], " has val and valid, both for val; "),
        (["test/a/0.png", "test/b/0.png"], " has test, but no train; evaluate.py takes such a "),
        (
            ["train/a/0.png", "train/b/0.png", "test/emu/0.png"],
            "/test has the class 'emu', which the training folder does not have",
        ),
        (
            ["pets/train/a/0.png", "pets/test/a/0.png"],
            ": the classes are in a subfolder. Expected data.root={}/pets",
        ),
        (
            ["x/Train/a/0.png", "y/train/a/0.png"],
            " are in a subfolder. Expected data.root={}/x or data.root={}/y",
        ),
        (["pets/a/0.png", "pets/b/0.png"], " are in a subfolder. Expected data.root={}/pets"),
        (["a/0.png"], ": need at least 2 classes with images; there is a"),
        (["0.png", "1.png"], " has 2 images, but no class folders. Expected {}/CLASS/... for each"),
        (["train/0.png", "test/0.png"], "/train has 1 images, but no class folders"),
        (["a/0.png", "b/._0.png"], ": need at least 2 classes with images; empty: b"),
        (
            ["caf\u00e9/0.png", "cafe\u0301/0.png"],
            " has the class 'café' twice, with accents in two",
        ),
        (["a/0.png", "caf\udce9/0.png"], ": the class name 'caf\\udce9' is not UTF-8; rename the"),
    ],
)
def test_folder_without_a_data_set_is_refused(tmp_path, files, message):
    write_images(tmp_path, *files)
    with pytest.raises(UserError) as refused:
        build_folder(tmp_path)
    assert message.replace("{}", str(tmp_path)) in str(refused.value)


def test_folder_of_one_image_size_is_not_resized_and_mixed_sizes_are_named(class_folders):
    root = class_folders({"train": 1})
    for name in ("cat", "dog"):
        Image.new("RGB", (12, 12)).save(root / "train" / name / "1.png")
    options = ("data.size=null", "data.fit=none", "data.val_size=1", "data.test_size=2")
    assert build_folder(root, *options).shape == (3, 12, 12)
    Image.new("RGB", (13, 12)).save(root / "train" / "dog" / "2.png")
    with pytest.raises(UserError, match=r"2\.png is not the size of .*data\.fit=crop makes them"):
        build_folder(root, *options)


def test_folder_beside_the_splits_is_warned_of(tmp_path, capsys):
    write_classes(tmp_path / "train", 20)
    write_images(tmp_path, "holdout/a/0.png")
    (tmp_path / "annotations").mkdir()
    build_folder(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    expected = f"warning: data.root={tmp_path}: holdout is not used; splits are called train,"
    assert line.startswith(expected)


def test_folder_with_composed_and_decomposed_accents_has_one_class(tmp_path):
    write_classes(tmp_path / "train", 8, ("a", "caf\u00e9"))
    write_classes(tmp_path / "test", 2, ("a", "cafe\u0301"))
    module = build_folder(tmp_path)
    assert module.classes == ["a", "caf\u00e9"]
    assert module.splits.test.labels.tolist() == [0, 0, 1, 1]


def test_folder_search_follows_links_and_ends_loops(tmp_path, capsys):
    root = tmp_path / "root"
    away = tmp_path / "away"
    write_classes(root, 5)
    write_images(away, *(f"{i}.png" for i in range(7)))
    write_images(tmp_path, "single.png")
    (root / "a" / "more").symlink_to(away)
    (root / "a" / "again").symlink_to(away)  # each folder is entered once
    (root / "a" / "one.png").symlink_to(tmp_path / "single.png")
    (root / "a" / "up").symlink_to(root)  # the images of b are there
    (away / "loop").symlink_to(away)
    (root / "c").symlink_to(away)
    (root / "b" / "gone.png").symlink_to("nowhere.png")
    (root / "b" / "itself.png").symlink_to("itself.png")
    os.mkfifo(root / "b" / "pipe.png")  # reading it would block
    splits = build_folder(root).splits
    counts = splits.train.labels.bincount() + splits.test.labels.bincount(minlength=3)
    assert dict(zip(splits.classes, counts.tolist())) == {"a": 13, "b": 5, "c": 7}
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 of 28 files are left out, 3 links that lead to no file, as " in line


def test_folder_search_ignores_hidden_and_system_files(tmp_path, capsys):
    write_classes(tmp_path, 6)
    ignored = ("@eaDir/0.png/thumb.jpg", ".ipynb_checkpoints/0.png", "__MACOSX/0.png", "._0.png")
    write_images(tmp_path / "a", *ignored)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "labels.csv"):
        (tmp_path / "a" / name).write_bytes(b"\0")
    assert build_folder(tmp_path).splits.files == 12
    assert capsys.readouterr().err == ""


def test_folder_search_counts_files_that_are_not_decoded(tmp_path, capsys):
    write_classes(tmp_path, 6)
    for name in ("0.heic", "1.HEIC", "2.cr2", "noextension"):
        (tmp_path / "a" / name).write_bytes(b"\0")
    build_folder(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    counts = "4 of 16 files are left out, extensions that are not decoded: 2 .heic, "
    assert line.startswith(f"warning: {tmp_path}: {counts}")
    assert "1 .cr2" in line
    assert "1 without one" in line
    assert line.endswith("(ImageMagick converts: mogrify -format png '*.heic')")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.heic").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"empty: c \(5 of 17 files are left out, .* 3 \.heic"):
        build_folder(tmp_path)


def test_folder_that_can_not_be_read_is_named(tmp_path, monkeypatch):
    write_classes(tmp_path, 6)

    def list_names(path):
        raise PermissionError(13, "Permission denied", f"{path}/more")

    monkeypatch.setattr("tricklab.data.folders.list_names", list_names)
    with pytest.raises(UserError, match=r"a/more can't be read: Permission denied"):
        build_folder(tmp_path)


def test_folder_to_evaluate_is_a_test_split_or_all_images(tmp_path):
    options = {"size": [8, 8], "num_workers": 0, "val_size": 0.3, "batch_size": 2, "seed": 0}

    def count_labels(root, classes=("a", "b")):
        module = build_test_data("folder", classes, {"root": str(root), **options})
        return module.splits.test.labels.bincount(minlength=len(classes)).tolist()

    write_classes(tmp_path / "plain", 9)
    assert count_labels(tmp_path / "plain") == [9, 9]
    assert count_labels(tmp_path / "plain", ("0", "a", "b")) == [0, 9, 9]
    write_classes(tmp_path / "splits" / "Test", 3)
    assert count_labels(tmp_path / "splits") == [3, 3]
    write_classes(tmp_path / "splits" / "train", 5)
    assert count_labels(tmp_path / "splits") == [3, 3]
    write_images(tmp_path / "one", "b/0.png")
    assert count_labels(tmp_path / "one") == [0, 1]
    write_classes(tmp_path / "other" / "train", 5)
    write_classes(tmp_path / "other" / "val", 5)
    with pytest.raises(UserError, match=r"has no test folder\. Expected data\.root=.*/train or da"):
        count_labels(tmp_path / "other")
    with pytest.raises(UserError, match="has the class 'b', which the checkpoint does not have"):
        count_labels(tmp_path / "plain", ("a", "c"))


# Decoding, workers and caches


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
def test_decode_keeps_the_grey_of_every_mode(tmp_path, mode):
    grey = 200
    if mode in ("I;16", "I"):
        dtype = np.uint16 if mode == "I;16" else np.int32
        image = Image.fromarray(np.full((6, 6), grey * 257, dtype))
    elif mode == "F":
        image = Image.new("F", (6, 6), grey / 255)
    elif mode == "1":
        image, grey = Image.new("1", (6, 6), 1), 255
    else:
        image = Image.new("L", (6, 6), grey)
        image = image.convert("RGB" if mode == "CMYK" else mode).convert(mode)
    path = tmp_path / ("x.tif" if mode in ("F", "I", "CMYK") else "x.png")
    image.save(path)
    pixels = decode(path, Fit((4, 4)), mode="RGB")
    assert pixels.shape == (3, 4, 4)
    assert pixels.float().mean() == pytest.approx(grey, abs=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_decode_error_names_the_file_and_leaves_no_worker(class_folders, monkeypatch, workers):
    root = class_folders({"train": 3})
    (root / "train" / "cat" / "x.png").write_bytes(b"not an image")
    monkeypatch.setattr("tricklab.data.image_files.BLOCK", 2)
    with pytest.raises(UserError, match=r"^[^\n]*x\.png can't be decoded[^\n]*$"):
        build_folder(root, f"data.num_workers={workers}")
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_worker_that_dies_is_named(class_folders, monkeypatch):
    root = class_folders({"": 90}, size=4)
    monkeypatch.setattr("tricklab.data.image_files.BLOCK", 16)
    monkeypatch.setattr(
        "tricklab.data.image_files.ImageFiles._decode_block",
        lambda *arguments: os.kill(os.getpid(), 9),
    )
    message = (
        r"data\.num_workers=1: a worker died \(DataLoader worker .*\); fewer workers take less"
    )
    with pytest.raises(UserError, match=message):
        build_folder(root, "data.num_workers=1")


def test_batch_of_a_rank_without_an_image_is_empty(class_folders):
    images = build_folder(class_folders({"train": 5}, size=8), "data.cache=none").train.images
    batch = images.index_select(0, torch.arange(0))
    assert batch.shape == (0, 3, 8, 8)
    assert batch.dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("cache", ["memory", "none", "folder"])
def test_batches_do_not_depend_on_cache_and_workers(
    class_folders, tmp_path, monkeypatch, cache, workers
):
    monkeypatch.setattr("tricklab.data.image_files.BLOCK", 8)
    root = class_folders({"train": 20, "test": 3})
    cache = f"'{tmp_path / 'cache'}'" if cache == "folder" else cache
    one = build_folder(root, "data.batch_size=8")
    options = (f"data.cache={cache}", f"data.num_workers={workers}")
    other = build_folder(root, "data.batch_size=8", *options)
    before = torch.get_rng_state()
    for kind in ("train_dataloader", "test_dataloader"):
        loaders = [getattr(at_position(m, epoch=1, batch=1), kind)() for m in (one, other)]
        for ours, theirs in zip(*loaders, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert (one.mean, one.std) == (other.mean, other.std)


def test_cache_is_read_until_the_files_change(class_folders, tmp_path, monkeypatch):
    root = class_folders({"train": 4, "test": 2})
    decoded = []

    def record(path, *options):
        decoded.append(path)
        return decode_with_size(path, *options)

    monkeypatch.setattr("tricklab.data.image_files.decode_with_size", record)
    cache = f"data.cache='{tmp_path / 'cache'}'"
    build_folder(root, cache)
    assert set(decoded) == set(root.rglob("*.png"))
    decoded.clear()
    build_folder(root, cache)
    assert len(decoded) == 2  # the first image of each split, for the size
    Image.new("RGB", (12, 12)).save(root / "test" / "cat" / "0.png")
    assert build_folder(root, cache).splits.test.images[0].max() == 0
    assert len(list((tmp_path / "cache").iterdir())) == 3  # no temporary file is left


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: content[:-1] + bytes([content[-1] ^ 128]),
        lambda content: content[:-4],
        lambda content: content[:-300],
        lambda content: b"",
    ],
    ids=["a bit", "of the checksum", "no checksum", "cut", "empty"],
)
def test_cache_that_is_damaged_is_decoded_again(tmp_path, capsys, damage):
    root = tmp_path / "images"
    write_classes(root, 6)
    cache = f"data.cache='{tmp_path / 'cache'}'"
    images = build_folder(root, cache).splits.train.images.clone()
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(damage(file.read_bytes()))
    capsys.readouterr()
    assert torch.equal(build_folder(root, cache).splits.train.images, images)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # training and test
    assert all("uint8 is damaged; its images are decoded again" in line for line in lines)
    assert torch.equal(build_folder(root, cache).splits.train.images, images)
    assert capsys.readouterr().err == ""


def test_cache_that_can_not_be_written_is_named(tmp_path):
    write_classes(tmp_path / "images", 6)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"data\.cache=.*/file: .*"):
        build_folder(tmp_path / "images", f"data.cache='{tmp_path / 'file'}'")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ("Memory", r"no such folder; \./Memory creates it\. Did you mean 'memory'\?"),
        ("nnone", r"no such folder; \./nnone creates it\. Did you mean 'none'\?"),
        ("~nobody-here/x", "Could not determine home directory"),
    ],
)
def test_cache_that_is_misspelt_creates_no_folder(tmp_path, monkeypatch, cache, message):
    write_classes(tmp_path, 6)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"data.cache={cache}: {message}"):
        build_folder(tmp_path, f"data.cache='{cache}'")
    assert sorted(tmp_path.rglob("*")) == before


def test_cache_in_memory_refuses_more_images_than_fit(class_folders, monkeypatch):
    root = class_folders({"train": 3})
    monkeypatch.setattr("tricklab.data.cache.free_memory", lambda: 1)
    message = r"data\.cache=memory: 3 images take 0\.0 GB, there are 0\.0 GB.*data\.cache=none"
    with pytest.raises(UserError, match=message):
        build_folder(root, "data.test_size=3")


def test_cache_in_memory_names_a_limit_of_address_space(class_folders, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(UserError, match=r"^data\.cache=memory: .*Cannot allocate memory.*FOLDER"):
        build_folder(class_folders({"train": 3}), "data.test_size=3")


def test_cache_is_not_written_through_a_link(tmp_path, monkeypatch):
    write_classes(tmp_path / "images", 6)
    (tmp_path / "cache").mkdir()
    (tmp_path / "victim").write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0")
    cache = f"data.cache='{tmp_path / 'cache'}'"
    build_folder(tmp_path / "images", cache)
    for file in list((tmp_path / "cache").iterdir()):
        file.unlink()
        file.with_suffix(".0").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="File exists"):
        build_folder(tmp_path / "images", cache)
    assert (tmp_path / "victim").read_text() == "mine"


def test_background_has_its_own_cache_and_fingerprint(tmp_path):
    root = tmp_path / "images"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(root / name / f"{i}.png")
    cache = f"data.cache='{tmp_path / 'cache'}'"
    white, black = (build_folder(root, cache, f"data.background={b}") for b in ("white", "black"))
    assert white.splits.test.images.unique().tolist() == [255]
    assert black.splits.test.images.unique().tolist() == [0]
    assert white.fingerprint != black.fingerprint


# Fingerprints


def test_fingerprint_of_files_changes_with_each_of_them_and_nothing_else(tmp_path):
    """Also if an image is mirrored, which changes neither its size nor mean and std."""
    root = tmp_path / "images"
    write_images(root, *(f"{name}/{i}.bmp" for name in "ab" for i in range(6)))
    first = build_folder(root).fingerprint
    cache = f"data.cache='{tmp_path / 'cache'}'"
    for option in (cache, cache, "data.cache=none", "data.num_workers=2", "data.batch_size=3"):
        assert build_folder(root, option).fingerprint == first
    shutil.copytree(root, tmp_path / "moved")  # keeps the times of the files
    assert build_folder(tmp_path / "moved").fingerprint == first
    seen = [first]
    for image in (root / "a" / "0.bmp", root / "b" / "5.bmp"):  # one of training, one of test
        ImageOps.mirror(Image.open(image)).save(image)
        seen.append(build_folder(root).fingerprint)
    (root / "a" / "0.bmp").rename(root / "a" / "00.bmp")
    seen.append(build_folder(root).fingerprint)
    seen.append(build_folder(root, "data.mode=L").fingerprint)
    assert len(set(seen)) == 5


def test_fingerprint_of_arrays_changes_with_any_pixel_label_or_input_spec():
    module = build_fake()
    first = module.fingerprint
    assert build_fake("data.batch_size=5").fingerprint == first

    def change(split, function):
        splits = build_fake().splits
        images = getattr(splits, split).images
        images.copy_(function(images))
        return ImageData(splits).fingerprint

    seen = [first]
    seen += [change(split, lambda images: images.flip(3)) for split in ("train", "test")]
    seen.append(change("test", lambda images: images.index_fill(0, torch.tensor([7]), 3)))
    seen.append(build_fake("data.label_noise=0.1").fingerprint)
    seen.append(build_fake(size=[16, 16]).fingerprint)
    seen.append(build_fake(mean=[module.mean[0] + 1e-9, *module.mean[1:]]).fingerprint)
    seen.append(build_fake(std=[0.5]).fingerprint)
    assert len(set(seen)) == 8
    assert build_fake(mean=module.mean, std=module.std).fingerprint == first


# Progress


@pytest.mark.parametrize("on_terminal", [True, False])
def test_progress_is_shown_after_some_seconds(monkeypatch, capsys, on_terminal):
    now = iter(range(0, 10_000, 2))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    monkeypatch.setattr("sys.stderr.isatty", lambda: on_terminal)
    blocks = [[0] * 100] * 20  # each takes 2 s
    assert list(with_progress(blocks, 2000, "decoding")) == blocks
    output = capsys.readouterr().err
    if on_terminal:
        assert output.startswith("\rdecoding [###")
        assert "200 of 2,000 images, 36 s left" in output
        assert output.endswith("\r\033[K")
    else:
        lines = output.splitlines()
        assert lines[0] == "decoding: 200 of 2,000 images, 36 s left"
        assert 3 <= len(lines) <= 4  # one in 10 s
    monkeypatch.setenv("LOCAL_RANK", "1")
    list(with_progress(blocks, 2000, "decoding"))
    assert capsys.readouterr().err == ""


def test_progress_of_a_moment_is_not_shown(capsys):
    assert list(with_progress([[0]] * 5, 5, "decoding")) == [[0]] * 5
    assert capsys.readouterr().err == ""
