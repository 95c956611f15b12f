"""Networks in whole runs: dropout."""

import pytest


def test_dropout_of_zero_is_the_plain_network(run):
    resnet = ("debug=batch", "model=resnet", "model.depth=8")
    keys = ("dropout", "input_dropout", "spatial_dropout", "drop_path")
    plain = run(*resnet, folder="plain")
    zero = run(*resnet, *(f"model.{key}=0" for key in keys), folder="zero")
    half = run(*resnet, "model.drop_path=0.5", folder="half")
    assert plain.column("train/loss") == zero.column("train/loss")
    assert plain.column("train/loss") != half.column("train/loss")


@pytest.mark.parametrize(
    ("overrides", "layers"),
    [
        (["model=mlp", "model.dropout=0.5"], "5"),
        (["model=mlp", "model.dropout=0.5", "model.batch_norm=false"], None),
        (["model=convnet", "model.dropout=0.5"], None),
        (["model=convnet", "model.spatial_dropout=0.5"], "8, 16"),
        (["model=resnet", "model.drop_path=0.5"], None),
    ],
)
def test_dropout_before_batch_norm_is_warned_of(run, capsys, overrides, layers):
    run("debug=batch", *overrides)
    output = capsys.readouterr().err
    if layers:
        assert f"warning: dropout in layer {layers} precedes a batch norm" in output
    else:
        assert "warning" not in output
