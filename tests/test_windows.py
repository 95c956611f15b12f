"""Accumulation windows, learning rates and decay: by the images that there are."""

import os
import re
import subprocess
import sys

import pytest
import torch
from helpers.configs import configure
from helpers.paths import CONF, ROOT
from helpers.runs import Run
from omegaconf import OmegaConf
from torch import nn

from tricklab.duration import divide_epoch
from tricklab.errors import UserError
from tricklab.optimizer import is_embedding_or_scale, named_weights, parameter_groups
from tricklab.run.build import build_data, build_net, build_penalties
from tricklab.run.instantiate import build, omit
from tricklab.run.plan import make_plan, scale_lr, total_decay
from tricklab.run.weights import read_state

DECOUPLED = "+optimizer.decoupled_weight_decay=true"
PLAIN = (
    *("model=mlp", "model.widths=[16]", "model.batch_norm=false", "trainer.max_epochs=1"),
    *("optimizer.lr=1", "optimizer.momentum=0", "optimizer.nesterov=false"),
    *("optimizer.weight_decay=0", "trainer.log_every_n_steps=1"),
)


def weights(folder):
    state, _ = read_state(folder / "checkpoints" / "last.ckpt")
    return state


def difference(one, other):
    one, other = weights(one.folder), weights(other.folder)
    return max((one[key] - other[key]).abs().max().item() for key in one)


@pytest.mark.parametrize("penalty", [(), ("penalty=[l1,l2]",)])
def test_a_window_weighs_its_images_alike(run, penalty):
    """(128 L1 + 2 L2) / 130, however 130 images are cut into batches."""
    options = (*PLAIN, *penalty, "data.train_size=130")
    whole = run(*options, "data.batch_size=130", folder="130")
    halves = ("data.batch_size=65", "trainer.accumulate_grad_batches=2")
    unequal = ("data.batch_size=128", "trainer.accumulate_grad_batches=2")
    more = ("data.batch_size=50", "trainer.accumulate_grad_batches=8")
    for n, cut in enumerate((halves, unequal, more)):
        done = run(*options, *cut, folder=str(n))
        assert difference(done, whole) < 1e-6
        for name in ("train/loss", "train/acc", "train/grad_norm"):
            assert done.column(name) == pytest.approx(whole.column(name), rel=1e-5)


def test_mixed_batches_of_a_window_weigh_their_images(run):
    """Equal to one step by hand over the same mixed batches."""
    options = (*PLAIN, "mixup=on", "mixup.alpha=1", "data.train_size=130", "data.batch_size=128")
    options += ("trainer.accumulate_grad_batches=2",)
    done = run(*options)
    cfg = configure(*options)
    data = build_data(cfg)
    data.mixup_window = make_plan(cfg, data, 1).mixup_window
    net = build_net(cfg, data.shape, 10)
    loss, images = 0.0, 0
    for index, batch in enumerate(data.training_batches(lambda: (0, 0))):
        x, y = data.training_batch(batch, (0, index))
        loss = loss + nn.functional.cross_entropy(net(x), y, reduction="sum")
        images += len(x)
    (loss / images).backward()
    for name, parameter in net.named_parameters():
        expected = parameter.detach() - parameter.grad
        assert torch.allclose(weights(done.folder)[name], expected, atol=1e-6)


def train_on(tmp_path, name, ranks, *options):
    """Train on several processes on the CPU, of which none complains; return what they left."""
    command = [sys.executable, str(ROOT / "train.py"), *PLAIN, *options, f"hydra.run.dir={name}"]
    command += ["trainer=ddp", f"trainer.devices={ranks}", "trainer.accelerator=cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all("processes share" in line for line in lines), done.stderr
    return Run(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "images", "size", "accumulate"),
    [(2, 132, 64, 1), (2, 132, 64, 2), (2, 90, 64, 3), (3, 111, 17, 1), (3, 111, 17, 3)],
)
def test_several_processes_weigh_their_images_alike(run, tmp_path, ranks, images, size, accumulate):
    """As one process with the batches of all; those of (3, 111, 17) are 51, 51 and 9 images."""
    options = ("data.val_size=100", f"data.train_size={images}", "penalty=l2")
    options += (f"trainer.accumulate_grad_batches={accumulate}",)
    ours = train_on(tmp_path, "ddp", ranks, *options, f"data.batch_size={size}")
    one = run(*PLAIN, *options, f"data.batch_size={size * ranks}", folder="one")
    assert difference(ours, one) < 1e-6
    for name in ("train/loss", "train/acc", "train/grad_norm"):
        assert ours.column(name) == pytest.approx(one.column(name), rel=1e-5)


@pytest.mark.parametrize(
    ("images", "size", "ranks", "drop_last", "sizes"),
    [
        (130, 128, 1, False, [128, 2]),
        (129, 128, 1, False, [128]),  # one image is no batch
        (130, 128, 1, True, [128]),
        (132, 64, 2, False, [64, 2]),
        (100, 33, 3, False, [33]),
        (130, 20, 3, False, [20, 20, 3]),
        (256, 128, 1, False, [128, 128]),
    ],
)
def test_sizes_of_batches_are_those_of_the_loader(images, size, ranks, drop_last, sizes):
    batching = divide_epoch(images, size, 1.0, 1, ranks, drop_last)
    assert batching == (ranks * sum(sizes), size * ranks, len(sizes), 1, ranks)
    cfg = configure(f"data.train_size={images}", f"data.batch_size={size}", "data.val_size=100")
    data = build(cfg.data, seed=0, drop_last=drop_last)
    for rank in range(ranks):
        batches = data.training_batches(lambda: (0, 0), rank, ranks)
        assert [len(batch[0]) for batch in batches] == sizes


@pytest.mark.parametrize(
    ("options", "lr"),
    [
        (("trainer.accumulate_grad_batches=64",), 0.1 * 1294 / 256),
        (("trainer.accumulate_grad_batches=2",), 0.1),
        (("data.batch_size=1000", "trainer.accumulate_grad_batches=2"), 0.1 * 1294 / 256),
        (("data.batch_size=1000", "data.drop_last=true"), 0.1 * 1000 / 256),
        (("trainer.limit_train_batches=1", "trainer.accumulate_grad_batches=8"), 0.05),
    ],
)
def test_the_lr_scales_with_images_that_there_are(options, lr):
    cfg = configure("optimizer.lr_base_batch_size=256", *options)
    data = build(cfg.data, seed=0)
    assert make_plan(cfg, data, 1).lr == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        ("penalty=decay", "penalty.decay.strength=1000"),
        ("optimizer=adamw", "optimizer.lr=10", "optimizer.weight_decay=0.2"),
        ("optimizer.lr=1", "optimizer.weight_decay=0.2"),
        ("penalty=l2", "penalty.l2.strength=1.1"),
        ("optimizer.weight_decay=0.2", "model.backbone_lr_mult=6"),
        ("stop_after=1000ep",),
    ],
)
def test_a_plan_that_harms_the_weights_or_never_ends_is_refused(options):
    cfg = configure(*options)
    with pytest.raises(UserError, match=r"would multiply weights by -|stop_after=1000ep is 11000"):
        make_plan(cfg, build(cfg.data, seed=0), 1)


RECIPES = [(p.stem, []) for p in sorted((CONF / "experiment").glob("*.yaml"))] + [
    (f"claims/{path.stem}", arm)
    for path in sorted((CONF / "experiment" / "claims").glob("*.yaml"))
    if re.search(r"\b(optimizer|penalty)\b", path.read_text())
    for arm in OmegaConf.load(path).claim.arms.values()
]  # the others have the default optimizer


@pytest.mark.parametrize(
    ("name", "arm"), RECIPES, ids=[" ".join([name, *arm]) for name, arm in RECIPES]
)
def test_committed_recipes_keep_the_sign_of_weights(name, arm):
    """At a tenth of what is refused, or less."""
    cfg = configure(f"experiment={name}", *arm)
    assert total_decay(cfg) * scale_lr(cfg, cfg.data.batch_size) < 0.1


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer.momentum=0", "optimizer.nesterov=false"],
        ["optimizer.momentum=0.9"],
        ["optimizer.weight_decay=1e-3", "penalty=l2", "penalty.l2.strength=1e-3"],
        ["optimizer.weight_decay=0", "penalty=decay", "penalty.decay.strength=0.3"],
        ["optimizer=adamw"],
        ["optimizer=adamw", "optimizer._target_=torch.optim.Adam", DECOUPLED],
    ],
)
def test_the_decay_of_weights_is_what_an_optimizer_leaves_of_them(words):
    """Of a weight whose loss has no gradient, after many small steps."""
    cfg = configure(*words)
    net = nn.Linear(1, 1, bias=False).double()
    weight = net.weight
    nn.init.ones_(weight)
    optimizer = build(omit(cfg.optimizer, "lr_base_batch_size", "fused"), lr=0.01)([weight])
    penalties = build_penalties(cfg.penalty, net)
    for _ in range(2000):
        loss = penalties["l2"].fn([weight]) if "l2" in penalties else 0 * weight.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if "decay" in penalties:
            penalties["decay"].fn([weight.data], lr=0.01)
    assert weight.item() < 0.999
    assert weight.item() == pytest.approx((1 - 0.01 * total_decay(cfg)) ** 2000, rel=0.01)


@pytest.mark.parametrize(
    ("words", "decay"),
    [
        (["optimizer=adamw", "penalty=l2"], 0.05),  # of l2 Adam scales the gradient
        (["optimizer=adamw", "optimizer._target_=torch.optim.Adam"], 0.0),
        (["penalty=[l1,l1_prox,max_norm]", "optimizer.weight_decay=0"], 0.0),
    ],
)
def test_what_never_turns_the_sign_of_weights_is_no_decay(words, decay):
    assert total_decay(configure(*words)) == decay


SIDES = ("height", "width")
NETS = (
    *("resnet18", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "levit_128s"),
    *("beit_base_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224"),
    *("swinv2_tiny_window8_256", "convnext_tiny", "cait_xxs24_224", "mixer_s32_224"),
    *("efficientnet_b0", "mobilenetv3_small_100", "maxvit_tiny_tf_224", "coat_tiny"),
    *("efficientformer_l1", "xcit_nano_12_p16_224", "pit_ti_224", "crossvit_tiny_240"),
    *(
        "eva02_tiny_patch14_224",
        "regnety_002",
        "volo_d1_224",
        "tnt_s_patch16_224",
    ),
)


def names_of(net, parameters):
    """Return names of parameters by the order of the network, each number as N."""
    found = {id(p) for p in parameters}
    return {re.sub(r"\d+", "N", name) for name, p in net.named_parameters() if id(p) in found}


def decayed_by_timm(net):
    """Return the weights that timm's optimizers decay; timm asks the network itself alone."""
    from timm.optim import param_groups_weight_decay

    never = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    groups = param_groups_weight_decay(net, 0.05, no_weight_decay_list=never)
    return [p for group in groups if group["weight_decay"] for p in group["params"]]


@pytest.mark.parametrize("name", NETS)
def test_groups_of_decay_are_those_of_timm(name):
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    with torch.device("meta"):
        net = timm.create_model(name)
    theirs = {id(p) for p in decayed_by_timm(net)}
    assert {id(p) for p in parameter_groups(net)[0]["params"]} == theirs
    assert {id(p) for p in named_weights(net).values()} == theirs


@pytest.mark.parametrize(
    ("name", "spared"),
    [
        ("visformer_tiny", {"pos_embedN"}),  # embeddings of positions
        ("halonet26t", {f"stages.N.N.self_attn.pos_embed.{side}_rel" for side in SIDES}),
        ("edgenext_xx_small", {"stages.N.blocks.N.xca.temperature"}),  # which that part names
        (
            "nf_resnet26",  # scales of channels, of shape [C, 1, 1, 1]
            {
                *(f"stages.N.N.{part}.gain" for part in ("convN", "downsample.conv")),
                "stem.conv.gain",
            },
        ),
    ],
)
def test_a_network_of_timm_that_names_nothing_is_judged_as_any_other(name, spared):
    """All architectures of timm where the groups differ; timm decays these."""
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    with torch.device("meta"):
        net = timm.create_model(name)
    assert not hasattr(net, "no_weight_decay")
    ours, theirs = names_of(net, named_weights(net).values()), names_of(net, decayed_by_timm(net))
    assert theirs - ours == spared
    assert ours < theirs


@pytest.mark.parametrize(
    ("name", "is_spared"),
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
def test_embeddings_are_known_by_their_names(name, is_spared):
    assert is_embedding_or_scale(name, torch.ones(3, 4)) == is_spared


def test_tables_of_embeddings_and_scales_of_channels_do_not_decay():
    net = nn.Module()
    net.table, net.layer = nn.Embedding(5, 4), nn.Linear(4, 1)
    net.layer_scale, net.kernel = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.ones(4, 3))
    assert [p.shape for p in named_weights(net).values()] == [(4, 3), (1, 4)]


@pytest.mark.parametrize(
    ("name", "spared"),
    [
        ("resnet18", []),
        ("vit_b_16", ["class_token", "encoder.pos_embedding"]),
        ("swin_t", ["relative_position_bias_table"] * 12),
        ("swin_v2_t", ["attn.logit_scale"] * 12),
        ("convnext_tiny", ["layer_scale"] * 18),
        ("maxvit_t", ["relative_position_bias_table"] * 22),
    ],
)
def test_embeddings_and_scales_of_torchvision_do_not_decay(name, spared):
    from torchvision import models

    with torch.device("meta"):
        net = models.get_model(name)
    found = {id(p) for p in named_weights(net).values()}
    left = [key for key, p in net.named_parameters() if p.ndim >= 2 and id(p) not in found]
    assert len(left) == len(spared)
    assert all(key.endswith(end) for key, end in zip(sorted(left), sorted(spared), strict=True))
