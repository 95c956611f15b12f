"""Which images are for what: stratified parts, and labels made wrong on purpose."""

import torch
from torch import Tensor

from tricklab.data.batches import DatasetSplits
from tricklab.errors import UserError
from tricklab.randomness import generator

VAL_SIZE = (
    0.1  # the default in conf/data/_options.yaml, which can't be told from a value that was given
)


def stratified_order(labels: Tensor, seed: int, purpose: str) -> Tensor:
    """Return a permutation [N] of which every beginning holds each class in proportion.

    The i-th of the n images of a class, in random order, gets the place (i + u) / n, with u drawn for the class.
    """
    source = generator(seed, purpose)
    places = torch.empty(len(labels), dtype=torch.double)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=source)]
        u = torch.rand((), generator=source, dtype=torch.double)
        places[members] = (torch.arange(len(members), dtype=torch.double) + u) / len(members)
    return places.argsort()


def split_off(order: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the rest of an order [N], and its first `size` rows: the part that is split off.

    Of a class that the rest would lack, a row of the part changes places with the rest's first row of a class that has
    more there, as long as there is one.
    """
    part, rest = order[:size].clone(), order[size:].clone()
    left = labels[rest].bincount(minlength=int(labels.max()) + 1)  # images of each class
    for label in labels[part].unique():
        if left[label]:
            continue
        mine = (labels[part] == label).nonzero()[0]
        other = (left[labels[rest]] > 1).nonzero().flatten()[:1]
        if len(other):
            left[labels[rest[other]]] -= 1
            left[label] += 1
            part[mine], rest[other] = rest[other], part[mine]
    return rest, part


def split_rows(
    source: DatasetSplits, val_size: int | float, folds: int | None, fold: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the rows of training, and those of validation. Raises UserError: folds that can't be."""
    labels = source.train.labels
    if fold and not folds:
        raise UserError(f"data.fold={fold} data.folds={folds}; allowed: with data.folds, as 5")
    if (folds or source.val) and val_size != VAL_SIZE:
        why = f"data.folds={folds} says" if folds else "a part of these data of its own says"
        raise UserError(f"data.val_size={val_size}: {why} what validation is; leave it out")
    if source.val:
        if folds:
            raise UserError(
                f"data.folds={folds}: these data have a part for validation; allowed: null"
            )
        return torch.arange(len(labels)), torch.arange(len(source.val.labels))
    order = stratified_order(labels, seed, "val")
    if not folds:
        size = resolve_size(val_size, len(labels) - 1, "data.val_size")
        return split_off(order, labels, size)
    if not (2 <= folds <= len(order) and 0 <= fold < folds):
        raise UserError(
            f"data.fold={fold} data.folds={folds}; allowed: 2 to {len(order)} folds, counted from 0"
        )
    parts = order.tensor_split(folds)
    return torch.cat([*parts[:fold], *parts[fold + 1 :]]), parts[fold]


def resolve_size(size: int | float, most: int, option: str) -> int:
    """Return the images that a number, or a share below 1 of `most`, means. Raises UserError: it is not 1 to `most`."""
    images = (
        size
        if isinstance(size, int)
        else round(size * most)
        if isinstance(size, float) and size < 1
        else 0
    )
    if not 1 <= images <= most:
        raise UserError(
            f"{option}={size} of {most} images; allowed: a number from 1 to {most}, or a share below 1.0"
        )
    return images


def add_label_noise(labels: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """Give exactly that `share` of the labels [N] another class, each of the others equally likely."""
    source = generator(seed, "label_noise")
    chosen = torch.randperm(len(labels), generator=source)[: round(share * len(labels))]
    shift = torch.randint(1, classes, (len(chosen),), generator=source)
    return labels.index_add(0, chosen, shift) % classes
