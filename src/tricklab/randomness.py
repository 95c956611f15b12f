"""Random numbers from counters: each purpose has its own stream, and no state is carried along.

The numbers of a batch follow from (seed, purpose, epoch, batch, rank) alone. So switching one trick on moves
no other's numbers, and a run can go on from any step.
"""

import hashlib

import torch
from torch import Generator, Tensor


def derive(seed: int, purpose: str, *counters: int) -> int:
    """Derive a 63-bit seed from `seed`, a purpose such as "mix", and counters such as epoch and batch."""
    text = ":".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(
    seed: int, purpose: str, *counters: int, device: torch.device | str = "cpu"
) -> Generator:
    """Return a generator at the start of that stream."""
    return Generator(device).manual_seed(derive(seed, purpose, *counters))


def seed_default(seed: int, purpose: str, *counters: int) -> None:
    """Put torch's default generators, which layers such as dropout use, at the start of that stream."""
    value = derive(seed, purpose, *counters)
    torch.default_generator.manual_seed(value)  # torch.manual_seed takes 70 times as long
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(value)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(value)


class Rand:
    """The random numbers of augmentation: `rand(*shape)` is uniform in [0, 1), float32 [B, *shape].

    They are drawn for all `size` images of the global batch, which go to the ranks in turn: so they belong to the place
    of an image in it, and not to the number of ranks. `lasting` [B] is a number that each image keeps in all epochs.
    """

    def __init__(
        self,
        source: Generator,
        size: int,
        rank: int = 0,
        ranks: int = 1,
        epoch: int = 0,
        lasting: Tensor | None = None,
    ):
        self.source, self.size, self.part, self.epoch = (
            source,
            size,
            slice(rank, None, ranks),
            epoch,
        )
        self.lasting = (
            torch.zeros(size, device=source.device)[self.part] if lasting is None else lasting
        )

    def __call__(self, *shape: int) -> Tensor:
        device, dtype = (
            self.source.device,
            torch.float32,
        )  # whatever the precision of a run has made the default
        return torch.rand(self.size, *shape, generator=self.source, device=device, dtype=dtype)[
            self.part
        ]
