"""Which images are for what: stratified parts, and labels made wrong on purpose."""

import torch
from torch import Tensor

from tricklab.data.batches import Source
from tricklab.errors import UserError
from tricklab.randomness import generator


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


def split_rows(
    source: Source, val_size: int | float, folds: int | None, fold: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the rows of training, and those of validation. Raises UserError: folds that can't be."""
    labels = source.train.labels
    if fold and not folds:
        raise UserError(f"data.fold={fold} data.folds={folds}; allowed: with data.folds, as 5")
    if source.val:
        if folds:
            raise UserError(
                f"data.folds={folds}: these data have a part for validation; allowed: null"
            )
        return torch.arange(len(labels)), torch.arange(len(source.val.labels))
    order = stratified_order(labels, seed, "val")
    if not folds:
        size = count(val_size, len(labels) - 1, "data.val_size")
        return order[size:], order[:size]
    if not (2 <= folds <= len(order) and 0 <= fold < folds):
        raise UserError(
            f"data.fold={fold} data.folds={folds}; allowed: 2 to {len(order)} folds, counted from 0"
        )
    parts = order.tensor_split(folds)
    return torch.cat([*parts[:fold], *parts[fold + 1 :]]), parts[fold]


def count(size: int | float, most: int, option: str) -> int:
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


def corrupt(labels: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """Give exactly that `share` of the labels [N] another class, each of the others equally likely."""
    source = generator(seed, "label_noise")
    chosen = torch.randperm(len(labels), generator=source)[: round(share * len(labels))]
    shift = torch.randint(1, classes, (len(chosen),), generator=source)
    return labels.index_add(0, chosen, shift) % classes
