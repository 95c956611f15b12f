"""Networks for small images, built from the channels and classes of the data; any image size will do."""

from collections.abc import Sequence

from torch import Tensor, nn


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
