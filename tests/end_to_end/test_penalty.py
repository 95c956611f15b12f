"""Penalties in whole runs: terms, projections, patterns of names."""

import pytest
import torch

from tricklab.errors import UserError

MLP = ("model=mlp", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")


def last_weights(run):
    path = run.folder / "checkpoints" / "last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


def test_only_error_names_the_penalty(run):
    match = r"penalty\.l2\.params='nope' matches no weight; weights are: 2\.weight"
    with pytest.raises(UserError, match=match):
        run("model=mlp", "debug=batch", "penalty=l2", "penalty.l2.params=nope")


def test_only_limits_a_projection_in_a_run(run):
    prox = ("penalty=l1_prox", "penalty.l1_prox.strength=0.1", r"penalty.l1_prox.params='^2\.'")
    weights = last_weights(run("model=mlp", "trainer.max_epochs=1", *prox))
    sparse = {key for key, w in weights.items() if w.ndim == 2 and (w == 0).any()}
    assert sparse == {"net.2.weight"}


def test_only_limits_a_term_in_a_run(run):
    both = ("model=mlp", "trainer.max_epochs=1", "penalty=[l1,l2]")
    only = ("penalty.l1.params='^10'", "penalty.l2.params='weight$'")
    limited = run(*both, *only, folder="limited")
    whole = run(*both, folder="whole")
    assert limited.column("train/l1")[0] < 0.2 * whole.column("train/l1")[0]
    assert limited.column("train/l2")[0] == whole.column("train/l2")[0]


def test_terms_are_added_to_the_loss_and_logged(run):
    plain = run("debug=batch", folder="plain")
    both = run("debug=batch", "penalty=[l1,l2]", "penalty.l1.strength=0.01", folder="both")
    # train/loss is logged without the penalties
    assert both.column("train/loss") == plain.column("train/loss")
    assert both.column("train/l1")[0] > 1
    assert both.column("train/l2")[0] > 0
    assert both.column("train/grad_norm") != plain.column("train/grad_norm")


def test_l1_prox_makes_zeros_that_are_logged(run):
    plain = run(*MLP, folder="plain")
    prox = run(*MLP, "penalty=l1_prox", "penalty.l1_prox.strength=0.1", folder="prox")
    assert "train/zeros" not in (plain.folder / "metrics.csv").read_text()
    zeros = prox.column("train/zeros")
    assert zeros[0] == 0
    assert 0.1 < zeros[-1] < 1
    assert prox.column("train/loss")[0] == plain.column("train/loss")[0]


def test_max_norm_holds_at_the_end_of_a_run(run):
    weights = last_weights(run(*MLP, "penalty=max_norm", "penalty.max_norm.norm=0.5"))
    assert all(w.norm(dim=1).max() <= 0.5 + 1e-6 for w in weights.values() if w.ndim == 2)


def test_projection_leaves_a_frozen_backbone(run):
    prox = ("penalty=l1_prox", "penalty.l1_prox.strength=0.1")
    weights = last_weights(run(*MLP, *prox, "model.freeze=100%"))
    has_zeros = [bool((w == 0).any()) for w in weights.values() if w.ndim == 2]
    assert has_zeros == [False, False, True]


def test_projection_follows_each_step_and_not_each_batch(run):
    """Two accumulated batches equal one of twice the size: one threshold a step, not two."""
    options = ("model=mlp", "model.batch_norm=false", "trainer.max_epochs=1")
    options += ("penalty=l1_prox", "penalty.l1_prox.strength=0.01", "data.train_size=1280")
    halves = ("data.batch_size=64", "trainer.accumulate_grad_batches=2")
    one = run(*options, "data.batch_size=128", folder="one")
    two = run(*options, *halves, folder="two")
    assert one.column("val/loss") == pytest.approx(two.column("val/loss"), rel=1e-4)


def test_decay_shrinks_the_norm_in_a_run(run):
    unlimited = ("penalty=max_norm", "penalty.max_norm.norm=1e9")
    plain = run(*MLP, *unlimited, folder="plain").column("train/weight_norm")
    decayed = run(*MLP, "penalty=decay", "penalty.decay.strength=1.0", folder="decayed")
    small = decayed.column("train/weight_norm")
    assert small[0] == plain[0]
    assert small[-1] < 0.6 * plain[-1]


BOTH_TERMS = (
    "penalty=[l1,l2]",
    "penalty.l1.strength=0.003",
    "penalty.l2.strength=0.01",
    "model=mlp",
    "model.batch_norm=false",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=1",
    "data.train_size=1280",
    "seed=3",
)


def test_terms_count_once_under_accumulation(run):
    one = run(*BOTH_TERMS, "data.batch_size=128", folder="one")
    two = run(*BOTH_TERMS, "data.batch_size=64", "trainer.accumulate_grad_batches=2", folder="two")
    for column in ("val/loss", "train/l1", "train/l2", "train/grad_norm"):
        assert one.column(column) == pytest.approx(two.column(column), rel=1e-4), column
    assert one.column("train/l1")[0] > 1


@pytest.mark.slow
def test_terms_count_once_with_two_processes(train, tmp_path):
    options = (*BOTH_TERMS, "trainer.accelerator=cpu", "trainer.deterministic=true")
    ddp = ("trainer=ddp", "trainer.devices=2")
    one = train(*options, "data.batch_size=128", "hydra.run.dir=one")
    two = train(*options, *ddp, "data.batch_size=64", "hydra.run.dir=two")
    assert (one.returncode, two.returncode) == (0, 0), two.stderr
    states = []
    for folder in ("one", "two"):
        checkpoint = torch.load(tmp_path / folder / "checkpoints/last.ckpt", weights_only=True)
        states.append(checkpoint["state_dict"])
    for key, w in states[0].items():
        assert torch.allclose(w, states[1][key], atol=1e-4), key
