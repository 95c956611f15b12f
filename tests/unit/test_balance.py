"""How many images of each class training sees: long tails, balanced sampling, and the warning."""

import re

import pytest
import torch
from scipy.stats import chisquare

from helpers.configs import ONE_BATCH, configure
from tricklab.data.balance import balanced, find_rarest, long_tail
from tricklab.data.batches import DatasetSplits, LabeledImages
from tricklab.data.module import ImageData
from tricklab.errors import UserError
from tricklab.randomness import generator
from tricklab.run.instantiate import build

P_VALUE = 1e-3  # seeds are fixed, so these tests do not fail by chance


def make_data(counts, **options):
    """Return data with so many training images of each class, of one pixel."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    train = LabeledImages(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)
    val = LabeledImages(train.images[:9], labels[:9])
    names = [f"c{c}" for c in range(len(counts))]
    return ImageData(DatasetSplits(train, val, names, val=val), **options)


def epoch_of(data, epoch=0, rank=0, ranks=1):
    """Return the indices of an epoch in the order in which a rank sees them."""
    batches = data.training_batches(lambda: (epoch, 0), rank, ranks)
    return torch.cat([indices for _, _, indices in batches])


# Long tail


@pytest.mark.parametrize(
    ("imbalance", "expected"),
    [
        (10, [500, 387, 300, 232, 180, 139, 108, 83, 65, 50]),  # 500 x 10^(-c/9)
        (100, [500, 300, 180, 108, 65, 39, 23, 14, 8, 5]),
        (500, [500, 251, 126, 63, 32, 16, 8, 4, 2, 1]),
        (1.0, [500, 510, 500, 600, 500, 500, 500, 500, 500, 520]),  # all images
        (1.0001, [500] * 10),
    ],
)
def test_long_tail_has_exact_counts(imbalance, expected):
    counts = [500, 510, 500, 600, 500, 500, 500, 500, 500, 520]
    data = make_data(counts, imbalance=imbalance)
    assert data.train_labels.bincount(minlength=10).tolist() == expected


def test_long_tail_keeps_an_image_of_each_class_and_names_what_can_not_be(capsys):
    data = make_data([20, 20, 20], imbalance=1000)
    assert data.train_labels.bincount().tolist() == [20, 1, 1]
    message = "data.imbalance=1000: the smallest class has 20 training images, so it is 20 at most"
    assert capsys.readouterr().err == f"warning: {message}\n"


def test_long_tail_skips_classes_without_images():
    labels = torch.tensor([0] * 8 + [2] * 16)
    kept = long_tail(labels, 4, 3)  # 8 x 4^0, -, 8 / 4
    assert labels[kept].bincount(minlength=3).tolist() == [8, 0, 2]


def test_long_tail_is_of_training_alone_and_follows_split_seed():
    fake = ("data=fake", "data.images=1000", "data.test_images=50")
    plain = build(configure(*fake).data)
    tail, again = (build(configure(*fake, "data.imbalance=10").data, seed=s) for s in (0, 1))
    other = build(configure(*fake, "data.imbalance=10", "data.split_seed=1").data)
    assert torch.equal(tail.val_indices, plain.val_indices)
    assert len(tail.splits.test.labels) == 50
    assert set(tail.train_indices.tolist()) < set(plain.train_indices.tolist())
    assert torch.equal(tail.train_indices, again.train_indices)
    assert set(tail.train_indices.tolist()) != set(other.train_indices.tolist())
    assert tail.train_labels.bincount().tolist() == [round(90 * 10 ** (-c / 9)) for c in range(10)]


def test_long_tail_with_a_size_of_training_is_refused():
    message = "data.train_size=50 data.imbalance=10: both set the size of training"
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        make_data([100, 100], train_size=50, imbalance=10)


# Sampler


def test_shuffle_is_the_permutation_of_the_seed_and_the_epoch():
    data = make_data([50, 50], batch_size=10, seed=3)
    for epoch in (0, 5):
        expected = torch.randperm(100, generator=generator(3, "order", epoch))
        assert torch.equal(epoch_of(data, epoch), expected)
        assert torch.equal(
            epoch_of(make_data([50, 50], batch_size=10, seed=3, sampler="shuffle"), epoch), expected
        )


def test_balanced_draws_classes_and_their_images_uniformly():
    counts = [2, 1, 0, 30, 967]
    labels = torch.arange(5).repeat_interleave(torch.tensor(counts))
    rng = generator(0, "test")
    labels = labels[torch.randperm(1000, generator=rng)]
    drawn = torch.cat([balanced(labels, rng) for _ in range(100)])  # 100,000
    classes = labels[drawn].bincount(minlength=5)
    assert classes[2] == 0
    assert chisquare(classes[counts_present(counts)]).pvalue > P_VALUE
    for c in (0, 3, 4):
        images = drawn[labels[drawn] == c].bincount(minlength=1000)[labels == c]
        assert chisquare(images).pvalue > P_VALUE
        assert images.min() > 0


def counts_present(counts):
    return torch.tensor(counts) > 0


def test_balanced_draws_the_images_of_training_by_their_labels_in_use():
    """With label noise: a class is that of the noisy labels."""
    fake = ("data=fake", "data.images=2000", "data.imbalance=20", "data.label_noise=0.3")
    data = build(configure(*fake, "data.sampler=balanced").data)
    drawn = torch.cat([epoch_of(data, epoch) for epoch in range(40)])
    assert set(drawn.tolist()) == set(data.train_indices.tolist())
    classes = data.train.labels[drawn].bincount(minlength=10)
    assert chisquare(classes).pvalue > P_VALUE
    assert chisquare(data.splits.train.labels[drawn].bincount(minlength=10)).pvalue < P_VALUE


def test_balanced_epoch_follows_from_seed_and_epoch_and_has_as_many_images():
    options = {"batch_size": 10, "sampler": "balanced"}
    data = make_data([95, 5], seed=3, **options)
    order = epoch_of(data, 2)
    assert len(order) == 100
    assert torch.equal(order, epoch_of(make_data([95, 5], seed=3, **options), 2))
    assert not torch.equal(order, epoch_of(data, 3))
    assert not torch.equal(order, epoch_of(make_data([95, 5], seed=4, **options), 2))
    rest = data.training_batches(lambda: (2, 6))  # from the seventh batch on
    assert torch.equal(torch.cat([indices for _, _, indices in rest]), order[60:])


@pytest.mark.parametrize("ranks", [2, 3])
def test_balanced_positions_are_dealt_to_the_ranks(ranks):
    data = make_data([95, 5], batch_size=10, sampler="balanced")
    order = balanced(data.train_labels, generator(0, "order", 0))[: 100 - 100 % ranks]
    for rank in range(ranks):
        assert torch.equal(epoch_of(data, rank=rank, ranks=ranks), order[rank::ranks])


# The warning


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([30, 300, 0], ""),
        ([0, 1300, 129, 5000], "class c2 has 129 training images, class c3 5,000"),
        ([301, 30], "class c1 has 30 training images, class c0 301"),
    ],
)
def test_rarest_class_is_named_if_another_has_over_ten_times_its_images(counts, expected):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    assert find_rarest(labels, [f"c{c}" for c in range(len(counts))]) == expected


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        ((), True),
        (("data.sampler=balanced",), False),
        (("loss.class_weights=balanced",), False),
        (("data.imbalance=2",), False),
    ],
)
def test_rare_class_is_warned_of_unless_that_is_dealt_with(
    class_folders, run, capsys, overrides, warned
):
    root = class_folders({"train": 2}, classes=("rare", "other"), size=8)
    class_folders({"train": 30}, classes=("common",), size=8)
    class_folders({"val": 2, "test": 2}, classes=("rare", "other", "common"), size=8)
    data = ("data=folder", f"data.root='{root}'", "data.size=8", "data.num_workers=0")
    run(*ONE_BATCH, "model=mlp", *data, *overrides)
    lines = [line for line in capsys.readouterr().err.splitlines() if "class" in line]
    line = "warning: class other has 2 training images, class common 30; data.sampler=balanced"
    assert lines == [f"{line} or loss.class_weights=balanced helps"] * warned
