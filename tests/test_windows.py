"""Accumulation windows, learning rates and decay: by the images that there are."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import CONF, ROOT, checked, configure
from torch import nn

from tricklab.assemble import build_data
from tricklab.build import build
from tricklab.duration import batch_images, epoch_images
from tricklab.errors import UserError
from tricklab.network import build_net, read_state
from tricklab.penalty import find_weights, parameter_groups
from tricklab.plan import make_plan

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
    make_plan(cfg, data, 1)
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
    """Train on several processes on the CPU; nothing goes wrong on any of them."""
    command = [sys.executable, str(ROOT / "train.py"), *PLAIN, *options, f"hydra.run.dir={name}"]
    command += ["trainer=ddp", f"trainer.devices={ranks}", "trainer.accelerator=cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return weights(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "images", "accumulate"), [(2, 132, 1), (2, 132, 2), (3, 129, 2), (2, 90, 3)]
)
def test_several_processes_weigh_their_images_alike(run, tmp_path, ranks, images, accumulate):
    size = ("data.val_size=100", f"data.train_size={images}")
    accumulated = f"trainer.accumulate_grad_batches={accumulate}"
    batch = 64 if ranks == 2 else 33
    ours = train_on(tmp_path, "ddp", ranks, *size, accumulated, f"data.batch_size={batch}")
    one = run(*size, *PLAIN, f"data.batch_size={batch * ranks}", accumulated, folder="one")
    theirs = weights(one.folder)
    assert max((ours[key] - theirs[key]).abs().max().item() for key in ours) < 1e-6


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
    found = [batch_images(i, images, size, ranks, drop_last) for i in range(len(sizes) + 1)]
    assert found == [*sizes, 0]
    assert epoch_images(images, size, 1.0, ranks, drop_last) == ranks * sum(sizes)
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
    cfg = configure("optimizer.lr_per=256", *options)
    data = build(cfg.data, seed=0)
    assert make_plan(cfg, data, 1).lr == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        ("penalty=decay", "penalty.decay.strength=1000"),
        ("optimizer=adamw", "optimizer.lr=10", "optimizer.weight_decay=0.2"),
        ("optimizer.lr=1", "optimizer.weight_decay=0.2"),
        ("stop_after=1000ep",),
    ],
)
def test_a_plan_that_harms_the_weights_or_never_ends_is_refused(options):
    cfg = configure(*options)
    with pytest.raises(UserError, match=r"would multiply weights by -|stop_after=1000ep is 11000"):
        make_plan(cfg, build(cfg.data, seed=0), 1)


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "experiment").glob("*.yaml")))
def test_recipes_keep_the_sign_of_weights(name):
    cfg = checked(f"experiment={name}", "data=fake", "data.images=60000", "data.height=1")
    make_plan(cfg, build(cfg.data, seed=0), 1)


NETS = (
    *("resnet18", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "levit_128s"),
    *("beit_base_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_ns_224"),
    *("swinv2_tiny_window8_256", "convnext_tiny", "cait_xxs24_224", "mixer_s32_224"),
    *("efficientnet_b0", "mobilenetv3_small_100", "maxvit_tiny_tf_224", "coat_tiny"),
    *("efficientformer_l1", "xcit_nano_12_p16_224", "pit_ti_224", "crossvit_tiny_240"),
    *(
        "eva02_tiny_patch14_224",
        "regnety_002",
        "visformer_tiny",
        "volo_d1_224",
        "tnt_s_patch16_224",
    ),
)


@pytest.mark.parametrize("name", NETS)
def test_groups_of_decay_are_those_of_timm(name):
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    from timm.optim import param_groups_weight_decay

    with torch.device("meta"):
        net = timm.create_model(name)
    never = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    theirs = param_groups_weight_decay(net, 0.05, no_weight_decay_list=never)
    decayed = {id(p) for group in theirs if group["weight_decay"] for p in group["params"]}
    assert {id(p) for p in parameter_groups(net)[0]["params"]} == decayed
    assert {id(p) for p in find_weights(net)} == decayed


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
    found = {id(p) for p in find_weights(net)}
    left = [key for key, p in net.named_parameters() if p.ndim >= 2 and id(p) not in found]
    assert len(left) == len(spared)
    assert all(key.endswith(end) for key, end in zip(sorted(left), sorted(spared), strict=True))
