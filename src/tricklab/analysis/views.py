"""One checkpoint seen several times: Monte-Carlo dropout and test-time augmentation."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tricklab.errors import UserError
from tricklab.randomness import Rand, generator, seed_default

Change = Callable[..., Tensor]


class Averaged(nn.Module):
    """A network whose logits are the log of the mean probability over several `views` of an image.

    With `dropout` each view drops other units, and blocks (Gal and Ghahramani, arXiv 1506.02142). `augment` has by name
    what is done to each, with numbers that follow from `seed`; the epoch is that of the view. `preprocess` makes the
    network's input of images [B, C, H, W] of 0 .. 255.
    """

    def __init__(
        self,
        net: nn.Module,
        preprocess: Change,
        views: int,
        dropout: bool,
        augment: Mapping[str, Change],
        seed: int,
    ):
        super().__init__()
        self.net, self.views, self.dropout, self.augment, self.seed = (
            net,
            views,
            dropout,
            augment,
            seed,
        )
        self.make_input = [
            preprocess
        ]  # in a list, so that the precision of the network is not its own
        self.entropy: list[Tensor] = []  # [B] a batch, of the mean probability, in nats
        self.information: list[
            Tensor
        ] = []  # [B] a batch: how much of it the choice of the view accounts for

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K]. Raises UserError where dropout was asked for, and the network has none."""
        batch = len(self.entropy)
        logs = torch.stack(
            [self._view(images, batch, view) for view in range(self.views)]
        )  # [V, B, K]
        if (
            self.dropout
            and not self.augment
            and not batch
            and len(images) > 1
            and torch.equal(logs[0], logs[1])
        ):
            raise UserError(
                f"mc={self.views}: the network has no dropout; allowed: one trained with it"
            )
        mean = logs.logsumexp(0) - math.log(self.views)
        self.entropy.append(-(mean.exp() * mean).sum(1))
        self.information.append(self.entropy[-1] + (logs.exp() * logs).sum(2).mean(0))
        return mean

    def _view(self, images: Tensor, batch: int, view: int) -> Tensor:
        with torch.autocast(
            images.device.type, enabled=False
        ):  # as in training, where it is not the network's
            images = images.float()
            for name, change in self.augment.items():
                source = generator(self.seed, f"view {name}", batch, view, device=images.device)
                images = change(images, Rand(source, len(images), epoch=view))
            images = self.make_input[0](images)
        for layer in self.net.modules():
            layer.training = self.dropout and not isinstance(layer, nn.modules.batchnorm._NormBase)
        seed_default(self.seed, "mc", batch, view)
        return self.net(images.to(next(self.net.parameters()).dtype)).float().log_softmax(1)
