"""fast.py changes no number, and takes effect."""

from collections import Counter
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.profilers import Profiler
from torch import nn

from helpers.configs import ONE_BATCH
from tricklab.fast import NullProfiler, skip_overhead
from tricklab.run import experiment
from tricklab.training import ImageClassifier

SHORT = ("model=mlp", "trainer.log_every_n_steps=1", "trainer.max_epochs=2")
ALL_TRICKS = (
    "callbacks=[ema,early_stopping]",
    "callbacks.early_stopping.patience=1",
    "mixup=on",
    "model.dropout=0.3",
    "penalty=[l1,l2,max_norm]",
    "scheduler=cosine",
)
ACCUMULATION = (
    "trainer.accumulate_grad_batches=3",
    "trainer.gradient_clip_val=0.1",
    "optimizer=adamw",
    "callbacks.last.every_n_steps=2",
)
UNUSED_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward")


@pytest.fixture
def run_slow(run, monkeypatch):
    """Run a config without `skip_overhead`."""

    def run_slow(*overrides, folder="slow"):
        with monkeypatch.context() as patch:
            patch.setattr(experiment, "skip_overhead", lambda trainer, module: None)
            return run(*overrides, folder=folder)

    return run_slow


@pytest.fixture
def actions(monkeypatch):
    """Count what the profiler is asked to measure, by name: every hook that Lightning calls."""
    counts = Counter()

    def count_in(profiler_class):
        profile = profiler_class.profile

        def counting(self, name):
            counts[name] += 1
            return profile(self, name)

        monkeypatch.setattr(profiler_class, "profile", counting)

    count_in(Profiler)
    count_in(NullProfiler)
    return counts


def load_weights(run):
    path = run.folder / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("overrides", [(), ALL_TRICKS, ACCUMULATION])
def test_skip_overhead_changes_no_bit(run, run_slow, overrides):
    fast, slow = run(*SHORT, *overrides), run_slow(*SHORT, *overrides)
    ours, theirs = load_weights(fast), load_weights(slow)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    files = [(run.folder / "metrics.csv").read_bytes() for run in (fast, slow)]
    assert files[0] == files[1]
    assert fast.result["metrics"] == slow.result["metrics"]


def test_skip_overhead_leaves_out_unused_hooks(run, run_slow, actions):
    mixed = "trainer.precision=bf16-mixed"  # by Lightning's own loop
    run_slow(*ONE_BATCH, mixed)
    slow = Counter(actions)
    actions.clear()
    run(*ONE_BATCH, mixed)
    for name in UNUSED_HOOKS:
        assert any(action.endswith(name) for action in slow)
        assert not any(action.endswith(name) for action in actions)
    called = {action for action in actions if action.endswith("on_train_batch_end")}
    assert called == {
        "[Callback]last.on_train_batch_end",
        "[Callback]ProgressBar.on_train_batch_end",
        "[LightningModule]ImageClassifier.on_train_batch_end",
    }
    called = [action for action in actions if action.endswith("on_before_optimizer_step")]
    assert called == ["[LightningModule]ImageClassifier.on_before_optimizer_step"]
    # 5 hooks of 3 callbacks, 3 of the module, and on_train_batch_end of best.ckpt
    assert (slow - actions).total() == 19


class Recorder(pl.Callback):
    """A user's callback with a hook of its class and one of the object."""

    def __init__(self):
        self.called = []
        self.on_before_backward = lambda *arguments: self.called.append("backward")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.called.append("start")


def test_skip_overhead_calls_the_hooks_that_are_used(run, monkeypatch):
    build_trainer = experiment.build_trainer
    recorder = Recorder()

    def build_with_recorder(*arguments):
        trainer = build_trainer(*arguments)
        trainer.callbacks.insert(0, recorder)
        return trainer

    monkeypatch.setattr(experiment, "build_trainer", build_with_recorder)
    run(*ONE_BATCH)
    assert recorder.called == ["start", "backward"]
    assert recorder.on_after_backward is None


@pytest.fixture
def module():
    return ImageClassifier(nn.Linear(2, 2))


def make_fast(module, *callbacks, profiler=None):
    """Return a stand-in of a trainer that `skip_overhead` has been applied to."""
    fit_loop = SimpleNamespace(epoch_loop=pl.Trainer(logger=False).fit_loop.epoch_loop)
    trainer = SimpleNamespace(
        callbacks=list(callbacks), profiler=profiler, is_last_batch=False, fit_loop=fit_loop
    )
    skip_overhead(trainer, module)
    return trainer


def test_setattr_is_bypassed_only_for_what_each_step_writes(module, monkeypatch):
    make_fast(module)
    layer = nn.Linear(2, 2)
    written = []
    setattr_of_torch = nn.Module.__setattr__

    def record(self, name, value):
        written.append(name)
        setattr_of_torch(self, name, value)

    monkeypatch.setattr(nn.Module, "__setattr__", record)
    module._current_fx_name = "training_step"
    module.images_seen = 3
    module.layer = layer
    assert written == ["layer"]
    assert (module._current_fx_name, module.images_seen) == ("training_step", 3)
    assert "layer.weight" in module.state_dict()
    assert type(module).__name__ == "ImageClassifier"


def test_zero_grad_does_not_call_the_optimizer(module):
    make_fast(module)
    module(torch.ones(1, 2)).sum().backward()
    groups = [{"params": list(module.parameters())}]
    optimizer = SimpleNamespace(param_groups=groups)  # without a method `zero_grad`
    module.optimizer_zero_grad(0, 0, optimizer)
    assert [p.grad for p in module.parameters()] == [None, None]


@pytest.mark.parametrize(("limit", "calls"), [(None, 0), (0.0, 0), (0.5, 1)])
def test_clipping_is_called_only_with_a_limit(module, monkeypatch, limit, calls):
    called = []
    clip = "configure_gradient_clipping"
    monkeypatch.setattr(ImageClassifier, clip, lambda *arguments: called.append(arguments))
    make_fast(module)
    module.configure_gradient_clipping(None, limit, "norm")
    assert len(called) == calls


def test_progress_bar_is_updated_every_tenth_batch(module, monkeypatch):
    updated = []
    monkeypatch.setattr(
        RichProgressBar,
        "on_train_batch_end",
        lambda self, *arguments: updated.append(arguments[-1]),
    )
    bar = RichProgressBar()
    trainer = make_fast(module, bar)
    for batch_idx in range(25):
        trainer.is_last_batch = batch_idx == 24
        bar.on_train_batch_end(trainer, module, None, None, batch_idx)
    assert updated == [9, 19, 24]


@pytest.mark.parametrize(("options", "skipped"), [({}, True), ({"every_n_train_steps": 5}, False)])
def test_checkpoint_is_skipped_within_epochs_unless_it_saves_there(module, options, skipped):
    checkpoint = ModelCheckpoint(**options)
    make_fast(module, checkpoint)
    assert (checkpoint.on_train_batch_end is None) == skipped


def test_profiler_of_the_user_is_kept(module):
    profiler = pl.profilers.SimpleProfiler()
    assert make_fast(module, profiler=profiler).profiler is profiler
    null = make_fast(module, profiler=pl.profilers.PassThroughProfiler()).profiler
    assert null.profile("a") is null.profile("b")
