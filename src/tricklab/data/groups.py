"""Groups of images that belong together, such as those of a patient, are never split up.

Validation, folds and a test set that is split off consist of whole groups, as stratified as these
allow.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Generator, Tensor

from tricklab.data.progress import warn
from tricklab.errors import UserError


def assign_folds(labels: Tensor, groups: Tensor, folds: int, rng: Generator) -> Tensor:
    """Return the fold [N] of each image, 0 to `folds` - 1, the same for all images of a group.

    Raises UserError: fewer groups than folds.
    """
    found = check_several_groups(groups, f"data.folds={folds}")
    if folds > found:
        message = f"data.folds={folds}: there are {found} groups, which stay whole"
        raise UserError(f"{message}. Expected 2 to {found} folds")
    every_fold = torch.ones(folds, dtype=torch.bool)
    targets = torch.full((folds,), 1 / folds, dtype=torch.double)
    return distribute(labels, groups, targets, every_fold, rng)


def hold_out(labels: Tensor, groups: Tensor, images: int, option: str, rng: Generator) -> Tensor:
    """Return a mask [N] of about so many images, in whole groups; each class stays in the rest.

    Raises UserError, which begins with `option`, as "data.val_size=0.1": no group can be held out.
    """
    check_several_groups(groups, option)
    fraction = images / len(labels)
    targets = torch.tensor([fraction, 1 - fraction], dtype=torch.double)
    held_out = distribute(labels, groups, targets, torch.tensor([True, False]), rng) == 0
    if not held_out.any():
        held_out = groups == smallest_spare_group(labels, groups, option)
    held_out_images = int(held_out.sum())
    if abs(held_out_images - images) > images / 2:
        warn(f"{option}: {held_out_images} of {len(labels)} images, as groups stay whole")
    return held_out


def distribute(
    labels: Tensor, groups: Tensor, targets: Tensor, held_out: Tensor, rng: Generator
) -> Tensor:
    """Return the part [N] of each image: of whole groups, with about `targets` [P] of each class.

    Greedy: group after group goes to the part that `choose_part` returns. `held_out` [P] is a mask
    of the parts that should not get all images of a class. scikit-learn's StratifiedGroupKFold
    works alike, but knows only parts of equal size.
    """
    group, label, images = count_classes(labels, groups)  # [M] each
    n = labels.bincount().double()
    filled = torch.zeros(len(targets), len(n), dtype=torch.double)  # images in each part
    part_of = torch.zeros(int(group.max()) + 1, dtype=torch.long)  # [G]
    sizes = group.bincount().tolist()
    classes_of, images_of = label.split(sizes), images.split(sizes)
    for g in order_groups(group, images / n[label], rng).tolist():
        classes = classes_of[g]
        fill = filled.sum(1) / targets
        part = choose_part(filled[:, classes], images_of[g], n[classes], targets, held_out, fill)
        filled[part, classes] += images_of[g]
        part_of[g] = part
    return part_of[groups.unique(return_inverse=True)[1]]


def choose_part(
    filled: Tensor, added: Tensor, n: Tensor, targets: Tensor, held_out: Tensor, fill: Tensor
) -> int:
    """Return the part where sum_pc (x_pc / n_c - t_p)^2 / t_p becomes least with one more group.

    `filled` [P, C] are the x_pc images of the group's classes in the parts so far, `added` [C]
    those of the group and `n` [C] those in all; `targets` [P] are the t_p. A part in the mask
    `held_out` [P] that would get all images of a class comes last; of equal parts, that of least
    `fill` [P] comes first.
    """
    present, more = filled / n, added / n
    increase = (more * (2 * (present - targets[:, None]) + more)).sum(1) / targets
    lost = (filled + added == n).sum(1) * held_out  # classes
    costs = torch.stack([lost, increase.round(decimals=12), fill])  # [3, P]
    return min(range(len(targets)), key=costs.T.tolist().__getitem__)


def count_classes(labels: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return group, label and number of images [M] of each class in each group, sorted by group.

    Groups are numbered from 0, without gaps.
    """
    numbered = groups.unique(return_inverse=True)[1]
    classes = int(labels.max()) + 1
    pairs, images = (numbered * classes + labels).unique(return_counts=True)
    return pairs // classes, pairs % classes, images


def order_groups(group: Tensor, fractions: Tensor, rng: Generator) -> Tensor:
    """Return all groups, large ones and those of few classes first, similar ones in random order.

    `fractions` [M] of a class are in the `group` [M]. Similar: their norms are between the same
    powers of 2, so that other seeds give other parts even if no two groups are alike.
    """
    norm = group.bincount(weights=fractions.square()).sqrt()
    power = norm.log2().floor()
    shuffled = torch.randperm(len(norm), generator=rng)
    return shuffled[power[shuffled].argsort(descending=True, stable=True)]


def smallest_spare_group(labels: Tensor, groups: Tensor, option: str) -> Tensor:
    """Return the smallest group of which each class is in other groups, too.

    Raises UserError, which begins with `option`: there is none.
    """
    group, label, images = count_classes(labels, groups)
    in_one_group = label.bincount()[label] == 1
    sizes = group.bincount(weights=images)
    sizes[group[in_one_group]] = torch.inf
    if sizes.isinf().all():
        message = f"{option}: each of the {len(sizes)} groups has all images of a class"
        raise UserError(f"{message}, and stays whole. Expected several groups for each class")
    return groups.unique()[sizes.argmin()]


def check_several_groups(groups: Tensor, option: str) -> int:
    """Return the number of groups. Raises UserError, which begins with `option`: there is one."""
    found = len(groups.unique())
    if found < 2:
        message = f"{option}: all images are of one group, which stays whole"
        raise UserError(f"{message}. Expected at least 2 groups")
    return found


def check_groups_apart(groups: Mapping[str, Iterable[str]], source: str = "data") -> None:
    """Check the names of the groups in each of the splits that a data set comes with.

    Raises UserError, which begins with `source`: a group is in two of them.
    """
    split_of: dict[str, str] = {}
    for split, names in groups.items():
        for name in dict.fromkeys(names):
            other = split_of.setdefault(name, split)
            if other != split:
                message = f"{source}: group {name!r} is in {other} and in {split}"
                raise UserError(f"{message}. Expected all images of a group in one split")
