"""One checkpoint seen several times: Monte-Carlo dropout and test-time augmentation."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tricklab.errors import UserError
from tricklab.randomness import Rand, generator, seed_default


class Averaged(nn.Module):
    """A network whose logits are the log of the mean probability over several views of an image.

    Args:
        net: images as `prepare` makes them to logits [B, K].
        prepare: images [B, C, H, W] of 0 .. 255 to the network's input.
        views: how many.
        dropout: drop other units in each view (Gal and Ghahramani, arXiv 1506.02142).
        augment: by name, done to each view with numbers of its own; the epoch is that of the view.
        seed: the random numbers follow from it.

    Raises:
        UserError: views that would all be the same.
    """

    def __init__(
        self,
        net: nn.Module,
        prepare: nn.Module,
        views: int,
        dropout: bool,
        augment: Mapping[str, Callable[[Tensor, Rand], Tensor]],
        seed: int,
    ):
        super().__init__()
        self.net, self.prepare, self.views, self.augment, self.seed = net, prepare, views, augment, seed
        self.dropped = [m for m in net.modules() if dropout and isinstance(m, nn.modules.dropout._DropoutNd) and m.p]
        if dropout and not self.dropped:
            raise UserError(f"mc={views}: the network has no dropout; allowed: one trained with it")
        self.batches = 0
        self.entropy: list[Tensor] = []  # [B] a batch, of the mean probability, in nats
        self.information: list[Tensor] = []  # [B] a batch: how much of it the choice of the view accounts for

    def forward(self, images: Tensor) -> Tensor:
        logs = torch.stack([self._view(images, n) for n in range(self.views)])  # [V, B, K]
        mean = logs.logsumexp(0) - math.log(self.views)
        self.entropy.append(-(mean.exp() * mean).sum(1))
        self.information.append(self.entropy[-1] + (logs.exp() * logs).sum(2).mean(0))
        self.batches += 1
        return mean

    def _view(self, images: Tensor, view: int) -> Tensor:
        for name, change in self.augment.items():
            source = generator(self.seed, f"view {name}", self.batches, view, device=images.device)
            images = change(images, Rand(source, len(images), epoch=view))
        for layer in self.dropped:
            layer.train()
        seed_default(self.seed, "mc", self.batches, view)
        dtype = next(self.net.parameters()).dtype
        return self.net(self.prepare(images).to(dtype)).float().log_softmax(1)
