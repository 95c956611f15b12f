"""Reading weights and loading a backbone; networks of torchvision and timm."""

import sys

import pytest
import torch
from torch import nn

from helpers.configs import configure
from tricklab.errors import UserError
from tricklab.model import find_head, torchvision
from tricklab.run.build import build_net
from tricklab.run.weights import Weights, load_backbone, read_weights

PRETRAINED = ("model=torchvision", "model.weights=pretrained")


def build_default(*overrides, channels=1, size=8, classes=10):
    return build_net(configure(*overrides), (channels, size, size), classes)


def test_load_backbone_leaves_the_head():
    net = build_default()
    other = build_default("seed=1", classes=7).state_dict()
    head = find_head(net)[1].weight.clone()
    load_backbone(net, other)
    assert torch.equal(find_head(net)[1].weight, head)
    assert torch.equal(net[1].weight, other["1.weight"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.widths=[16,32,48]",
            r"17.weight is \[48, 32, 3, 3\] in the file, \[64, 32, 3, 3\] in the network",
        ),
        ("model.widths=[16,32]", "17.weight is missing in the file"),
        ("model.widths=[16,32,64,64]", "21.weight is .* in the file|missing in the network"),
        ("model=mlp", ".* in the network"),
    ],
)
def test_load_backbone_refuses_another_network(override, message):
    other = build_default(override).state_dict()
    with pytest.raises(UserError, match=rf"model\.weights: {message}"):
        load_backbone(build_default(), other)


class TwoHeads(nn.Module):
    """As a distilled DeiT: the head of the teacher is the last layer."""

    def __init__(self, classes):
        super().__init__()
        self.backbone = nn.Linear(4, 3)
        self.head = nn.Linear(3, classes)
        self.head_dist = nn.Linear(3, classes)


def test_load_backbone_refuses_a_second_head():
    with pytest.raises(UserError, match=r"head\.weight is \[9, 3\] .* with a single head$"):
        load_backbone(TwoHeads(5), TwoHeads(9).state_dict())
    with pytest.raises(UserError, match=r"weights of the same network$"):
        load_backbone(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5)), nn.Linear(4, 3).state_dict())


def test_state_dict_has_no_input_spec(tmp_path):
    net = build_default()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    weights = read_weights(configure(f"model.weights={tmp_path}/w.pth").model)
    assert isinstance(weights, Weights)
    assert weights.input_spec is None
    assert weights.state.keys() == net.state_dict().keys()


def test_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3, "losses": [1.0]}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth holds no weights"):
        read_weights(configure(f"model.weights={tmp_path}/w.pth").model)


def test_pretrained_weights_of_timm_are_loaded(monkeypatch):
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    source = timm.create_model("resnet18")
    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", lambda name, pretrained: source)
        weights = read_weights(configure("model=timm", "model.weights=pretrained").model)
    assert weights.input_spec.shape == (3, 224, 224)
    assert weights.input_spec.mean == [0.485, 0.456, 0.406]
    net = build_default("model=timm", channels=3, size=64)
    load_backbone(net, weights.state)
    assert torch.equal(net.conv1.weight, source.conv1.weight)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_auxiliary_heads_are_left_out(name, size, monkeypatch):
    """Pretrained weights expect inputs in -1 .. 1, as torchvision's own networks transform them."""
    from torchvision import models

    net = build_default("model=torchvision", f"model.name={name}", channels=3, size=size, classes=4)
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 4)  # in training mode too

    full = models.get_model(name, init_weights=False, aux_logits=True).state_dict()
    default = models.get_model_weights(name)["DEFAULT"]
    monkeypatch.setattr(type(default), "get_state_dict", lambda self, **options: full)
    weights = read_weights(configure(*PRETRAINED, f"model.name={name}").model)
    load_backbone(net, weights.state)

    image = torch.rand(1, 3, 8, 8)
    transforms = default.transforms()
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (transforms.mean, transforms.std))
    reference = models.get_model(name, init_weights=False, transform_input=True)
    expected = reference._transform_input((image - mean) / std)
    ours = (image - weights.input_spec.mean[0]) / weights.input_spec.std[0]
    assert torch.allclose(ours, expected, atol=1e-5)


def test_torchvision_takes_any_channels_and_dropout():
    for channels in (1, 3, 4):
        net = build_default("model=torchvision", "model.dropout=0.3", channels=channels, size=32)
        assert net.conv1.in_channels == channels
        assert isinstance(net.fc[0], nn.Dropout)
        assert net.fc[1].out_features == 10
    assert isinstance(build_default("model=torchvision", channels=3, size=32).fc, nn.Linear)


def test_torchvision_grey_input_changes_channels_only():
    colour = build_default("model=torchvision", channels=3, size=64).conv1
    grey = build_default("model=torchvision", channels=1, size=64).conv1
    assert grey.stride == colour.stride
    assert grey.padding == colour.padding
    assert grey.kernel_size == colour.kernel_size
    assert grey.bias is None


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_torchvision_dropout_is_set_once_and_drop_path_grows_linearly(dropout):
    """In a network that has dropout of its own, it is not added a second time."""
    net = torchvision(3, 5, name="mobilenet_v3_small", dropout=dropout)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [dropout]
    net = torchvision(3, 5, name="efficientnet_b0", drop_path=dropout)
    paths = [m.p for m in net.modules() if "Depth" in str(type(m))]
    expected = [dropout * i / (len(paths) - 1) for i in range(len(paths))]
    assert paths == pytest.approx(expected)


def test_torchvision_refuses_drop_path_without_stochastic_depth():
    message = r"model.drop_path=0.1: resnet18 has no stochastic depth; allowed: 0"
    with pytest.raises(UserError, match=message):
        torchvision(3, 5, name="resnet18", drop_path=0.1)


def test_timm_takes_channels_and_dropout():
    pytest.importorskip("timm", reason="needs the extra [timm]")
    net = build_default("model=timm", "model.dropout=0.4", size=32, classes=5)
    assert net.conv1.in_channels == 1
    assert net.drop_rate == 0.4


def test_missing_timm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'tricklab\[timm\]'"):
        build_default("model=timm", channels=3, size=32)
