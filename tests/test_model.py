import pytest
import torch
from conftest import CONF, configure
from torch import nn

from tricklab.cli import options
from tricklab.errors import UserError
from tricklab.network import build_net


def net(*overrides, shape=(3, 32, 32), classes=10):
    return build_net(configure(*overrides), shape, classes)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 17, 40), (1, 1, 1)])
@pytest.mark.parametrize("name", options(CONF / "model"))
def test_any_shape_and_number_of_classes(name, shape):
    for classes in (2, 100):
        model = net(f"model={name}", shape=shape, classes=classes)
        assert model.training
        assert model.eval()(torch.zeros(3, *shape)).shape == (3, classes)


@pytest.mark.parametrize("name", options(CONF / "model"))
def test_dropout_acts_in_training_only(name):
    model, images = net(f"model={name}", "model.dropout=0.5"), torch.randn(16, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 0.0  # so that only dropout is random
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))
    plain = net(f"model={name}")
    assert torch.equal(plain(images), plain(images))


@pytest.mark.parametrize("name", options(CONF / "model"))
def test_weights_follow_from_the_seed_alone(name):
    torch.rand(7)
    first = net(f"model={name}", "mixup=on", "seed=3").state_dict()
    torch.rand(8)
    again, other = net(f"model={name}", "seed=3").state_dict(), net(f"model={name}", "seed=4").state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 272_474), (32, 466_906), (56, 855_770)])
def test_resnet_has_the_layers_of_the_paper(depth, parameters):
    """The paper's 0.27 M, 0.46 M and 0.85 M, to the last one those published for projection shortcuts."""
    model = net("model=resnet", f"model.depth={depth}")
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in model.modules()) == depth - 1


def test_mlp_widths_and_input_dropout():
    model = net("model=mlp", "model.widths=[64,128,64]", "model.input_dropout=0.2", shape=(1, 28, 28))
    assert [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)] == [
        (784, 64),
        (64, 128),
        (128, 64),
        (64, 10),
    ]
    assert model[1].p == 0.2


def test_a_wrong_depth_is_one_line():
    with pytest.raises(UserError, match=r"model\.depth=19; allowed: 6n \+ 2"):
        net("model=resnet", "model.depth=19")


def test_channels_last_and_compile_keep_the_keys():
    plain = net("model=resnet")
    other = net("model=resnet", "trainer.channels_last=true", "trainer.compile=true")
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert other[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_an_argument_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="heads"):
        net("+model.heads=3")
