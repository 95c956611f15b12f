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
        dropout: drop other units, and blocks, in each view (Gal and Ghahramani, arXiv 1506.02142).
        augment: by name, done to each view with numbers of its own; the epoch is that of the view.
        seed: the random numbers follow from it.
    """

    def __init__(
        self,
        net: nn.Module,
        prepare: Callable[[Tensor], Tensor],
        views: int,
        dropout: bool,
        augment: Mapping[str, Callable[[Tensor, Rand], Tensor]],
        seed: int,
    ):
        super().__init__()
        self.net, self.views, self.dropout, self.augment, self.seed = net, views, dropout, augment, seed
        self.make_input = [prepare]  # in a list, so that the precision of the network is not its own
        self.batches = 0
        self.entropy: list[Tensor] = []  # [B] a batch, of the mean probability, in nats
        self.information: list[Tensor] = []  # [B] a batch: how much of it the choice of the view accounts for

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] for images [B, C, H, W] of 0 .. 255.

        Raises UserError: dropout was asked for, and the network has none.
        """
        logs = torch.stack([self._view(images, n) for n in range(self.views)])  # [V, B, K]
        if self.dropout and not self.augment and not self.batches and len(images) > 1 and torch.equal(logs[0], logs[1]):
            raise UserError(f"mc={self.views}: the network has no dropout; allowed: one trained with it")
        mean = logs.logsumexp(0) - math.log(self.views)
        self.entropy.append(-(mean.exp() * mean).sum(1))
        self.information.append(self.entropy[-1] + (logs.exp() * logs).sum(2).mean(0))
        self.batches += 1
        return mean

    def _view(self, images: Tensor, view: int) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # as in training, where it is not the network's
            images = images.float()
            for name, change in self.augment.items():
                source = generator(self.seed, f"view {name}", self.batches, view, device=images.device)
                images = change(images, Rand(source, len(images), epoch=view))
            images = self.make_input[0](images)
        for layer in self.net.modules():
            layer.training = self.dropout and not isinstance(layer, nn.modules.batchnorm._NormBase)
        seed_default(self.seed, "mc", self.batches, view)
        return self.net(images.to(next(self.net.parameters()).dtype)).float().log_softmax(1)
