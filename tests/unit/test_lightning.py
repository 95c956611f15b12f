"""Arguments and callbacks of Lightning are allowed or refused by name.

A new one in a later version fails here.
"""

import inspect

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from helpers.configs import ONE_BATCH
from helpers.paths import CONF
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
from tricklab.run.build import OWN_KEYS


def test_trainer_arguments_are_all_allowed_or_refused():
    ours = {"_target_", *OWN_KEYS}
    in_conf = set(OmegaConf.load(CONF / "trainer" / "default.yaml")) - ours
    decided = [*in_conf, *EXTRA_ARGUMENTS, *ARGUMENT_ALTERNATIVES]
    assert sorted(decided) == sorted(inspect.signature(pl.Trainer).parameters)


def test_callbacks_are_all_allowed_or_refused():
    decided = [*ALLOWED_CALLBACKS, *PROGRESS_BARS, *CALLBACK_ALTERNATIVES]
    assert sorted(decided) == sorted(pl.callbacks.__all__)


@pytest.mark.parametrize("name", ARGUMENT_ALTERNATIVES)
def test_trainer_argument_is_refused_with_an_alternative(name):
    with pytest.raises(UserError, match=f"trainer.{name} is not supported here; "):
        check_argument(name)


@pytest.mark.parametrize("module", ["callbacks", "callbacks.some.module"])
@pytest.mark.parametrize("name", CALLBACK_ALTERNATIVES)
def test_callback_is_refused_with_an_alternative(module, name):
    with pytest.raises(UserError, match=f"callbacks.x: {name} can't be used here; "):
        check_callback("x", f"pytorch_lightning.{module}.{name}")


def test_progress_bar_can_be_replaced_but_not_doubled():
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
    overrides = (
        "model=mlp",
        "model.batch_norm=false",
        *plain,
        "optimizer.weight_decay=0",
        *ONE_BATCH,
    )
    start, clipped = (
        run(*overrides, *more, folder=folder).folder / "checkpoints" / "last.ckpt"
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
