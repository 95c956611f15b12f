"""Averaging over several views of an image: Monte-Carlo dropout and test-time augmentation."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tricklab.errors import UserError
from tricklab.randomness import Rand, generator, seed_default

Transform = Callable[..., Tensor]


class ViewEnsemble(nn.Module):
    """A network whose logits are the log of the mean probability over several views of an image.

    With `dropout`, each view drops other units and branches (MC dropout, Gal and Ghahramani,
    arXiv 1506.02142). `augment` holds the augmentations of a view by name; their random numbers
    follow from `seed`, with the number of the view as the epoch. `preprocess` turns images
    [B, C, H, W] of 0 .. 255 into the network's input.

    `entropy` and `mutual_information` collect a tensor [B] per batch, in nats: the entropy of the
    mean probability, and its epistemic part, the mutual information between class and view.
    """

    def __init__(
        self,
        net: nn.Module,
        preprocess: Transform,
        views: int,
        dropout: bool,
        augment: Mapping[str, Transform],
        seed: int,
    ):
        super().__init__()
        self.net = net
        self.views = views
        self.dropout = dropout
        self.augment = augment
        self.seed = seed
        # in a list, or torch would convert it to the precision of the network
        self.preprocess = [preprocess]
        self.entropy: list[Tensor] = []
        self.mutual_information: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K]. Raises UserError: `dropout`, but the network has none."""
        batch = len(self.entropy)
        views = [self._forward_view(images, batch, view) for view in range(self.views)]
        log_probabilities = torch.stack(views)  # [V, B, K]
        if batch == 0 and len(images) > 1:
            self._check_dropout(log_probabilities)
        mean = log_probabilities.logsumexp(0) - math.log(self.views)
        entropy = -(mean.exp() * mean).sum(1)
        negative_entropies = (log_probabilities.exp() * log_probabilities).sum(2)  # [V, B]
        self.entropy.append(entropy)
        self.mutual_information.append(entropy + negative_entropies.mean(0))
        return mean

    def _forward_view(self, images: Tensor, batch: int, view: int) -> Tensor:
        """Return log probabilities [B, K] of a view."""
        # images are augmented and preprocessed in full precision, as in training
        with torch.autocast(images.device.type, enabled=False):
            inputs = self.preprocess[0](self._augment(images.float(), batch, view))
        for layer in self.net.modules():
            is_norm = isinstance(layer, nn.modules.batchnorm._NormBase)
            layer.training = self.dropout and not is_norm
        seed_default(self.seed, "mc", batch, view)
        dtype = next(self.net.parameters()).dtype
        logits: Tensor = self.net(inputs.to(dtype))
        return logits.float().log_softmax(1)

    def _augment(self, images: Tensor, batch: int, view: int) -> Tensor:
        for name, augmentation in self.augment.items():
            source = generator(self.seed, f"view {name}", batch, view, device=images.device)
            images = augmentation(images, Rand(source, len(images), epoch=view))
        return images

    def _check_dropout(self, log_probabilities: Tensor) -> None:
        """Raise UserError if two views with dropout alone are the same."""
        only_dropout = self.dropout and not self.augment
        if only_dropout and torch.equal(log_probabilities[0], log_probabilities[1]):
            reason = "the network has no dropout. Expected one trained with it"
            raise UserError(f"mc={self.views}: {reason}")
