"""`data.classes`: some classes of a data set, of which the others leave no trace."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from helpers.configs import configure
from tricklab.data.batches import DatasetSplits, LabeledImages
from tricklab.data.classes import find_labels, keep_classes
from tricklab.errors import UserError
from tricklab.run.build import build_data, describe_classes
from tricklab.run.instantiate import build

NAMES = ["cat", "dog", "eel", "fox"]


@pytest.mark.parametrize(
    ("classes", "chosen", "labels"),
    [
        (NAMES, ["cat", "fox"], [0, 3]),
        (NAMES, ["fox", "cat"], [0, 3]),  # the order of the data set
        (NAMES, [1, 2], [1, 2]),
        (["3", "5", "8"], [3, 8], [0, 2]),  # names, if all of them are
    ],
)
def test_classes_are_names_or_numbers(classes, chosen, labels):
    assert find_labels(classes, chosen) == labels


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            ["cat", "foks"],
            r"=\[cat,foks\]: no class foks; allowed: 0 to 3, or .* 'fox'",
        ),
        ([0, "dog"], "no class 0; allowed: 0 to 3, or names: cat, dog"),
        ([1, 4], r"data.classes=\[1,4\]: no class 4; allowed: 0 to 3"),
        ([1, 1], r"data.classes=\[1,1\] names a class twice"),
        ([-1], "no class -1"),
    ],
)
def test_unknown_classes_are_refused(chosen, message):
    with pytest.raises(UserError, match=message):
        find_labels(NAMES, chosen)


def test_numbers_are_names_where_a_class_is_called_by_one():
    """[0, 1] and [1, 2] would be the same two classes otherwise."""
    with pytest.raises(UserError, match="no class 0; allowed: names: 1, 2, 3"):
        find_labels(["1", "2", "3"], [0, 1])


def test_images_of_other_classes_are_left_out_of_every_split():
    data = build_data(configure("data=digits", "data.classes=[1,3,8]", "data.val_size=50"))
    everything = build_data(configure("data=digits"))
    assert data.classes == ["1", "3", "8"]
    for name in ("train", "test"):
        all_images, all_labels = getattr(everything.splits, name)
        kept = np.isin(all_labels.numpy(), [1, 3, 8])
        images, labels = getattr(data.splits, name)
        assert torch.equal(images, all_images[torch.from_numpy(kept)])
        assert np.array_equal(np.array([1, 3, 8])[labels], all_labels.numpy()[kept])
    assert len(data.val_indices) == 50
    number = np.isin(load_digits().target, [1, 3, 8]).sum()
    assert len(data.train_indices) + 50 + len(data.splits.test.labels) == number
    assert data.mean != everything.mean
    assert data.fingerprint != everything.fingerprint
    assert describe_classes(data) == "classes: 3 of 10: 1, 3, 8"
    assert describe_classes(everything) == ""


def test_groups_and_validation_follow_their_images():
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    part = LabeledImages(torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1), labels)
    splits = DatasetSplits(part, part, ["a", "b", "c"], val=part, groups=torch.arange(6) + 10)
    kept = keep_classes(splits, ["c", "a"])
    assert kept.groups.tolist() == [10, 12, 13, 15]
    for each in kept.parts:
        assert each.images.flatten().tolist() == [0, 2, 3, 5]
        assert each.labels.tolist() == [0, 1, 0, 1]
    assert kept.left_out == ["b"]


def test_a_single_class_is_refused():
    with pytest.raises(UserError, match="need at least 2 classes; there are: 7"):
        build_data(configure("data=digits", "data.classes=[7]"))


@pytest.mark.parametrize("cache", ["memory", "none"])
@pytest.mark.parametrize("augment", ["none", "resized_crop"])
def test_files_of_other_classes_are_not_decoded(class_folders, cache, augment):
    root = class_folders({"train": 10}, classes=("ant", "bee", "cow"))
    options = ("data=folder", f"data.root='{root}'", "data.size=8", f"augment={augment}")
    everything = build_data(configure(*options))
    for path in root.glob("**/bee/*"):
        path.write_bytes(b"damaged")
    config = configure(*options, "data.classes=[ant,cow]", f"data.cache={cache}")
    data = build_data(config)
    assert data.classes == ["ant", "cow"]
    assert data.splits.left_out == ["bee"]
    kept = (everything.splits.test.labels != 1).nonzero().squeeze(1)
    images = data.splits.test.images.index_select(0, torch.arange(len(kept)))
    assert torch.equal(images, everything.splits.test.images.index_select(0, kept))
    assert data.splits.test.labels.tolist() == [0, 0, 1, 1]


def test_a_split_without_images_of_the_classes_is_refused(class_folders):
    class_folders({"train": 4}, classes=("ant", "bee", "cow"))
    root = class_folders({"test": 4}, classes=("cow",))
    with pytest.raises(UserError, match=r"data\.classes: test has no image of these classes"):
        build_data(configure("data=folder", f"data.root='{root}'", "data.classes=[ant,bee]"))


@pytest.mark.parametrize("classes", ["[ant,bee]", "[0,1]"])
def test_a_class_without_images_may_be_left_out(class_folders, classes):
    root = class_folders({"train": 5}, classes=("ant", "bee"))
    (root / "train" / "cow").mkdir()
    data = build_data(configure("data=folder", f"data.root='{root}'", f"data.classes={classes}"))
    assert data.classes == ["ant", "bee"]


def test_test_set_alone_may_have_one_class():
    config = configure("data=digits", "data.classes=[7]").data
    data = build(config, seed=0, only_test=True)
    everything = build_data(configure("data=digits")).splits.test
    expected = everything.images[everything.labels == 7]
    assert torch.equal(data.splits.test.images, expected)
    assert data.splits.train.images is data.splits.test.images
