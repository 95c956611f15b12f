"""Parts of residual networks (arXiv 1512.03385), with the tweaks B, C and D of arXiv 1812.01187."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from tricklab.dropout import DropPath
from tricklab.errors import UserError

EXPANSION = {"basic": 1, "bottleneck": 4}  # channels of a block, by those of its 3x3 convolution
IMAGENET_WIDTH = 4  # first stage of the layout imagenet as a multiple of that of cifar: 64, 16
IMAGENET_BLOCKS = {  # by block and depth: blocks in each of four stages
    "basic": {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)},
    "bottleneck": {
        26: (2, 2, 2, 2),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    },
}


class BlockOptions(NamedTuple):
    """Options of all blocks of a network, see `tricklab.model.resnet`."""

    block: str = "basic"
    stride: str = "conv1"
    shortcut: str = "conv"
    zero_gamma: bool = False
    spatial_dropout: float = 0.0


def count_blocks(layout: str, block: str, depth: int) -> tuple[int, ...]:
    """Return the number of blocks of each stage. Raises UserError: no network has that depth."""
    option = f"model.depth={depth}"
    if layout == "imagenet":
        known = IMAGENET_BLOCKS[block]
        if depth not in known:
            allowed = ", ".join(map(str, known))
            message = f"{option} model.layout=imagenet model.block={block}"
            raise UserError(f"{message}; allowed: {allowed}")
        return known[depth]
    layers = 6 if block == "basic" else 9  # in a block of each of three stages
    if depth < layers + 2 or (depth - 2) % layers:
        examples = ", ".join(str(layers * n + 2) for n in (3, 5, 7, 9, 18))
        message = option if block == "basic" else f"{option} model.block={block}"
        raise UserError(f"{message}; allowed: {layers}n + 2, as {examples}")
    return ((depth - 2) // layers,) * 3


def make_stem(channels: int, width: int, layout: str, stem: str) -> list[nn.Module]:
    """Return the layers before the first block, which have `width` channels.

    The layout imagenet reduces the sides to a quarter. A deep stem (C) is three 3x3 convolutions,
    the first two with half of the channels.
    """
    is_large = layout == "imagenet"
    stride = 2 if is_large else 1
    if stem == "deep":
        half = max(1, width // 2)
        first, last = conv_norm(channels, half, 3, stride), conv_norm(half, width)
        layers = [*first, relu(), *conv_norm(half, half), relu(), *last, relu()]
    else:
        layers = [*conv_norm(channels, width, 7 if is_large else 3, stride), relu()]
    return [*layers, nn.MaxPool2d(3, 2, 1)] if is_large else layers


def make_blocks(
    stages: Sequence[int], width: int, options: BlockOptions, drop_path: float
) -> list[nn.Module]:
    """Return the blocks of each stage, of twice the width and half the sides of the one before."""
    blocks: list[nn.Module] = []
    inputs = width
    for stage, count in enumerate(stages):
        outputs = (width << stage) * EXPANSION[options.block]
        for number in range(count):
            stride = 2 if stage > 0 and number == 0 else 1
            drop = (len(blocks) + 1) / sum(stages) * drop_path
            blocks.append(Residual(inputs, outputs, stride, options, drop))
            inputs = outputs
    return blocks


class Residual(nn.Module):
    """The sum of a residual branch, `body`, and a shortcut, then ReLU.

    The shortcut is a 1x1 convolution where channels or sides change, else the identity.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, options: BlockOptions, drop_path: float
    ):
        super().__init__()
        shortcut = make_shortcut(inputs, outputs, stride, options.shortcut)
        is_basic = options.block == "basic"
        make_body = make_basic if is_basic else make_bottleneck
        body = make_body(inputs, outputs, stride, options)
        # The order of the weights is in checkpoints; that of bottlenecks is torchvision's, too
        if is_basic:
            self.shortcut, self.body = shortcut, body
        else:
            self.body, self.shortcut = body, shortcut
        if options.zero_gamma:
            nn.init.zeros_(body.get_parameter(f"{len(body) - 1}.weight"))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return (self.drop_path(self.body(x)) + self.shortcut(x)).relu()


def make_shortcut(inputs: int, outputs: int, stride: int, kind: str) -> nn.Module:
    """Return a shortcut; `pool` (D) averages before the convolution, which drops no pixel then."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "conv" or stride == 1:
        return nn.Sequential(*conv_norm(inputs, outputs, 1, stride))
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)  # any size, also an odd one
    return nn.Sequential(pool, *conv_norm(inputs, outputs, 1))


def make_basic(inputs: int, outputs: int, stride: int, options: BlockOptions) -> nn.Sequential:
    """Return two 3x3 convolutions, the first with the stride."""
    dropout = nn.Dropout2d(options.spatial_dropout)
    first, last = conv_norm(inputs, outputs, 3, stride), conv_norm(outputs, outputs)
    return nn.Sequential(*first, relu(), dropout, *last)


def make_bottleneck(inputs: int, outputs: int, stride: int, options: BlockOptions) -> nn.Sequential:
    """Return convolutions of 1x1, 3x3 and 1x1, the first or the second (B) with the stride."""
    width = outputs // EXPANSION["bottleneck"]
    strides = (stride, 1) if options.stride == "conv1" else (1, stride)
    return nn.Sequential(
        *conv_norm(inputs, width, 1, strides[0]),
        relu(),
        *conv_norm(width, width, 3, strides[1]),
        relu(),
        nn.Dropout2d(options.spatial_dropout),
        *conv_norm(width, outputs, 1),
    )


def relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


def conv_norm(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Return a convolution without bias and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]
