import torch
from torch import nn

from tricklab.optimizer import parameter_groups
from tricklab.penalty import l1, l2, penalised

NET = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_only_weights_each_once():
    shared = nn.Linear(4, 4)
    assert [p.shape for p in penalised(NET)] == [(4, 3), (2, 4)]
    assert len(penalised(nn.Sequential(shared, nn.ReLU(), shared))) == 1


def test_terms_and_gradients():
    weight = torch.tensor([[1.0, -2.0], [0.0, 3.0]], requires_grad=True)
    assert l1([weight, weight], 0.1).item() == torch.tensor(1.2).item()
    (gradient,) = torch.autograd.grad(l1([weight], 0.1), weight)
    assert torch.allclose(gradient, 0.1 * weight.sign())
    assert torch.isclose(l2([weight], 0.1), torch.tensor(0.7))
    (gradient,) = torch.autograd.grad(l2([weight], 0.1), weight)
    assert torch.allclose(gradient, 0.1 * weight)


def test_l2_is_weight_decay_under_sgd_and_not_under_adamw():
    def trained(make, decay, strength):
        torch.manual_seed(0)
        net, x = nn.Linear(5, 3), torch.randn(100, 5)
        optimizer = make(parameter_groups(net), decay)
        for row in x:
            optimizer.zero_grad()
            (net(row).square().sum() + l2(penalised(net), strength)).backward()
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
