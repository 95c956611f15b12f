"""The tricks in a plain loop, written by hand as without this project: what they cost at least.

Two kinds of augmentation, of a whole batch of images [B, C, H, W] uint8 at once:

PER_IMAGE   own random numbers for each image, as those of this project
PER_BATCH   torchvision's v2 transforms, which draw once and treat all images of a batch alike: the
            same offset, all mirrored or none, the same box. That is less work, and another trick.

Strengths are the defaults of `conf/`. MixUp is torchvision's in both, one lam for a batch, as here.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from tricklab.analysis.benchmark.cases import DROPOUT, WARMUP_STEPS, Overrides
from tricklab.analysis.benchmark.loops import (
    SGD,
    Augment,
    compose_and_load,
    gather_batches,
    make_net,
)

SMOOTHING = 0.1
MIXUP_ALPHA = 0.2
L1_STRENGTH = 1e-5
L2_STRENGTH = 5e-4
WARMUP_FRACTION = 0.1
ERASE_PROBABILITY = 0.25
ERASE_SCALE = (0.02, 0.33)  # of the area
ERASE_RATIO = (0.3, 3.3)  # height / width


class Tricks(NamedTuple):
    """Which tricks a loop does; `augment` are names in PER_IMAGE or PER_BATCH."""

    augment: Sequence[str] = ()
    mixup: bool = False
    penalties: bool = False
    smoothing: float = 0.0
    network: Overrides = ()
    cosine: bool = False


AUGMENT = ("crop", "flip", "erase")
TRICKS = {
    **{name: Tricks(augment=(name,)) for name in AUGMENT},
    "mixup": Tricks(mixup=True),
    "l1 + l2": Tricks(penalties=True),
    "smoothing": Tricks(smoothing=SMOOTHING),
    "dropout": Tricks(network=DROPOUT),
    "cosine with warmup": Tricks(cosine=True),
    "everything": Tricks(AUGMENT, True, True, SMOOTHING, DROPOUT, True),
}
PER_BATCH_TRICKS = (*AUGMENT, "everything")  # those that torchvision's augmentation changes


def train_per_image(overrides: Overrides, trick: str, steps: int) -> float:
    """Train with a trick, with own random numbers for each image; return the images/s."""
    return train(overrides, TRICKS[trick], steps, lambda height, width: PER_IMAGE)


def train_per_batch(overrides: Overrides, trick: str, steps: int) -> float:
    """Train with a trick, with torchvision's augmentation of the batch; return the images/s."""
    return train(overrides, TRICKS[trick], steps, per_batch_transforms)


def train(
    overrides: Overrides,
    tricks: Tricks,
    steps: int,
    make_transforms: Callable[[int, int], Mapping[str, Augment]],
) -> float:
    """Return the images/s of so many steps, after some that are not timed.

    `make_transforms` returns the augmentations by name, for images of a height and a width.
    """
    config, data = compose_and_load((*overrides, *tricks.network))
    transforms = make_transforms(*data.shape[1:])
    augment = [transforms[name] for name in tricks.augment]
    net = make_net(config, data)
    optimizer = torch.optim.SGD(net.parameters(), **SGD)
    mix = v2.MixUp(alpha=MIXUP_ALPHA, num_classes=len(data.classes))
    total = steps + WARMUP_STEPS
    started = 0.0
    for step, (images, targets) in enumerate(gather_batches(data, total, augment)):
        if step == WARMUP_STEPS:
            started = time.perf_counter()
        if tricks.mixup:
            images, targets = mix(images, targets)
        if tricks.cosine:
            optimizer.param_groups[0]["lr"] = SGD["lr"] * cosine_with_warmup(step, total)
        loss = compute_loss(net, tricks, images, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return steps * data.batch_size / (time.perf_counter() - started)


def compute_loss(net: nn.Module, tricks: Tricks, images: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of images [B, C, H, W] and class indices [B] or probabilities [B, K]."""
    loss = F.cross_entropy(net(images), targets, label_smoothing=tricks.smoothing)
    if tricks.penalties:
        loss = loss + l1_and_l2(net)
    return loss


def l1_and_l2(net: nn.Module) -> Tensor:
    """Return L1_STRENGTH * sum |w| + L2_STRENGTH / 2 * sum w^2, without biases and norms."""
    weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    l1 = torch.stack([weight.abs().sum() for weight in weights]).sum()
    l2 = torch.stack([weight.square().sum() for weight in weights]).sum()
    return L1_STRENGTH * l1 + L2_STRENGTH / 2 * l2


def cosine_with_warmup(step: int, total: int) -> float:
    """Return the multiplier of the LR: a linear warmup, then half a cosine from 1 to 0."""
    warmup = round(WARMUP_FRACTION * total)
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def crop(images: Tensor) -> Tensor:
    """Zero-pad by an eighth of the sides, then cut out each image at its own offset."""
    b, _, h, w = images.shape
    pad_h, pad_w = round(h / 8), round(w / 8)
    top = torch.randint(2 * pad_h + 1, (b,))
    left = torch.randint(2 * pad_w + 1, (b,))
    padded = F.pad(images, [pad_w, pad_w, pad_h, pad_h])
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # a view: [B, C, top, left, H, W]
    return windows[torch.arange(b), :, top, left]


def flip(images: Tensor) -> Tensor:
    """Mirror each image with probability 1/2."""
    is_mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(is_mirrored, images.flip(3), images)


def erase(images: Tensor) -> Tensor:
    """Set a box of each image to 0, with ERASE_PROBABILITY."""
    b, _, h, w = images.shape
    area = torch.empty(b).uniform_(*ERASE_SCALE) * h * w
    low, high = ERASE_RATIO
    ratio = torch.empty(b).uniform_(math.log(low), math.log(high)).exp()
    in_rows = random_intervals((area * ratio).sqrt(), h)
    in_columns = random_intervals((area / ratio).sqrt(), w)
    is_erased = torch.rand(b, 1, 1) < ERASE_PROBABILITY
    boxes = in_rows[:, :, None] & in_columns[:, None, :] & is_erased  # [B, H, W]
    return images * ~boxes[:, None]  # a tenth of the time of masked_fill


def random_intervals(lengths: Tensor, side: int) -> Tensor:
    """Return a mask [B, side] of intervals of about `lengths` [B] at random positions."""
    rounded = lengths.round().clamp(max=side)
    start = (torch.rand(len(lengths)) * (side + 1 - rounded)).floor()
    pixels = torch.arange(side)
    return (start[:, None] <= pixels) & (pixels < (start + rounded)[:, None])


PER_IMAGE: dict[str, Augment] = {"crop": crop, "flip": flip, "erase": erase}


def per_batch_transforms(height: int, width: int) -> dict[str, Augment]:
    """Return torchvision's transforms of the same strength, for images of that size."""
    padding = [round(width / 8), round(height / 8)]  # left and right, top and bottom
    return {
        "crop": v2.RandomCrop((height, width), padding=padding),
        "flip": v2.RandomHorizontalFlip(),
        "erase": v2.RandomErasing(ERASE_PROBABILITY, ERASE_SCALE, ERASE_RATIO),
    }
