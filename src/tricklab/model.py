"""Networks for small images, built from the channels and classes of the data; any image size will do."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from tricklab.errors import UserError, nearest

AUXILIARY = (
    "googlenet",
    "inception_v3",
)  # of torchvision: with classifiers for training alone, which are left out


def mlp(
    channels: int,
    classes: int,
    widths: Sequence[int],
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    batch_norm: bool = True,
) -> nn.Sequential:
    """Dense layers of `widths` units with ReLU; dropout as in Srivastava et al., JMLR 15 (2014).

    Without widths it is softmax regression. Raises UserError: a `dropout` that no hidden unit has.
    """
    check_rates(dropout=dropout, input_dropout=input_dropout)
    if dropout and not widths:
        raise UserError(f"model.dropout={dropout} with model.widths=[]: there are no hidden units")
    layers: list[nn.Module] = [nn.Flatten(), nn.Dropout(input_dropout)]
    for width in widths:
        layers.append(
            nn.LazyLinear(width, bias=not batch_norm)
        )  # its inputs are counted at the first batch
        layers += [nn.BatchNorm1d(width)] if batch_norm else []
        layers += [nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.LazyLinear(classes))


def convnet(
    channels: int,
    classes: int,
    widths: Sequence[int],
    depth: int = 2,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    spatial_dropout: float = 0.0,
    pool_early: bool = False,
) -> nn.Sequential:
    """VGG in small (arXiv 1409.1556): `depth` 3x3 convolutions with batch norm to each width, halved in between.

    `pool_early` halves after the first convolution to a width rather than after all of them, as arXiv 2404.00498
    does: at twice the speed. `spatial_dropout` of whole channels (arXiv 1411.4280) follows the layers of a width.
    Raises UserError: no convolution at all.
    """
    check_rates(dropout=dropout, input_dropout=input_dropout, spatial_dropout=spatial_dropout)
    if depth < 1 or not widths:
        message = f"model.depth={depth} model.widths={list(widths)}: a convnet without convolutions"
        raise UserError(f"{message}; expected a depth of 1 or more, and a width or more")
    layers: list[nn.Module] = [nn.Dropout(input_dropout)]
    for width in widths:
        block: list[nn.Module] = []
        for _ in range(depth):
            block += [*_conv_norm(channels, width), nn.ReLU(inplace=True)]
            channels = width
        block.insert(1 if pool_early else len(block), nn.MaxPool2d(2, ceil_mode=True))
        layers += [*block, nn.Dropout2d(spatial_dropout)]
    layers += [
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(channels, classes),
    ]
    return nn.Sequential(*layers)


def resnet(
    channels: int,
    classes: int,
    depth: int = 20,
    width: int = 16,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    spatial_dropout: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Sequential:
    """The residual network for small images, arXiv 1512.03385, section 4.2: three stages of (depth - 2) / 6 blocks.

    `spatial_dropout` of whole channels stands between the convolutions of a block, as in arXiv 1605.07146. Stochastic
    depth (arXiv 1603.09382) leaves out block l of L with probability l / L * `drop_path`. Raises ValueError for a depth
    other than 8, 14, 20, 26, 32, ...
    """
    rates = {"dropout": dropout, "input_dropout": input_dropout, "drop_path": drop_path}
    check_rates(**rates, spatial_dropout=spatial_dropout)
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"model.depth={depth}; allowed: 6n + 2, as 20, 32, 44, 56, 110")
    layers: list[nn.Module] = [
        nn.Dropout(input_dropout),
        *_conv_norm(channels, width),
        nn.ReLU(inplace=True),
    ]
    inputs, blocks = width, (depth - 2) // 2
    for block in range(blocks):
        outputs = width << block * 3 // blocks
        layers.append(Residual(inputs, outputs, spatial_dropout, (block + 1) / blocks * drop_path))
        inputs = outputs
    layers += [
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(inputs, classes),
    ]
    return nn.Sequential(*layers)


def torchvision(
    channels: int, classes: int, name: str, dropout: float = 0.0, drop_path: float = 0.0
) -> nn.Module:
    """Any network of torchvision.models, with dropout where it has that itself, or else before its classifier.

    Raises UserError where there is none of that name, or it has no stochastic depth.
    """
    check_rates(dropout=dropout, drop_path=drop_path)
    options: dict[str, Any] = (
        {"aux_logits": False, "init_weights": True} if name in AUXILIARY else {}
    )
    net: nn.Module = find_torchvision(name).get_model(name, num_classes=classes, **options)
    first, conv = next((key, m) for key, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if channels != conv.in_channels:
        shape: Any = (
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            1,
            1,
            conv.bias is not None,
        )
        net.set_submodule(first, nn.Conv2d(channels, *shape))
    drop_paths: list[Any] = [m for m in net.modules() if type(m).__name__ == "StochasticDepth"]
    if drop_path and not drop_paths:
        raise UserError(f"model.drop_path={drop_path}: {name} has no stochastic depth; allowed: 0")
    highest = max((m.p for m in drop_paths), default=0.0)
    for m in drop_paths:
        m.p *= drop_path / highest  # as they are in proportion
    drops: list[Any] = [m for m in net.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    for drop in drops:
        drop.p = dropout
    if dropout and not drops:
        head, layer = find_head(net)
        net.set_submodule(head, nn.Sequential(nn.Dropout(dropout), layer))
    return net


def timm(
    channels: int, classes: int, name: str, dropout: float = 0.0, drop_path: float = 0.0
) -> nn.Module:
    """Any network of timm. Raises UserError without timm or such a name, TypeError without stochastic depth."""
    check_rates(dropout=dropout, drop_path=drop_path)
    options = {"drop_path_rate": drop_path} if drop_path else {}
    return find_timm(name).create_model(
        name, num_classes=classes, in_chans=channels, drop_rate=dropout, **options
    )


def check_rates(**rates: float) -> None:
    """Raise UserError for a dropout probability that is none, or 1: nothing would pass."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f"model.{name}={rate}; allowed: 0 or more, less than 1")


def find_torchvision(name: str) -> Any:
    """Return torchvision.models, if it has a network of that name."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(
            f"model.name={name}; allowed: torchvision.models.list_models().{nearest(name, known)}"
        )
    return models


def find_timm(name: str) -> Any:
    """Return timm, if it is installed and has a network of that name."""
    try:
        import timm
    except ImportError as error:
        raise UserError("model=timm needs timm: pip install 'tricklab[timm]'") from error
    if not timm.is_model(name):
        raise UserError(
            f"model.name={name}; allowed: timm.list_models().{nearest(name, timm.list_models())}"
        )
    return timm


def usual_side(model: DictConfig) -> int:
    """Return the side in pixels of the images for which a library has weights of its network; 0 for other networks."""
    library, name = model._target_.rpartition(".")[2], model.get("name")
    if library == "torchvision":
        weights = find_torchvision(name).get_model_weights(name)["DEFAULT"]
        return int(weights.transforms().crop_size[0])
    if library == "timm" and (config := find_timm(name).get_pretrained_cfg(name)):
        return int(config.input_size[-1])
    return 0


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut; that is a 1x1 convolution where channels double and the image halves."""

    def __init__(self, inputs: int, outputs: int, spatial_dropout: float, drop_path: float):
        super().__init__()
        stride = outputs // inputs
        self.shortcut = (
            nn.Identity() if stride == 1 else nn.Sequential(*_conv_norm(inputs, outputs, 1, stride))
        )
        body = [
            *_conv_norm(inputs, outputs, 3, stride),
            nn.ReLU(inplace=True),
            nn.Dropout2d(spatial_dropout),
        ]
        self.body = nn.Sequential(*body, *_conv_norm(outputs, outputs))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return (self.drop_path(self.body(x)) + self.shortcut(x)).relu()


class DropPath(nn.Dropout):
    """Leaves out all of an image, and makes up for it where it does not."""

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x.new_ones(len(x), 1, 1, 1))


def _conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


def find_dropout(net: nn.Module) -> list[str]:
    """Return the names of the layers that drop units before a batch norm, by the order of definition."""
    named = list(net.named_modules())
    norms = [i for i, (_, m) in enumerate(named) if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    drops = [
        (name, m)
        for name, m in named[: max(norms, default=0)]
        if isinstance(m, nn.modules.dropout._DropoutNd)
    ]
    return [name for name, m in drops if m.p > 0 and not isinstance(m, DropPath)]


def find_head(net: nn.Module) -> tuple[str, nn.Module]:
    """Return the name of the classifier and itself: the last layer that has weights. The rest is the body."""
    return [
        (name, m)
        for name, m in net.named_modules()
        if next(m.parameters(recurse=False), None) is not None
    ][-1]
