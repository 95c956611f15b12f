"""Groups of images never cross a split: random tables, and scikit-learn as an oracle."""

import re
import warnings

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedGroupKFold

from tricklab.data.batches import DatasetSplits, LabeledImages
from tricklab.data.groups import assign_folds, check_groups_apart, hold_out
from tricklab.data.module import ImageData
from tricklab.data.splits import (
    VAL_SIZE,
    hash_splits,
    split_off,
    split_off_test,
    split_train_val,
    stratified_order,
)
from tricklab.errors import UserError
from tricklab.randomness import generator


def make_table(seed, least=2, most=9):
    """Return labels [N] and groups [N]: groups of very different sizes and mixtures of classes."""
    rng = np.random.default_rng(seed)
    number = rng.integers(least, most)
    classes = rng.integers(2, 6)
    sizes = np.maximum(1, rng.lognormal(1.5, rng.uniform(0, 1.2), number).astype(int))
    purity = 10 ** rng.uniform(-1.5, 1)  # low: most groups have one class
    mixtures = rng.dirichlet(np.full(classes, purity), number)
    labels = [rng.choice(classes, size, p=mixture) for size, mixture in zip(sizes, mixtures)]
    labels[0][:1] = classes - 1  # the largest label occurs
    names = rng.choice(1000, number, replace=False)
    groups = np.repeat(names, sizes)
    shuffled = rng.permutation(len(groups))
    return torch.tensor(np.concatenate(labels)[shuffled]), torch.tensor(groups[shuffled])


def make_splits(labels, groups=None):
    images = torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8)
    data = LabeledImages(images, labels)
    return DatasetSplits(data, data, [str(c) for c in range(int(labels.max()) + 1)], groups=groups)


def has_spare_group(labels, groups):
    """Whether training has all classes without one of the groups, tried one by one."""
    classes = len(labels.unique())
    return any(len(labels[groups != name].unique()) == classes for name in groups.unique())


def assert_apart(groups, one, other):
    assert len(one)
    assert len(other)
    assert sorted([*one.tolist(), *other.tolist()]) == list(range(len(groups)))
    assert not torch.isin(groups[one], groups[other]).any()


@pytest.mark.parametrize("block", range(4))
def test_groups_never_cross_a_split(block):
    """In 1,000 tables; and validation and test leave each class in training."""
    refused = 0
    for seed in range(250 * block, 250 * (block + 1)):
        labels, groups = make_table(seed)
        if len(labels) < 3:
            continue
        splits = make_splits(labels, groups)
        size = (0.5, 0.3, 2, len(labels) - 1)[seed % 4]
        try:
            val = split_train_val(splits, size, None, 0, seed)
            test = split_off_test(labels, size, groups)
        except UserError:
            assert not has_spare_group(labels, groups), seed
            refused += 1
        else:
            for rest, part in (val, test):
                assert_apart(groups, rest, part)
                assert len(labels[rest].unique()) == len(labels.unique()), seed
        folds = 2 + seed % (len(groups.unique()) - 1)
        assert_apart(groups, *split_train_val(splits, VAL_SIZE, folds, seed % folds, seed))
    assert refused < 100


def test_folds_of_whole_groups_cover_all_images_once():
    for seed in range(20):
        labels, groups = make_table(seed, least=5)
        parts = [split_train_val(make_splits(labels, groups), VAL_SIZE, 5, k, 0) for k in range(5)]
        held_out = torch.cat([val for _, val in parts])
        assert sorted(held_out.tolist()) == list(range(len(labels)))


def test_folds_leave_each_class_of_several_groups_in_training():
    """Also if its groups are small: here each group has one class."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        groups = torch.tensor(np.repeat(np.arange(12), rng.integers(1, 60, 12)))
        labels = groups // 2  # two groups a class
        fold = assign_folds(labels, groups, 4, generator(seed, "test"))
        for k in range(4):
            assert len(labels[fold != k].unique()) == 6


def deviations(labels, fold, folds):
    """Return how far folds are from the whole: counts of classes, their proportions, and sizes."""
    counts = np.zeros((folds, int(labels.max()) + 1))
    np.add.at(counts, (fold, labels), 1)
    counts = counts[:, counts.sum(0) > 0]
    n = counts.sum(0)
    proportions = counts / counts.sum(1, keepdims=True)
    return [
        np.abs(counts / n * folds - 1).mean(),
        np.abs(proportions - n / n.sum()).mean(),
        np.abs(counts.sum(1) / n.sum() * folds - 1).mean(),
    ]


def test_folds_are_as_stratified_as_those_of_scikit_learn():
    """Mean over 80 tables of 15 to 39 groups."""
    ours, theirs = [], []
    for seed in range(80):
        labels, groups = make_table(seed, least=15, most=40)
        folds = 2 + seed % 6
        y, names = labels.numpy(), groups.numpy()
        fold = assign_folds(labels, groups, folds, generator(seed, "test")).numpy()
        ours.append(deviations(y, fold, folds))
        oracle = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class of fewer images than folds
            for k, (_, held_out) in enumerate(oracle.split(y, y, names)):
                fold[held_out] = k
        theirs.append(deviations(y, fold, folds))
    ours, theirs = np.mean(ours, 0), np.mean(theirs, 0)
    assert (ours <= theirs).all()


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_held_out_groups_have_about_the_size_and_the_classes_asked_for(fraction):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        groups = torch.tensor(np.repeat(np.arange(150), rng.integers(1, 20, 150)))
        labels = torch.tensor(rng.choice(3, len(groups), p=[0.6, 0.3, 0.1]))
        held_out = hold_out(
            labels, groups, round(fraction * len(labels)), "x", generator(seed, "test")
        )
        n = labels.bincount()
        assert (labels[held_out].bincount() / n).tolist() == pytest.approx([fraction] * 3, abs=0.02)


def test_large_groups_are_held_out_in_proportion_too():
    """A greedy choice that fills training first would leave only small ones for validation."""
    sizes = torch.tensor([40] * 20 + [2] * 200)
    groups = torch.arange(220).repeat_interleave(sizes)
    labels = torch.arange(len(groups)) % 2
    held_out = hold_out(labels, groups, len(labels) // 5, "x", generator(0, "test"))
    large = groups[held_out & (groups < 20)].unique()
    assert len(large) == 4


def test_groups_are_split_by_the_seed():
    labels, groups = make_table(3, least=30, most=31)
    splits = make_splits(labels, groups)
    for options in ((0.3, None), (VAL_SIZE, 3)):
        one, again, other = (split_train_val(splits, *options, 0, seed) for seed in (0, 0, 1))
        assert torch.equal(one[1], again[1])
        assert torch.equal(one[0], again[0])
        assert set(one[1].tolist()) != set(other[1].tolist())


def test_groups_of_different_sizes_are_split_otherwise_by_another_seed():
    """A strict order by size would give each seed the same folds."""
    groups = torch.arange(12).repeat_interleave(torch.arange(20, 32))
    labels = torch.arange(len(groups)) % 2
    folds = [assign_folds(labels, groups, 3, generator(seed, "test")) for seed in range(5)]
    assert len({tuple(fold.tolist()) for fold in folds}) == 5


def test_split_without_groups_is_that_of_single_images():
    labels, _ = make_table(5, least=10, most=12)
    order = stratified_order(labels, 7, "val")
    parts = order.tensor_split(4)
    for options, expected in (
        ((20, None, 0), split_off(order, labels, 20)),
        ((VAL_SIZE, 4, 1), (torch.cat([parts[0], *parts[2:]]), parts[1])),
    ):
        rest, part = split_train_val(make_splits(labels), *options, 7)
        assert torch.equal(rest, expected[0])
        assert torch.equal(part, expected[1])


def test_validation_of_groups_begins_with_a_stratified_part():
    """As trainer.limit_val_batches takes the first batches."""
    groups = torch.arange(100).repeat_interleave(10)
    labels = groups % 2
    _, val = split_train_val(make_splits(labels, groups), 0.4, None, 0, 0)
    assert labels[val[:20]].bincount().tolist() == [10, 10]


def test_validation_has_a_group_even_if_all_are_larger_than_it():
    groups = torch.tensor([1] * 40 + [2] * 30 + [3] * 50 + [4] * 20)
    labels = torch.tensor([0, 1] * 60 + [2] * 20)  # group 4 has all images of class 2
    train, val = split_train_val(make_splits(labels, groups), 1, None, 0, 0)
    assert groups[val].unique().tolist() == [2]
    assert len(train) == 110


def test_held_out_size_that_is_far_off_is_named(capsys):
    groups = torch.arange(4).repeat_interleave(25)
    labels = torch.arange(100) % 2
    split_train_val(make_splits(labels, groups), 0.1, None, 0, 0)
    expected = "warning: data.val_size=0.1: 25 of 100 images, as groups stay whole\n"
    assert capsys.readouterr().err == expected
    split_train_val(make_splits(labels, groups), 0.25, None, 0, 0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ([5] * 6, (0.5, None), "data.val_size=0.5: all images are of one group, which stays whole"),
        ([5] * 6, (VAL_SIZE, 2), "data.folds=2: all images are of one group, which stays whole"),
        (
            [1, 1, 1, 2, 2, 2],
            (0.5, None),
            "data.val_size=0.5: each of the 2 groups has all images of a class, and stays whole",
        ),
        (
            [1, 1, 2, 2, 3, 3],
            (VAL_SIZE, 4),
            "data.folds=4: there are 3 groups, which stay whole. Expected 2 to 3 folds",
        ),
        ([1, 1, 2, 2, 3, 3], (7, None), "data.val_size=7 of 5 images; "),
        ([1, 1, 2, 2, 3, 3], (VAL_SIZE, 7), "data.fold=0 data.folds=7; allowed: 2 to 6 folds"),
    ],
)
def test_groups_that_can_not_be_split_are_refused(groups, options, message):
    splits = make_splits(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor(groups))
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        split_train_val(splits, *options, 0, 0)


def test_test_set_of_a_single_group_is_refused():
    with pytest.raises(UserError, match=r"^data\.test_size=0\.2: all images are of one group"):
        split_off_test(torch.tensor([0, 1] * 5), 0.2, torch.zeros(10, dtype=torch.long))


def test_groups_are_one_for_each_training_image():
    with pytest.raises(UserError, match="data: groups: 3 for 6 training images"):
        ImageData(make_splits(torch.tensor([0, 1] * 3), torch.tensor([1, 2, 3])))


def test_groups_are_kept_apart_in_the_data_of_a_run():
    labels, groups = make_table(2, least=10, most=12)
    splits = make_splits(labels, groups)
    for options in ({"val_size": 0.3}, {"folds": 3, "fold": 2}, {"val_size": 0.3, "train_size": 9}):
        module = ImageData(splits, **options)
        assert not torch.isin(groups[module.val_indices], groups[module.train_indices]).any()
        assert len(module.val_indices)
    assert len(module.train_indices) == 9


def test_groups_are_part_of_the_hash_of_the_data():
    """Otherwise a run could resume with another split."""
    labels, groups = make_table(2)
    hashes = {hash_splits(make_splits(labels, g)) for g in (None, groups, groups.flip(0))}
    assert len(hashes) == 3


def test_given_splits_with_a_common_group_are_refused():
    check_groups_apart({"train": ["a", "a", "b"], "val": ["c"], "test": ["d", "d"]})
    match = r"^data\.table=x\.csv: group 'b' is in train and in test\. Expected all images of a"
    with pytest.raises(UserError, match=match):
        check_groups_apart(
            {"train": ["a", "b"], "val": ["c"], "test": ["d", "b"]}, "data.table=x.csv"
        )
    with pytest.raises(UserError, match="group 'c' is in val and in test"):
        check_groups_apart({"train": ["a"], "val": ["c"], "test": iter(["c"])})
