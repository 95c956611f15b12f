"""A trained network whose predictions another one learns (arXiv 1503.02531)."""

import torch
from torch import Tensor, nn

from tricklab.data.inputs import InputSpec, Preprocess


class Teacher:
    """The logits of a trained network on the batches of another, the student.

    It is no module, so that it is neither trained, nor saved, nor counted.

    Args:
        net: the trained network, in evaluation mode.
        spec: the input that it expects.
        student: the input that the student gets.
        digest: identifies the weights.
    """

    def __init__(self, net: nn.Module, spec: InputSpec, student: InputSpec, digest: str):
        self.net = net.eval().requires_grad_(False)
        self.prepare = nn.Identity() if spec[:3] == student[:3] else Adapt(student, spec)
        self.digest = digest

    def to(self, device: torch.device) -> None:
        self.net.to(device)
        self.prepare.to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return logits [B, K] of normalised images [B, C, H, W] of the student."""
        logits: Tensor = self.net(self.prepare(images))
        return logits.float()


class Adapt(nn.Module):
    """Turns the normalised input of one network into that of another."""

    def __init__(self, given: InputSpec, expected: InputSpec):
        super().__init__()
        self.std = nn.Buffer(255 * torch.tensor(given.std).view(1, -1, 1, 1))
        self.mean = nn.Buffer(255 * torch.tensor(given.mean).view(1, -1, 1, 1))
        self.preprocess = Preprocess(expected)

    def forward(self, images: Tensor) -> Tensor:
        prepared: Tensor = self.preprocess(images.float() * self.std + self.mean)
        return prepared
