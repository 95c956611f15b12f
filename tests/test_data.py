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
from conftest import ONE_BATCH, configure, trust_cifar, write_cifar, write_mnist
from PIL import Image, ImageOps

from tricklab.augment import affine, crop, erase, flip
from tricklab.data.batches import Images, Preparation, moments
from tricklab.data.datasets import TEST_SIZE, folder_to_evaluate
from tricklab.data.images import decode
from tricklab.data.module import ImageData, fit, moved
from tricklab.data.progress import with_progress
from tricklab.data.published import MD5
from tricklab.data.split import VAL_SIZE, corrupt, split_off, stratified_order
from tricklab.errors import UserError
from tricklab.mixup import cutmix, mixup
from tricklab.run.instantiate import build


def data(*overrides, **options):
    return build(
        configure("data=fake", "data.images=100", "data.test_images=20", *overrides).data, **options
    )


def at(module, epoch=0, batch=0, rank=0, ranks=1, device="cpu"):
    """Give a data module a trainer that is at this place."""
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=batch)))
    module.trainer = SimpleNamespace(
        training=True,
        current_epoch=epoch,
        fit_loop=SimpleNamespace(epoch_loop=progress),
        global_rank=rank,
        world_size=ranks,
        limit_val_batches=1.0,
        strategy=SimpleNamespace(root_device=torch.device(device)),
    )
    module.setup("fit")
    return module


@pytest.mark.parametrize("size", [10, 33, 64])
def test_every_beginning_is_stratified(size):
    labels = torch.arange(400) % 4
    labels[200:] = 3  # 50, 50, 50, 250
    chosen = labels[stratified_order(labels, 0, "val")[:size]]
    share = chosen.bincount(minlength=4) / size
    assert torch.allclose(share, torch.tensor([0.125, 0.125, 0.125, 0.625]), atol=1.5 / size)


def test_ten_images_of_ten_classes_are_one_each():
    module = data("data.train_size=10")
    assert module.train.labels[module.train_rows].sort().values.tolist() == list(range(10))


def test_parts_do_not_overlap_and_have_seeds_of_their_own():
    one, other, split = data(seed=0), data(seed=1), data("data.split_seed=1")
    assert set(one.train_rows.tolist()) | set(one.val_rows.tolist()) == set(range(100))
    assert len(one.train_rows) + len(one.val_rows) == 100
    assert torch.equal(one.val_rows, other.val_rows)
    assert not torch.equal(one.val_rows.sort().values, split.val_rows.sort().values)


def test_folds_cover_everything_once_and_are_stratified():
    folds = [data("data.folds=5", f"data.fold={k}") for k in range(5)]
    assert sorted(torch.cat([f.val_rows for f in folds]).tolist()) == list(range(100))
    for module in folds:
        assert sorted(torch.cat([module.val_rows, module.train_rows]).tolist()) == list(range(100))
        assert module.train.labels[module.val_rows].bincount(minlength=10).tolist() == [2] * 10


def test_a_fold_needs_folds():
    with pytest.raises(
        UserError, match=r"data.fold=1 data.folds=None; allowed: with data.folds, as 5"
    ):
        data("data.fold=1")


def test_number_of_workers_is_an_option_of_all_data():
    assert len(data("data.num_workers=2").train_rows) == 90


@pytest.mark.parametrize("wrong", ["data.fold=5", "data.folds=1", "data.folds=101"])
def test_folds_that_do_not_exist(wrong):
    with pytest.raises(UserError, match=wrong.replace(".", r"\.")):
        data("data.folds=5", wrong)


def test_folds_of_data_with_a_validation_part_are_refused(tree):
    root = tree({"train": 5, "val": 2, "test": 1})
    assert len(build(configure("data=folder", f"data.root='{root}'").data).val_rows) == 4
    with pytest.raises(
        UserError, match=r"data.folds=5: these data have a part for validation; allowed: null"
    ):
        build(configure("data=folder", f"data.root='{root}'", "data.folds=5").data)


def test_moments_of_a_part_are_those_of_all_classes(tree, monkeypatch):
    """Also where the images lie in the order of their classes."""
    monkeypatch.setattr("tricklab.data.module.FOR_MOMENTS", 10)
    root = tree({"train": 0, "val": 1, "test": 1})
    for name, grey in (("cat", 0), ("dog", 100)):
        for i in range(10):
            Image.new("L", (8, 8), grey).save(root / "train" / name / f"{i}.png")
    made = build(configure("data=folder", f"data.root='{root}'", "data.mode=L").data)
    assert made.mean == pytest.approx([50 / 255])


def test_label_noise_is_exact_fixed_by_the_seed_and_in_training_only():
    clean, noisy, again, other = (
        data(f"data.label_noise={x}", seed=s) for x, s in ((0, 0), (0.4, 0), (0.4, 0), (0.4, 1))
    )
    wrong = noisy.train.labels != clean.train.labels
    assert wrong.sum() == round(0.4 * len(clean.train_rows))
    assert not wrong[clean.val_rows].any()
    assert torch.equal(noisy.source.train.labels, clean.source.train.labels)
    assert torch.equal(noisy.source.test.labels, clean.source.test.labels)
    assert torch.equal(noisy.train.labels, again.train.labels)
    assert not torch.equal(noisy.train.labels, other.train.labels)


def test_wrong_labels_are_uniform_over_the_others():
    noisy = corrupt(torch.zeros(10_000, dtype=torch.long), 1.0, classes=5, seed=0)
    assert noisy.bincount(minlength=5)[0] == 0
    assert noisy.bincount(minlength=5)[1:].float().std() < 100


@pytest.mark.parametrize(
    "wrong",
    [
        "data.val_size=100",
        "data.train_size=1000",
        "data.val_size=0",
        "data.val_size=1.5",
        "data.train_size=abc",
    ],
)
def test_sizes_that_do_not_exist(wrong):
    with pytest.raises(UserError, match=wrong.replace(".", r"\.")):
        data(wrong)


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    source, bunch = build(configure("data=digits").data).source, load_digits()
    ours = sorted(
        zip(
            torch.cat([source.train.images, source.test.images]).flatten(1).tolist(),
            [*source.train.labels, *source.test.labels],
        )
    )
    theirs = sorted(
        zip(
            (bunch.images.reshape(-1, 64) * 255 / 16).round().astype(int).tolist(),
            bunch.target.tolist(),
        )
    )
    assert ours == theirs
    assert source.classes == [str(name) for name in bunch.target_names]


def test_digits_has_one_test_set():
    one, other = (build(configure("data=digits").data, seed=s) for s in (0, 1))
    assert torch.equal(one.source.test.images, other.source.test.images)
    assert len(one.source.test.labels) == 359
    assert one.source.test.labels.bincount().min() >= 34
    assert one.train.images.dtype == torch.uint8
    assert one.train.images.max() == 255


def test_moments_are_those_of_the_training_part():
    images = torch.randint(256, (50, 3, 4, 5), dtype=torch.uint8)
    images[25:] = 255
    mean, std = moments(images, torch.arange(25))
    pixels = images[:25].double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-12)
    assert moments(images, torch.arange(25, 50)) == ([1.0] * 3, [1 / 255] * 3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float])
def test_preparation_normalises_and_leaves_what_it_is_given(dtype, channels):
    images = torch.arange(16 * channels).view(2, channels, 2, 4).to(dtype)
    before, mean, std = images.clone(), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    expected = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(Preparation(Images((3, 2, 4), mean, std))(images), expected)
    assert torch.equal(images, before)


def test_training_batches_are_normalised_and_probabilities():
    module = at(data("data.batch_size=90"))
    images, targets = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert images.std((0, 2, 3), correction=0).sub(1).abs().max() < 1e-5
    assert targets.shape == (90, 10)
    assert targets.dtype == torch.float32
    assert torch.equal(
        targets.argmax(1), torch.cat([y for _, y, _ in module.training_batches(lambda: (0, 0))])
    )


def test_training_batches_are_augmented():
    plain, turned = (
        at(data("data.batch_size=90", augment=a))
        for a in ({}, {"turn": lambda images, rand: 255 - images})
    )
    raw = next(iter(plain.train_dataloader()))
    assert torch.equal(plain.on_after_batch_transfer(raw, 0)[0], plain.prepare(raw[0]))
    assert torch.equal(turned.on_after_batch_transfer(raw, 0)[0], turned.prepare(255 - raw[0]))


def test_an_image_keeps_its_number_in_all_epochs():
    kept = []

    def note(images, rand):
        kept.append(rand.persistent)
        return images

    module = data("data.batch_size=30", augment={"note": note})
    for epoch in range(2):
        for images, _, rows in at(module, epoch=epoch).train_dataloader():
            assert torch.equal(images, module.train.images[rows])
            module.training_batch((images, module.train.labels[rows], rows), (epoch, 0))
            assert torch.equal(kept.pop(), module.lasting[rows])
    assert len(module.lasting.unique()) > 50


def test_an_odd_rest_is_the_same_for_each_rank():
    module = data("data.batch_size=16", "data.train_size=87", augment={"crop": crop})  # 5 x 16 + 7
    sizes = []
    for rank in range(2):
        batches = list(at(module, rank=rank, ranks=2).train_dataloader())
        sizes.append([len(labels) for _, labels, _ in batches])
        at(module, batch=len(batches) - 1, rank=rank, ranks=2).on_after_batch_transfer(
            batches[-1], 0
        )
    assert sizes == [[16, 16, 11], [16, 16, 11]]


def test_evaluation_is_clean_and_complete():
    module = at(data("data.batch_size=7", augment={"crop": crop}, seed=3), ranks=1)
    module.trainer.training = False
    batches = list(module.test_dataloader())
    assert torch.equal(torch.cat([b[0] for b in batches]), module.source.test.images)
    images, labels = module.on_after_batch_transfer(batches[0], 0)
    assert torch.equal(images, module.prepare(batches[0][0]))
    assert torch.equal(labels, batches[0][1])
    split = [list(at(module, rank=rank, ranks=3).test_dataloader()) for rank in range(3)]
    assert sorted(torch.cat([b[1] for part in split for b in part]).tolist()) == sorted(
        module.source.test.labels.tolist()
    )


def test_order_changes_with_the_epoch_and_starts_anywhere():
    module = data("data.batch_size=16")
    whole = [x for x, _, _ in at(module, epoch=2).train_dataloader()]
    rest = [x for x, _, _ in at(module, epoch=2, batch=4).train_dataloader()]
    assert len(whole) == 6
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))
    assert not torch.equal(whole[0], next(iter(at(module, epoch=3).train_dataloader()))[0])


def test_the_global_batch_is_the_same_for_any_number_of_ranks():
    module, two = (
        data("data.batch_size=16", augment={"crop": crop}),
        data("data.batch_size=8", augment={"crop": crop}),
    )
    for batch in range(6):
        whole = module.on_after_batch_transfer(
            next(iter(at(module, batch=batch).train_dataloader())), 0
        )
        for rank in range(2):
            part = next(iter(at(two, batch=batch, rank=rank, ranks=2).train_dataloader()))
            images, targets = two.on_after_batch_transfer(part, 0)
            assert torch.equal(images, whole[0][rank::2])
            assert torch.equal(targets, whole[1][rank::2])


def test_mixing_moves_no_other_stream():
    def mix(images, targets, generator):
        mixup(images, targets, generator, alpha=1.0)
        return images, targets

    plain, mixed = data(augment={"crop": crop}), data(augment={"crop": crop}, mixup=mix)
    for module in (plain, mixed):
        module.seen = module.on_after_batch_transfer(next(iter(at(module).train_dataloader())), 0)
    assert torch.equal(plain.seen[0], mixed.seen[0])


def test_an_augmentation_moves_no_other_one():
    """Nor the order, nor the partners and lams of mixing."""
    ways = [
        {"crop": crop},
        {"idle": lambda images, rand: images + 0 * rand(3).sum().byte(), "crop": crop},
    ]
    one, two = (data(augment=way, mixup=lambda x, y, g: mixup(x, y, g, alpha=1.0)) for way in ways)
    raw = [next(iter(at(module).train_dataloader())) for module in (one, two)]
    assert torch.equal(raw[0][0], raw[1][0])
    for ours, theirs in zip(
        one.on_after_batch_transfer(raw[0], 0), two.on_after_batch_transfer(raw[1], 0)
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("share", "ranks"), [(0.5, 1), (0.1, 1), (0.01, 1), (0.3, 2)])
def test_a_share_of_the_clean_part_is_a_batch_at_least(share, ranks):
    module = at(data("data.images=5000", "data.batch_size=2000"), ranks=ranks)
    module.trainer.limit_val_batches = share
    assert len(module.val_dataloader()[1]) * share >= 1


def test_a_fixed_stratified_part_of_training_is_also_evaluated_as_it_is():
    module = at(data("data.images=5000", "data.label_noise=0.5", augment={"crop": crop}))
    module.trainer.training = False
    validation, clean = module.val_dataloader()
    assert torch.equal(torch.cat([rows for _, _, rows in validation]), module.val_rows)
    labels = torch.cat([y for _, y, _ in clean])
    assert torch.equal(labels, module.train.labels[module.clean_rows])  # as they are learned
    assert len(labels) == 2000
    assert set(module.clean_rows.tolist()) <= set(module.train_rows.tolist())
    other = data("data.images=5000", "data.label_noise=0.5", seed=1)
    assert torch.equal(other.clean_rows, module.clean_rows)
    assert module.source.train.labels[module.clean_rows].bincount().tolist() == [200] * 10


def test_ranks_mix_differently():
    module = data("data.batch_size=8", mixup=lambda x, y, g: (x, torch.rand(2, generator=g)))
    draws = []
    for rank in range(2):
        batch = next(iter(at(module, rank=rank, ranks=2).train_dataloader()))
        draws.append(module.on_after_batch_transfer(batch, 0)[1])
    assert not torch.equal(*draws)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 9), (4, 1, 1)])
def test_fake_has_any_shape(shape):
    channels, height, width = shape
    module = data(
        f"data.channels={channels}",
        f"data.height={height}",
        f"data.width={width}",
        "data.classes=7",
    )
    assert module.shape == shape
    assert module.classes == list("0123456")


@pytest.mark.parametrize(
    "parts", [{"train": 9, "val": 4, "test": 5}, {"train": 9, "test": 5}, {"train": 9}, {".": 9}]
)
def test_folder_splits(tree, parts):
    root = tree(parts)
    sizes = [] if "val" in parts else ["data.val_size=4"]
    sizes += [] if "test" in parts else ["data.test_size=6"]
    module = build(configure("data=folder", f"data.root='{root}'", *sizes).data)
    assert module.classes == ["cat", "dog"]
    assert len(module.val_rows) == (8 if "val" in parts else 4)
    assert len(module.source.test.labels) == (10 if "test" in parts else 6)
    images = 18 - (0 if "test" in parts else 6) - (0 if "val" in parts else 4)
    assert len(module.train_rows) == images
    assert module.shape == (3, 32, 32)


def test_folder_of_one_size_stays_as_it_is_and_mixed_sizes_are_named(tree):
    root = tree({"train": 1})
    for part in ("cat", "dog"):
        Image.new("RGB", (12, 12)).save(root / "train" / part / "1.png")
    options = [
        "data=folder",
        f"data.root='{root}'",
        "data.resize=null",
        "data.val_size=1",
        "data.test_size=2",
    ]
    assert build(configure(*options).data).shape == (3, 12, 12)
    Image.new("RGB", (13, 12)).save(root / "train" / "dog" / "2.png")
    with pytest.raises(UserError, match=r"2\.png.*data\.resize"):
        build(configure(*options).data)


def test_a_rank_without_an_image_has_an_empty_batch(tree):
    root = tree({"train": 5}, size=8)
    made = build(
        configure("data=folder", f"data.root='{root}'", "data.resize=8", "data.cache=none").data
    )
    batch = made.train.images.index_select(0, torch.arange(0))
    assert batch.shape == (0, 3, 8, 8)
    assert batch.dtype == torch.uint8


def test_a_file_that_is_no_image_is_named(tree, monkeypatch):
    root = tree({"train": 3})
    (root / "train" / "cat" / "x.png").write_bytes(b"not an image")
    monkeypatch.setattr("tricklab.data.images.BLOCK", 2)
    for workers in (0, 2):
        with pytest.raises(UserError, match=r"^[^\n]*x\.png can't be decoded[^\n]*$"):
            build(
                configure("data=folder", f"data.root='{root}'", f"data.num_workers={workers}").data
            )
        assert (
            not multiprocessing.active_children()
        )  # the loader is gone, or each would be waited for later


def test_hidden_files_are_no_images_and_each_class_needs_one(tree):
    root = tree({"train": 5, "test": 1})
    (root / "train" / "cat" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "cat" / "._0.png").write_bytes(b"not an image")
    (root / "train" / "cat" / ".ipynb_checkpoints" / "0.png").write_bytes(b"not an image")
    (root / "test" / "cat" / "0.png").unlink()
    (root / "test" / "cat").rmdir()
    assert (
        len(build(configure("data=folder", f"data.root='{root}'").data).source.train.labels) == 10
    )
    (root / "train" / "emu").mkdir()
    with pytest.raises(UserError, match="without: emu"):
        build(configure("data=folder", f"data.root='{root}'").data)


def test_a_worker_that_dies_is_named(tree, monkeypatch):
    root = tree({"": 90}, size=4)
    monkeypatch.setattr("tricklab.data.images.BLOCK", 16)
    monkeypatch.setattr(
        "tricklab.data.images.ImageFiles.index_select", lambda *arguments: os.kill(os.getpid(), 9)
    )
    with pytest.raises(
        UserError,
        match=r"data\.num_workers=1: one has died \(DataLoader worker .*\); fewer take less",
    ):
        build(
            configure(
                "data=folder", f"data.root='{root}'", "data.resize=8", "data.num_workers=1"
            ).data
        )


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("cache", ["memory", "none", "kept"])
def test_neither_cache_nor_workers_change_a_batch(tree, tmp_path, monkeypatch, cache, workers):
    monkeypatch.setattr("tricklab.data.images.BLOCK", 8)
    words = ["data=folder", f"data.root='{tree({'train': 20, 'test': 3})}'", "data.batch_size=8"]
    cache = cache if cache != "kept" else f"'{tmp_path / 'kept'}'"
    one = build(configure(*words, "data.num_workers=0").data)
    other = build(configure(*words, f"data.cache={cache}", f"data.num_workers={workers}").data)
    before = torch.get_rng_state()
    for read in (
        lambda m: at(m, epoch=1, batch=1).train_dataloader(),
        lambda m: at(m).test_dataloader(),
    ):
        for ours, theirs in zip(read(one), read(other), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert (one.mean, one.std) == (other.mean, other.std)


def test_a_cache_is_read_until_the_files_change(tree, tmp_path, monkeypatch):
    root, decoded = tree({"train": 4, "test": 2}), []
    monkeypatch.setattr(
        "tricklab.data.images.decode",
        lambda path, *rest: decoded.append(path) or decode(path, *rest),
    )
    words = [
        "data=folder",
        f"data.root='{root}'",
        f"data.cache='{tmp_path / 'kept'}'",
        "data.num_workers=0",
    ]
    build(configure(*words).data)
    assert set(decoded) == set(root.rglob("*.png"))
    decoded.clear()
    build(configure(*words).data)
    assert len(decoded) == 2  # the first of each part, for the size
    Image.new("RGB", (12, 12)).save(root / "test" / "cat" / "0.png")
    changed = build(configure(*words).data)
    assert changed.source.test.images[0].max() == 0
    assert len(list((tmp_path / "kept").iterdir())) == 3  # and no half-written one


def test_images_that_do_not_fit_into_memory(tree, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    with pytest.raises(
        UserError,
        match=r"data\.cache=memory: 3 images take 0\.0 GB, there are 0\.0 GB.*data\.cache=none",
    ):
        build(
            configure("data=folder", f"data.root='{tree({'train': 3})}'", "data.test_size=3").data
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mixing", [mixup, cutmix])
def test_gpu_holds_the_images_and_no_step_waits_for_it(mixing):
    changes = {"crop": crop, "flip": flip, "affine": affine, "erase": erase}
    module = data(augment=changes, mixup=lambda x, y, g: mixing(x, y, g, alpha=1.0))
    batch = next(iter(at(module, device="cuda").train_dataloader()))
    assert module.val.images is module.train.images
    assert all(part.is_cuda for part in batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        images, targets = module.on_after_batch_transfer(batch, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert images.is_cuda
    assert targets.is_cuda


def test_images_go_to_a_device_where_they_fit():
    module = data()
    parts = [module.train, module.val, module.source.test]
    size = 120 * 3 * 32 * 32  # training and validation share theirs
    assert fit(parts, size)
    assert not fit(parts, size - 1)
    train, val, test = moved(parts, torch.device("meta"))
    assert train.images is val.images
    assert all(tensor.is_meta for part in (train, val, test) for tensor in part)


def test_test_folder_with_another_class(tree):
    root = tree({"train": 3, "test": 1})
    (root / "test" / "emu").mkdir()
    with pytest.raises(UserError, match="emu"):
        build(configure("data=folder", f"data.root='{root}'").data)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
def test_every_mode_keeps_its_grey(tmp_path, mode):
    grey = 200
    if mode in ("I;16", "I"):
        image = Image.fromarray(
            np.full((6, 6), grey * 257, np.uint16 if mode == "I;16" else np.int32)
        )
    elif mode == "F":
        image = Image.new("F", (6, 6), grey / 255)
    elif mode == "1":
        image, grey = Image.new("1", (6, 6), 1), 255
    else:
        image = (
            Image.new("L", (6, 6), grey).convert("RGB" if mode == "CMYK" else mode).convert(mode)
        )
    path = tmp_path / ("x.tif" if mode in ("F", "I", "CMYK") else "x.png")
    image.save(path)
    pixels = decode(path, size=(4, 4), mode="RGB")
    assert pixels.shape == (3, 4, 4)
    assert pixels.float().mean() == pytest.approx(grey, abs=3)


@pytest.mark.parametrize(
    ("place", "end"), [("", ""), ("", ".gz"), ("FashionMNIST/raw", ""), ("fashion-mnist", ".gz")]
)
@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
def test_mnist_from_a_local_copy(tmp_path, name, place, end):
    if name == "mnist":
        place = place.replace("FashionMNIST", "MNIST").replace("fashion-mnist", "mnist")
    pixels = write_mnist(tmp_path / place, end)
    module = build(configure(f"data={name}", f"data.root={tmp_path}").data)
    assert np.array_equal(module.source.train.images[:, 0], pixels[40])
    assert np.array_equal(module.source.test.images[:, 0], pixels[20])
    assert module.classes[9] == {"fashion_mnist": "Ankle boot", "mnist": "9"}[name]


def test_a_gzipped_file_that_is_damaged_within_is_named(tmp_path):
    write_mnist(tmp_path, ".gz")
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = bytearray(file.read_bytes())
    content[12:] = b"\xff" * (len(content) - 12)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz is not an idx file"):
        build(configure("data=fashion_mnist", f"data.root={tmp_path}").data)


def test_fashion_mnist_cut_short_is_named(tmp_path):
    for file in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{file}-ubyte").write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x09short")
    with pytest.raises(UserError, match="train-images-idx3-ubyte is not an idx file"):
        build(configure("data=fashion_mnist", f"data.root={tmp_path}").data)


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_cifar_from_a_local_copy(tmp_path, monkeypatch, name, classes):
    pixels = write_cifar(tmp_path, classes)
    trust_cifar(tmp_path, monkeypatch)
    source = build(configure(f"data={name}", f"data.root={tmp_path}").data).source
    *train, test = (torch.from_numpy(array).view(-1, 3, 32, 32) for array in pixels.values())
    assert torch.equal(source.train.images, torch.cat(train))
    assert torch.equal(source.test.images, test)
    assert source.train.labels.tolist() == [i % classes for i in range(100)]
    assert source.classes == [f"thing {i}" for i in range(classes)]
    assert len(source.test.images) == (20 if classes == 10 else 100)


def test_torchvision_reads_the_same_from_the_files_of_the_test(tmp_path, monkeypatch):
    """The oracle: what the test writes is what torchvision takes for CIFAR, but for its check sums."""
    from torchvision.datasets import CIFAR10

    write_cifar(tmp_path)
    trust_cifar(tmp_path, monkeypatch)
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    theirs = CIFAR10(str(tmp_path), train=True)
    ours = build(configure("data=cifar10", f"data.root={tmp_path}").data).source
    assert torch.equal(torch.from_numpy(theirs.data).permute(0, 3, 1, 2), ours.train.images)
    assert theirs.targets == ours.train.labels.tolist()
    assert theirs.classes == ours.classes


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_only_the_published_files_of_cifar_are_unpickled(tmp_path, monkeypatch):
    monkeypatch.setattr("tricklab.data.published.Plain", lambda *a, **k: pytest.fail("unpickled"))
    write_cifar(tmp_path)
    with pytest.raises(
        UserError, match=r"data_batch_1 is not the published file: its MD5 is \w+, not c99cafc1"
    ):
        build(configure("data=cifar10", f"data.root={tmp_path}").data)


def test_the_checksums_of_cifar_are_those_of_torchvision():
    from torchvision.datasets import CIFAR10, CIFAR100

    theirs = {}
    for data in (CIFAR10, CIFAR100):
        theirs |= dict(data.train_list + data.test_list)
        theirs[data.meta["filename"]] = data.meta["md5"]
    assert theirs == MD5


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (pickle.dumps({"data": Payload()}, protocol=2), r"it asks for __builtin__\.print"),
        (b"cnumpy.f2py.__main__\nencode\n.", r"it asks for numpy\.f2py\.__main__\.encode"),
        (b"cnumpy.core.multiarray\ndtype\n.", "it asks for numpy.core.multiarray.dtype"),
    ],
)
def test_a_pickle_of_cifar_can_not_run_anything(tmp_path, monkeypatch, capsys, payload, says):
    """Even if the checksum is right."""
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(payload)
    trust_cifar(tmp_path, monkeypatch)
    modules = set(sys.modules)
    with pytest.raises(UserError, match=f"data_batch_3 is not a file of CIFAR: {says}"):
        build(configure("data=cifar10", f"data.root={tmp_path}").data)
    assert capsys.readouterr().out == ""
    assert set(sys.modules) == modules


def test_cifar_that_is_not_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(tmp_path)
    (folder / "data_batch_2").write_bytes((folder / "data_batch_2").read_bytes()[:1000])
    trust_cifar(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="data_batch_2 is not a file of CIFAR"):
        build(configure("data=cifar10", f"data.root={tmp_path}").data)
    (folder / "data_batch_2").write_bytes((folder / "batches.meta").read_bytes())
    trust_cifar(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="does not hold CIFAR10: KeyError"):
        build(configure("data=cifar10", f"data.root={tmp_path}").data)
    content = (folder / "data_batch_3").read_bytes()
    for wrong in (
        content.replace(b"K\x07", b"K\x63"),
        content.replace(b"K\x07", b""),
    ):  # a label of 99, one too few
        (folder / "data_batch_2").write_bytes(wrong)
        trust_cifar(tmp_path, monkeypatch)
        with pytest.raises(UserError, match="does not hold CIFAR10: ValueError"):
            build(configure("data=cifar10", f"data.root={tmp_path}").data)
    (folder / "data_batch_2").unlink()
    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", lambda *a, **k: 1 / 0)
    with pytest.raises(
        UserError,
        match=r"no CIFAR10 there, and no download .*expected a folder with cifar-10-batches-py/data_batch_1, ",
    ):
        build(configure("data=cifar10", f"data.root={tmp_path}").data)


def write_images(root, *names, grey=90):
    """Write a small image under each name below `root`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), grey).save(root / name)


def write_classes(root, images=5, classes=("a", "b")):
    write_images(root, *(f"{name}/{i}.png" for name in classes for i in range(images)))


def read_folder(root, *overrides):
    words = ["data=folder", f"data.root='{root}'", "data.resize=8", "data.num_workers=0"]
    return build(configure(*words, *overrides).data)


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training"])
@pytest.mark.parametrize("val", ["val", "valid", "Validation", None])
@pytest.mark.parametrize("test", ["test", "Testing", None])
def test_parts_are_found_by_any_of_their_names(tmp_path, train, val, test):
    for part, images in ((train, 20), (val, 3), (test, 4)):
        if part:
            write_classes(tmp_path / part, images)
    made = read_folder(tmp_path)
    assert made.classes == ["a", "b"]
    trained = 40 if test else 32
    assert len(made.source.test.labels) == 8  # 2 x 4, or a fifth of 40
    assert len(made.val_rows) == (6 if val else round(0.1 * (trained - 1)))
    assert len(made.train_rows) == (trained if val else trained - len(made.val_rows))


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
def test_classes_and_parts_are_told_apart(tmp_path, folders, classes):
    write_images(tmp_path, *(f"{folder}/{i}.png" for folder in folders for i in range(6)))
    assert read_folder(tmp_path).classes == classes


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["train/a/0.png", "Training/a/0.png"], " has Training and train, both for train; keep "),
        (["train/a/0.png", "val/a/0.png", "valid/a/0.png"], " has val and valid, both for val; "),
        (["test/a/0.png", "test/b/0.png"], " has test, but no train; evaluate.py takes such a "),
        (
            ["pets/train/a/0.png", "pets/test/a/0.png"],
            "lie further down; allowed: data.root={}/pets",
        ),
        (["x/Train/a/0.png", "y/train/a/0.png"], "allowed: data.root={}/x or data.root={}/y"),
        (["pets/a/0.png", "pets/b/0.png"], "lie further down; allowed: data.root={}/pets"),
        (["a/0.png"], ": 2 classes or more, each with images; there is a"),
        (["0.png", "1.png"], " has 2 images, but no class folders; allowed: {}/CLASS/... for each"),
        (["train/0.png", "test/0.png"], "/train has 1 images, but no class folders"),
        (
            ["caf\u00e9/0.png", "cafe\u0301/0.png"],
            " has the class 'café' twice, with accents in two",
        ),
        (
            ["a/0.png", "caf\udce9/0.png"],
            ": the name of the class 'caf\\udce9' is not UTF-8; rename",
        ),
    ],
)
def test_folders_that_hold_no_data_set_are_refused(tmp_path, files, says):
    write_images(tmp_path, *files)
    with pytest.raises(UserError) as refused:
        read_folder(tmp_path)
    assert says.replace("{}", str(tmp_path)) in str(refused.value)


def test_a_folder_beside_the_parts_is_named(tmp_path, capsys):
    write_classes(tmp_path / "train", 20)
    write_images(tmp_path, "holdout/a/0.png")
    (tmp_path / "annotations").mkdir()
    read_folder(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"warning: data.root={tmp_path}: holdout is not used; parts are called train,"
    )


def test_composed_and_decomposed_accents_are_one_class(tmp_path):
    write_classes(tmp_path / "train", 8, ("a", "caf\u00e9"))
    write_classes(tmp_path / "test", 2, ("a", "cafe\u0301"))
    made = read_folder(tmp_path)
    assert made.classes == ["a", "caf\u00e9"]
    assert made.source.test.labels.tolist() == [0, 0, 1, 1]


def test_links_are_followed_and_loops_end(tmp_path, capsys):
    root, away = tmp_path / "root", tmp_path / "away"
    write_classes(root, 5)
    write_images(away, *(f"{i}.png" for i in range(7)))
    write_images(tmp_path, "single.png")
    (root / "a" / "more").symlink_to(away)
    (root / "a" / "again").symlink_to(away)  # each folder once
    (root / "a" / "one.png").symlink_to(tmp_path / "single.png")
    (root / "a" / "up").symlink_to(root)  # where the images of b are
    (away / "loop").symlink_to(away)
    (root / "c").symlink_to(away)
    (root / "b" / "gone.png").symlink_to("nowhere.png")
    (root / "b" / "itself.png").symlink_to("itself.png")
    os.mkfifo(root / "b" / "pipe.png")  # which would wait for ever
    made = read_folder(root)
    counts = made.source.train.labels.bincount() + made.source.test.labels.bincount(minlength=3)
    assert dict(zip(made.classes, counts.tolist())) == {"a": 13, "b": 5, "c": 7}
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 of 28 files are left out, 3 links that lead to no file, as " in line


def test_rubbish_of_systems_is_no_image(tmp_path, capsys):
    write_classes(tmp_path, 6)
    rubbish = ("@eaDir/0.png/thumb.jpg", ".ipynb_checkpoints/0.png", "__MACOSX/0.png", "._0.png")
    write_images(tmp_path / "a", *rubbish)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "labels.csv"):
        (tmp_path / "a" / name).write_bytes(b"\0")
    made = read_folder(tmp_path)
    assert made.source.files == 12
    assert capsys.readouterr().err == ""


def test_files_that_are_not_decoded_are_counted(tmp_path, capsys):
    write_classes(tmp_path, 6)
    for name in ("0.heic", "1.HEIC", "2.cr2", "noending"):
        (tmp_path / "a" / name).write_bytes(b"\0")
    read_folder(tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    said = "4 of 16 files are left out, endings that are not decoded: 2 .heic, "
    assert line.startswith(f"warning: {tmp_path}: {said}")
    assert "1 .cr2" in line
    assert "1 without one" in line
    assert line.endswith("(ImageMagick converts: mogrify -format png '*.heic')")


def test_a_class_without_a_readable_file_says_what_it_has(tmp_path):
    write_classes(tmp_path, 6)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.heic").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"without: c \(1 of 13 files are left out, .* 1 \.heic"):
        read_folder(tmp_path)


def test_a_folder_that_can_not_be_read_is_named(tmp_path, monkeypatch):
    write_classes(tmp_path, 6)

    def walk(root, followlinks, onerror):
        onerror(PermissionError(13, "Permission denied", f"{root}/more"))
        return []

    monkeypatch.setattr("os.walk", walk)
    with pytest.raises(UserError, match=r"a/more can't be read: Permission denied"):
        read_folder(tmp_path)


def test_a_class_of_one_image_is_trained_on(tmp_path, capsys):
    write_classes(tmp_path, 20)
    write_images(tmp_path, *(f"r{i:02}/0.png" for i in range(20)))
    for seed in range(5):
        made = read_folder(tmp_path, f"data.split_seed={seed}")
        assert len(made.source.train.labels[made.train_rows].unique()) == 22
        assert (len(made.train_rows), len(made.val_rows)) == (43, 5)
        assert len(made.source.test.labels) == 12
    assert capsys.readouterr().err == ""


def test_classes_without_a_training_image_are_named(tmp_path, capsys):
    write_classes(tmp_path / "train", 20)
    write_images(tmp_path, "train/rare/0.png", "test/a/0.png")
    folds = [read_folder(tmp_path, "data.folds=5", f"data.fold={k}") for k in range(5)]
    assert sorted(len(fold.val_rows) for fold in folds) == [8, 8, 8, 8, 9]
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: 1 of 3 classes have no training image: rare"
    data("data.train_size=4")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 6 of 10 classes have no training image: ")


@pytest.mark.parametrize("size", [1, 7, 30, 80])
def test_splits_of_classes_with_enough_images_are_the_beginning_of_the_order(size):
    labels = torch.arange(100) % 4
    order = stratified_order(labels, 3, "val")
    rest, part = split_off(order, labels, size)
    assert torch.equal(part, order[:size])
    assert torch.equal(rest, order[size:])


def test_a_split_keeps_an_image_of_each_class_as_long_as_it_can():
    labels = torch.tensor([0] * 10 + [1, 2, 3])
    order = torch.tensor([10, 0, 11, 12, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    rest, part = split_off(order, labels, 5)
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(13))
    assert labels[rest].bincount().tolist() == [5, 1, 1, 1]
    rest, part = split_off(order, labels, 11)  # two places for four classes
    assert len(rest) == 2
    assert sorted([*rest.tolist(), *part.tolist()]) == list(range(13))


@pytest.mark.parametrize(
    ("parts", "override", "says"),
    [
        ({"train": 9, "val": 3}, "data.val_size=0.3", "a part of these data of its own says what"),
        ({"train": 9}, "data.val_size=0.3 data.folds=3", "data.folds=3 says what validation is"),
        ({"train": 9, "test": 3}, "data.test_size=4", "test is the test set; leave it out"),
    ],
)
def test_sizes_without_an_effect_are_refused(tree, parts, override, says):
    with pytest.raises(UserError) as refused:
        read_folder(tree(parts), *override.split())
    assert str(refused.value).startswith(override.split()[0])
    assert says in str(refused.value)


def test_sizes_that_can_not_be_told_from_the_defaults_are_those_of_the_yaml():
    assert configure("data=folder").data.val_size == VAL_SIZE
    assert configure("data=folder").data.test_size == TEST_SIZE


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100", "folder"])
def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, name):
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


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:],
        lambda content: content[:-1] + bytes([content[-1] ^ 128]),
        lambda content: content[:-4],  # as without a checksum
        lambda content: content[:-300],
        lambda content: b"",
    ],
    ids=["a bit", "of the checksum", "no checksum", "cut", "empty"],
)
def test_a_damaged_cache_is_decoded_again(tmp_path, capsys, damage):
    write_classes(tmp_path / "images", 6)
    cache = f"data.cache='{tmp_path / 'kept'}'"
    whole = read_folder(tmp_path / "images", cache).source.train.images.clone()
    for file in (tmp_path / "kept").iterdir():
        file.write_bytes(damage(file.read_bytes()))
    capsys.readouterr()
    assert torch.equal(read_folder(tmp_path / "images", cache).source.train.images, whole)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # training and test
    assert all("uint8 is damaged; its images are decoded again" in line for line in lines)
    assert torch.equal(read_folder(tmp_path / "images", cache).source.train.images, whole)
    assert capsys.readouterr().err == ""


def test_a_cache_that_can_not_be_written_is_named(tmp_path):
    write_classes(tmp_path / "images", 6)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"data\.cache=.*/file: .*"):
        read_folder(tmp_path / "images", f"data.cache='{tmp_path / 'file'}'")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        ("Memory", r"there is no such folder; \./Memory makes it\. Did you mean 'memory'\?"),
        ("nnone", r"there is no such folder; \./nnone makes it\. Did you mean 'none'\?"),
        ("~nobody-here/x", "Could not determine home directory"),
    ],
)
def test_a_misspelt_cache_makes_no_folder(tmp_path, monkeypatch, cache, says):
    write_classes(tmp_path, 6)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=f"data.cache={cache}: {says}"):
        read_folder(tmp_path, f"data.cache='{cache}'")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cache_is_written_through_no_link(tmp_path, monkeypatch):
    write_classes(tmp_path / "images", 6)
    (tmp_path / "kept").mkdir()
    (tmp_path / "victim").write_text("mine")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0")
    cache = f"data.cache='{tmp_path / 'kept'}'"
    read_folder(tmp_path / "images", cache)
    for file in list((tmp_path / "kept").iterdir()):
        file.unlink()
        file.with_suffix(".0").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="File exists"):
        read_folder(tmp_path / "images", cache)
    assert (tmp_path / "victim").read_text() == "mine"


def test_backgrounds_have_caches_and_fingerprints_of_their_own(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "images" / name / f"{i}.png")
    cache = f"data.cache='{tmp_path / 'kept'}'"
    white, black = (
        read_folder(tmp_path / "images", cache, f"data.background={ground}")
        for ground in ("white", "black")
    )
    assert white.source.test.images.unique().tolist() == [255]
    assert black.source.test.images.unique().tolist() == [0]
    assert white.fingerprint != black.fingerprint


def test_the_fingerprint_of_files_changes_with_each_of_them_alone(tmp_path):
    """Also where an image is mirrored in place, which changes neither its size nor mean and deviation."""
    root = tmp_path / "images"
    write_images(root, *(f"{name}/{i}.bmp" for name in "ab" for i in range(6)))
    first = read_folder(root).fingerprint
    kept = f"data.cache='{tmp_path / 'kept'}'"
    others = ([kept], [kept], ["data.cache=none"], ["data.num_workers=2"], ["data.batch_size=3"])
    assert {read_folder(root, *words).fingerprint for words in others} == {first}
    shutil.copytree(root, tmp_path / "moved")  # with the times of its files
    assert read_folder(tmp_path / "moved").fingerprint == first
    for image in (root / "a" / "0.bmp", root / "b" / "5.bmp"):  # of training or test
        ImageOps.mirror(Image.open(image)).save(image)
        second = read_folder(root).fingerprint
        assert second != first
        first = second
    (root / "a" / "0.bmp").rename(root / "a" / "00.bmp")
    assert read_folder(root).fingerprint != first
    assert read_folder(root, "data.mode=L").fingerprint != read_folder(root).fingerprint


def test_the_fingerprint_of_arrays_changes_with_any_pixel_and_what_the_network_takes():
    first = data().fingerprint
    assert data("data.batch_size=5").fingerprint == first

    def changed(part, change):
        source = data().source
        images = getattr(source, part).images
        images.copy_(change(images))
        return ImageData(source).fingerprint

    mirrored = {changed(part, lambda x: x.flip(3)) for part in ("train", "test")}
    one_pixel = changed("test", lambda x: x.index_fill(0, torch.tensor([7]), 3))
    noisy = data("data.label_noise=0.1").fingerprint
    made = data()
    own = Images(made.shape, made.mean, made.std)
    assert made.fingerprint == first
    adapted = []
    for other in (
        own._replace(shape=(3, 16, 16)),
        own._replace(mean=[own.mean[0] + 1e-9, *own.mean[1:]]),
        own._replace(std=[0.5] * 3),
    ):
        made.adapt(other)
        adapted.append(made.fingerprint)
    assert len({first, *mirrored, one_pixel, noisy, *adapted}) == 8
    made.adapt(own)
    assert made.fingerprint == first


def test_a_run_does_not_resume_with_another_mean(run, trained):
    folder = trained(*ONE_BATCH, "model=mlp").folder
    words = (*ONE_BATCH, "model=mlp", "resume=auto")
    text = (folder / "config.yaml").read_text()
    (line,) = re.findall(r"  mean:\n  - (\S+)\n", text)
    (folder / "config.yaml").write_text(text.replace(line, repr(float(line) + 0.01)))
    with pytest.raises(UserError, match=r"dataset\.mean differs from last\.ckpt"):
        run(*words, folder=folder)
    (folder / "config.yaml").write_text(text)
    assert run(*words, folder=folder).result["status"] == "done"


def test_a_line_says_the_size_of_images_from_files(tree, run, capsys):
    words = (*ONE_BATCH, "model=mlp", "data=folder", "data.num_workers=0", "data.batch_size=4")
    done = run(*words, f"data.root='{tree({'train': 9})}'", "data.resize=16")
    assert "images 16 x 16 x 3 from 18 files\n" in capsys.readouterr().out
    weights = f"model.weights={done.folder}/checkpoints/best.ckpt"
    run(*words, f"data.root='{tree({'train': 9})}'", "data.resize=12", weights, folder="other")
    expected = "images 12 x 12 x 3 from 18 files, 16 x 16 x 3 for the network\n"
    assert expected in capsys.readouterr().out
    assert data().summary == ""


def test_images_that_weights_would_have_blown_up_are_refused(tree, run):
    words = ("data=folder", f"data.root='{tree({'train': 9})}'", "data.num_workers=0")
    made = build(configure(*words).data)
    made.check_enlarged(64)
    with pytest.raises(
        UserError, match=r"data\.resize=32: .* 65 pixels .*=65, 33 or more, or null"
    ):
        made.check_enlarged(65)
    build(configure(*words, "data.resize=112").data).check_enlarged(224)
    data().check_enlarged(224)  # arrays have no other size


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_weights_without_a_config_expect_what_their_library_has(tree, run, tmp_path, library):
    name = {"timm": "resnet10t", "torchvision": "squeezenet1_1"}[library]
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    words = (f"model={library}", f"model.name={name}", f"model.weights={tmp_path}/w.pth")
    root = f"data.root='{tree({'train': 9})}'"
    side = {"timm": 176, "torchvision": 224}[library]
    with pytest.raises(UserError, match=rf"expect images of {side} pixels a side; .*resize={side}"):
        run(*words, "data=folder", root, "data.num_workers=0")


def test_a_folder_to_evaluate_on_is_a_test_part_or_all_there_is(tmp_path, capsys):
    options = {"resize": 8, "mode": "RGB", "cache": "memory", "num_workers": 0, "val_size": 0.3}

    def read(root, classes=("a", "b")):
        made = folder_to_evaluate(str(root), classes, skip_damaged=False, **options)
        return made.source.test.labels.bincount(minlength=len(classes)).tolist()

    write_classes(tmp_path / "plain", 9)
    assert read(tmp_path / "plain") == [9, 9]
    assert read(tmp_path / "plain", ("0", "a", "b")) == [0, 9, 9]
    write_classes(tmp_path / "parts" / "Test", 3)
    assert read(tmp_path / "parts") == [3, 3]
    write_classes(tmp_path / "parts" / "train", 5)
    assert read(tmp_path / "parts") == [3, 3]
    write_images(tmp_path / "one", "b/0.png")
    assert read(tmp_path / "one") == [0, 1]
    write_classes(tmp_path / "other" / "train", 5)
    write_classes(tmp_path / "other" / "val", 5)
    with pytest.raises(
        UserError, match=r"has no test folder; allowed: data\.root=.*/train or data"
    ):
        read(tmp_path / "other")
    with pytest.raises(UserError, match="has the class 'b', which the checkpoint does not have"):
        read(tmp_path / "plain", ("a", "c"))


@pytest.mark.parametrize("on_terminal", [True, False])
def test_progress_is_shown_after_some_seconds(monkeypatch, capsys, on_terminal):
    now = iter(range(0, 10_000, 2))
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    monkeypatch.setattr("sys.stderr.isatty", lambda: on_terminal)
    blocks = [[0] * 100] * 20  # each takes 2 s
    assert list(with_progress(blocks, 2000, "decoding")) == blocks
    said = capsys.readouterr().err
    if on_terminal:
        assert said.startswith("\rdecoding [###")
        assert "200 of 2,000 images, 36 s left" in said
        assert said.endswith("\r\033[K")
    else:
        lines = said.splitlines()
        assert lines[0] == "decoding: 200 of 2,000 images, 36 s left"
        assert 3 <= len(lines) <= 4  # one in 10 s
    monkeypatch.setenv("LOCAL_RANK", "1")
    list(with_progress(blocks, 2000, "decoding"))
    assert capsys.readouterr().err == ""


def test_progress_of_a_moment_is_not_shown(capsys):
    assert list(with_progress([[0]] * 5, 5, "decoding")) == [[0]] * 5
    assert capsys.readouterr().err == ""


def test_prediction_has_the_background_of_training(tree, run, script, tmp_path):
    root = f"data.root='{tree({'train': 9})}'"
    words = (*ONE_BATCH, "model=mlp", "data=folder", "data.num_workers=0", "data.background=black")
    run(*words, root, "data.batch_size=4")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    icon, ground = Image.fromarray(pixels), Image.new("RGBA", (8, 8), "black")
    ground.alpha_composite(icon)
    (tmp_path / "icons").mkdir()
    icon.save(tmp_path / "icons" / "clear.png")
    ground.convert("RGB").save(tmp_path / "icons" / "opaque.png")
    said = script("predict.py", "ckpt=run/checkpoints/best.ckpt", "input=icons")
    clear, opaque = (line.split(",")[1:] for line in said.stdout.splitlines()[1:])
    assert clear == opaque
