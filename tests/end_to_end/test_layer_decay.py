"""Runs with layer-wise learning rates: steps, metrics, frozen backbones, refusals."""

import pytest
import torch

from helpers.configs import ONE_BATCH, compose_and_check, configure
from tricklab.errors import UserError
from tricklab.run.identity import config_hash
from tricklab.run.instantiate import build
from tricklab.run.plan import make_plan
from tricklab.run.weights import read_state

MLP = ("model=mlp", "model.widths=[8,8]")
LAYER_OF = {"2": 0, "3": 0, "6": 1, "7": 1, "10": 2}  # by module
PLAIN = ("optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0")
STEPS_PER_EPOCH = 11


def read_weights(run):
    return read_state(run.folder / "checkpoints" / "last.ckpt")[0]


def parameters(weights):
    names = (name for name in weights if name.endswith(("weight", "bias")))
    return {name: (weights[name], LAYER_OF[name.partition(".")[0]]) for name in names}


@pytest.mark.parametrize("decay", [0, 1])
def test_layer_decay_scales_the_step_of_each_layer(run, decay):
    """Of plain SGD, and of a projection, which multiplies weights by 1 - decay * LR."""
    options = (*ONE_BATCH, *MLP, *PLAIN)
    start = read_weights(run(*options, "optimizer.lr=0", folder="start"))
    plain = read_weights(run(*options, folder="plain"))
    penalty = ("penalty=decay", f"penalty.decay.strength={decay}", "optimizer.layer_decay=0.5")
    decayed = read_weights(run(*options, *penalty, folder="decayed"))
    for name, (weight, layer) in parameters(start).items():
        scale = 0.5 ** (2 - layer)
        step = plain[name] - weight
        assert step.abs().max() > 1e-4
        expected = (weight + step * scale) * (1 - (weight.ndim == 2) * decay * 0.1 * scale)
        assert torch.allclose(decayed[name], expected, rtol=0, atol=3e-7), name


def test_metrics_have_the_lr_of_each_layer(run):
    options = (*MLP, "scheduler=cosine", "scheduler.warmup=3it", "trainer.log_every_n_steps=1")
    done = run(*options, "trainer.max_epochs=1", "optimizer.layer_decay=0.7")
    config = configure(*options, "trainer.max_epochs=1")
    plan = make_plan(config, build(config.data, seed=0), 1)
    lrs = [0.1 * plan.multiplier(step) for step in range(STEPS_PER_EPOCH)]
    assert done.column("lr") == lrs
    for layer in range(3):
        expected = [lr * 0.7 ** (2 - layer) for lr in lrs]
        assert done.column(f"lr_layer{layer}") == expected
    header = done.metrics_text.splitlines()[0]
    assert header.startswith("epoch,step,lr,lr_layer0,lr_layer1,lr_layer2,train/")


def test_frozen_backbone_is_trained_with_the_lr_of_each_layer_later(run):
    """With averaged weights too; its layers have the LR of the backbone times their own."""
    weights = run(*ONE_BATCH, *MLP, folder="weights").folder / "checkpoints" / "best.ckpt"
    options = (
        *(*MLP, f"model.weights={weights}", "model.freeze=1ep", "model.backbone_lr_mult=0.1"),
        *("optimizer=adamw", "optimizer.lr=0.01", "optimizer.layer_decay=0.5", "callbacks=ema"),
        *("trainer.max_epochs=2", "trainer.log_every_n_steps=1"),
    )
    start = read_state(weights)[0]
    frozen = run(*options, "stop_after=1ep", folder="frozen").checkpoint()
    done = run(*options, folder="done")
    for name in start:
        if not name.startswith("10.") and "num_batches" not in name:
            current = frozen["current_model_state"][f"net.{name}"]
            assert torch.equal(current, start[name]), name
            average = frozen["state_dict"][f"net.{name}"]  # rounded in each step
            assert torch.allclose(average, start[name], rtol=1e-5, atol=1e-6), name
            trained = done.checkpoint()["state_dict"][f"net.{name}"]
            assert not torch.allclose(trained, start[name], rtol=1e-5, atol=1e-6), name
    n = STEPS_PER_EPOCH
    assert done.column("lr") == [0.01] * 2 * n
    assert done.column("lr_body") == pytest.approx([0] * n + [0.001] * n, rel=1e-12)
    assert done.column("lr_layer2") == [0.01] * 2 * n
    assert done.column("lr_layer1") == pytest.approx([0] * n + [0.0005] * n, rel=1e-12)
    assert done.column("lr_layer0") == pytest.approx([0] * n + [0.00025] * n, rel=1e-12)


def test_run_of_timm_tells_its_layers(run, capsys):
    pytest.importorskip("timm", reason="needs the extra [timm]")
    options = ("model=timm", "model.name=resnet18", "data.batch_size=4")
    done = run(*ONE_BATCH, *options, "optimizer.layer_decay=0.75")
    assert "optimizer.layer_decay=0.75: 10 layers, the LR of the first is 0.0751" in (
        capsys.readouterr().out
    )
    assert done.column("lr_layer0") == [pytest.approx(0.1 * 0.75**9, rel=1e-12)]
    names = [group["name"] for group in done.checkpoint()["optimizer_states"][0]["param_groups"]]
    assert names[:3] == ["head decayed", "head no_decay", "layer 8 decayed"]
    assert len(set(names)) == 20


def test_layer_decay_of_one_leaves_hash_and_optimizer_state_as_they_were(run):
    config = configure()
    without = configure()
    del without.optimizer.layer_decay
    assert config_hash(config) == config_hash(without)
    assert config_hash(configure("optimizer.layer_decay=0.9")) != config_hash(config)
    groups = run(*ONE_BATCH, *MLP).checkpoint()["optimizer_states"][0]["param_groups"]
    assert [group["name"] for group in groups] == ["decayed", "no_decay"]
    assert not {"layer", "lr_scale"} & {key for group in groups for key in group}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=mlp", "model.widths=[]"], "the network has a single layer, the head"),
        (
            ["model.freeze=100%"],
            "with model.freeze=100% model.backbone_lr_mult=1.0: no effect, as only the head",
        ),
        (["model.backbone_lr_mult=0"], "model.backbone_lr_mult=0: no effect, as only the head"),
    ],
)
def test_layer_decay_without_effect_is_refused(run, overrides, message):
    with pytest.raises(UserError, match=rf"optimizer.layer_decay=0.5.*{message}"):
        run(*ONE_BATCH, *overrides, "optimizer.layer_decay=0.5")


@pytest.mark.parametrize("value", ["0", "1.5", "-1"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_layer_decay_out_of_range_is_refused(optimizer, value):
    message = f"optimizer.layer_decay={value}; allowed: more than 0, at most 1"
    with pytest.raises(UserError, match=message):
        compose_and_check(f"optimizer={optimizer}", f"optimizer.layer_decay={value}")


def test_plan_states_the_lr_of_a_layer(run_script):
    done = run_script("plan.py", "optimizer.layer_decay=0.75", "hydra.run.dir=plan")
    assert done.returncode == 0, done.stderr
    assert "; in layer i of L times 0.75 ** (L - i)" in done.stdout
    plain = run_script("plan.py", "hydra.run.dir=plain")
    assert "layer" not in plain.stdout
