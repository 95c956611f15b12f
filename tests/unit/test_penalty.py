"""Terms and projections against autograd, scikit-learn and torch, then in runs."""

import inspect

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, LogisticRegression
from torch import nn

from helpers.configs import configure
from tricklab import penalty
from tricklab.errors import UserError
from tricklab.optimizer import named_weights, parameter_groups
from tricklab.run.build import build_penalties

l1 = inspect.unwrap(penalty.l1)
l2 = inspect.unwrap(penalty.l2)
l1_prox = inspect.unwrap(penalty.l1_prox)
max_norm = inspect.unwrap(penalty.max_norm)
decay = inspect.unwrap(penalty.decay)


def small_net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def regression(rows, columns, coefficients):
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, columns))
    y = x @ coefficients + 0.1 * random.normal(size=rows)
    return x, y


def doubles(*arrays):
    return [torch.tensor(array) for array in arrays]


def half_mean_square(w, x, y):
    return (y - (x @ w.T)[:, 0]).square().mean() / 2


def test_terms_have_their_value_and_gradient():
    weight = torch.tensor([[1.0, -2.0], [0.0, 3.0]], requires_grad=True)
    assert l1([weight, weight], 0.1).item() == torch.tensor(1.2).item()
    (gradient,) = torch.autograd.grad(l1([weight], 0.1), weight)
    assert torch.allclose(gradient, 0.1 * weight.sign())
    assert torch.isclose(l2([weight], 0.1), torch.tensor(0.7))
    (gradient,) = torch.autograd.grad(l2([weight], 0.1), weight)
    assert torch.allclose(gradient, 0.1 * weight)


def test_terms_have_the_exact_gradient():
    """Bit for bit; of l2 autograd of torch._foreach_norm is wrong in the last bit."""
    weights = [torch.randn(shape, requires_grad=True) for shape in [(40, 30), (8, 2, 3, 3)]]
    for gradient, weight in zip(torch.autograd.grad(l1(weights, 0.3), weights), weights):
        assert torch.equal(gradient, torch.tensor(0.3) * weight.sign())
    for gradient, weight in zip(torch.autograd.grad(l2(weights, 0.3), weights), weights):
        assert torch.equal(gradient, torch.tensor(0.3) * weight)


@pytest.mark.parametrize("term", [l1, l2])
def test_terms_have_gradient_zero_at_zero(term):
    weights = [torch.zeros(3, 4, requires_grad=True), torch.eye(4, requires_grad=True)]
    for gradient, weight in zip(torch.autograd.grad(term(weights, 1.0), weights), weights):
        assert torch.equal(gradient, weight)


def test_terms_of_many_weights_equal_autograd():
    """Each weight once or twice, in its own memory format, and whatever follows the term."""
    weights = [torch.randn(shape, requires_grad=True) for shape in [(4, 3), (2, 4), (8, 2, 3, 3)]]
    weights[2].data = weights[2].data.to(memory_format=torch.channels_last)
    repeated = [*weights, weights[0]]
    plain = {
        l1: sum(w.abs().sum() for w in repeated),
        l2: sum(w.square().sum() for w in repeated) / 2,
    }
    for term, expected in plain.items():
        ours = 3 * term(repeated, 0.1) ** 2
        theirs = 3 * (0.1 * expected) ** 2
        assert torch.isclose(ours, theirs)
        gradients = torch.autograd.grad(ours, weights)
        for a, b in zip(gradients, torch.autograd.grad(theirs, weights)):
            assert torch.allclose(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_terms_are_summed_in_float32(dtype):
    """In half precision the sum of 100,000 ones would overflow, or stop growing at 256."""
    weight = torch.ones(1000, 100, dtype=dtype)
    assert l1([weight], 1.0).item() == 100_000
    assert l2([weight], 1.0).item() == pytest.approx(50_000, rel=1e-6)


def test_l2_is_weight_decay_under_sgd_and_not_under_adamw():
    def train(make, weight_decay, strength):
        torch.manual_seed(0)
        net, x = nn.Linear(5, 3), torch.randn(100, 5)
        optimizer = make(parameter_groups(net), weight_decay)
        for row in x:
            optimizer.zero_grad()
            (net(row).square().sum() + l2([net.weight], strength)).backward()
            optimizer.step()
        return net.weight.detach()

    def sgd(groups, weight_decay):
        options = {"lr": 0.01, "momentum": 0.9, "nesterov": True}
        return torch.optim.SGD(groups, weight_decay=weight_decay, **options)

    def adamw(groups, weight_decay):
        return torch.optim.AdamW(groups, lr=0.01, weight_decay=weight_decay)

    assert torch.allclose(train(sgd, 0.1, 0.0), train(sgd, 0.0, 0.1), atol=1e-6)
    assert not torch.allclose(train(sgd, 0.1, 0.0), train(sgd, 0.0, 0.0), atol=1e-3)
    assert not torch.allclose(train(adamw, 0.1, 0.0), train(adamw, 0.0, 0.1), atol=1e-3)


def test_l2_reaches_logistic_regression():
    random = np.random.default_rng(1)
    x = random.normal(size=(150, 6))
    y = (x @ random.normal(size=(6, 3)) + random.normal(size=(150, 3))).argmax(1)
    oracle = LogisticRegression(C=0.5, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(x, y)
    w = torch.zeros(3, 6, dtype=torch.double, requires_grad=True)
    data, target = doubles(x, y)
    optimizer = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16)

    def loss():
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(data @ w.T, target) + l2([w], 1 / (0.5 * 150))
        value.backward()
        return value

    for _ in range(10):
        optimizer.step(loss)
    assert np.abs(w.detach().numpy() - oracle.coef_).max() < 1e-6


def test_l1_in_the_loss_reaches_elastic_net_but_no_zero():
    x, y = regression(200, 10, [1.0, -2.0, 3.0] + [0.0] * 7)
    oracle = ElasticNet(alpha=0.1, l1_ratio=0.5, fit_intercept=False, tol=1e-14).fit(x, y).coef_
    w = torch.zeros(1, 10, dtype=torch.double, requires_grad=True)
    data, target = doubles(x, y)
    optimizer = torch.optim.SGD([w], lr=0.1)
    for n in range(4000):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.997**n
        optimizer.zero_grad()
        (half_mean_square(w, data, target) + l1([w], 0.05) + l2([w], 0.05)).backward()
        optimizer.step()
    # weights near zero keep jumping from side to side
    assert np.abs(w.detach().numpy()[0] - oracle).max() < 1e-4
    assert (oracle == 0).any()
    assert (w != 0).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_l1_prox_reaches_elastic_net_with_the_same_zeros(momentum):
    x, y = regression(200, 20, np.where(np.arange(20) < 5, 2.0, 0.0))
    alpha, ratio = 0.3, 0.6
    options = {"fit_intercept": False, "tol": 1e-14, "max_iter": 100_000}
    oracle = ElasticNet(alpha=alpha, l1_ratio=ratio, **options).fit(x, y).coef_
    w = torch.zeros(1, 20, dtype=torch.double, requires_grad=True)
    data, target = doubles(x, y)
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=momentum)
    for _ in range(3000):
        optimizer.zero_grad()
        (half_mean_square(w, data, target) + l2([w], alpha * (1 - ratio))).backward()
        optimizer.step()
        with torch.no_grad():
            l1_prox([w], lr=0.1, strength=alpha * ratio / (1 - momentum))
    ours = w.detach().numpy()[0]
    assert 0 < (ours == 0).sum() < 20
    assert ((ours == 0) == (oracle == 0)).all()
    assert np.abs(ours - oracle).max() < 1e-6


@pytest.mark.parametrize("shape", [(4, 7), (5, 3, 2, 2)])
def test_max_norm_limits_the_weights_into_each_unit(shape):
    before = torch.randn(shape)
    w = before.clone()
    norms = before.flatten(1).norm(dim=1)
    limit = float(norms.median())
    max_norm([w], lr=0.1, norm=limit)
    expected = before.flatten(1) * (limit / norms).clamp(max=1)[:, None]
    assert torch.allclose(w.flatten(1), expected, atol=1e-6)
    assert torch.equal(w, torch.renorm(before, 2, 0, limit))


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan")])
def test_max_norm_refuses_a_norm_that_leaves_no_weight(norm):
    cfg = configure("penalty=max_norm", f"penalty.max_norm.norm={norm}").penalty
    with pytest.raises(UserError, match=r"penalty\.max_norm\.norm=.*; allowed: more than 0"):
        build_penalties(cfg, small_net())


def test_decay_equals_adamw_and_is_the_same_under_sgd():
    """A weight without a gradient shrinks by the product of 1 - lr * strength."""
    factor = 1.0
    w = torch.ones(2, 2, requires_grad=True)
    adamw = torch.optim.AdamW([w], weight_decay=0.3)
    ours = torch.ones(2, 2)
    for lr in (0.1, 0.05, 0.2, 0.0):
        adamw.param_groups[0]["lr"] = lr
        w.grad = torch.zeros(2, 2)
        adamw.step()
        decay([ours], lr=lr, strength=0.3)
        factor *= 1 - 0.3 * lr
    assert torch.allclose(ours, w.detach())
    assert ours[0, 0].item() == pytest.approx(factor)


def test_option_binds_its_keys_and_kind():
    weights = named_weights(small_net())
    added = penalty.l1(weights, strength=0.5)
    assert not added.is_projection
    assert added.fn([torch.ones(2, 2)]).item() == 2.0
    projected = penalty.decay(weights, strength=0.5)
    assert projected.is_projection
    w = torch.ones(2, 2)
    projected.fn([w], lr=0.5)
    assert torch.equal(w, torch.full((2, 2), 0.75))


@pytest.mark.parametrize("name", ["l1", "l2", "l1_prox", "max_norm", "decay"])
def test_option_signature_has_the_keys_of_its_config(name):
    parameters = inspect.signature(getattr(penalty, name)).parameters
    node = configure(f"penalty={name}").penalty[name]
    keys = {key for key in node if not key.startswith("_")}
    assert set(parameters) == {"weights", *keys}
    assert parameters["params"].default is None


def test_only_selects_weights_by_name():
    weights = named_weights(small_net())
    assert penalty.select(weights, None) == list(weights.values())
    assert [w.shape for w in penalty.select(weights, "^2")] == [(2, 4)]
    assert [w.shape for w in penalty.select(weights, "0|2")] == [(4, 3), (2, 4)]


@pytest.mark.parametrize("pattern", ["bias", "conv"])
def test_only_refuses_a_pattern_that_matches_no_weight(pattern):
    match = f"params='{pattern}' matches no weight; weights are: 0.weight, 2.weight"
    with pytest.raises(UserError, match=match):
        penalty.select(named_weights(small_net()), pattern)


def test_only_refuses_what_is_not_a_regular_expression():
    with pytest.raises(UserError, match=r"params='\(' is not a regular expression"):
        penalty.select(named_weights(small_net()), "(")


def test_penalties_are_tried_on_copies():
    net = nn.Linear(3, 2)
    before = [p.clone() for p in net.parameters()]
    names = ["l1", "l2", "l1_prox", "max_norm", "decay"]
    penalties = build_penalties(configure(f"penalty=[{','.join(names)}]").penalty, net)
    assert [name for name in names if penalties[name].is_projection] == names[2:]
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before))
    assert all(p.grad is None for p in net.parameters())
