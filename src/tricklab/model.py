"""Networks for small images, built for the channels and classes of the data; any image size works.

`@network` turns a function of channels, classes and its config keys into an option. The head of a
network is its last layer with weights, the classifier; the rest is the backbone.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tricklab.dropout import DROPOUTS, check_dropout, dropout_of_layers
from tricklab.errors import UserError, nearest
from tricklab.option import as_option, keys_after
from tricklab.resnet import (
    EXPANSION,
    IMAGENET_WIDTH,
    BlockOptions,
    conv_norm,
    count_blocks,
    make_blocks,
    make_stem,
)

# torchvision's networks with auxiliary heads, used only in training there and left out here
AUXILIARY = ("googlenet", "inception_v3")


def network(fn: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Turn `fn(channels, classes, ...)` into an option that takes the keys of every network.

    Training reads these from the config: the `weights` to start from, how long to `freeze` their
    backbone, and the multiplier `backbone_lr_mult` of its LR after that.
    """

    def option(
        channels: int,
        classes: int,
        *,
        weights: str | None = None,
        freeze: float | str = 0,
        backbone_lr_mult: float = 1.0,
        **options: Any,
    ) -> nn.Module:
        return fn(channels, classes, **options)

    return as_option(option, fn, keys_after(fn, 2))


@network
def mlp(
    channels: int,
    classes: int,
    widths: Sequence[int],
    dropout: float | Sequence[float] = 0.0,
    input_dropout: float = 0.0,
    batch_norm: bool = True,
    dropout_kind: str = "bernoulli",
) -> nn.Sequential:
    """Dense layers of `widths` units with ReLU; dropout as in Srivastava et al., JMLR 15 (2014).

    `dropout` is that of all hidden layers, or of each. Without widths it is softmax regression.
    Raises UserError: `dropout` without hidden units, or not one for each layer.
    """
    check_dropout(input_dropout=input_dropout)
    layers: list[nn.Module] = [nn.Flatten(), nn.Dropout(input_dropout)]
    for width, p in zip(widths, dropout_of_layers(dropout, widths), strict=True):
        # lazy: the first batch sets the number of inputs
        layers.append(nn.LazyLinear(width, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers += [nn.ReLU(), DROPOUTS[dropout_kind](p)]
    return nn.Sequential(*layers, nn.LazyLinear(classes))


@network
def convnet(
    channels: int,
    classes: int,
    widths: Sequence[int],
    depth: int = 2,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    spatial_dropout: float = 0.0,
    pool_early: bool = False,
    dropout_kind: str = "bernoulli",
) -> nn.Sequential:
    """A small VGG (arXiv 1409.1556): `depth` 3x3 convolutions of each width, then max pooling.

    `pool_early` pools after the first convolution of a width (arXiv 2404.00498): twice as fast.
    `spatial_dropout` drops whole channels after each pooling (arXiv 1411.4280).
    Raises UserError: no convolution at all.
    """
    check_dropout(dropout=dropout, input_dropout=input_dropout, spatial_dropout=spatial_dropout)
    if depth < 1 or not widths:
        message = f"model.depth={depth} model.widths={list(widths)}: a convnet without convolutions"
        raise UserError(f"{message}; expected a depth of 1 or more, and a width or more")
    layers: list[nn.Module] = [nn.Dropout(input_dropout)]
    for width in widths:
        layers += _conv_block(channels, width, depth, pool_early)
        layers.append(nn.Dropout2d(spatial_dropout))
        channels = width
    return nn.Sequential(*layers, *_head(channels, classes, DROPOUTS[dropout_kind](dropout)))


def _conv_block(inputs: int, width: int, depth: int, pool_early: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [*conv_norm(inputs, width), nn.ReLU(inplace=True)]
        inputs = width
    layers.insert(1 if pool_early else len(layers), nn.MaxPool2d(2, ceil_mode=True))
    return layers


@network
def resnet(
    channels: int,
    classes: int,
    depth: int = 20,
    width: int = 16,
    layout: str = "cifar",
    block: str = "basic",
    stem: str = "plain",
    stride: str = "conv1",
    shortcut: str = "conv",
    zero_gamma: bool = False,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    spatial_dropout: float = 0.0,
    drop_path: float = 0.0,
    dropout_kind: str = "bernoulli",
) -> nn.Sequential:
    """ResNet (arXiv 1512.03385) of 4.2 there for small images, or of 4.1 for large ones.

    The `layout` cifar has a 3x3 convolution and three stages of `width`, 2 `width` and 4 `width`
    channels; imagenet has a 7x7 convolution and max pooling, which quarter the sides, and four
    stages from 4 `width` on. Bottlenecks have four times as many. Tweaks of arXiv 1812.01187:

    - `zero_gamma`: the last norm of a block starts at 0, the block as the identity (3.1 there).
    - B, `stride=conv3`: the 3x3 convolution of a bottleneck has the stride, not the 1x1.
    - C, `stem=deep`: three 3x3 convolutions.
    - D, `shortcut=pool`: 2x2 average pooling before the shortcut's convolution, which then has no
      stride.

    `spatial_dropout` drops whole channels before the last convolution of a block
    (arXiv 1605.07146). Stochastic depth (arXiv 1603.09382) drops block l of L with probability
    l / L * `drop_path`. Raises UserError: a depth that does not exist, or B without bottlenecks.
    """
    check_dropout(dropout=dropout, input_dropout=input_dropout, drop_path=drop_path)
    check_dropout(spatial_dropout=spatial_dropout)
    if stride == "conv3" and block == "basic":
        problem = "a basic block has no 1x1 convolution that could have the stride"
        raise UserError(f"model.stride=conv3: {problem}. Expected model.block=bottleneck")
    stages = count_blocks(layout, block, depth)
    if layout == "imagenet":
        width *= IMAGENET_WIDTH
    options = BlockOptions(block, stride, shortcut, zero_gamma, spatial_dropout)
    layers = [nn.Dropout(input_dropout), *make_stem(channels, width, layout, stem)]
    layers += make_blocks(stages, width, options, drop_path)
    last = (width << (len(stages) - 1)) * EXPANSION[block]
    return nn.Sequential(*layers, *_head(last, classes, DROPOUTS[dropout_kind](dropout)))


@network
def torchvision(
    channels: int, classes: int, name: str, dropout: float = 0.0, drop_path: float = 0.0
) -> nn.Module:
    """Any network of torchvision.models, with dropout where it has one, else before its head.

    Raises UserError: an unknown name, or `drop_path` for a network without stochastic depth.
    """
    check_dropout(dropout=dropout, drop_path=drop_path)
    options: dict[str, Any] = {}
    if name in AUXILIARY:
        options = {"aux_logits": False, "init_weights": True}
    net: nn.Module = find_torchvision(name).get_model(name, num_classes=classes, **options)
    _set_input_channels(net, channels)
    _set_drop_path(net, name, drop_path)
    _set_dropout(net, dropout)
    return net


def _set_input_channels(net: nn.Module, channels: int) -> None:
    """Replace the first convolution, if it takes another number of channels."""
    name, conv = next((key, m) for key, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if channels == conv.in_channels:
        return
    options: Any = {"kernel_size": conv.kernel_size, "stride": conv.stride, "padding": conv.padding}
    first = nn.Conv2d(channels, conv.out_channels, bias=conv.bias is not None, **options)
    net.set_submodule(name, first)


def _set_drop_path(net: nn.Module, name: str, drop_path: float) -> None:
    """Scale the probabilities of stochastic depth so that the highest is `drop_path`."""
    layers: list[Any] = [m for m in net.modules() if type(m).__name__ == "StochasticDepth"]
    if drop_path and not layers:
        raise UserError(f"model.drop_path={drop_path}: {name} has no stochastic depth; allowed: 0")
    highest = max((layer.p for layer in layers), default=0.0)
    for layer in layers:
        layer.p *= drop_path / highest


def _set_dropout(net: nn.Module, dropout: float) -> None:
    layers = [m for m in net.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    for layer in layers:
        layer.p = dropout
    if dropout and not layers:
        name, head = find_head(net)
        net.set_submodule(name, nn.Sequential(nn.Dropout(dropout), head))


@network
def timm(
    channels: int, classes: int, name: str, dropout: float = 0.0, drop_path: float = 0.0
) -> nn.Module:
    """Any network of timm.

    Raises UserError: timm is not installed or has no such network; TypeError: `drop_path` for a
    network without stochastic depth.
    """
    check_dropout(dropout=dropout, drop_path=drop_path)
    options: dict[str, Any] = {"num_classes": classes, "in_chans": channels, "drop_rate": dropout}
    if drop_path:
        options["drop_path_rate"] = drop_path
    return find_timm(name).create_model(name, **options)


def find_torchvision(name: str) -> Any:
    """Return torchvision.models, if it has a network of that name."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        hint = nearest(name, known)
        raise UserError(f"model.name={name}; allowed: torchvision.models.list_models().{hint}")
    return models


def find_timm(name: str) -> Any:
    """Return timm, if it is installed and has a network of that name."""
    try:
        import timm
    except ImportError as error:
        raise UserError("model=timm needs timm: pip install 'tricklab[timm]'") from error
    if not timm.is_model(name):
        hint = nearest(name, timm.list_models())
        raise UserError(f"model.name={name}; allowed: timm.list_models().{hint}")
    return timm


def _head(inputs: int, classes: int, dropout: nn.Dropout) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), dropout, nn.Linear(inputs, classes)]


def find_head(net: nn.Module) -> tuple[str, nn.Module]:
    """Return the head with its name: the last layer that has weights of its own."""
    with_weights = []
    for name, module in net.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            with_weights.append((name, module))
    return with_weights[-1]
