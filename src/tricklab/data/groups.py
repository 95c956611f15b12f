"""Splits of groups, such as the images of a patient, that stay together."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tricklab.errors import UserError
from tricklab.randomness import generator


def split_groups(
    labels: Tensor,
    groups: Tensor,
    fractions: Sequence[float],
    seed: int,
    purpose: str,
    option: str = "",
) -> Tensor:
    """Return the part of each image [N]: whole groups, stratified as well as they allow.

    Part p gets about `fractions[p]` of the images of each class. Greedy, as scikit-learn's
    StratifiedGroupKFold, which has only equal parts: groups come in the order of their size, each
    goes to the part where it brings the class counts closest to their targets. Raises UserError,
    which begins with `option`: fewer groups than parts.
    """
    counts = count_classes(labels, groups)  # [G, K]
    relative = counts / counts.sum(0).clamp(min=1)  # of the images of each class
    targets = torch.tensor(fractions, dtype=torch.double)[:, None]  # [P, 1]
    filled = torch.zeros(len(fractions), counts.shape[1], dtype=torch.double)  # [P, K]
    part_of = torch.zeros(len(counts), dtype=torch.long)
    for group in order_groups(relative, seed, purpose).tolist():
        # the change of the squared distance to the targets, in units of each target
        missing = (targets - filled) / targets
        step = relative[group] / targets
        change = ((missing - step).square() - missing.square()).mul(targets).sum(1)
        part = int(change.argmin())
        filled[part] += relative[group]
        part_of[group] = part
    if len(counts) < len(fractions):
        raise UserError(f"{option}: there are {len(counts)} groups for {len(fractions)} parts")
    fill_empty_parts(part_of, counts.sum(1), len(fractions))
    return part_of[groups]


def fill_empty_parts(part_of: Tensor, sizes: Tensor, parts: int) -> None:
    """Move the smallest group of those that are not alone in their part to each empty part."""
    for part in range(parts):
        groups_of_part = part_of.bincount(minlength=parts)
        if groups_of_part[part]:
            continue
        movable = groups_of_part[part_of] > 1
        part_of[sizes.masked_fill(~movable, torch.inf).argmin()] = part


def count_classes(labels: Tensor, groups: Tensor) -> Tensor:
    """Return the number of images of each class in each group [G, K], double."""
    classes = int(labels.max()) + 1
    cells = torch.bincount(groups * classes + labels, minlength=(int(groups.max()) + 1) * classes)
    return cells.view(-1, classes).double()


def order_groups(relative: Tensor, seed: int, purpose: str) -> Tensor:
    """Return the groups [G] from the largest to the smallest, equal ones in random order."""
    shuffled = torch.randperm(len(relative), generator=generator(seed, purpose))
    sizes = relative[shuffled].square().sum(1)
    return shuffled[sizes.argsort(descending=True, stable=True)]


def check_groups_apart(groups: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError if a group is in two splits; `groups` are names by split, "" is none."""
    split_of: dict[str, str] = {}
    for split, names in groups.items():
        for name in set(names) - {""}:
            other = split_of.setdefault(name, split)
            if other != split:
                message = f"data.group: group {name!r} is in {other} and in {split}"
                raise UserError(f"{message}. Expected groups that are in one split")
