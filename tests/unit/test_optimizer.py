"""Parameter groups: names, decay, and loading states without names."""

import pytest
import torch
from torch import nn

from tricklab.optimizer import is_backbone, keep_group_names, named_weights, parameter_groups
from tricklab.training import ImageClassifier


def small_net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_named_weights_are_matrices_each_once():
    shared = nn.Linear(4, 4)
    weights = named_weights(small_net())
    assert [(name, w.shape) for name, w in weights.items()] == [
        ("0.weight", (4, 3)),
        ("2.weight", (2, 4)),
    ]
    assert list(named_weights(nn.Sequential(shared, nn.ReLU(), shared))) == ["0.weight"]


def test_named_weights_are_trainable():
    net = small_net()
    net[0].weight.requires_grad_(False)
    assert list(named_weights(net)) == ["2.weight"]


def test_groups_of_the_whole_net_are_decayed_and_no_decay():
    net = small_net()
    groups = parameter_groups(net)
    assert [group["name"] for group in groups] == ["decayed", "no_decay"]
    assert [len(group["params"]) for group in groups] == [2, 4]
    assert not any(map(is_backbone, groups))


def test_groups_of_a_separate_backbone_have_its_name():
    net = small_net()
    groups = {group["name"]: group["params"] for group in parameter_groups(net, True)}
    assert list(groups) == [
        "head decayed",
        "head no_decay",
        "backbone decayed",
        "backbone no_decay",
    ]
    assert groups["head decayed"][0] is net[2].weight
    assert groups["head no_decay"][0] is net[2].bias
    assert groups["backbone decayed"][0] is net[0].weight
    assert len(groups["backbone no_decay"]) == 3
    assert [is_backbone({"name": name}) for name in groups] == [False, False, True, True]


@pytest.mark.parametrize("separate_backbone", [False, True])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_decay_all_leaves_no_parameter_out(separate_backbone, layer_decay):
    net = small_net()
    plain = parameter_groups(net, separate_backbone, layer_decay)
    groups = parameter_groups(net, separate_backbone, layer_decay, decay_all=True)
    assert {group["name"] for group in groups} <= {group["name"] for group in plain}
    decayed = {p for group in groups if "weight_decay" not in group for p in group["params"]}
    assert decayed == set(net.parameters())
    assert all(not group["params"] for group in groups if "no_decay" in group["name"])


def test_no_decay_group_does_not_decay():
    net = small_net()
    optimizer = torch.optim.SGD(parameter_groups(net), lr=1.0, weight_decay=0.5)
    before = [p.clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(net.parameters(), before):
        assert torch.equal(p, old * 0.5 if p.ndim == 2 else old)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_group_names_survive_a_state_without_names(make):
    net = small_net()
    optimizer = make(parameter_groups(net, separate_backbone=True), lr=0.1)
    names = [group["name"] for group in optimizer.param_groups]
    old_state = optimizer.state_dict()
    for group in old_state["param_groups"]:
        del group["name"]
        group["lr"] = 0.5
    keep_group_names(optimizer)
    optimizer.load_state_dict(old_state)
    assert [group["name"] for group in optimizer.param_groups] == names
    assert [group["lr"] for group in optimizer.param_groups] == [0.5] * 4


def test_classifier_sets_the_lr_of_the_backbone_after_loading_an_old_state():
    module = ImageClassifier(
        small_net(),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1),
        backbone_multiplier=lambda step: 0.5,
    )
    optimizer = module.configure_optimizers()
    old_state = optimizer.state_dict()
    for group in old_state["param_groups"]:
        del group["name"]
    optimizer.load_state_dict(old_state)
    module.set_lr(optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.05, 0.05]
