"""Schedules in whole runs: what they refuse."""

import pytest

from tricklab.errors import UserError


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
