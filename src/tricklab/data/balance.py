"""How many images of each class training sees: a long tail, and the order of an epoch."""

import torch
from torch import Generator, Tensor

from tricklab.data.progress import warn

RARE = 10  # the commonest class has more than so many times the images: worth a warning


def shuffle(labels: Tensor, rng: Generator) -> Tensor:
    """Return each position of the labels [N] once, in random order."""
    return torch.randperm(len(labels), generator=rng)


def balanced(labels: Tensor, rng: Generator) -> Tensor:
    """Return N positions of the labels [N], drawn with replacement, each class equally often.

    The class is uniform over those that occur, the image uniform over those of the class.
    """
    by_class = labels.argsort(stable=True)
    counts = labels.unique(return_counts=True)[1]
    first = counts.cumsum(0) - counts  # of each class, in by_class
    drawn = torch.randint(len(counts), (len(labels),), generator=rng)
    u = torch.rand(len(labels), generator=rng, dtype=torch.double)
    return by_class[first[drawn] + (u * counts[drawn]).long()]


SAMPLERS = {"shuffle": shuffle, "balanced": balanced}


def long_tail(labels: Tensor, imbalance: float, classes: int) -> Tensor:
    """Return a mask of the labels [N] that an exponential long tail keeps, the first of each class.

    Class c of K keeps round(m imbalance^(-c / (K - 1))) images, at least 1, where m is the number
    of the smallest class that has any. Cui et al., arXiv 1901.05555, section 5.1.
    """
    counts = labels.bincount(minlength=classes)
    m = int(counts[counts > 0].min())
    if imbalance > m:
        few = f"the smallest class has {m} training images"
        warn(f"data.imbalance={imbalance:g}: {few}, so it is {m} at most")
    kept = torch.zeros(len(labels), dtype=torch.bool)
    by_class = labels.argsort(stable=True).split(counts.tolist())
    for c, members in enumerate(by_class):
        images = max(1, round(m * imbalance ** (-c / (classes - 1))))
        kept[members[:images]] = True
    return kept


def find_rarest(labels: Tensor, classes: list[str]) -> str:
    """Return one line on the rarest class in the labels [N], "" unless another is 10 times it."""
    counts = labels.bincount(minlength=len(classes))
    commonest = int(counts.argmax())
    rarest = int(counts.where(counts > 0, len(labels) + 1).argmin())
    if counts[commonest] <= RARE * counts[rarest]:
        return ""
    few = f"class {classes[rarest]} has {counts[rarest]:,} training images"
    return f"{few}, class {classes[commonest]} {counts[commonest]:,}"
