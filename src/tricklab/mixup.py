"""Mixing of a batch with itself: images and their target probabilities together.

An option is a pure function of a batch and of the numbers drawn for it,
`fn(images, targets, partner, lam) -> (images, targets)`, with

    images   [B, C, H, W] float32
    targets  [B, K] float32, probabilities
    partner  [B] int64, the image in the batch that each image is mixed with
    lam      [1] or [B] double, the weight of the image itself

`@mixing` draws the numbers. Any batch size works, 1 and odd ones included.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from tricklab.augment import box
from tricklab.option import as_option, keyword_only

Mixed = tuple[Tensor, Tensor]  # images, targets
Pairs = tuple[Tensor, Tensor]  # partner, lam


def identity(images: Tensor, targets: Tensor, generator: Generator) -> Mixed:
    """Return the batch as it is."""
    return images, targets


def sample_partners_and_lam(
    images: int, generator: Generator, alpha: float, per: str, probability: float
) -> Pairs:
    """Sample a partner [B] for each image, and lam [1] or [B], 1 where nothing is mixed."""
    partner = torch.randperm(images, generator=generator)
    lam = sample_lam(alpha, generator, images if per == "image" else 1)
    is_mixed = torch.rand(len(lam), generator=generator) < probability
    return partner, lam.where(is_mixed, 1.0)


def mixing(
    fn: Callable[..., Mixed], sample: Callable[..., tuple[Tensor, ...]] = sample_partners_and_lam
) -> Callable[..., Mixed]:
    """Turn `fn(images, targets, partner, lam, ...)` into `option(images, targets, generator, ...)`.

    Keys of every option: `alpha` of lam ~ Beta(alpha, alpha); `per`: one lam for the "batch" or one
    for each "image"; `probability` that this batch or image is mixed at all; `start` and `stop`:
    not read here, the data module calls no option outside of these steps. `sample` draws the
    arguments of `fn` after the targets. The keyword-only arguments of both are keys too.
    """
    keys_of_sample = keyword_only(sample)

    def option(
        images: Tensor,
        targets: Tensor,
        generator: Generator,
        *,
        alpha: float,
        per: str = "batch",
        probability: float = 1.0,
        start: float | str = 0,
        stop: float | str = "100%",
        **options: Any,
    ) -> Mixed:
        sampling = {key.name: options.pop(key.name) for key in keys_of_sample}
        drawn = sample(len(images), generator, alpha, per, probability, **sampling)
        return fn(images, targets, *drawn, **options)

    return as_option(option, fn, [*keys_of_sample, *keyword_only(fn)])


@mixing
def mixup(images: Tensor, targets: Tensor, partner: Tensor, lam: Tensor) -> Mixed:
    """X = lam x_i + (1 - lam) x_j, y likewise; lam ~ Beta(alpha, alpha). arXiv 1710.09412."""
    return blend(images, partner, lam), blend(targets, partner, lam)


@mixing
def images_only(images: Tensor, targets: Tensor, partner: Tensor, lam: Tensor) -> Mixed:
    """Blend x as mixup does, and keep y of the image with the larger weight. arXiv 1905.11001."""
    return blend(images, partner, lam), blend(targets, partner, lam.round())


def sample_boxes(
    images: int, generator: Generator, alpha: float, per: str, probability: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample partners and lam, and the centre [2, 1 or B] of each box, uniform in [0, 1)."""
    partner, lam = sample_partners_and_lam(images, generator, alpha, per, probability)
    centre = torch.rand(2, len(lam), dtype=torch.double, generator=generator)
    return partner, lam, centre


@functools.partial(mixing, sample=sample_boxes)
def cutmix(images: Tensor, targets: Tensor, partner: Tensor, lam: Tensor, centre: Tensor) -> Mixed:
    """Paste a box of x_j into x_i; targets by the area actually pasted. arXiv 1905.04899."""
    return paste(images, targets, partner, lam, centre)


def sample_both_and_coin(
    images: int,
    generator: Generator,
    alpha: float,
    per: str,
    probability: float,
    *,
    cutmix_alpha: float,
) -> tuple[Tensor, ...]:
    """Sample for mixup, then for cutmix, then a coin [1] or [B], uniform in [0, 1)."""
    of_mixup = sample_partners_and_lam(images, generator, alpha, per, probability)
    of_cutmix = sample_boxes(images, generator, cutmix_alpha, per, probability)
    coin = torch.rand(images if per == "image" else 1, generator=generator)
    return *of_mixup, *of_cutmix, coin


@functools.partial(mixing, sample=sample_both_and_coin)
def alternate(
    images: Tensor,
    targets: Tensor,
    partner: Tensor,
    lam: Tensor,
    cutmix_partner: Tensor,
    cutmix_lam: Tensor,
    centre: Tensor,
    coin: Tensor,
) -> Mixed:
    """Flip a coin between mixup with `alpha` and cutmix with `cutmix_alpha`."""
    pasted = paste(images, targets, cutmix_partner, cutmix_lam, centre)
    is_cutmix = to_device_of(coin < 0.5, images)
    return (
        torch.where(is_cutmix[:, None, None, None], pasted[0], blend(images, partner, lam)),
        torch.where(is_cutmix[:, None], pasted[1], blend(targets, partner, lam)),
    )


def sample_lam(alpha: float, generator: Generator, number: int) -> Tensor:
    """Sample lam ~ Beta(alpha, alpha), double [number]; alpha 0 gives 1: no mixing.

    lam = G / (G + G') for variates G, G' of the distribution Gamma(alpha). For a small alpha both
    underflow to 0, so their logarithms are drawn: log G(alpha) = log G(alpha + 1) + log(U) / alpha.
    The softmax turns the two logarithms into the ratio.
    """
    if alpha == 0:
        return torch.ones(number, dtype=torch.double)
    concentration = torch.full((2, number), alpha + 1.0, dtype=torch.double)
    gammas = torch._standard_gamma(concentration, generator=generator)
    uniform = torch.rand(2, number, dtype=torch.double, generator=generator)
    return (gammas.log() + uniform.log() / alpha).softmax(0)[0]


def blend(values: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Return lam * values + (1 - lam) * values[partner], values [B, ...], lam [1] or [B]."""
    shape = (-1, *[1] * (values.ndim - 1))
    own = to_device_of(lam.float().view(shape), values)
    other = to_device_of((1 - lam).float().view(shape), values)
    partners = values.index_select(0, to_device_of(partner, values))
    return partners.mul_(other).add_(own * values)


def paste(images: Tensor, targets: Tensor, partner: Tensor, lam: Tensor, centre: Tensor) -> Mixed:
    """Paste a box of each partner, and weight the targets by its area after clipping."""
    boxes = centred_boxes(images.shape[2], images.shape[3], lam, centre)  # [1 or B, 1, H, W]
    partners = images.index_select(0, to_device_of(partner, images))
    mixed = torch.where(to_device_of(boxes, images), partners, images)
    return mixed, blend(targets, partner, 1 - boxes.double().mean((1, 2, 3)))


def centred_boxes(height: int, width: int, lam: Tensor, centre: Tensor) -> Tensor:
    """Return a mask [N, 1, height, width] of boxes, for lam [N] and centre [2, N] in [0, 1).

    A box covers 1 - lam of the area, before it is clipped at the borders of the image.
    """
    side = (1 - lam).sqrt()
    y = (centre[0] * height).long()
    x = (centre[1] * width).long()
    half_h = (height * side).long() // 2
    half_w = (width * side).long() // 2
    return box(y - half_h, y + half_h, x - half_w, x + half_w, height, width).bool()


def to_device_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Copy numbers drawn on the CPU to the device of `like`, without waiting for the copy."""
    return tensor.to(like.device, non_blocking=True)
