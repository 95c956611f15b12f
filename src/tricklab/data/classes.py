"""Some classes of a data set, `data.classes`: the others are left out of every split."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tricklab.data.batches import DatasetSplits, LabeledImages
from tricklab.data.file_list import LabeledFiles
from tricklab.errors import UserError, nearest

Chosen = Sequence[str | int]  # names of classes, or their numbers


class NoImagesError(UserError):
    """A split has no image of the chosen classes."""


def find_labels(classes: Sequence[str], chosen: Chosen) -> list[int]:
    """Return the labels of the chosen classes in ascending order.

    They are names, or else all of them numbers from 0 on; where a class is called by a number, only
    names are taken. Raises UserError: a class that does not exist, or twice.
    """
    option = f"data.classes=[{','.join(map(str, chosen))}]"
    names = [str(name) for name in chosen]
    have_numbers = any(name.isdecimal() for name in classes)
    allowed = f"names: {', '.join(classes[:20])}"
    known = list(classes)
    if not have_numbers:
        allowed = f"0 to {len(classes) - 1}, or {allowed}"
        if all(name.isdecimal() for name in names):
            known = [str(number) for number in range(len(classes))]
    for name in names:
        if name not in known:
            raise UserError(f"{option}: no class {name}; allowed: {allowed}.{nearest(name, known)}")
    labels = sorted(known.index(name) for name in names)
    if len(set(labels)) < len(labels):
        raise UserError(f"{option} names a class twice")
    return labels


def keep_classes(splits: DatasetSplits, chosen: Chosen | None) -> DatasetSplits:
    """Return the images of the chosen classes, of all for None, with new labels from 0 on.

    The images of all splits must be tensors. Raises UserError: a split has no image of them.
    """
    if chosen is None:
        return splits
    labels = find_labels(splits.classes, chosen)
    groups = splits.groups
    if groups is not None:
        groups = groups[torch.isin(splits.train.labels, torch.tensor(labels))]
    return splits._replace(
        train=_select(splits.train, labels),
        test=_select(splits.test, labels),
        val=_select(splits.val, labels) if splits.val else None,
        classes=[splits.classes[label] for label in labels],
        groups=groups,
        left_out=[name for i, name in enumerate(splits.classes) if i not in labels],
    )


def _select(data: LabeledImages, labels: Sequence[int]) -> LabeledImages:
    assert isinstance(data.images, Tensor)  # those of files are chosen before they are decoded
    kept = torch.tensor(labels)
    indices = torch.isin(data.labels, kept).nonzero().squeeze(1)
    if not len(indices):
        raise NoImagesError("data.classes: a split has no image of these classes")
    new_labels = torch.searchsorted(kept, data.labels[indices])
    return LabeledImages(data.images.index_select(0, indices), new_labels)


def keep_files(
    files: Mapping[str, LabeledFiles], classes: list[str], chosen: Chosen | None
) -> tuple[dict[str, LabeledFiles], list[str]]:
    """Return the files of each split that are of the chosen classes, and the names of these.

    Raises UserError: a split has no image of them.
    """
    if chosen is None:
        return dict(files), classes
    labels = find_labels(classes, chosen)
    numbers = torch.tensor(labels)
    kept = {}
    for split, labeled in files.items():
        chosen_files = labeled.select(torch.isin(labeled.labels, numbers).nonzero().squeeze(1))
        if not len(chosen_files.labels):
            raise NoImagesError(f"data.classes: {split} has no image of these classes")
        new_labels = torch.searchsorted(numbers, chosen_files.labels)
        kept[split] = chosen_files._replace(labels=new_labels)
    return kept, [classes[label] for label in labels]
