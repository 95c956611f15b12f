"""Every option of conf/scheduler, found by globbing, and the oracles of those that torch has too."""

import math

import pytest
import torch
from conftest import CONF, configure
from torch.optim import lr_scheduler as oracle

from tricklab.build import build
from tricklab.cli import options
from tricklab.duration import Length
from tricklab.errors import UserError

LENGTHS = [Length(2, 1), Length(7, 3), Length(100, 10), Length(12_345, 823)]


def multiplier(*overrides, length):
    return build(configure(*overrides).scheduler)(length)


@pytest.mark.parametrize("length", LENGTHS[1:])
@pytest.mark.parametrize("name", options(CONF / "scheduler"))
def test_rates_are_shares_of_the_first(name, length):
    rate = multiplier(f"scheduler={name}", length=length)
    rates = [rate(t) for t in range(length.steps)]
    assert rates[0] == 1
    assert all(0 < r <= 1 for r in rates)
    beyond = rate(length.steps)
    assert 0 <= beyond <= rates[-1]
    assert [rate(length.steps + n) for n in (1, 2, 1000)] == [beyond] * 3  # it never rises again


@pytest.mark.parametrize("name", options(CONF / "scheduler"))
def test_warmup_lies_in_front_and_inside(name):
    plain = multiplier(f"scheduler={name}", length=Length(90, 9))
    warm = multiplier(f"scheduler={name}", "scheduler.warmup=10it", length=Length(100, 9))
    assert [warm(t) for t in range(10)] == [(t + 1) / 10 for t in range(10)]
    assert [warm(10 + t) for t in range(90)] == [plain(t) for t in range(90)]


@pytest.mark.parametrize("name", options(CONF / "scheduler"))
@pytest.mark.parametrize("warmup", ["100it", "10ep", "100%", "11ep"])
def test_warmup_as_long_as_the_run_is_refused(name, warmup):
    with pytest.raises(UserError, match=f"scheduler.warmup={warmup}"):
        multiplier(f"scheduler={name}", f"scheduler.warmup={warmup}", length=Length(100, 10))


def torch_rates(make, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    ("overrides", "make"),
    [
        (["constant"], lambda o, n: oracle.ConstantLR(o, factor=1.0)),
        (["cosine"], lambda o, n: oracle.CosineAnnealingLR(o, n.steps)),
        (["cosine", "scheduler.floor=0.1"], lambda o, n: oracle.CosineAnnealingLR(o, n.steps, eta_min=0.1)),
        (["linear", "scheduler.floor=0.1"], lambda o, n: oracle.LinearLR(o, 1.0, 0.1, n.steps)),
        (["step", "scheduler.every=1ep"], lambda o, n: oracle.StepLR(o, n.epoch, 0.1)),
        (["step", "scheduler.every=3it", "scheduler.gamma=0.5"], lambda o, n: oracle.StepLR(o, 3, 0.5)),
        (["multistep", "scheduler.milestones=[1it]"], lambda o, n: oracle.MultiStepLR(o, [1], 0.1)),
        (["exponential", "scheduler.every=1it", "scheduler.gamma=0.99"], lambda o, n: oracle.ExponentialLR(o, 0.99)),
        (["polynomial", "scheduler.power=3.0"], lambda o, n: oracle.PolynomialLR(o, n.steps, 3.0)),
        (["cosine_restarts", "scheduler.period=3it"], lambda o, n: oracle.CosineAnnealingWarmRestarts(o, 3)),
        (
            ["cosine_restarts", "scheduler.period=1it", "scheduler.mult=2", "scheduler.floor=0.1"],
            lambda o, n: oracle.CosineAnnealingWarmRestarts(o, 1, 2, 0.1),
        ),
        (["inverse_sqrt", "scheduler.timescale=3it"], lambda o, n: oracle.LambdaLR(o, lambda t: (3 / (3 + t)) ** 0.5)),
    ],
)
def test_equals_torch(overrides, make, length):
    if overrides[0] in ("step", "cosine_restarts", "inverse_sqrt") and length.steps < 4:
        length = Length(4, 2)  # an interval has to lie inside the run
    rate = multiplier(f"scheduler={overrides[0]}", *overrides[1:], length=length)
    for ours, theirs in zip(map(rate, range(length.steps)), torch_rates(lambda o: make(o, length), length.steps)):
        assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("t", "expected"), [(0, 1.0), (25, (2 + 2**0.5) / 4), (50, 0.5), (75, (2 - 2**0.5) / 4)])
def test_cosine_by_hand(t, expected):
    assert multiplier("scheduler=cosine", length=Length(100, 10))(t) == pytest.approx(expected, abs=1e-15)


def test_multistep_by_hand():
    rate = multiplier("scheduler=multistep", "scheduler.milestones=[2ep,50%]", length=Length(100, 10))
    assert [rate(t) for t in (0, 19, 20, 49, 50, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize("every", ["0", "10ep", "200it"])
def test_an_interval_outside_is_refused(every):
    with pytest.raises(UserError, match=f"scheduler.every={every}"):
        multiplier("scheduler=step", f"scheduler.every={every}", length=Length(100, 10))


@pytest.mark.parametrize("milestone", ["10ep", "100%", "200it", "0"])
def test_a_milestone_outside_is_refused(milestone):
    with pytest.raises(UserError, match=f"scheduler.milestones={milestone}"):
        multiplier("scheduler=multistep", f"scheduler.milestones=[{milestone}]", length=Length(100, 10))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", options(CONF / "scheduler"))
def test_the_optimizer_uses_the_planned_rates(run, name, accumulate):
    overrides = [f"scheduler={name}", "scheduler.warmup=20%", "optimizer.lr=0.03"]
    done = run(
        *overrides,
        "model=mlp",
        "trainer.max_epochs=3",
        "trainer.log_every_n_steps=1",
        f"trainer.accumulate_grad_batches={accumulate}",
    )
    epoch = math.ceil(11 / accumulate)
    plan = multiplier(*overrides, length=Length(3 * epoch, epoch))
    assert done.column("lr") == [0.03 * plan(t) for t in range(3 * epoch)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 0.853553, 0.5, 0.146447]),
        ("1-sqrt", [1, 0.5, 0.292893, 0.133975]),
    ],
)
def test_wsd_by_hand(shape, expected):
    rate = multiplier("scheduler=wsd", "scheduler.cooldown=4it", f"scheduler.shape={shape}", length=Length(20, 5))
    assert [rate(t) for t in range(16)] == [1] * 16
    assert [rate(t) for t in range(16, 20)] == pytest.approx(expected, abs=1e-6)
    assert rate(20) == 0


def test_a_shape_that_there_is_not_is_refused():
    with pytest.raises(
        UserError, match=r"scheduler\.shape=lineer; allowed: linear, cosine, 1-sqrt. Did you mean 'linear'"
    ):
        multiplier("scheduler=wsd", "scheduler.shape=lineer", length=Length(20, 5))(0)


def test_restarts_end_at_the_bottom():
    """The last step of a run that is three waves long belongs to the third."""
    rate = multiplier("scheduler=cosine_restarts", "scheduler.period=10it", length=Length(30, 10))
    assert rate(20) == 1
    assert rate(29) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.9)))
    assert [rate(t) for t in (30, 31)] == [0, 0]
