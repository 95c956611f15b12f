"""Every argument and callback of Lightning is decided on: a new one in a later version fails here."""

import inspect

import pytest
import pytorch_lightning as pl
import torch
from conftest import CONF, ONE_BATCH
from omegaconf import OmegaConf

from tricklab.cli.lightning import (
    ALLOWED_CALLBACKS,
    ARGUMENT_ALTERNATIVES,
    CALLBACK_ALTERNATIVES,
    EXTRA_ARGUMENTS,
    PROGRESS_BARS,
    check_argument,
    check_callback,
)
from tricklab.errors import UserError


def test_every_argument_of_the_trainer_is_decided_on():
    ours = {"_target_", "compile", "channels_last"}
    in_conf = set(OmegaConf.load(CONF / "trainer" / "default.yaml")) - ours
    decided = [*in_conf, *EXTRA_ARGUMENTS, *ARGUMENT_ALTERNATIVES]
    assert sorted(decided) == sorted(inspect.signature(pl.Trainer).parameters)


def test_every_callback_is_decided_on():
    decided = [*ALLOWED_CALLBACKS, *PROGRESS_BARS, *CALLBACK_ALTERNATIVES]
    assert sorted(decided) == sorted(pl.callbacks.__all__)


@pytest.mark.parametrize("name", ARGUMENT_ALTERNATIVES)
def test_argument_is_refused_by_name(name):
    with pytest.raises(UserError, match=f"trainer.{name} is not supported here; "):
        check_argument(name)


@pytest.mark.parametrize("module", ["callbacks", "callbacks.some.module"])
@pytest.mark.parametrize("name", CALLBACK_ALTERNATIVES)
def test_callback_is_refused_by_name(module, name):
    with pytest.raises(UserError, match=f"callbacks.x: {name} can't be used here; "):
        check_callback("x", f"pytorch_lightning.{module}.{name}")


def test_a_second_bar_is_refused_and_another_one_is_not():
    bar = "pytorch_lightning.callbacks.TQDMProgressBar"
    with pytest.raises(
        UserError, match=f"there is a progress bar already; use callbacks.progress._target_={bar}"
    ):
        check_callback("x", bar)
    check_callback("progress", bar)
    check_callback("x", "mine.callbacks.Timer")


def test_clipping_by_value_bounds_each_step(run):
    """With plain SGD and lr 1 no weight moves by more than the bound."""
    plain = ("optimizer.lr=1", "optimizer.momentum=0", "optimizer.nesterov=false")
    words = ("model=mlp", "model.batch_norm=false", *plain, "optimizer.weight_decay=0", *ONE_BATCH)
    start, clipped = (
        run(*words, *more, folder=folder).folder / "checkpoints" / "last.ckpt"
        for folder, more in (
            ("start", ("optimizer.lr=0",)),
            (
                "clipped",
                ("trainer.gradient_clip_val=0.001", "+trainer.gradient_clip_algorithm=value"),
            ),
        )
    )
    before, after = (torch.load(path, weights_only=True)["state_dict"] for path in (start, clipped))
    moved = max((after[key] - before[key]).abs().max().item() for key in before)
    assert moved == pytest.approx(0.001, rel=1e-3)
