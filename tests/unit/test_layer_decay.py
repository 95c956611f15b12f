"""Layer-wise learning rates: the layer of each parameter, its multiplier, its group."""

import itertools

import pytest
import torch
from torch import nn

from tricklab.errors import UserError
from tricklab.model import convnet, mlp, resnet, torchvision
from tricklab.optimizer import find_layers, is_backbone, keep_group_names, parameter_groups
from tricklab.training import ImageClassifier

TIMM_NETS = (
    "convnext_atto",  # a norm in the layer of the head
    "deit_tiny_distilled_patch16_224",  # two heads
    "levit_128s",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "tf_efficientnet_lite0",
    "vit_tiny_patch16_224",
)


def create_timm(name):
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    with torch.device("meta"):
        return timm.create_model(name, pretrained=False)


def create_torchvision(name):
    with torch.device("meta"):
        return torchvision(3, 1000, name=name)


def small_mlp():
    net = mlp(1, 3, widths=[6, 5])
    net(torch.zeros(2, 1, 2, 2))
    return net


def layers_by_name(net):
    layers = find_layers(net)
    return {name: layers[p] for name, p in net.named_parameters()}


def scales(groups):
    return {id(p): group["lr_scale"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("separate_backbone", [False, True])
@pytest.mark.parametrize("name", TIMM_NETS)
def test_multipliers_of_a_timm_network_are_those_of_timm(name, separate_backbone):
    net = create_timm(name)
    from timm.optim import param_groups_layer_decay

    excluded = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    expected = param_groups_layer_decay(net, 0.05, excluded, layer_decay=0.7)
    groups = parameter_groups(net, separate_backbone, layer_decay=0.7)
    assert scales(groups) == scales(expected)
    assert len(set(scales(groups).values())) > 5


@pytest.mark.parametrize("separate_backbone", [False, True])
@pytest.mark.parametrize("name", TIMM_NETS)
def test_weights_that_decay_are_those_without_layers(name, separate_backbone):
    net = create_timm(name)
    decayed, no_decay = parameter_groups(net)
    groups = parameter_groups(net, separate_backbone, layer_decay=0.7)
    for expected in (decayed, no_decay):
        decay = expected.get("weight_decay")
        found = [id(p) for g in groups if g.get("weight_decay") == decay for p in g["params"]]
        assert sorted(found) == sorted(id(p) for p in expected["params"])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_layers_of_torchvision_are_those_of_timm_for_the_same_network(name):
    """Both libraries have the same names of parameters, but only timm numbers its layers."""
    expected = layers_by_name(create_timm(name))
    found = layers_by_name(create_torchvision(name))
    assert found == expected


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vgg11_bn", {"features.0": 0, "features.1": 0, "features.4": 1, "classifier.3": 9}),
        (
            "vit_b_16",
            {
                "class_token": 0,
                "conv_proj": 0,
                "encoder.pos_embedding": 0,
                "encoder.layers.encoder_layer_0": 1,
                "encoder.layers.encoder_layer_11": 12,
                "encoder.ln": 12,
                "heads.head": 13,
            },
        ),
        (
            "convnext_tiny",  # 18 blocks, the stem, three convolutions between stages, the head
            {"features.0": 0, "features.1.0": 1, "features.2.1": 4, "classifier.2": 22},
        ),
        (
            "swin_t",  # 12 blocks, the stem, three mergings of patches, the head
            {"features.0": 0, "features.1.1": 2, "features.2": 3, "norm": 15, "head": 16},
        ),
        (
            "mobilenet_v3_small",
            {"features.0": 0, "features.1": 1, "features.12": 12, "classifier.0": 13},
        ),
        ("densenet121", {"features.conv0": 0, "features.transition1.conv": 7, "classifier": 62}),
        (
            "inception_v3",
            {"Conv2d_1a_3x3": 0, "Mixed_6a": 8, "Mixed_7b": 14, "Mixed_7c": 15, "fc": 16},
        ),
    ],
)
def test_layers_of_torchvision_are_its_blocks(name, layers):
    found = layers_by_name(create_torchvision(name))
    for prefix, layer in layers.items():
        numbers = {i for key, i in found.items() if f"{key}.".startswith(f"{prefix}.")}
        assert numbers == {layer}, prefix
    assert set(found.values()) == set(range(max(found.values()) + 1))


@pytest.mark.parametrize(
    ("net", "first_modules"),
    [
        (convnet(1, 3, widths=[4, 8]), ["1", "4", "9", "12", "20"]),  # two convolutions each
        (small_mlp(), ["2", "6", "10"]),
        (resnet(1, 3, depth=8, width=4), ["1", "4", "5", "6", "10"]),  # the stem, three blocks
    ],
)
def test_layers_of_our_networks_are_their_blocks(net, first_modules):
    found = layers_by_name(net)
    first = {}
    for key, layer in found.items():
        first.setdefault(layer, key.partition(".")[0])
    assert first == dict(enumerate(first_modules))
    names = list(found)
    assert [found[name] for name in names] == sorted(found.values())  # norms with their block


@pytest.mark.parametrize("separate_backbone", [False, True])
def test_groups_of_layers_have_names_and_multipliers(separate_backbone):
    net = small_mlp()
    groups = parameter_groups(net, separate_backbone, layer_decay=0.5)
    part = "backbone " if separate_backbone else ""
    assert [(g["name"], g["layer"], g["lr_scale"]) for g in groups] == [
        ("head decayed", 2, 1.0),
        ("head no_decay", 2, 1.0),
        (f"{part}layer 1 decayed", 1, 0.5),
        (f"{part}layer 1 no_decay", 1, 0.5),
        (f"{part}layer 0 decayed", 0, 0.25),
        (f"{part}layer 0 no_decay", 0, 0.25),
    ]
    assert [is_backbone(group) for group in groups] == [False] * 2 + [separate_backbone] * 4
    shapes = [[tuple(p.shape) for p in group["params"]] for group in groups]
    assert shapes == [[(3, 5)], [(3,)], [(5, 6)], [(5,), (5,)], [(6, 4)], [(6,), (6,)]]


def test_groups_of_layers_have_every_parameter_once_in_definition_order():
    """The state of an optimizer is stored by position."""
    net = create_torchvision("vit_b_16")
    names = {id(p): name for name, p in net.named_parameters()}
    grouped = [[names[id(p)] for p in g["params"]] for g in parameter_groups(net, True, 0.9)]
    order = list(names.values())
    assert sorted(itertools.chain.from_iterable(grouped)) == sorted(order)
    for group in grouped:
        assert group == sorted(group, key=order.index)
    assert max(map(len, grouped)) > 5


def test_groups_of_layers_leave_out_what_is_not_trained():
    net = small_mlp()
    net[2].weight.requires_grad_(False)
    names = [group["name"] for group in parameter_groups(net, layer_decay=0.5)]
    assert "layer 0 decayed" not in names
    assert "layer 0 no_decay" in names


def test_layer_decay_of_one_adds_nothing_to_the_groups():
    for group in parameter_groups(small_mlp(), True, layer_decay=1.0):
        assert set(group) <= {"params", "name", "weight_decay"}


def test_layer_decay_needs_more_layers_than_the_head():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    message = r"optimizer.layer_decay=0.5: the network has a single layer, the head, .* Expected 1"
    with pytest.raises(UserError, match=message):
        parameter_groups(net, layer_decay=0.5)


def make_module(**options):
    return ImageClassifier(
        small_mlp(), optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1), **options
    )


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [(None, [0.1, 0.05, 0.025]), (0.2, [0.1, 0.01, 0.005]), (0.0, [0.1, 0, 0])],
)
def test_classifier_multiplies_the_lr_of_each_layer(backbone, expected):
    curve = None if backbone is None else lambda step: backbone
    module = make_module(layer_decay=0.5, backbone_multiplier=curve)
    optimizer = module.configure_optimizers()
    module.set_lr(optimizer)
    lrs = [group["lr"] for group in optimizer.param_groups]
    assert lrs == pytest.approx([lr for lr in expected for _ in range(2)], rel=1e-12)


def test_groups_keep_their_multipliers_when_a_state_with_others_is_loaded():
    module = make_module(layer_decay=0.5)
    optimizer = module.configure_optimizers()
    other = make_module(layer_decay=0.9).configure_optimizers().state_dict()
    keep_group_names(optimizer)
    optimizer.load_state_dict(other)
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert scales == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert [group["layer"] for group in optimizer.param_groups] == [2, 2, 1, 1, 0, 0]
