"""Schedules in whole runs: the LR of every step of the optimizer, plateau, and refusals."""

import csv
import math
import random

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from helpers.configs import configure
from helpers.schedules import EXACT, NAMES, multiplier
from tricklab.duration import Length, run_length
from tricklab.errors import UserError
from tricklab.run.instantiate import build
from tricklab.run.plan import make_plan


def test_one_cycle_needs_an_optimizer_with_momentum(run):
    adagrad = ("optimizer._target_=torch.optim.Adagrad", "~optimizer.momentum")
    with pytest.raises(UserError, match="Adagrad has no momentum to schedule"):
        run("scheduler=one_cycle", *adagrad, "~optimizer.nesterov", "debug=batch")


def test_one_cycle_needs_a_momentum_above_zero(run):
    sgd = ("optimizer.momentum=0", "optimizer.nesterov=false")
    match = r"SGD has no momentum to schedule; set optimizer\.momentum above 0"
    with pytest.raises(UserError, match=match):
        run("scheduler=one_cycle", *sgd, "debug=batch")


@pytest.mark.parametrize("option", ["scheduler=wsd scheduler.shape", "scheduler.warmup_shape"])
def test_unknown_shape_is_refused_with_the_nearest_one(train, option):
    done = train(*f"{option}=lineer".split())
    assert done.returncode == 1
    assert f"{option.split()[-1]}=lineer; allowed: linear, cosine" in done.stderr
    assert "Did you mean 'linear'" in done.stderr


PLATEAU = (
    "scheduler=plateau",
    "scheduler.patience=0",
    "scheduler.gamma=0.5",
    "model=mlp",
    "optimizer.lr=2.0",  # too high to improve for long
)


LOG_EACH_STEP = "trainer.log_every_n_steps=1"


def test_plateau_lowers_the_lr_at_once_and_resumes(run):
    overrides = (*PLATEAU, LOG_EACH_STEP, "trainer.max_epochs=8")
    whole, epoch = run(*overrides, folder="whole"), 11
    lrs, losses = whole.column("lr"), whole.column("val/loss")
    factor, best = 1.0, math.inf
    for n, loss in enumerate(losses):
        assert lrs[n * epoch : (n + 1) * epoch] == [2.0 * factor] * epoch
        if loss < best * (1 - 1e-4):
            best = loss
        else:
            factor /= 2
    assert factor < 0.5
    run(*overrides, "stop_after=5ep", folder="resumed")
    resumed = run(*overrides, "resume=auto", folder="resumed")
    assert resumed.column("lr") == lrs
    assert resumed.column("val/loss") == losses


def test_plateau_ignores_a_validation_forced_by_a_stop(run):
    overrides = (*PLATEAU, "trainer.log_every_n_steps=11", "trainer.max_epochs=9")
    overrides += ("trainer.check_val_every_n_epoch=3",)
    whole = run(*overrides, folder="whole").column("lr")
    run(*overrides, "stop_after=2ep", folder="resumed")
    run(*overrides, "stop_after=4ep", "resume=auto", folder="resumed")
    assert run(*overrides, "resume=auto", folder="resumed").column("lr") == whole
    assert whole[-1] < 2.0


def check_lrs(run, name, accumulate, limit):
    """Compare the LRs of a run, of 11 batches an epoch or 6, with those of its plan."""
    overrides = [
        f"scheduler={name}",
        "scheduler.warmup=20%",
        "optimizer.lr=0.03",
        "model=mlp",
        limit,
        LOG_EACH_STEP,
        f"trainer.accumulate_grad_batches={accumulate}",
    ]
    if "max_epochs" not in limit:
        overrides.append("trainer.max_epochs=3")
    done, cfg = run(*overrides), configure(*overrides)
    plan = make_plan(cfg, build(cfg.data, seed=0), ranks=1)
    batches = 6 if "limit_train_batches" in limit else 11
    steps = 3 * math.ceil(batches / accumulate)
    if "max_steps" in limit:
        steps = min(steps, 7)
    assert plan.last_step == steps
    expected = [0.03 * plan.multiplier(t) for t in range(steps)]
    assert done.column("lr") == pytest.approx(expected, **EXACT)
    if name == "one_cycle":
        assert done.column("momentum") == [plan.multiplier.momentum(t) for t in range(steps)]


@pytest.mark.parametrize(
    "limit", ["trainer.max_epochs=3", "trainer.max_steps=7", "trainer.limit_train_batches=6"]
)
@pytest.mark.parametrize("accumulate", [1, 3, 4])
def test_optimizer_has_the_planned_lrs_whatever_limits_the_run(run, accumulate, limit):
    check_lrs(run, "one_cycle", accumulate, limit)


@pytest.mark.parametrize("name", NAMES)
def test_optimizer_has_the_planned_lrs_of_each_schedule(run, name):
    check_lrs(run, name, 3, "trainer.max_epochs=3")


@pytest.mark.slow
def test_optimizers_of_two_processes_have_the_planned_lrs(train, tmp_path):
    """1294 images, 64 a batch of both."""
    done = train(
        "scheduler=cosine",
        "scheduler.warmup=20%",
        "trainer=ddp",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
        "trainer.accumulate_grad_batches=3",
        "trainer.max_epochs=3",
        "model=mlp",
        "data.batch_size=32",
        "hydra.run.dir=two",
        LOG_EACH_STEP,
    )
    assert done.returncode == 0, done.stderr
    plan = multiplier("scheduler=cosine", "scheduler.warmup=20%", length=Length(21, 7))
    with (tmp_path / "two" / "metrics.csv").open() as file:
        lrs = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    assert lrs == pytest.approx([0.1 * plan(t) for t in range(21)], **EXACT)


class StepCounter(LightningModule):
    """A minimal module, of which only the optimizer steps count."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, i):
        return self.w.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.slow
def test_run_length_equals_the_steps_of_200_fits():
    draw = random.Random(0)
    off = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    for _ in range(200):
        batches, accumulate, epochs = draw.randint(1, 9), draw.randint(1, 5), draw.randint(1, 4)
        steps = draw.choice([-1, -1, draw.randint(1, 20)])
        limit = draw.choice([1.0, draw.randint(1, 9), 0.5])
        if limit == 0.5 and batches == 1:
            limit = 1.0  # half a batch is none, which is refused
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            max_steps=steps,
            limit_train_batches=limit,
            accumulate_grad_batches=accumulate,
            **off,
        )
        trainer.fit(StepCounter(), torch.utils.data.DataLoader(torch.zeros(2 * batches, 1), 2))
        expected = run_length(2 * batches, 2, epochs, steps, limit, accumulate).steps
        assert trainer.global_step == expected
