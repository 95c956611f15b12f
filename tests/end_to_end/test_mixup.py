"""Mixing in whole runs: its window, and the name of the accuracy."""

import pytest


def test_window_holds_in_a_run(run):
    options = ("model=mlp", "trainer.max_epochs=3", "trainer.log_every_n_steps=1")
    mixed = (*options, "mixup=on", "mixup.alpha=8.0")
    plain = run(*options, folder="plain")
    whole = run(*mixed, folder="whole")
    late = run(*mixed, "mixup.start=2ep", folder="late")
    assert late.column("train/loss")[:22] == plain.column("train/loss")[:22]
    assert late.column("train/loss")[22] > 2 * plain.column("train/loss")[22]
    assert whole.column("train/loss")[0] != plain.column("train/loss")[0]


@pytest.mark.parametrize(("name", "option"), [("train/acc", "off"), ("train/acc_mixed", "on")])
def test_training_accuracy_is_named_for_the_mixing(run, name, option):
    done = run("debug=batch", f"mixup={option}")
    columns = (done.folder / "metrics.csv").read_text().split("\n")[0].split(",")
    assert name in columns
    assert ({"train/acc", "train/acc_mixed"} - {name}).isdisjoint(columns)
    assert "train/acc_clean" in columns
