"""Networks of every option, found by globbing: shapes, dropout, initialisation and errors."""

import inspect

import pytest
import torch
from torch import nn

from helpers.configs import configure
from helpers.paths import CONF
from tricklab import model
from tricklab.cli.config import list_options
from tricklab.dropout import DropPath, GaussianDropout
from tricklab.errors import UserError
from tricklab.resnet import Residual
from tricklab.run.build import build_net


def make_net(*overrides, shape=(3, 32, 32), classes=10):
    return build_net(configure(*overrides), shape, classes)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 40), (1, 1, 1)])
@pytest.mark.parametrize("name", list_options(CONF / "model"))
def test_network_takes_any_shape_and_number_of_classes(name, shape):
    for classes in (2, 100):
        net = make_net(f"model={name}", shape=shape, classes=classes)
        assert net.training
        assert net.eval()(torch.zeros(3, *shape)).shape == (3, classes)


@pytest.mark.parametrize("name", list_options(CONF / "model"))
def test_network_signature_has_the_keys_of_its_config(name):
    keys = {key for key in configure(f"model={name}").model if not key.startswith("_")}
    parameters = inspect.signature(getattr(model, name)).parameters
    assert set(parameters) == {"channels", "classes", *keys}


@pytest.mark.parametrize("name", list_options(CONF / "model"))
def test_network_weights_follow_from_the_seed_alone(name):
    torch.rand(7)
    first = make_net(f"model={name}", "mixup=on", "seed=3").state_dict()
    torch.rand(8)
    again = make_net(f"model={name}", "seed=3").state_dict()
    other = make_net(f"model={name}", "seed=4").state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_network_has_the_same_keys_in_channels_last_and_compiled():
    plain = make_net("model=resnet", "trainer.channels_last=false")
    other = make_net("model=resnet", "trainer.channels_last=true", "trainer.compile=true")
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert other[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain[1].weight.is_contiguous(memory_format=torch.channels_last)


def test_network_refuses_an_unknown_argument():
    with pytest.raises(UserError, match="heads"):
        make_net("+model.heads=3")


def test_mlp_has_its_widths_and_input_dropout():
    overrides = ("model=mlp", "model.widths=[64,128,64]", "model.input_dropout=0.2")
    net = make_net(*overrides, shape=(1, 28, 28))
    linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
    sizes = [(m.in_features, m.out_features) for m in linear]
    assert sizes == [(784, 64), (64, 128), (128, 64), (64, 10)]
    assert net[1].p == 0.2


def test_mlp_without_widths_is_softmax_regression():
    overrides = ("model=mlp", "model.widths=[]")
    net = make_net(*overrides, "model.input_dropout=0.2", shape=(1, 8, 8))
    assert [type(m).__name__ for m in net] == ["Flatten", "Dropout", "Linear"]
    assert sum(p.numel() for p in net.parameters()) == 64 * 10 + 10
    with pytest.raises(UserError, match="there are no hidden units"):
        make_net(*overrides, "model.dropout=0.5")


@pytest.mark.parametrize(
    ("pool_early", "width"),
    [("false", ["conv", "conv", "pool"]), ("true", ["conv", "pool", "conv"])],
)
def test_convnet_pools_after_all_or_the_first_convolution(pool_early, width):
    net = make_net("model=convnet", f"model.pool_early={pool_early}")
    kinds = {nn.Conv2d: "conv", nn.MaxPool2d: "pool"}
    assert [kinds[type(layer)] for layer in net if type(layer) in kinds] == width * 3
    assert sum(p.numel() for p in net.parameters()) == 72_954


@pytest.mark.parametrize("override", ["model.depth=0", "model.depth=-1", "model.widths=[]"])
def test_convnet_refuses_to_have_no_convolutions(override):
    with pytest.raises(UserError, match="a convnet without convolutions"):
        make_net("model=convnet", override)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 272_474), (32, 466_906), (56, 855_770)])
def test_resnet_has_the_layers_of_the_paper(depth, parameters):
    """0.27 M, 0.46 M and 0.85 M in the paper; exact numbers of its projection shortcuts."""
    net = make_net("model=resnet", f"model.depth={depth}")
    assert sum(p.numel() for p in net.parameters()) == parameters
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == depth - 1


def test_resnet_refuses_other_depths():
    with pytest.raises(UserError, match=r"^model\.depth=19; allowed: 6n \+ 2"):
        make_net("model=resnet", "model.depth=19")


@pytest.mark.parametrize("name", list_options(CONF / "model"))
def test_dropout_acts_in_training_only(name):
    net = make_net(f"model={name}", "model.dropout=0.5")
    images = torch.randn(16, 3, 32, 32)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.0  # so that only dropout is random
    assert not torch.equal(net(images), net(images))
    assert torch.equal(net.eval()(images), net(images))
    plain = make_net(f"model={name}")
    assert torch.equal(plain(images), plain(images))


@pytest.mark.parametrize("name", list_options(CONF / "model"))
@pytest.mark.parametrize("key", ["dropout", "input_dropout", "spatial_dropout", "drop_path"])
def test_dropout_of_one_is_refused(name, key):
    if key not in configure(f"model={name}").model:
        return
    with pytest.raises(UserError, match=f"model.{key}=1.0; allowed: 0 or more, less than 1"):
        make_net(f"model={name}", f"model.{key}=1.0")


def test_mlp_has_dropout_of_each_layer():
    net = make_net("model=mlp", "model.widths=[8,8,8]", "model.dropout=[0.1,0.0,0.5]")
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.0, 0.1, 0.0, 0.5]


@pytest.mark.parametrize(
    ("dropout", "message"),
    [
        ("[0.1]", r"model.dropout=\[0.1\] with model.widths=\[8, 8\]: expected one number, or one"),
        ("[0.1,0.2,0.3]", "expected one number, or one for each width"),
        ("[0.1,1.0]", "model.dropout=1.0; allowed: 0 or more, less than 1"),
    ],
)
def test_mlp_refuses_dropout_that_is_not_one_for_each_layer(dropout, message):
    with pytest.raises(UserError, match=message):
        make_net("model=mlp", "model.widths=[8,8]", f"model.dropout={dropout}")


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet"])
def test_gaussian_dropout_is_of_the_units_alone(name):
    overrides = (f"model={name}", "model.dropout=0.3", "model.input_dropout=0.2")
    net = make_net(*overrides, "model.dropout_kind=gaussian")
    kinds = {type(m): m.p for m in net.modules() if isinstance(m, nn.Dropout) and m.p}
    assert kinds == {nn.Dropout: 0.2, GaussianDropout: 0.3}


@pytest.mark.parametrize("p", [0.2, 0.5, 0.8])
def test_gaussian_dropout_has_mean_and_variance_of_dropout(p):
    torch.manual_seed(0)
    ones = torch.ones(1_000_000)
    for layer in (nn.Dropout(p), GaussianDropout(p)):
        dropped = layer(ones)
        assert dropped.mean() == pytest.approx(1, abs=0.01)
        assert dropped.var() == pytest.approx(p / (1 - p), rel=0.01)
    assert len(GaussianDropout(p)(ones).unique()) > 100_000  # not the two values of dropout
    assert torch.equal(GaussianDropout(p).eval()(ones), ones)


@pytest.mark.parametrize("name", ["mlp", "convnet", "resnet"])
def test_input_dropout_acts_on_pixels(name):
    net = make_net(f"model={name}", "model.input_dropout=0.4")
    layers = [m for m in net.modules() if not list(m.children())]
    first = next(m for m in layers if not isinstance(m, nn.Flatten))
    assert isinstance(first, nn.Dropout)
    assert first.p == 0.4


@pytest.mark.parametrize(("name", "count"), [("convnet", 3), ("resnet", 9)])
def test_spatial_dropout_drops_whole_channels(name, count):
    net = make_net(f"model={name}", "model.spatial_dropout=0.5")
    layers = [m for m in net.modules() if type(m) is nn.Dropout2d]
    assert [layer.p for layer in layers] == [0.5] * count
    channels = layers[0](torch.ones(50, 20, 4, 4)).flatten(2).flatten(0, 1)
    assert {tuple(channel.unique().tolist()) for channel in channels} == {(0.0,), (2.0,)}


def test_drop_path_drops_whole_blocks_with_linear_probabilities():
    net = make_net("model=resnet", "model.depth=20", "model.drop_path=0.9")
    blocks = [m for m in net.modules() if isinstance(m, Residual)]
    assert [b.drop_path.p for b in blocks] == pytest.approx([0.1 * n for n in range(1, 10)])
    last, x = blocks[-1], torch.randn(400, 64, 4, 4)
    is_dropped = (last(x) == x.relu()).flatten(1).all(1)
    assert is_dropped.float().mean() == pytest.approx(0.9, abs=0.05)
    last.eval()
    assert torch.equal(last(x), (last.body(x) + x).relu())


def test_drop_path_keeps_the_expectation():
    torch.manual_seed(0)
    layer = DropPath(0.9)
    assert layer(torch.ones(4000, 2, 3, 3)).mean() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(
    ("name", "network"), [("torchvision", "convnext_tiny"), ("timm", "convnext_atto")]
)
def test_drop_path_of_libraries_is_that_of_the_last_block(name, network):
    net = make_net(f"model={name}", f"model.name={network}", "model.drop_path=0.3")
    probabilities = []
    for module in net.modules():
        if "rop" in type(module).__name__ or "Depth" in type(module).__name__:
            probabilities.append(getattr(module, "p", getattr(module, "drop_prob", None)))
    assert max(probabilities) == pytest.approx(0.3)
    with pytest.raises(UserError, match="model"):
        make_net(f"model={name}", "model.name=vgg11", "model.drop_path=0.3")
