"""Residual networks: the tweaks of Bag of Tricks against torchvision's and timm's networks."""

import hashlib

import pytest
import torch
from torch import nn
from torchvision import models

from helpers.configs import configure
from tricklab.errors import UserError
from tricklab.model import resnet
from tricklab.resnet import Residual
from tricklab.run.build import build_net
from tricklab.run.inputs import resolve_size

B = {"block": "bottleneck", "stride": "conv3", "layout": "imagenet"}
D = {**B, "stem": "deep", "shortcut": "pool"}


@torch.no_grad()
def randomise_norms(net):
    """Give every batch norm other weights and statistics, so that each of them counts."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.3, 1.0)
            module.bias.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


@torch.no_grad()
def assert_equal_to(reference, net, weights):
    """Compare the logits of two networks, of which the first has these weights, in order."""
    ours = net.state_dict()
    assert [v.shape for v in ours.values()] == [v.shape for v in weights]
    net.load_state_dict(dict(zip(ours, weights, strict=True)))
    for side in (64, 97):
        images = torch.randn(2, 3, side, side)
        expected = reference(images)
        assert expected.std() > 1e-3
        assert (net.eval()(images) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("library", "name", "options"),
    [
        ("torchvision", "resnet50", {"depth": 50, **B}),
        ("torchvision", "resnet101", {"depth": 101, **B}),
        ("timm", "resnet26d", {"depth": 26, **D}),
        ("timm", "resnet50d", {"depth": 50, **D}),
    ],
)
def test_bottlenecks_are_those_of_the_libraries(library, name, options):
    """B is torchvision's, B, C and D together are timm's."""
    torch.manual_seed(0)
    if library == "timm":
        timm = pytest.importorskip("timm", reason="needs the extra [timm]")
        reference = timm.create_model(name, num_classes=7)
    else:
        reference = models.get_model(name, num_classes=7)
    randomise_norms(reference)
    weights = list(reference.state_dict().values())
    assert_equal_to(reference, resnet(3, 7, **options), weights)


@pytest.mark.parametrize("depth", [18, 34])
def test_basic_blocks_are_torchvisions(depth):
    """The shortcut's weights come first in our basic blocks, last in torchvision's."""
    torch.manual_seed(depth)
    reference = randomise_norms(models.get_model(f"resnet{depth}", num_classes=7))
    weights = []
    block = {}
    for key, value in [*reference.state_dict().items(), ("end", None)]:
        if block and key.split(".")[:2] != next(iter(block)).split(".")[:2]:
            weights += sorted_by(block, lambda key: "downsample" not in key)
            block = {}
        if value is not None:
            block[key] = value
    weights += block.values()
    assert_equal_to(reference, resnet(3, 7, depth=depth, layout="imagenet"), weights)


def sorted_by(block, order):
    return [block[key] for key in sorted(block, key=order)]


@pytest.mark.parametrize(("depth", "block"), [(29, "bottleneck"), (20, "basic")])
def test_small_layout_has_a_3x3_stem_and_three_stages(depth, block):
    net = resnet(3, 10, depth=depth, block=block)
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    in_blocks = sum(len([m for m in b.body if isinstance(m, nn.Conv2d)]) for b in net[4:-4])
    assert in_blocks == depth - 2
    assert convolutions[0].weight.shape == (16, 3, 3, 3)
    assert net[:-4](torch.zeros(2, 3, 32, 32)).shape[2:] == (8, 8)
    assert net[-1].in_features == (256 if block == "bottleneck" else 64)


@pytest.mark.parametrize(
    "options",
    [
        {"zero_gamma": True},
        {"stem": "deep"},
        {"shortcut": "pool"},
        {"stride": "conv3", "block": "bottleneck", "depth": 29},
    ],
)
def test_each_tweak_changes_the_logits(options):
    plain = {key: options[key] for key in ("block", "depth") if key in options}
    images = torch.randn(4, 3, 32, 32)
    logits = []
    for tweaks in (plain, options):
        torch.manual_seed(0)
        logits.append(resnet(3, 10, **tweaks)(images))
    assert not torch.allclose(*logits, atol=1e-3)


def test_default_network_has_the_weights_that_it_had_before_there_were_tweaks():
    torch.manual_seed(0)
    state = resnet(3, 10, depth=20, width=16, drop_path=0.2).state_dict()
    content = b"".join(tensor.numpy().tobytes() for tensor in state.values())
    assert hashlib.sha256(content).hexdigest()[:12] == "7258f14740ef"
    assert next(key for key in state if "shortcut" in key) == "7.shortcut.0.weight"


@pytest.mark.parametrize("options", [{}, {"block": "bottleneck", "depth": 29}])
def test_zero_gamma_starts_each_block_as_its_shortcut(options):
    net = resnet(3, 10, zero_gamma=True, **options)
    blocks = [block for block in net if isinstance(block, Residual)]
    images = torch.randn(4, 3, 32, 32)
    x = net[:4](images)
    identities = 0
    for block in blocks:
        y = block(x)
        assert torch.equal(y, block.shortcut(x).relu())
        if isinstance(block.shortcut, nn.Identity):
            assert torch.equal(y, x)
            identities += 1
        x = y
    assert identities == len(blocks) - (2 if not options else 3)
    net(images).sum().backward()
    assert all(block.body[-1].weight.grad.abs().sum() > 0 for block in blocks)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.depth=21"], r"model\.depth=21; allowed: 6n \+ 2, as 20, 32, 44, 56, 110"),
        (
            ["model.depth=21", "model.block=bottleneck"],
            r"model\.depth=21 model\.block=bottleneck; allowed: 9n \+ 2, as 29, 47, 65, 83, 164",
        ),
        (
            ["model.depth=50", "model.layout=imagenet"],
            r"model\.depth=50 model\.layout=imagenet model\.block=basic; allowed: 10, 18, 34",
        ),
        (["model.stride=conv3"], r"model\.stride=conv3: .*Expected model\.block=bottleneck"),
    ],
)
def test_resnet_refuses(overrides, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        build_net(configure("model=resnet", *overrides), (3, 32, 32), 10)


def test_large_layout_gets_photographs_of_224_pixels():
    folder = ("data=folder", "data.root=x", "model=resnet")
    small = configure(*folder)
    large = configure(*folder, "model.layout=imagenet", "model.depth=18")
    assert resolve_size(small.data, small.model, None) == [32, 32]
    assert resolve_size(large.data, large.model, None) == [224, 224]
