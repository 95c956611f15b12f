import numpy as np
import pytest
import torch
from conftest import configure
from sklearn.linear_model import ElasticNet, LogisticRegression
from torch import nn

from tricklab.errors import UserError
from tricklab.penalty import decay, find_weights, l1, l1_prox, l2, max_norm, parameter_groups
from tricklab.run.build import build_penalties

NET = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_only_weights_each_once():
    shared = nn.Linear(4, 4)
    assert [p.shape for p in find_weights(NET)] == [(4, 3), (2, 4)]
    assert len(find_weights(nn.Sequential(shared, nn.ReLU(), shared))) == 1


def test_terms_and_gradients():
    weight = torch.tensor([[1.0, -2.0], [0.0, 3.0]], requires_grad=True)
    assert l1([weight, weight], 0.1).item() == torch.tensor(1.2).item()
    (gradient,) = torch.autograd.grad(l1([weight], 0.1), weight)
    assert torch.allclose(gradient, 0.1 * weight.sign())
    assert torch.isclose(l2([weight], 0.1), torch.tensor(0.7))
    (gradient,) = torch.autograd.grad(l2([weight], 0.1), weight)
    assert torch.allclose(gradient, 0.1 * weight)


def test_terms_of_many_weights_are_those_of_autograd():
    """Each once or several times, with weights of their own, whatever factor follows."""
    weights = [torch.randn(shape, requires_grad=True) for shape in [(4, 3), (2, 4), (8, 2, 3, 3)]]
    weights[2].data = weights[2].data.to(memory_format=torch.channels_last)
    given = [*weights, weights[0]]
    plain = {l1: sum(w.abs().sum() for w in given), l2: sum(w.square().sum() for w in given) / 2}
    for term, expected in plain.items():
        ours = 3 * term(given, 0.1) ** 2
        assert torch.isclose(ours, 3 * (0.1 * expected) ** 2)
        for a, b in zip(
            torch.autograd.grad(ours, weights),
            torch.autograd.grad(3 * (0.1 * expected) ** 2, weights),
        ):
            assert torch.allclose(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_terms_are_summed_in_float32(dtype):
    """In half precision the sum of 100,000 ones would overflow, or stop to grow at 256."""
    weight = torch.ones(1000, 100, dtype=dtype)
    assert l1([weight], 1.0).item() == 100_000
    assert l2([weight], 1.0).item() == pytest.approx(50_000, rel=1e-6)


def test_l2_is_weight_decay_under_sgd_and_not_under_adamw():
    def trained(make, decay, strength):
        torch.manual_seed(0)
        net, x = nn.Linear(5, 3), torch.randn(100, 5)
        optimizer = make(parameter_groups(net), decay)
        for row in x:
            optimizer.zero_grad()
            (net(row).square().sum() + l2(find_weights(net), strength)).backward()
            optimizer.step()
        return net.weight.detach()

    def sgd(groups, decay):
        return torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, weight_decay=decay)

    def adamw(groups, decay):
        return torch.optim.AdamW(groups, lr=0.01, weight_decay=decay)

    assert torch.allclose(trained(sgd, 0.1, 0.0), trained(sgd, 0.0, 0.1), atol=1e-6)
    assert not torch.allclose(trained(sgd, 0.1, 0.0), trained(sgd, 0.0, 0.0), atol=1e-3)
    assert not torch.allclose(trained(adamw, 0.1, 0.0), trained(adamw, 0.0, 0.1), atol=1e-3)


def test_biases_and_norms_do_not_decay():
    weights, rest = parameter_groups(NET)
    assert {len(weights["params"]), len(rest["params"])} == {2, 4}
    optimizer = torch.optim.SGD([weights, rest], lr=1.0, weight_decay=0.5)
    before = [p.clone() for p in NET.parameters()]
    for p in NET.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for p, old in zip(NET.parameters(), before):
        assert torch.equal(p, old * 0.5 if p.ndim == 2 else old)


def test_both_penalties_are_added_and_logged(run):
    plain = run("debug=batch", folder="plain")
    both = run("debug=batch", "penalty=[l1,l2]", "penalty.l1.strength=0.01", folder="both")
    assert both.column("train/loss") == plain.column("train/loss")  # without the penalties
    assert both.column("train/l1")[0] > 1
    assert both.column("train/l2")[0] > 0
    assert both.column("train/grad_norm") != plain.column("train/grad_norm")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_prox_reaches_elastic_net_with_the_same_zeros(momentum):
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 20))
    y = x @ np.where(np.arange(20) < 5, 2.0, 0.0) + 0.1 * random.normal(size=200)
    alpha, ratio = 0.3, 0.6
    theirs = (
        ElasticNet(alpha=alpha, l1_ratio=ratio, fit_intercept=False, tol=1e-14, max_iter=100_000)
        .fit(x, y)
        .coef_
    )
    w, data, target = (
        torch.zeros(1, 20, dtype=torch.double, requires_grad=True),
        torch.tensor(x),
        torch.tensor(y),
    )
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=momentum)
    for _ in range(3000):
        optimizer.zero_grad()
        residual = target - (data @ w.T)[:, 0]
        (residual.square().mean() / 2 + l2([w], alpha * (1 - ratio))).backward()
        optimizer.step()
        with torch.no_grad():
            l1_prox([w], lr=0.1, strength=alpha * ratio / (1 - momentum))
    ours = w.detach().numpy()[0]
    assert 0 < (ours == 0).sum() < 20
    assert ((ours == 0) == (theirs == 0)).all()
    assert np.abs(ours - theirs).max() < 1e-6


def test_l2_reaches_logistic_regression():
    random = np.random.default_rng(1)
    x = random.normal(size=(150, 6))
    y = (x @ random.normal(size=(6, 3)) + random.normal(size=(150, 3))).argmax(1)
    theirs = (
        LogisticRegression(C=0.5, fit_intercept=False, tol=1e-12, max_iter=10_000).fit(x, y).coef_
    )
    w, data, target = (
        torch.zeros(3, 6, dtype=torch.double, requires_grad=True),
        torch.tensor(x),
        torch.tensor(y),
    )
    optimizer = torch.optim.LBFGS([w], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16)

    def loss():
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(data @ w.T, target) + l2([w], 1 / (0.5 * 150))
        value.backward()
        return value

    for _ in range(10):
        optimizer.step(loss)
    assert np.abs(w.detach().numpy() - theirs).max() < 1e-6


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


def test_prox_and_max_norm_act_after_each_step_and_are_logged(run):
    """Also at the body's own rate, and not at all while it is frozen."""
    options = ("model=mlp", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")
    plain = run(*options, folder="plain")
    prox = run(*options, "penalty=l1_prox", "penalty.l1_prox.strength=0.1", folder="prox")
    norm = run(*options, "penalty=max_norm", "penalty.max_norm.norm=0.5", folder="norm")
    assert "train/zeros" not in (plain.folder / "metrics.csv").read_text()
    assert prox.column("train/zeros")[0] == 0
    assert 0.1 < prox.column("train/zeros")[-1] < 1
    assert prox.column("train/loss")[0] == plain.column("train/loss")[0]
    weights = torch.load(norm.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(w.norm(dim=1).max() <= 0.5 + 1e-6 for w in weights.values() if w.ndim == 2)
    frozen = run(
        *options,
        "penalty=l1_prox",
        "penalty.l1_prox.strength=0.1",
        "model.freeze=100%",
        folder="frozen",
    )
    kept = torch.load(frozen.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    zeros = {key: int((w == 0).sum()) for key, w in kept.items() if w.ndim == 2}
    assert [count > 0 for count in zeros.values()] == [False, False, True]


def test_a_projection_follows_each_step_not_each_batch(run):
    """A window of two equal halves is the whole: with the threshold once, not twice."""
    options = (
        "model=mlp",
        "model.batch_norm=false",
        "trainer.max_epochs=1",
        "penalty=l1_prox",
        "data.train_size=1280",
    )
    one = run(*options, "data.batch_size=128", "penalty.l1_prox.strength=0.01", folder="one")
    two = run(
        *options,
        "data.batch_size=64",
        "trainer.accumulate_grad_batches=2",
        "penalty.l1_prox.strength=0.01",
        folder="two",
    )
    assert one.column("val/loss") == pytest.approx(two.column("val/loss"), rel=1e-4)


def test_l1_in_the_loss_reaches_elastic_net_but_no_zero():
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 10))
    y = x[:, :3] @ [1.0, -2.0, 3.0] + 0.1 * random.normal(size=200)
    theirs = ElasticNet(alpha=0.1, l1_ratio=0.5, fit_intercept=False, tol=1e-14).fit(x, y).coef_
    w, data, target = (
        torch.zeros(1, 10, dtype=torch.double, requires_grad=True),
        torch.tensor(x),
        torch.tensor(y),
    )
    optimizer = torch.optim.SGD([w], lr=0.1)
    for n in range(4000):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.997**n
        optimizer.zero_grad()
        residual = target - (data @ w.T)[:, 0]
        (residual.square().mean() / 2 + l1([w], 0.05) + l2([w], 0.05)).backward()
        optimizer.step()
    assert (
        np.abs(w.detach().numpy()[0] - theirs).max() < 1e-4
    )  # the zeros keep jumping from side to side
    assert (theirs == 0).any()
    assert (w != 0).all()


def test_decay_is_that_of_adamw_and_the_same_under_sgd():
    """A weight without a gradient shrinks by the product of 1 - rate * strength: also under momentum."""
    rates, left = [0.1, 0.05, 0.2, 0.0], 1.0
    w = torch.ones(2, 2, requires_grad=True)
    adamw = torch.optim.AdamW([w], weight_decay=0.3)
    ours = torch.ones(2, 2)
    for rate in rates:
        adamw.param_groups[0]["lr"] = rate
        w.grad = torch.zeros(2, 2)
        adamw.step()
        decay([ours], lr=rate, strength=0.3)
        left *= 1 - 0.3 * rate
    assert torch.allclose(ours, w.detach())
    assert ours[0, 0].item() == pytest.approx(left)


def test_decay_acts_in_a_run(run):
    """At a rate of 0 nothing moves; at a strength of 1 the norm falls far below that of the plain run."""
    given = ("model=mlp", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")
    plain = run(*given, "penalty=max_norm", "penalty.max_norm.norm=1e9", folder="plain").column(
        "train/weight_norm"
    )
    small = run(*given, "penalty=decay", "penalty.decay.strength=1.0", folder="small").column(
        "train/weight_norm"
    )
    assert small[0] == plain[0]
    assert small[-1] < 0.6 * plain[-1]


def test_only_the_named_weights(run):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    assert [p.shape for p in find_weights(net, "^2")] == [(2, 4)]
    assert [p.shape for p in find_weights(net, "0|2")] == [(4, 3), (2, 4)]
    for wrong in ("bias", "conv", "("):
        with pytest.raises(UserError, match=r"only="):
            find_weights(net, wrong)
    with pytest.raises(
        UserError, match=r"penalty\.l2\.only=nope is found in no name; allowed: a part of 2\.weight"
    ):
        run("model=mlp", "debug=batch", "penalty=l2", "penalty.l2.only=nope", folder="wrong")
    given = ("model=mlp", "trainer.max_epochs=1")
    prox = ("penalty=l1_prox", "penalty.l1_prox.strength=0.1", r"penalty.l1_prox.only='^2\.'")
    kept = torch.load(run(*given, *prox).folder / "checkpoints" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    assert {key for key, w in kept.items() if w.ndim == 2 and (w == 0).any()} == {"net.2.weight"}
    both = run(
        *given,
        "penalty=[l1,l2]",
        "penalty.l1.only='^10'",
        "penalty.l2.only='weight$'",
        folder="both",
    )
    whole = run(*given, "penalty=[l1,l2]", folder="whole")
    assert both.column("train/l1")[0] < 0.2 * whole.column("train/l1")[0]
    assert both.column("train/l2")[0] == whole.column("train/l2")[0]


HALVES = (
    "penalty=[l1,l2]",
    "penalty.l1.strength=0.003",
    "penalty.l2.strength=0.01",
    "model=mlp",
    "seed=3",
)
HALVES += (
    "model.batch_norm=false",
    "trainer.max_epochs=2",
    "data.train_size=1280",
    "trainer.log_every_n_steps=1",
)


def test_a_penalty_counts_once_under_accumulation(run):
    one = run(*HALVES, "data.batch_size=128", folder="one")
    two = run(*HALVES, "data.batch_size=64", "trainer.accumulate_grad_batches=2", folder="two")
    for column in ("val/loss", "train/l1", "train/l2", "train/grad_norm"):
        assert one.column(column) == pytest.approx(two.column(column), rel=1e-4), column
    assert one.column("train/l1")[0] > 1


@pytest.mark.slow
def test_a_penalty_counts_once_with_two_processes(train, tmp_path):
    given = (*HALVES, "trainer.accelerator=cpu", "trainer.deterministic=true")
    one = train(*given, "data.batch_size=128", "hydra.run.dir=one")
    two = train(
        *given, "data.batch_size=64", "trainer=ddp", "trainer.devices=2", "hydra.run.dir=two"
    )
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    states = [
        torch.load(tmp_path / f / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for f in ("one", "two")
    ]
    for key, w in states[0].items():
        assert torch.allclose(w, states[1][key], atol=1e-4), key


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan")])
def test_a_norm_that_leaves_no_weight_is_refused(norm):
    cfg = configure("penalty=max_norm", f"penalty.max_norm.norm={norm}").penalty
    with pytest.raises(UserError, match=r"penalty\.max_norm\.norm=.*; allowed: more than 0"):
        build_penalties(cfg, NET)


def test_penalties_are_tried_on_copies():
    net = nn.Linear(3, 2)
    before = [p.clone() for p in net.parameters()]
    names = ("l1", "l2", "l1_prox", "max_norm", "decay")
    penalties = build_penalties(configure(f"penalty=[{','.join(names)}]").penalty, net)
    assert [name for name in names if penalties[name].follows_step] == [*names[2:]]
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before))
    assert all(p.grad is None for p in net.parameters())
