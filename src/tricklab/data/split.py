"""Which images are for what: stratified parts, and labels made wrong on purpose."""

import torch
from torch import Tensor

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


def nth_fold(order: Tensor, folds: int, fold: int) -> tuple[Tensor, Tensor]:
    """Cut a stratified order into `folds` parts; return the `fold`-th, and the others.

    Raises UserError: folds that there are not.
    """
    if not (2 <= folds <= len(order) and 0 <= fold < folds):
        raise UserError(f"data.fold={fold} data.folds={folds}; allowed: 2 to {len(order)} folds, counted from 0")
    parts = order.tensor_split(folds)
    return parts[fold], torch.cat([*parts[:fold], *parts[fold + 1 :]])


def count(size: int | float, most: int, option: str) -> int:
    """Return the images that `size` means: a number of them (1 to `most`), or a share (below 1) of `most`.

    Raises UserError: none or more than there are.
    """
    images = size if isinstance(size, int) else round(size * most) if isinstance(size, float) and size < 1 else 0
    if not 1 <= images <= most:
        raise UserError(f"{option}={size} of {most} images; allowed: a number from 1 to {most}, or a share below 1.0")
    return images


def corrupt(labels: Tensor, share: float, classes: int, seed: int) -> Tensor:
    """Give exactly that `share` of the labels [N] another class, each of the others equally likely."""
    source = generator(seed, "label_noise")
    chosen = torch.randperm(len(labels), generator=source)[: round(share * len(labels))]
    shift = torch.randint(1, classes, (len(chosen),), generator=source) if classes > 1 else 0
    noisy = labels.clone()
    noisy[chosen] = (labels[chosen] + shift) % classes
    return noisy
