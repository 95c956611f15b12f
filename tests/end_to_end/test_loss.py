"""The training loss in whole runs."""


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
