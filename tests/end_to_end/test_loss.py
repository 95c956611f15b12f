"""The training loss in whole runs."""

import pytest

from helpers.configs import configure
from tricklab.run.instantiate import build


def test_evaluation_neither_smooths_nor_weights(run):
    """At an LR of 0 the networks are the same."""
    same_net = ("debug=batch", "model=mlp", "optimizer.lr=0")
    plain = run(*same_net, folder="plain")
    smooth = run(
        *same_net, "loss=smooth", "loss.class_weights=[9,1,1,1,1,1,1,1,1,1]", folder="smooth"
    )
    assert smooth.column("train/loss") != plain.column("train/loss")
    for name in ("val/loss", "test/loss"):
        assert smooth.result["metrics"][name] == plain.result["metrics"][name]


def test_balanced_weights_are_those_of_the_training_images_in_use(run, capsys):
    tail = ("debug=batch", "model=mlp", "data.imbalance=5")
    done = run(*tail, "loss.class_weights=balanced")
    m = int(build(configure().data).train_labels.bincount().min())
    counts = [round(m * 5 ** (-c / 9)) for c in range(10)]
    weights = [sum(counts) / (10 * n) for n in counts]
    saved = done.checkpoint("best.ckpt")["state_dict"]["loss.class_weights"]
    assert saved.tolist() == pytest.approx(weights)
    printed = ",".join(f"{weight:.4g}" for weight in weights)
    assert f"loss.class_weights=[{printed}]\n" in capsys.readouterr().out
    typed = run(*tail, f"loss.class_weights={weights}", folder="typed")
    assert typed.column("train/loss") == done.column("train/loss")
