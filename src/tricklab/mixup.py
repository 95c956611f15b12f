"""Mixing of a batch with itself: images and their target probabilities together.

Each function takes images [B, C, H, W] (float32), targets [B, K] (probabilities) and a CPU generator, and returns both
mixed. Any batch size will do, 1 and odd ones included. `per`: one lam for the "batch", or one for each "image"; each
is mixed with `probability`.
"""

import torch
from torch import Generator, Tensor

from tricklab.augment import box

Mixed = tuple[Tensor, Tensor]


def identity(images: Tensor, targets: Tensor, generator: Generator) -> Mixed:
    """Leave the batch as it is."""
    return images, targets


def mixup(
    images: Tensor,
    targets: Tensor,
    generator: Generator,
    alpha: float,
    per: str = "batch",
    probability: float = 1.0,
) -> Mixed:
    """X = lam x_i + (1 - lam) x_j, y likewise; lam ~ Beta(alpha, alpha). mixup, arXiv 1710.09412."""
    partner, lam = draw(len(images), generator, alpha, per, probability)
    return blend(images, partner, lam), blend(targets, partner, lam)


def images_only(
    images: Tensor,
    targets: Tensor,
    generator: Generator,
    alpha: float,
    per: str = "batch",
    probability: float = 1.0,
) -> Mixed:
    """Blend x as mixup does, and keep y of the image that weighs more: mixing without its labels, arXiv 1905.11001."""
    partner, lam = draw(len(images), generator, alpha, per, probability)
    return blend(images, partner, lam), blend(targets, partner, lam.round())


def cutmix(
    images: Tensor,
    targets: Tensor,
    generator: Generator,
    alpha: float,
    per: str = "batch",
    probability: float = 1.0,
) -> Mixed:
    """Paste a box of x_j into x_i; targets are weighted by the area really pasted. CutMix, arXiv 1905.04899."""
    partner, lam = draw(len(images), generator, alpha, per, probability)
    pasted = draw_boxes(images.shape[2], images.shape[3], lam, generator)  # [1 or B, 1, H, W]
    mixed = torch.where(
        there(pasted, images), images.index_select(0, there(partner, images)), images
    )
    return mixed, blend(targets, partner, 1 - pasted.double().mean((1, 2, 3)))


def alternate(
    images: Tensor,
    targets: Tensor,
    generator: Generator,
    alpha: float,
    cutmix_alpha: float,
    per: str = "batch",
    probability: float = 1.0,
) -> Mixed:
    """Throw a coin between mixup with `alpha` and cutmix with `cutmix_alpha`."""
    blended = mixup(images, targets, generator, alpha, per, probability)
    pasted = cutmix(images, targets, generator, cutmix_alpha, per, probability)
    heads = there(
        torch.rand(len(images) if per == "image" else 1, generator=generator) < 0.5, images
    )
    mixed = torch.where(heads[:, None, None, None], pasted[0], blended[0])
    return mixed, torch.where(heads[:, None], pasted[1], blended[1])


def draw(images: int, generator: Generator, alpha: float, per: str, probability: float) -> Mixed:
    """Draw a partner [B] in the batch for each image, and lam [1] or [B], which is 1 where it is not mixed."""
    partner = torch.randperm(images, generator=generator)
    lam = draw_lam(alpha, generator, images if per == "image" else 1)
    return partner, lam.where(torch.rand(len(lam), generator=generator) < probability, 1.0)


def draw_lam(alpha: float, generator: Generator, number: int) -> Tensor:
    """Draw lam ~ Beta(alpha, alpha), double [number], from two gamma variates; alpha 0 gives 1: no mixing."""
    if alpha == 0:
        return torch.ones(number, dtype=torch.double)
    # log Gamma(a) = log Gamma(a + 1) + log(U) / a: for a small alpha the variates themselves underflow to 0
    gammas = torch._standard_gamma(
        torch.full((2, number), alpha + 1.0, dtype=torch.double), generator=generator
    )
    uniform = torch.rand(2, number, dtype=torch.double, generator=generator)
    return (gammas.log() + uniform.log() / alpha).softmax(0)[0]


def draw_boxes(height: int, width: int, lam: Tensor, generator: Generator) -> Tensor:
    """Draw a mask [N, 1, height, width] for lam [N]: a box of 1 - lam of the area about any pixel, cut off outside."""
    side, centre = (
        (1 - lam).sqrt(),
        torch.rand(2, len(lam), dtype=torch.double, generator=generator),
    )
    y, x = (centre[0] * height).long(), (centre[1] * width).long()
    half_h, half_w = (height * side).long() // 2, (width * side).long() // 2
    return box(y - half_h, y + half_h, x - half_w, x + half_w, height, width).bool()


def blend(values: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Return lam values + (1 - lam) values[partner], with a lam [1] for all or one [B] for each."""
    own, other = (
        there(x.float().view(-1, *[1] * (values.ndim - 1)), values) for x in (lam, 1 - lam)
    )
    return values.index_select(0, there(partner, values)).mul_(other).add_(own * values)


def there(numbers: Tensor, values: Tensor) -> Tensor:
    """Send what was drawn to the device of `values`, without a wait for it."""
    return numbers.to(values.device, non_blocking=True)
