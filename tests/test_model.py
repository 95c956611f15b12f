import pytest
import torch
from conftest import CONF, configure
from torch import nn

from tricklab.cli.config import list_options
from tricklab.errors import UserError
from tricklab.model import Residual
from tricklab.run.build import build_net


def net(*overrides, shape=(3, 32, 32), classes=10):
    return build_net(configure(*overrides), shape, classes)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 40), (1, 1, 1)])
@pytest.mark.parametrize("name", list_options(CONF / "model"))
def test_any_shape_and_number_of_classes(name, shape):
    for classes in (2, 100):
        model = net(f"model={name}", shape=shape, classes=classes)
        assert model.training
        assert model.eval()(torch.zeros(3, *shape)).shape == (3, classes)


@pytest.mark.parametrize("name", list_options(CONF / "model"))
def test_dropout_acts_in_training_only(name):
    model, images = net(f"model={name}", "model.dropout=0.5"), torch.randn(16, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.0  # so that only dropout is random
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))
    plain = net(f"model={name}")
    assert torch.equal(plain(images), plain(images))


@pytest.mark.parametrize("name", list_options(CONF / "model"))
def test_weights_follow_from_the_seed_alone(name):
    torch.rand(7)
    first = net(f"model={name}", "mixup=on", "seed=3").state_dict()
    torch.rand(8)
    again, other = (
        net(f"model={name}", "seed=3").state_dict(),
        net(f"model={name}", "seed=4").state_dict(),
    )
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 272_474), (32, 466_906), (56, 855_770)])
def test_resnet_has_the_layers_of_the_paper(depth, parameters):
    """The paper's 0.27 M, 0.46 M and 0.85 M, to the last one those published for projection shortcuts."""
    model = net("model=resnet", f"model.depth={depth}")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert (
        sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules())
        == depth - 1
    )


def test_mlp_widths_and_input_dropout():
    model = net(
        "model=mlp", "model.widths=[64,128,64]", "model.input_dropout=0.2", shape=(1, 28, 28)
    )
    assert [
        (m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)
    ] == [
        (784, 64),
        (64, 128),
        (128, 64),
        (64, 10),
    ]
    assert model[1].p == 0.2


def test_an_early_pool_halves_after_the_first_convolution_of_each_width():
    late, early = net("model=convnet"), net("model=convnet", "model.pool_early=true")
    assert sum(p.numel() for p in late.parameters()) == sum(p.numel() for p in early.parameters())
    for built, expected in (
        (late, ["conv", "conv", "pool"] * 3),
        (early, ["conv", "pool", "conv"] * 3),
    ):
        kinds = {nn.Conv2d: "conv", nn.MaxPool2d: "pool"}
        assert [kinds[type(layer)] for layer in built if type(layer) in kinds] == expected


def test_a_wrong_depth_is_one_line():
    with pytest.raises(UserError, match=r"model\.depth=19; allowed: 6n \+ 2"):
        net("model=resnet", "model.depth=19")


def test_channels_last_and_compile_keep_the_keys():
    plain = net("model=resnet")
    other = net("model=resnet", "trainer.channels_last=true", "trainer.compile=true")
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert other[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain[1].weight.is_contiguous(memory_format=torch.channels_last)


def test_an_argument_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="heads"):
        net("+model.heads=3")


def layers(model, kind, *overrides):
    return [m for m in net(*overrides, f"model={model}").modules() if type(m) is kind]


@pytest.mark.parametrize("model", ["mlp", "convnet", "resnet"])
def test_input_dropout_acts_on_pixels(model):
    built = net(f"model={model}", "model.input_dropout=0.4").train()
    first = next(m for m in built.modules() if isinstance(m, nn.Dropout))
    assert first.p == 0.4
    assert (
        next(m for m in built.modules() if not list(m.children()) and not isinstance(m, nn.Flatten))
        is first
    )


def test_spatial_dropout_drops_whole_channels():
    for model, count in (("convnet", 3), ("resnet", 9)):
        drops = layers(model, nn.Dropout2d, "model.spatial_dropout=0.5")
        assert [d.p for d in drops] == [0.5] * count
        dropped = drops[0].train()(torch.ones(50, 20, 4, 4)).flatten(2)
        assert {tuple(channel.unique().tolist()) for image in dropped for channel in image} == {
            (0.0,),
            (2.0,),
        }


def test_stochastic_depth_drops_whole_blocks_at_linear_rates():
    built = net("model=resnet", "model.depth=20", "model.drop_path=0.9").train()
    blocks = [m for m in built.modules() if isinstance(m, Residual)]
    assert [b.drop_path.p for b in blocks] == pytest.approx([0.1 * n for n in range(1, 10)])
    last, x = blocks[-1], torch.randn(400, 64, 4, 4)
    out = last(x)
    left_out = (out == x.relu()).flatten(1).all(1)
    assert left_out.float().mean() == pytest.approx(0.9, abs=0.05)
    torch.manual_seed(0)
    scaled = last.drop_path(torch.ones(4000, 2, 3, 3))
    assert scaled.mean() == pytest.approx(1, abs=0.15)
    last.eval()
    assert torch.equal(last(x), (last.body(x) + x).relu())


@pytest.mark.parametrize(
    ("name", "options"),
    [("torchvision", ["model.name=convnext_tiny"]), ("timm", ["model.name=convnext_atto"])],
)
def test_stochastic_depth_of_libraries(name, options):
    built = net(f"model={name}", *options, "model.drop_path=0.3", shape=(3, 32, 32))
    rates = [
        getattr(m, "p", getattr(m, "drop_prob", None))
        for m in built.modules()
        if "rop" in type(m).__name__ or "Depth" in type(m).__name__
    ]
    assert max(rates) == pytest.approx(0.3)
    with pytest.raises(UserError, match="model"):
        net(f"model={name}", "model.name=vgg11", "model.drop_path=0.3", shape=(3, 32, 32))


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["model=mlp", "model.dropout=0.5"], "5"),
        (["model=mlp", "model.dropout=0.5", "model.batch_norm=false"], None),
        (["model=convnet", "model.dropout=0.5"], None),
        (["model=convnet", "model.spatial_dropout=0.5"], "8, 16"),
        (["model=resnet", "model.drop_path=0.5"], None),
    ],
)
def test_dropout_before_batch_norm_is_named(run, capsys, overrides, named):
    run("debug=batch", *overrides)
    said = capsys.readouterr().err
    assert (
        (f"warning: dropout in layer {named} precedes a batch norm" in said)
        if named
        else "warning" not in said
    )


def test_dropout_of_0_is_the_plain_network(run):
    off = (
        "model.dropout=0",
        "model.input_dropout=0",
        "model.spatial_dropout=0",
        "model.drop_path=0",
    )
    plain, with_off, with_on = (
        run("debug=batch", "model=resnet", "model.depth=8", *more, folder=folder)
        for more, folder in (((), "plain"), (off, "off"), (("model.drop_path=0.5",), "on"))
    )
    assert (
        plain.column("train/loss") == with_off.column("train/loss") != with_on.column("train/loss")
    )


@pytest.mark.parametrize("name", list_options(CONF / "model"))
@pytest.mark.parametrize("rate", ["dropout", "input_dropout", "spatial_dropout", "drop_path"])
def test_a_dropout_that_lets_nothing_pass_is_refused(name, rate):
    if rate not in configure(f"model={name}").model:
        return
    with pytest.raises(UserError, match=f"model.{rate}=1.0; allowed: 0 or more, less than 1"):
        net(f"model={name}", f"model.{rate}=1.0")


@pytest.mark.parametrize("wrong", ["model.depth=0", "model.depth=-1", "model.widths=[]"])
def test_a_convnet_has_convolutions(wrong):
    """Without, it was a linear layer on the mean of all pixels."""
    with pytest.raises(UserError, match="a convnet without convolutions"):
        net("model=convnet", wrong)


def test_an_mlp_without_widths_is_softmax_regression():
    model = net("model=mlp", "model.widths=[]", "model.input_dropout=0.2", shape=(1, 8, 8))
    assert [type(m).__name__ for m in model] == ["Flatten", "Dropout", "Linear"]
    assert sum(p.numel() for p in model.parameters()) == 64 * 10 + 10
    with pytest.raises(UserError, match="there are no hidden units"):
        net("model=mlp", "model.widths=[]", "model.dropout=0.5")
