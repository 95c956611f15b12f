"""Every schedule of conf/scheduler, found by globbing, against torch and timm, then in runs."""

import doctest
import inspect
import math
import random
import re

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler, PolyLRScheduler, StepLRScheduler
from torch.optim import lr_scheduler as oracle

from helpers.paths import CONF
from helpers.schedules import EXACT, NAMES, multiplier
from tricklab import scheduler
from tricklab.duration import Length
from tricklab.errors import UserError

LENGTHS = [Length(1, 1), Length(2, 1), Length(7, 3), Length(100, 10), Length(12_345, 823)]
LOG_EACH_STEP = "trainer.log_every_n_steps=1"


def make_optimizer(momentum=0.95):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=momentum)


def torch_lrs(make, steps):
    """Return torch's LRs, in closed form if it has one.

    Its recursions are off by more than 1e-12 after 12,345 steps.
    """
    optimizer = make_optimizer()
    theirs = make(optimizer)
    lrs = []
    for t in range(steps):
        if hasattr(theirs, "_get_closed_form_lr"):
            theirs.last_epoch = t
            lrs.append(theirs._get_closed_form_lr()[0])
        else:
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            theirs.step()
    return lrs


def test_schedule_doctests_pass():
    result = doctest.testmod(scheduler)
    assert result.failed == 0
    assert result.attempted >= len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_schedule_doctest_has_four_numbers(name):
    (example, *more) = doctest.DocTestParser().get_examples(getattr(scheduler, name).__doc__)
    example = more[-1] if more else example
    assert len(example.want.split(",")) == 4


@pytest.mark.parametrize("name", sorted({*NAMES} - {"plateau"}))
def test_schedule_signature_has_the_keys_of_its_config(name):
    files = [OmegaConf.load(CONF / "scheduler" / f"{file}.yaml") for file in ("_options", name)]
    keys = {key for file in files for key in file if key[0] != "_" and key != "defaults"}
    parameters = inspect.signature(getattr(scheduler, name)).parameters
    assert set(parameters) == {"length", *keys}


@pytest.mark.parametrize("name", sorted({*NAMES} - {"plateau"}))
def test_schedule_durations_are_those_of_its_config(name):
    text = (CONF / "scheduler" / f"{name}.yaml").read_text()
    in_config = set(re.findall(r"^(\w+):.* # duration", text, re.MULTILINE))
    parameters = inspect.signature(inspect.unwrap(getattr(scheduler, name))).parameters
    marked = {key for key, value in parameters.items() if value.annotation in scheduler.IN_CONFIG}
    assert marked == in_config


@pytest.mark.parametrize("length", LENGTHS, ids=lambda length: str(length.steps))
@pytest.mark.parametrize("name", NAMES)
def test_schedule_is_at_most_the_base_lr_and_positive(name, length):
    factor = multiplier(f"scheduler={name}", length=length)
    factors = [factor(t) for t in range(length.steps)]
    assert all(0 < f <= 1 for f in factors)
    beyond = factor(length.steps)
    assert 0 <= beyond <= factors[-1]
    # it never rises again
    assert [factor(length.steps + n) for n in (1, 2, 1000)] == [beyond] * 3
    if name != "one_cycle":
        assert factors[0] == 1


WARMUPS = {
    "linear": lambda o, w: oracle.LinearLR(o, 1 / w, 1.0, max(w - 1, 1)),
    "constant": lambda o, w: oracle.ConstantLR(o, 0.1, w),
    "cosine": lambda o, w: oracle.CosineAnnealingLR(o, w),  # 1 minus a decay from 1 to 0
}


@pytest.mark.parametrize("shape", WARMUPS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("w", [1, 2, 10, 1000])
def test_warmup_precedes_the_decay_within_the_run(name, shape, w):
    """Step t of W has the shape at (t + 1) / W, times the start of the decay."""
    overrides = (f"scheduler={name}", f"scheduler.warmup_shape={shape}", f"scheduler.warmup={w}it")
    plain = multiplier(f"scheduler={name}", length=Length(90, 9))
    warm = multiplier(*overrides, length=Length(w + 90, 9))
    theirs = torch_lrs(lambda o: WARMUPS[shape](o, w), w + 1)
    ramp = [1 - lr for lr in theirs[1:]] if shape == "cosine" else theirs[:w]
    assert [warm(t) for t in range(w)] == pytest.approx([r * plain(0) for r in ramp], **EXACT)
    assert [warm(w + t) for t in range(90)] == [plain(t) for t in range(90)]


def test_warmup_of_shape_constant_has_its_fraction():
    overrides = (
        "scheduler.warmup=3it",
        "scheduler.warmup_shape=constant",
        "scheduler.warmup_share=0.4",
    )
    factor = multiplier("scheduler=constant", *overrides, length=Length(9, 3))
    assert [factor(t) for t in range(4)] == [0.4, 0.4, 0.4, 1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("warmup", ["100it", "10ep", "100%", "11ep"])
def test_warmup_as_long_as_the_run_is_refused(name, warmup):
    with pytest.raises(UserError, match=f"scheduler.warmup={warmup}"):
        multiplier(f"scheduler={name}", f"scheduler.warmup={warmup}", length=Length(100, 10))


@pytest.mark.parametrize("name", NAMES)
def test_warmup_of_a_percentage_fits_into_one_step(name):
    factor = multiplier(f"scheduler={name}", "scheduler.warmup=10%", length=Length(1, 1))
    assert factor(0) == 1


IN_TORCH = [
    (["constant"], lambda o, n: oracle.ConstantLR(o, factor=1.0)),
    (["cosine"], lambda o, n: oracle.CosineAnnealingLR(o, n.steps)),
    (
        ["cosine", "scheduler.floor=0.1"],
        lambda o, n: oracle.CosineAnnealingLR(o, n.steps, eta_min=0.1),
    ),
    (["linear"], lambda o, n: oracle.LinearLR(o, 1.0, 0.0, n.steps)),
    (["linear", "scheduler.floor=0.1"], lambda o, n: oracle.LinearLR(o, 1.0, 0.1, n.steps)),
    (["step", "scheduler.every=1ep"], lambda o, n: oracle.StepLR(o, n.epoch, 0.1)),
    (["step", "scheduler.every=1it", "scheduler.gamma=0.5"], lambda o, n: oracle.StepLR(o, 1, 0.5)),
    (["multistep", "scheduler.milestones=[1it]"], lambda o, n: oracle.MultiStepLR(o, [1], 0.1)),
    (
        ["multistep", "scheduler.milestones=[1it]", "scheduler.gamma=0.3"],
        lambda o, n: oracle.MultiStepLR(o, [1], 0.3),
    ),
    (
        ["exponential", "scheduler.every=1ep", "scheduler.gamma=0.5"],
        lambda o, n: oracle.ExponentialLR(o, 0.5 ** (1 / n.epoch)),
    ),
    (
        ["exponential", "scheduler.every=1it", "scheduler.gamma=0.99"],
        lambda o, n: oracle.ExponentialLR(o, 0.99),
    ),
    (["polynomial", "scheduler.power=3.0"], lambda o, n: oracle.PolynomialLR(o, n.steps, 3.0)),
    (
        ["cosine_restarts", "scheduler.period=1ep"],
        lambda o, n: oracle.CosineAnnealingWarmRestarts(o, n.epoch),
    ),
    (
        [
            "cosine_restarts",
            "scheduler.period=1it",
            "scheduler.period_mult=2",
            "scheduler.floor=0.1",
        ],
        lambda o, n: oracle.CosineAnnealingWarmRestarts(o, 1, 2, 0.1),
    ),
    (
        ["inverse_sqrt", "scheduler.timescale=1it"],
        lambda o, n: oracle.LambdaLR(o, lambda t: (1 + t) ** -0.5),
    ),
    (
        ["inverse_sqrt", "scheduler.timescale=1ep"],
        lambda o, n: oracle.LambdaLR(o, lambda t: (n.epoch / (n.epoch + t)) ** 0.5),
    ),
]


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("length", LENGTHS, ids=lambda length: str(length.steps))
@pytest.mark.parametrize(
    ("overrides", "make"), IN_TORCH, ids=lambda x: x[0] if isinstance(x, list) else ""
)
def test_schedule_equals_torch(overrides, make, length, warmup):
    name, *values = overrides
    whole = Length(length.steps + warmup, length.epoch)
    ours = multiplier(f"scheduler={name}", f"scheduler.warmup={warmup}it", *values, length=whole)
    theirs = torch_lrs(lambda o: WARMUPS["linear"](o, warmup), warmup) if warmup else []
    theirs += torch_lrs(lambda o: make(o, length), length.steps)
    assert np.allclose([ours(t) for t in range(whole.steps)], theirs, rtol=0, atol=1e-12)


def test_schedule_equals_timm():
    """timm's warmup has LR 0 at step 0 and ends one step later: ours is its next step."""
    n, w = 100, 10
    common = {"warmup_t": w, "warmup_lr_init": 0.0, "warmup_prefix": True, "t_in_epochs": False}
    pairs = [
        (
            ["cosine", "scheduler.floor=0.2"],
            CosineLRScheduler(make_optimizer(), n - w, lr_min=0.2, **common),
        ),
        (
            ["polynomial", "scheduler.power=0.5"],
            PolyLRScheduler(make_optimizer(), n - w, power=0.5, **common),
        ),
        (
            ["polynomial", "scheduler.floor=0.3"],
            PolyLRScheduler(make_optimizer(), n - w, power=2, lr_min=0.3, **common),
        ),
        (
            ["step", "scheduler.every=7it"],
            StepLRScheduler(make_optimizer(), decay_t=7, decay_rate=0.1, **common),
        ),
    ]
    for (name, override), theirs in pairs:
        overrides = (f"scheduler={name}", override, f"scheduler.warmup={w}it")
        ours = multiplier(*overrides, length=Length(n, 10))
        expected = [theirs._get_lr(t + 1 if t < w else t)[0] for t in range(n)]
        assert [ours(t) for t in range(n)] == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize(
    ("t", "expected"), [(0, 1.0), (25, (2 + 2**0.5) / 4), (50, 0.5), (75, (2 - 2**0.5) / 4)]
)
def test_cosine_by_hand(t, expected):
    factor = multiplier("scheduler=cosine", length=Length(100, 10))
    assert factor(t) == pytest.approx(expected, abs=1e-15)


def test_cosine_restarts_end_at_the_bottom():
    """The last step of a run of three cycles belongs to the third."""
    overrides = ("scheduler=cosine_restarts", "scheduler.period=10it")
    factor = multiplier(*overrides, length=Length(30, 10))
    assert factor(20) == 1
    assert factor(29) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.9)))
    assert [factor(t) for t in (30, 31)] == [0, 0]


def test_multistep_by_hand():
    overrides = ("scheduler=multistep", "scheduler.milestones=[2ep,50%]")
    factor = multiplier(*overrides, length=Length(100, 10))
    factors = [factor(t) for t in (0, 19, 20, 49, 50, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_multistep_lowers_the_lr_at_the_milestone_like_torch():
    """timm lowers it one step before."""
    timm = MultiStepLRScheduler(make_optimizer(), decay_t=[30], decay_rate=0.1, t_in_epochs=False)
    assert [timm._get_lr(t)[0] for t in (28, 29, 30)] == pytest.approx([1, 0.1, 0.1])
    overrides = ("scheduler=multistep", "scheduler.milestones=[30it]")
    ours = multiplier(*overrides, length=Length(100, 10))
    assert [ours(t) for t in (28, 29, 30)] == [1, 1, 0.1]


@pytest.mark.parametrize("milestone", ["10ep", "100%", "200it", "0"])
def test_multistep_refuses_a_milestone_outside_of_the_run(milestone):
    overrides = ("scheduler=multistep", f"scheduler.milestones=[{milestone}]")
    with pytest.raises(UserError, match=f"scheduler.milestones={milestone}"):
        multiplier(*overrides, length=Length(100, 10))


def test_multistep_refuses_no_milestones():
    with pytest.raises(UserError, match=r"scheduler\.milestones=\[\] is empty"):
        multiplier("scheduler=multistep", "scheduler.milestones=[]", length=Length(100, 10))


@pytest.mark.parametrize("every", ["0", "11ep", "200it"])
def test_step_refuses_an_interval_outside_of_the_run(every):
    with pytest.raises(UserError, match=f"scheduler.every={every}"):
        multiplier("scheduler=step", f"scheduler.every={every}", length=Length(100, 10))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 0.853553, 0.5, 0.146447]),
        ("1-sqrt", [1, 0.5, 0.292893, 0.133975]),
    ],
)
def test_wsd_by_hand(shape, expected):
    overrides = ("scheduler=wsd", "scheduler.cooldown=4it", f"scheduler.shape={shape}")
    factor = multiplier(*overrides, length=Length(20, 5))
    assert [factor(t) for t in range(16)] == [1] * 16
    assert [factor(t) for t in range(16, 20)] == pytest.approx(expected, abs=1e-6)
    assert factor(20) == 0
    floored = multiplier(*overrides, "scheduler.floor=0.2", length=Length(20, 5))
    scaled = [0.2 + 0.8 * factor(t) for t in range(16, 21)]
    assert [floored(t) for t in range(16, 21)] == pytest.approx(scaled)


@pytest.mark.parametrize("steps", [20, 100, 12_345])
@pytest.mark.parametrize("rise", [0.3, 0.5])
@pytest.mark.parametrize("warmup", [0, 5])
@pytest.mark.parametrize(
    ("start", "floor", "low", "high"), [(1 / 25, 4e-6, 0.85, 0.95), (0.1, 0.001, 0.7, 0.8)]
)
def test_one_cycle_equals_torch_in_lr_and_momentum(steps, rise, warmup, start, floor, low, high):
    rise_steps = round(rise * steps)
    optimizer = make_optimizer()
    theirs = oracle.OneCycleLR(
        optimizer,
        1.0,
        total_steps=steps,
        base_momentum=low,
        max_momentum=high,
        div_factor=1 / start,
        final_div_factor=start / floor,
        pct_start=rise_steps / steps,
    )
    ours = multiplier(
        "scheduler=one_cycle",
        f"scheduler.rise={rise_steps}it",
        f"scheduler.warmup={warmup}it",
        f"scheduler.start={start}",
        f"scheduler.floor={floor}",
        f"scheduler.momentum_low={low}",
        f"scheduler.momentum_high={high}",
        length=Length(steps + warmup, 10),
    )
    assert [ours.momentum(t) for t in range(warmup)] == [high] * warmup
    expected = []
    for t in range(steps):
        expected.append([optimizer.param_groups[0][name] for name in ("lr", "momentum")])
        optimizer.step()
        if t < steps - 1:
            theirs.step()
    found = [[ours(t), ours.momentum(t)] for t in range(warmup, warmup + steps)]
    assert np.allclose(found, expected, rtol=0, atol=1e-12)


def test_one_cycle_sets_the_momentum_of_the_optimizer(run, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step

    def record(self, closure):
        seen.append([(group["lr"], group["betas"]) for group in self.param_groups])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    overrides = ("scheduler=one_cycle", "optimizer=adamw", "model=mlp", "trainer.max_epochs=1")
    done = run(*overrides, LOG_EACH_STEP)
    plan = multiplier("scheduler=one_cycle", length=Length(11, 11))
    assert seen == [[(0.001 * plan(t), (plan.momentum(t), 0.999))] * 2 for t in range(11)]
    assert done.column("momentum") == [plan.momentum(t) for t in range(11)]
    assert len(set(done.column("momentum"))) > 5


def test_plateau_equals_torch():
    optimizer, draw = make_optimizer(), random.Random(0)
    theirs = oracle.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, threshold=0.05, min_lr=0.01
    )
    ours = multiplier(
        "scheduler=plateau",
        "scheduler.gamma=0.5",
        "scheduler.patience=2",
        "scheduler.threshold=0.05",
        "scheduler.floor=0.01",
        length=Length(1000, 10),
    )
    lrs = set()
    for n in range(100):
        loss = draw.uniform(0.9, 1.1) * 0.97**n
        if n >= 30:
            loss = draw.choice([0.5, math.nan, math.inf])
        theirs.step(loss)
        ours.step(loss)
        lr = optimizer.param_groups[0]["lr"]
        lrs.add(lr)
        assert ours(0) == ours(999) == lr
    assert {1.0, 0.5, 0.01} <= lrs


PLATEAU = (
    "scheduler=plateau",
    "scheduler.patience=0",
    "scheduler.gamma=0.5",
    "model=mlp",
    "optimizer.lr=2.0",  # too high to improve for long
)


def test_hold_of_an_epoch_equals_torch_stepped_by_epochs():
    theirs = torch_lrs(lambda o: oracle.CosineAnnealingLR(o, 6), 6)
    ours = multiplier("scheduler=cosine", "scheduler.update_every=1ep", length=Length(24, 4))
    assert [ours(t) for t in range(24)] == pytest.approx(np.repeat(theirs, 4), **EXACT)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("interval", [1, 3])
def test_update_every_keeps_lr_and_momentum_of_its_first_step(name, interval):
    overrides = (f"scheduler={name}", "scheduler.warmup=5it")
    free = multiplier(*overrides, length=Length(30, 10))
    held = multiplier(*overrides, f"scheduler.update_every={interval}it", length=Length(30, 10))
    first_steps = [t // interval * interval for t in range(30)]
    assert [held(t) for t in range(30)] == [free(t) for t in first_steps]
    if held.momentum:
        assert [held.momentum(t) for t in range(30)] == [free.momentum(t) for t in first_steps]


@pytest.mark.parametrize("interval", ["31it", "4ep"])
def test_update_every_longer_than_the_run_is_refused(interval):
    with pytest.raises(
        UserError, match=f"scheduler.update_every={interval} is .* allowed: 0 to 30"
    ):
        multiplier("scheduler=cosine", f"scheduler.update_every={interval}", length=Length(30, 10))
