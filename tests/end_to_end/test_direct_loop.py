"""The direct loop does what Lightning's does: hooks, counters, logs and weights are the same."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from tricklab.direct_loop import HOOKS, DirectLoop, is_plain

BATCHES = 4
OPTIONS = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 2,
    "accelerator": "cpu",
}


class Module(pl.LightningModule):
    """Records its hooks, and logs in three ways."""

    def __init__(self, scheduled=False, skipped=None, result=lambda loss, batch_idx: loss):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.calls = []
        self.scheduled = scheduled
        self.skipped = skipped
        self.result = result

    def training_step(self, batch, batch_idx):
        self.calls.append(("training_step", batch_idx))
        loss = self.layer(batch).square().mean()
        self.log("step", loss)
        self.log("mean", loss, on_step=False, on_epoch=True)
        return self.result(loss, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.layer(batch).mean())

    def on_train_batch_start(self, batch, batch_idx):
        self.calls.append(("module start", batch_idx))
        return -1 if batch_idx == self.skipped else None

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.calls.append(("module end", repr(outputs), batch_idx))
        self.log("at the end", batch.sum())

    def on_before_optimizer_step(self, optimizer):
        self.calls.append(("gradient", repr(self.layer.weight.grad)))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        if not self.scheduled:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Recorder(pl.Callback):
    def __init__(self):
        self.calls = []
        for name in HOOKS:
            setattr(self, name, self.record(name))

    def record(self, name):
        def hook(trainer, module, *arguments):
            progress = trainer.fit_loop.epoch_loop.batch_progress.state_dict()
            counters = (trainer.global_step, progress)
            logged = {key: value.item() for key, value in trainer.callback_metrics.items()}
            self.calls.append((name, len(arguments), repr(counters), logged))

        return hook


def fit(direct, module=None, **options):
    """Return the module, its trainer and a recorder, trained by one of the loops."""
    module = module or Module()
    recorder = Recorder()
    images = torch.arange(3.0 * (2 * BATCHES - 1)).view(-1, 3) / 10  # the last batch is smaller
    trainer = pl.Trainer(**OPTIONS | options, callbacks=[recorder])
    if direct:
        trainer.fit_loop.epoch_loop.__class__ = DirectLoop
    trainer.fit(module, DataLoader(images, 2), DataLoader(images, 2))
    return module, trainer, recorder


CASES = {
    "plain": ({}, {}),
    "clipped": ({}, {"gradient_clip_val": 0.01}),
    "stopped within an epoch": ({}, {"max_steps": BATCHES + 2}),
    "few batches": ({}, {"limit_train_batches": 3}),
    "validated within an epoch": ({}, {"val_check_interval": 2}),
    "accumulated": ({}, {"accumulate_grad_batches": 3}),
    "bfloat16": ({}, {"precision": "bf16-mixed"}),
    "scheduled by Lightning": ({"scheduled": True}, {}),
    "skipped": ({"skipped": 2}, {}),
    "mapping": ({"result": lambda loss, _: {"loss": loss, "more": 1}}, {}),
    "without a loss": ({"result": lambda loss, batch_idx: loss if batch_idx else None}, {}),
}

PLAIN = (
    *("plain", "clipped", "stopped within an epoch", "few batches"),
    *("skipped", "mapping", "without a loss"),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_direct_loop_does_what_lightnings_does(case):
    of_module, options = CASES[case]
    (ours, our_trainer, our_hooks), (theirs, their_trainer, their_hooks) = (
        fit(direct, Module(**of_module), **options) for direct in (True, False)
    )
    assert ours.calls == theirs.calls
    assert our_hooks.calls == their_hooks.calls
    assert torch.equal(ours.layer.weight, theirs.layer.weight)
    states = [trainer.fit_loop.state_dict() for trainer in (our_trainer, their_trainer)]
    assert repr(states[0]) == repr(states[1])
    assert our_trainer.logged_metrics == their_trainer.logged_metrics
    assert {"step", "mean", "at the end"} <= our_trainer.callback_metrics.keys()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_direct_loop_leaves_out_lightnings_calls_where_a_step_is_plain(case, monkeypatch):
    of_module, options = CASES[case]
    called = []
    run = pl.loops.optimization.automatic._AutomaticOptimization.run

    def record(self, *arguments):
        called.append(arguments)
        return run(self, *arguments)

    monkeypatch.setattr(pl.loops.optimization.automatic._AutomaticOptimization, "run", record)
    _, trainer, _ = fit(True, Module(**of_module), **options)
    plain = case in PLAIN
    assert is_plain(trainer) == plain
    assert bool(called) == (not plain)
