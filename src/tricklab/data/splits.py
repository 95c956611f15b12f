"""Train, validation and test splits: stratified, reproducible, with label noise on request."""

import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from tricklab.data.balance import long_tail
from tricklab.data.batches import DatasetSplits, Images
from tricklab.data.groups import assign_folds, hold_out
from tricklab.data.image_files import ImageFiles
from tricklab.errors import UserError
from tricklab.randomness import generator

VAL_SIZE = 0.1  # the default in conf/data/_options.yaml: an explicit 0.1 looks the same
CLEAN_IMAGES = 2000  # at most, for train/acc_clean
STATS_IMAGES = 100_000  # at most, for mean and std


class Subsets(NamedTuple):
    """Indices into the training images of a data set (`val`: into its own split, if it has one).

    `clean`: evaluated without augmentation; `for_stats`: for mean and std; both stratified.
    `labels` are those of all training images [N], with label noise in `train`.
    """

    train: Tensor
    val: Tensor
    clean: Tensor
    for_stats: Tensor
    labels: Tensor


def split_dataset(
    splits: DatasetSplits,
    val_size: int | float = VAL_SIZE,
    folds: int | None = None,
    fold: int = 0,
    train_size: int | float | None = None,
    split_seed: int = 0,
    label_noise: float = 0.0,
    seed: int = 0,
    imbalance: float = 1,
) -> Subsets:
    """Choose the images of training and validation, see conf/data/_options.yaml for the options.

    The choice follows from `split_seed`, label noise from `seed`. Raises UserError: a size or fold
    that the data do not have.
    """
    if train_size is not None and imbalance != 1:
        message = f"data.train_size={train_size} data.imbalance={imbalance}"
        raise UserError(f"{message}: both set the size of training. Expected one of the two")
    labels = splits.train.labels
    train, val = split_train_val(splits, val_size, folds, fold, split_seed)
    if imbalance != 1:
        order = train[stratified_order(labels[train], split_seed, "imbalance")]
        train = order[long_tail(labels[order], imbalance, len(splits.classes))]
    if train_size is not None:
        images = resolve_size(train_size, len(train), "data.train_size")
        train = train[stratified_order(labels[train], split_seed, "train")[:images]]
    stratified = train[stratified_order(labels[train], split_seed, "clean")]
    noisy = add_label_noise(labels[train], label_noise, len(splits.classes), seed)
    return Subsets(
        train,
        val,
        clean=stratified[:CLEAN_IMAGES],
        for_stats=stratified[:STATS_IMAGES],
        labels=labels.index_copy(0, train, noisy),
    )


def split_train_val(
    splits: DatasetSplits, val_size: int | float, folds: int | None, fold: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the indices of training and of validation. Raises UserError: options that conflict."""
    check_val_options(splits, val_size, folds, fold)
    labels, groups = splits.train.labels, splits.groups
    if splits.val:
        return torch.arange(len(labels)), torch.arange(len(splits.val.labels))
    if folds:
        check_fold(folds, fold, len(labels))
        if groups is None:
            return split_fold(stratified_order(labels, seed, "val"), folds, fold)
        fold_of = assign_folds(labels, groups, folds, generator(seed, "groups val"))
        return separate(labels, fold_of == fold, seed)
    return split_off_size(labels, groups, val_size, "val", seed)


def check_val_options(
    splits: DatasetSplits, val_size: int | float, folds: int | None, fold: int
) -> None:
    """Raise UserError where one option makes another one meaningless."""
    if fold and not folds:
        raise UserError(f"data.fold={fold} requires data.folds, e.g. data.folds=5")
    if folds and val_size != VAL_SIZE:
        message = f"data.folds={folds} determines the size of validation"
        raise UserError(f"data.val_size={val_size}: {message}; leave val_size out")
    if splits.val and val_size != VAL_SIZE:
        message = "these data have a validation split of their own"
        raise UserError(f"data.val_size={val_size}: {message}; leave val_size out")
    if splits.val and folds:
        message = "these data have a validation split of their own"
        raise UserError(f"data.folds={folds}: {message}. Expected data.folds=null")


def check_fold(folds: int, fold: int, most: int) -> None:
    if not (2 <= folds <= most and 0 <= fold < folds):
        allowed = f"2 to {most} folds, counted from 0"
        raise UserError(f"data.fold={fold} data.folds={folds}; allowed: {allowed}")


def split_fold(order: Tensor, folds: int, fold: int) -> tuple[Tensor, Tensor]:
    """Return an order [N] without its `fold`-th of `folds` equal parts, and that part."""
    parts = order.tensor_split(folds)
    return torch.cat([*parts[:fold], *parts[fold + 1 :]]), parts[fold]


def stratified_order(labels: Tensor, seed: int, purpose: str) -> Tensor:
    """Return a permutation [N] of which every prefix holds each class in proportion.

    The i-th of the n images of a class, in random order, gets the position (i + u) / n; u ~ U(0, 1)
    is drawn for the class.
    """
    rng = generator(seed, purpose)
    position = torch.empty(len(labels), dtype=torch.double)
    counts = labels.unique(return_counts=True)[1].tolist()
    for members in labels.argsort(stable=True).split(counts):  # those of each class, in order
        members = members[torch.randperm(len(members), generator=rng)]
        u = torch.rand((), generator=rng, dtype=torch.double)
        position[members] = (torch.arange(len(members), dtype=torch.double) + u) / len(members)
    return position.argsort()


def separate(labels: Tensor, held_out: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices outside of the mask `held_out` [N], and those inside, stratified."""
    rest, part = (mask.nonzero().squeeze(1) for mask in (~held_out, held_out))
    return rest, part[stratified_order(labels[part], seed, "groups order")]


def split_off_size(
    labels: Tensor, groups: Tensor | None, size: int | float, part: str, seed: int
) -> tuple[Tensor, Tensor]:
    """Return indices of the rest and of `part`, "val" or "test"; groups make `size` approximate."""
    option = f"data.{part}_size"
    images = resolve_size(size, len(labels) - 1, option)
    if groups is None:
        return split_off(stratified_order(labels, seed, part), labels, images)
    rng = generator(seed, f"groups {part}")
    return separate(labels, hold_out(labels, groups, images, f"{option}={size}", rng), seed)


def split_off(order: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Split an order [N] into the rest and its first `size`, and return both, the rest first.

    If the rest would lack a class, an image of it is swapped for the rest's first image of a class
    that has several there, as long as there is one.
    """
    part = order[:size].clone()
    rest = order[size:].clone()
    remaining = labels[rest].bincount(minlength=int(labels.max()) + 1)  # images of each class
    for label in labels[part].unique():
        if remaining[label]:
            continue
        only = (labels[part] == label).nonzero()[0]
        spare = (remaining[labels[rest]] > 1).nonzero().flatten()[:1]
        if len(spare):
            remaining[labels[rest[spare]]] -= 1
            remaining[label] += 1
            part[only], rest[spare] = rest[spare], part[only]
    return rest, part


def split_off_test(
    labels: Tensor, test_size: int | float, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the indices of training and of a stratified test set, the same for every seed.

    A class of one image stays in training, and so does one of a single group. With `groups` [N]
    the test set consists of whole groups.
    """
    train, test = split_off_size(labels, groups, test_size, "test", seed=0)
    return train.sort().values, test.sort().values


def resolve_size(size: int | float, most: int, option: str) -> int:
    """Return a number of images, from a number or a fraction of `most`.

    Raises UserError, which begins with `option`: it is not within 1 .. `most`.
    """
    images = 0
    if isinstance(size, int):
        images = size
    elif isinstance(size, float) and size < 1:
        images = round(size * most)
    if not 1 <= images <= most:
        allowed = f"a number from 1 to {most}, or a fraction below 1.0"
        raise UserError(f"{option}={size} of {most} images; allowed: {allowed}")
    return images


def add_label_noise(labels: Tensor, fraction: float, classes: int, seed: int) -> Tensor:
    """Change exactly that fraction of the labels [N], uniformly to one of the other classes."""
    if fraction == 0:
        return labels
    rng = generator(seed, "label_noise")
    chosen = torch.randperm(len(labels), generator=rng)[: round(fraction * len(labels))]
    shift = torch.randint(1, classes, (len(chosen),), generator=rng)
    return labels.index_add(0, chosen, shift) % classes


def hash_splits(splits: DatasetSplits) -> str:
    """Return a hash of all pixels and labels, or of labels and files if images come from these.

    Groups are a part of it, if there are any.
    """
    labels = [zlib.crc32(part.labels.numpy().data) for part in splits.parts]
    images = []
    if not splits.digest:
        images = [hash_images(part.images) for part in splits.parts]
    if splits.groups is not None:
        labels.append(zlib.crc32(splits.groups.numpy().data))
    return repr((splits.digest, labels, images))


def hash_images(images: Images) -> str:
    if isinstance(images, ImageFiles):
        return images.digest
    assert isinstance(images, Tensor)  # decoded files have a digest
    return f"{zlib.crc32(images.contiguous().numpy().data):08x}"


def check_labels(splits: DatasetSplits) -> None:
    """Raise UserError: fewer than two classes, an empty split, or labels without a class."""
    classes = len(splits.classes)
    is_test_alone = splits.train is splits.test
    if classes < 2 and not is_test_alone:
        raise UserError(f"data: need at least 2 classes; there are: {', '.join(splits.classes)}")
    by_name = {"training": splits.train, "test": splits.test, "validation": splits.val}
    for name, data in by_name.items():
        if data is None:
            continue
        labels = data.labels
        if len(labels) and 0 <= labels.min() <= labels.max() < classes:
            continue
        found = f"from {labels.min()} to {labels.max()}" if len(labels) else "none"
        allowed = f"0 to {classes - 1}, one for each image"
        raise UserError(f"data: {name} labels: {found}; allowed: {allowed}")
    if splits.groups is not None and splits.groups.shape != splits.train.labels.shape:
        found = f"{len(splits.groups)} for {len(splits.train.labels)} training images"
        raise UserError(f"data: groups: {found}. Expected one for each image")
