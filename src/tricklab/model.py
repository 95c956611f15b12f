"""Networks for small images, built from the channels and classes of the data; any image size will do."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tricklab.errors import UserError, nearest

AUXILIARY = ("googlenet", "inception_v3")  # of torchvision: with classifiers for training alone, which are left out


def mlp(
    channels: int,
    classes: int,
    widths: Sequence[int],
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    batch_norm: bool = True,
) -> nn.Sequential:
    """Dense layers of `widths` units with ReLU; dropout as in Srivastava et al., JMLR 15 (2014)."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Dropout(input_dropout)]
    for width in widths:
        layers.append(nn.LazyLinear(width, bias=not batch_norm))  # its inputs are counted at the first batch
        layers += [nn.BatchNorm1d(width)] if batch_norm else []
        layers += [nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.LazyLinear(classes))


def convnet(channels: int, classes: int, widths: Sequence[int], depth: int = 2, dropout: float = 0.0) -> nn.Sequential:
    """VGG in small (arXiv 1409.1556): `depth` 3x3 convolutions with batch norm to each width, halved in between."""
    layers: list[nn.Module] = []
    for width in widths:
        for _ in range(depth):
            layers += [*_conv_norm(channels, width), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, *_head(channels, classes, dropout))


def resnet(channels: int, classes: int, depth: int = 20, width: int = 16, dropout: float = 0.0) -> nn.Sequential:
    """The residual network for small images, arXiv 1512.03385, section 4.2: three stages of (depth - 2) / 6 blocks.

    Raises:
        ValueError: a depth other than 8, 14, 20, 26, 32, ...
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"model.depth={depth}; allowed: 6n + 2, as 20, 32, 44, 56, 110")
    layers: list[nn.Module] = [*_conv_norm(channels, width), nn.ReLU(inplace=True)]
    inputs = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            layers.append(Residual(inputs, width << stage, stride=2 if stage and not block else 1))
            inputs = width << stage
    return nn.Sequential(*layers, *_head(inputs, classes, dropout))


def torchvision(channels: int, classes: int, name: str, dropout: float = 0.0) -> nn.Module:
    """Any network of torchvision.models, with dropout before its classifier.

    Raises:
        UserError: there is none of that name.
    """
    single = {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    net: nn.Module = find_torchvision(name).get_model(name, num_classes=classes, **single)
    first, conv = next((key, m) for key, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if channels != conv.in_channels:
        shape: Any = conv.out_channels, conv.kernel_size, conv.stride, conv.padding, 1, 1, conv.bias is not None
        net.set_submodule(first, nn.Conv2d(channels, *shape))
    head, layer = find_head(net)
    if dropout:
        net.set_submodule(head, nn.Sequential(nn.Dropout(dropout), layer))
    return net


def timm(channels: int, classes: int, name: str, dropout: float = 0.0) -> nn.Module:
    """Any network of timm.

    Raises:
        UserError: there is none of that name, or no timm.
    """
    return find_timm(name).create_model(name, num_classes=classes, in_chans=channels, drop_rate=dropout)


def find_torchvision(name: str) -> Any:
    """Return torchvision.models, if it has a network of that name."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(f"model.name={name}; allowed: torchvision.models.list_models().{nearest(name, known)}")
    return models


def find_timm(name: str) -> Any:
    """Return timm, if it is installed and has a network of that name."""
    try:
        import timm
    except ImportError as error:
        raise UserError("model=timm needs timm: pip install 'tricklab[timm]'") from error
    if not timm.is_model(name):
        raise UserError(f"model.name={name}; allowed: timm.list_models().{nearest(name, timm.list_models())}")
    return timm


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_norm(inputs, outputs, 1, stride))
        self.body = nn.Sequential(
            *_conv_norm(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *_conv_norm(outputs, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.shortcut(x)).relu()


def _conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def _head(features: int, classes: int, dropout: float) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(features, classes)]


def find_head(net: nn.Module) -> tuple[str, nn.Module]:
    """Return the name of the classifier and itself: the last layer that has weights. The rest is the body."""
    return [(name, m) for name, m in net.named_modules() if next(m.parameters(recurse=False), None) is not None][-1]
