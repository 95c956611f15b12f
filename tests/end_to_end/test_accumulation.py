"""Gradient accumulation and DDP: each image of a step has the same weight."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from helpers.configs import configure
from helpers.paths import ROOT
from helpers.runs import Run, max_difference
from tricklab.run.build import build_data, build_net
from tricklab.run.plan import make_plan

PLAIN = (  # one step of SGD subtracts the gradient
    *("model=mlp", "model.widths=[16]", "model.batch_norm=false", "trainer.max_epochs=1"),
    *("optimizer.lr=1", "optimizer.momentum=0", "optimizer.nesterov=false"),
    *("optimizer.weight_decay=0", "trainer.log_every_n_steps=1"),
)
LOGGED = ("train/loss", "train/acc", "train/grad_norm")


def read_weights(run):
    return run.checkpoint()["state_dict"]


def assert_same_training(run, other):
    assert max_difference(run, other) < 1e-6
    for name in LOGGED:
        assert run.column(name) == pytest.approx(other.column(name), rel=1e-5)


@pytest.mark.parametrize("penalty", [(), ("penalty=[l1,l2]",)])
def test_accumulation_gives_the_gradient_of_one_batch(run, penalty):
    """(128 L1 + 2 L2) / 130, however 130 images are cut into batches."""
    overrides = (*PLAIN, *penalty, "data.train_size=130")
    whole = run(*overrides, "data.batch_size=130", folder="130")
    for batch_size, accumulate in ((65, 2), (128, 2), (50, 8)):
        done = run(
            *overrides,
            f"data.batch_size={batch_size}",
            f"trainer.accumulate_grad_batches={accumulate}",
            folder=str(batch_size),
        )
        assert_same_training(done, whole)


def test_accumulation_of_mixed_batches_equals_a_step_by_hand(run):
    overrides = (
        *PLAIN,
        *("mixup=on", "mixup.alpha=1"),
        *("data.train_size=130", "data.batch_size=128", "trainer.accumulate_grad_batches=2"),
    )
    done = run(*overrides)
    config = configure(*overrides)
    data = build_data(config)
    data.mixup_window = make_plan(config, data, 1).mixup_window
    net = build_net(config, data.shape, 10)
    loss, images = 0.0, 0
    for index, batch in enumerate(data.training_batches(lambda: (0, 0))):
        x, y = data.training_batch(batch, (0, index))
        loss = loss + nn.functional.cross_entropy(net(x), y, reduction="sum")
        images += len(x)
    (loss / images).backward()
    weights = read_weights(done)
    for name, parameter in net.named_parameters():
        expected = parameter.detach() - parameter.grad
        assert torch.allclose(weights[f"net.{name}"], expected, atol=1e-6)


def train_ddp(tmp_path, ranks, *overrides):
    """Train on so many processes on the CPU, without an error or a warning of any."""
    command = [sys.executable, str(ROOT / "train.py"), *PLAIN, *overrides, "hydra.run.dir=ddp"]
    command += ["trainer=ddp", f"trainer.devices={ranks}", "trainer.accelerator=cpu"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert all("processes share" in line for line in lines), done.stderr
    return Run(tmp_path / "ddp")


@pytest.mark.parametrize(
    ("ranks", "images", "batch_size", "accumulate"),
    [
        pytest.param(2, 132, 64, 2, marks=pytest.mark.kills),
        # batches of 51, 51 and 9 images
        pytest.param(3, 111, 17, 3, marks=pytest.mark.slow),
    ],
)
def test_ddp_trains_as_one_process(run, tmp_path, ranks, images, batch_size, accumulate):
    """As one process with the batches of all ranks."""
    overrides = (
        "data.val_size=100",
        f"data.train_size={images}",
        "penalty=l2",
        f"trainer.accumulate_grad_batches={accumulate}",
    )
    ddp = train_ddp(tmp_path, ranks, *overrides, f"data.batch_size={batch_size}")
    single = run(*PLAIN, *overrides, f"data.batch_size={batch_size * ranks}", folder="single")
    assert_same_training(ddp, single)
