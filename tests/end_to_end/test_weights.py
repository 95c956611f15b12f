"""Runs that start from given weights: frozen backbone, its learning rate, inputs as in training."""

import pytest
import torch

from helpers.configs import ONE_BATCH, configure
from helpers.datasets import write_mnist
from tricklab.errors import UserError
from tricklab.model import find_head
from tricklab.run.build import build_net
from tricklab.run.instantiate import build
from tricklab.run.plan import make_plan
from tricklab.run.weights import read_state
from tricklab.training import ImageClassifier

SMALL = "model.widths=[8,8,8]"
STEPS_PER_EPOCH = 11


@pytest.fixture
def backbone(run, tmp_path):
    """A checkpoint trained on images of another size."""
    write_mnist(tmp_path)
    data = ("data=fashion_mnist", f"data.root={tmp_path}")
    done = run(*ONE_BATCH, SMALL, *data, folder="backbone")
    return done.folder / "checkpoints" / "best.ckpt"


def read_weights(run):
    state, _ = read_state(run.folder / "checkpoints" / "last.ckpt")
    return state


def read_optimizer(run):
    return run.checkpoint()["optimizer_states"][0]


def test_freeze_keeps_the_backbone_then_trains_it_with_its_lr(run, backbone):
    overrides = (
        *("trainer.max_epochs=3", "trainer.log_every_n_steps=1"),
        *("scheduler=cosine", "scheduler.warmup=2it"),
        *("data.train_size=352", "data.val_size=100", "data.batch_size=32"),
        *(SMALL, f"model.weights={backbone}"),
        *("model.freeze=2ep", "model.backbone_lr_mult=0.1"),
    )
    pretrained, _ = read_state(backbone)
    frozen = run(*overrides, "stop_after=2ep", folder="frozen")
    trained = run(*overrides, "stop_after=3ep", folder="trained")

    head, _ = find_head(build_net(configure(SMALL), (1, 28, 28), 10))
    frozen_weights, trained_weights = read_weights(frozen), read_weights(trained)
    for name in pretrained:  # batch norm's statistics too
        if not name.startswith(f"{head}."):
            assert torch.equal(frozen_weights[name], pretrained[name])
            assert not torch.equal(trained_weights[name], pretrained[name])

    config = configure(*overrides)
    plan = make_plan(config, build(config.data, seed=0), 1)
    frozen_steps = 2 * STEPS_PER_EPOCH
    lrs = [0.1 * plan.multiplier(t) for t in range(3 * STEPS_PER_EPOCH)]
    assert trained.column("lr") == lrs
    backbone_lrs = [0.0] * frozen_steps + [0.1 * lr for lr in lrs[frozen_steps:]]
    assert trained.column("lr_body") == pytest.approx(backbone_lrs, rel=1e-12)
    assert plan.backbone_multiplier(frozen_steps - 1) == 0


def test_freeze_leaves_dropout_active(run, backbone, monkeypatch):
    modes = []
    training_step = ImageClassifier.training_step

    def record_modes(self, batch, index):
        training = {type(module).__name__: module.training for module in self.net.modules()}
        modes.append((training["Dropout"], training["BatchNorm2d"]))
        return training_step(self, batch, index)

    monkeypatch.setattr(ImageClassifier, "training_step", record_modes)
    options = ("stop_after=2ep", "model.freeze=1ep", "model.dropout=0.5")
    run(*ONE_BATCH[1:], SMALL, f"model.weights={backbone}", *options)
    assert modes == [(True, False)] * STEPS_PER_EPOCH + [(True, True)] * STEPS_PER_EPOCH


def test_freeze_gathers_no_momentum(run, backbone):
    done = run(*ONE_BATCH, SMALL, f"model.weights={backbone}", "model.freeze=1it")
    assert sorted(read_optimizer(done)["state"]) == [0, 1]  # weight and bias of the head


def test_backbone_has_groups_of_its_own_only_with_another_lr(run, backbone):
    weights = f"model.weights={backbone}"
    plain = run(*ONE_BATCH, SMALL, weights)
    assert "lr_body" not in plain.metrics_text
    done = run(*ONE_BATCH, SMALL, weights, "model.backbone_lr_mult=0.5", folder="two_lrs")
    groups = read_optimizer(done)["param_groups"]
    assert [len(group["params"]) for group in groups] == [1, 1, 6, 12]
    assert [group["weight_decay"] for group in groups] == [5e-4, 0.0, 5e-4, 0.0]
    assert done.column("lr") == [0.1]
    assert done.column("lr_body") == [0.05]


def test_inputs_are_resized_and_normalised_as_the_weights_expect(run, run_script, tmp_path):
    """From 8 to 28 pixels, by evaluate too: an MLP takes no other size."""
    write_mnist(tmp_path)
    data = ("data=fashion_mnist", f"data.root={tmp_path}")
    first = run(*ONE_BATCH, "model=mlp", *data, folder="first")
    checkpoint = first.folder / "checkpoints" / "best.ckpt"
    done = run("model=mlp", f"model.weights={checkpoint}", "stop_after=2ep")

    expected = read_state(checkpoint)[1]["dataset"]
    dataset = read_state(done.folder / "checkpoints" / "best.ckpt")[1]["dataset"]
    assert dataset["input"] == [1, 28, 28]
    assert dataset["mean"] == expected["mean"]
    assert dataset["std"] == expected["std"]
    assert (dataset["height"], dataset["width"]) == (8, 8)

    metrics = done.result["metrics"]
    ckpt = f"ckpt={done.folder}/checkpoints/best.ckpt"
    output = run_script("evaluate.py", ckpt, "resamples=0").stdout
    assert f"test/acc {metrics['test/acc']}\n" in output
    assert f"test/loss {metrics['test/loss']}\n" in output


def test_pretrained_weights_of_torchvision_get_imagenet_inputs(run, monkeypatch, tmp_path):
    """Read from torchvision's cache; a grey image is repeated to three channels."""
    from torchvision.models import resnet18

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(3)
    pretrained = resnet18().state_dict()
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(pretrained, cache / "resnet18-f37072fd.pth")

    weights = ("model=torchvision", "model.weights=pretrained", "model.freeze=1it")
    done = run(*ONE_BATCH, *weights, "data.batch_size=4")
    dataset = done.checkpoint()["dataset"]
    assert dataset["input"] == [3, 224, 224]
    assert dataset["mean"] == [0.485, 0.456, 0.406]
    assert dataset["std"] == [0.229, 0.224, 0.225]
    state = read_weights(done)
    assert torch.equal(state["layer4.1.conv2.weight"], pretrained["layer4.1.conv2.weight"])
    assert state["fc.weight"].shape == (10, 512)


MISTAKES = [
    (
        ["model.weights=pretrained"],
        "model.weights=pretrained needs model=torchvision or model=timm",
    ),
    (
        ["model.weights=/no/where.ckpt"],
        "model.weights=/no/where.ckpt is not a file; allowed: null, pretrained, or a file",
    ),
    (
        ["model=timm", "model.weights=pretrained", "model.name=resnt18"],
        "model.name=resnt18; allowed: .* 'resnet18'",
    ),
    (
        ["model=torchvision", "model.weights=pretrained", "model.name=resnt18"],
        "model.name=resnt18; .* 'resnet18'",
    ),
    (
        ["model.freeze=100ep"],
        "model.freeze=100ep is 1100 steps; allowed: 0 to 165",
    ),
    (
        ["model=torchvision", "model.name=resnet81"],
        "model.name=resnet81; allowed: torchvision.* 'resnet18'",
    ),
    (
        ["model=timm", "model.name=resnet81"],
        "model.name=resnet81; allowed: timm.list_models.* 'resnet18'",
    ),
    (
        ["model=torchvision", "model.name=vit_b_16"],
        "model: Wrong image height! Expected 224 but got 8!",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES)
def test_model_mistake_is_one_line(run, overrides, message):
    if "model=timm" in overrides:
        pytest.importorskip("timm", reason="needs the extra [timm]")
    with pytest.raises(UserError, match=message) as error:
        run(*overrides)
    assert "\n" not in str(error.value)


def test_weights_of_grey_images_are_refused_for_colour(run, backbone):
    with pytest.raises(UserError, match=r"the network takes 1 channels, the images have 3"):
        run("data=fake", f"model.weights={backbone}")


def test_lr_scales_with_the_images_of_a_step(run, capsys):
    overrides = (
        "optimizer.lr_base_batch_size=256",
        "data.batch_size=64",
        "trainer.accumulate_grad_batches=2",
    )
    done = run(*ONE_BATCH, *overrides)
    assert done.column("lr") == [0.05]
    message = "optimizer.lr=0.1 per 256 images is 0.05 for the 128 of a step"
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(("classes", "has_top5"), [(19, False), (20, True)])
def test_top5_accuracy_needs_20_classes(run, classes, has_top5):
    done = run(*ONE_BATCH, "data=fake", f"data.num_classes={classes}")
    metrics = done.result["metrics"]
    assert ("test/acc_top5" in metrics) == has_top5
    if has_top5:
        assert 0 <= metrics["test/acc"] <= metrics["test/acc_top5"] <= 1
        assert len(done.column("val/acc_top5")) == 1


def test_model_needs_no_keys_of_fine_tuning(run):
    done = run(*ONE_BATCH, "~model.freeze", "~model.backbone_lr_mult")
    assert done.column("lr") == [0.1]
