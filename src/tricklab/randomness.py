"""Random numbers from counters: a stream for each purpose, without a state to carry along.

The numbers of a batch follow from (seed, purpose, epoch, batch, rank) alone. So switching one trick
on changes no other's numbers, and a run can resume from any step.
"""

import hashlib
import math

import torch
from torch import Generator, Tensor


def derive(seed: int, purpose: str, *counters: int) -> int:
    """Derive a 63-bit seed from `seed`, a purpose such as "mix", and counters such as the epoch."""
    text = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(
    seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu"
) -> Generator:
    """Return a generator at the start of a stream."""
    return Generator(device).manual_seed(derive(seed, purpose, *counters))


def seed_default(seed: int, purpose: str, *counters: int) -> None:
    """Seed torch's default generators, which layers such as dropout use, with a stream."""
    value = derive(seed, purpose, *counters)
    torch.default_generator.manual_seed(value)  # torch.manual_seed takes 70 times as long
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)


def to_normal(u: Tensor, v: Tensor) -> Tensor:
    """Turn uniform numbers in [0, 1) into standard normal ones, always finite (Box-Muller)."""
    return (-2 * (1 - u).log()).sqrt() * (2 * math.pi * v).cos()


class Rand:
    """Random numbers for augmentation: `rand(*shape)` is uniform in [0, 1), float32 [B, *shape].

    They are drawn for all `size` images of the global batch, which go to the ranks round-robin: so
    they depend on the position of an image, not on the number of ranks. `per_image` [B] is a
    number for each image that is the same in all epochs.
    """

    def __init__(
        self,
        source: Generator,
        size: int,
        rank: int = 0,
        ranks: int = 1,
        epoch: int = 0,
        per_image: Tensor | None = None,
    ):
        self.source = source
        self.size = size
        self.of_rank = slice(rank, None, ranks)
        self.epoch = epoch
        if per_image is None:
            per_image = torch.zeros(size, device=source.device)[self.of_rank]
        self.per_image = per_image

    def __call__(self, *shape: int) -> Tensor:
        numbers = torch.rand(
            self.size,
            *shape,
            generator=self.source,
            device=self.source.device,
            dtype=torch.float32,  # also in a run of another precision
        )
        return numbers[self.of_rank]
