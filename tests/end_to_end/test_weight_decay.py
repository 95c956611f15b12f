"""Which parameters decay: those that timm decays, without embeddings and scales of channels."""

import re

import pytest
import torch
from torch import nn

from tricklab.optimizer import is_embedding_or_scale, named_weights, parameter_groups

TIMM_NETS = (
    "beit_base_patch16_224",
    "cait_xxs24_224",
    "coat_tiny",
    "convnext_tiny",
    "crossvit_tiny_240",
    "deit_tiny_distilled_patch16_224",
    "efficientformer_l1",
    "efficientnet_b0",
    "eva02_tiny_patch14_224",
    "levit_128s",
    "maxvit_tiny_tf_224",
    "mixer_s32_224",
    "mobilenetv3_small_100",
    "pit_ti_224",
    "regnety_002",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "swinv2_cr_tiny_ns_224",
    "swinv2_tiny_window8_256",
    "tnt_s_patch16_224",
    "vit_tiny_patch16_224",
    "volo_d1_224",
    "xcit_nano_12_p16_224",
)


def create_timm(name):
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    with torch.device("meta"):
        return timm.create_model(name)


def timm_decayed(net):
    """Return the parameters that timm's optimizers decay, by what the network itself excludes."""
    from timm.optim import param_groups_weight_decay

    excluded = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    groups = param_groups_weight_decay(net, 0.05, no_weight_decay_list=excluded)
    return [p for group in groups if group["weight_decay"] for p in group["params"]]


def name_patterns(net, parameters):
    """Return the names of parameters in a network, each number as N."""
    ids = {id(p) for p in parameters}
    return {re.sub(r"\d+", "N", name) for name, p in net.named_parameters() if id(p) in ids}


@pytest.mark.parametrize("name", TIMM_NETS)
def test_decayed_parameters_are_those_of_timm(name):
    net = create_timm(name)
    expected = {id(p) for p in timm_decayed(net)}
    assert {id(p) for p in parameter_groups(net)[0]["params"]} == expected
    assert {id(p) for p in named_weights(net).values()} == expected


@pytest.mark.parametrize(
    ("name", "excluded"),
    [
        ("visformer_tiny", {"pos_embedN"}),
        (
            "halonet26t",
            {
                "stages.N.N.self_attn.pos_embed.height_rel",
                "stages.N.N.self_attn.pos_embed.width_rel",
            },
        ),
        ("edgenext_xx_small", {"stages.N.blocks.N.xca.temperature"}),  # its attention excludes it
        (
            "nf_resnet26",  # scales of channels, [C, 1, 1, 1]
            {"stages.N.N.convN.gain", "stages.N.N.downsample.conv.gain", "stem.conv.gain"},
        ),
    ],
)
def test_timm_network_without_a_list_gets_the_general_rule(name, excluded):
    """All architectures of timm where the groups differ: timm decays these parameters."""
    net = create_timm(name)
    assert not hasattr(net, "no_weight_decay")
    ours = name_patterns(net, named_weights(net).values())
    timms = name_patterns(net, timm_decayed(net))
    assert timms - ours == excluded
    assert ours < timms


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.class_token", True),
        ("cls_token_1", True),
        ("register_tokens", True),
        ("visual.positional_embedding", True),
        ("embeddings.position_embeddings", True),
        ("attn.rel_pos_h", True),
        ("attn.attention_bias_table", True),
        ("rnn.bias_hh", True),
        ("rnn.weight_hh_l0", False),
        ("patch_embed.proj.weight", False),
        ("token_mixer.weight", False),
        ("position_wise.weight", False),
        ("in_proj_weight", False),
        ("compose.kernel", False),
        ("mixer.alpha", False),
    ],
)
def test_embedding_is_recognised_by_its_name(name, expected):
    assert is_embedding_or_scale(name, torch.ones(3, 4)) == expected


def test_embedding_tables_and_channel_scales_do_not_decay():
    net = nn.Module()
    net.table = nn.Embedding(5, 4)
    net.layer = nn.Linear(4, 1)
    net.layer_scale = nn.Parameter(torch.ones(4, 1, 1))
    net.kernel = nn.Parameter(torch.ones(4, 3))
    assert [p.shape for p in named_weights(net).values()] == [(4, 3), (1, 4)]


@pytest.mark.parametrize(
    ("name", "excluded"),
    [
        ("resnet18", []),
        ("vit_b_16", ["class_token", "encoder.pos_embedding"]),
        ("swin_t", ["relative_position_bias_table"] * 12),
        ("swin_v2_t", ["attn.logit_scale"] * 12),
        ("convnext_tiny", ["layer_scale"] * 18),
        ("maxvit_t", ["relative_position_bias_table"] * 22),
    ],
)
def test_torchvision_embeddings_and_scales_do_not_decay(name, excluded):
    from torchvision import models

    with torch.device("meta"):
        net = models.get_model(name)
    decayed = {id(p) for p in named_weights(net).values()}
    others = [key for key, p in net.named_parameters() if p.ndim >= 2 and id(p) not in decayed]
    assert len(others) == len(excluded)
    for key, end in zip(sorted(others), sorted(excluded)):
        assert key.endswith(end)
