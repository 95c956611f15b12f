"""Networks of other libraries, and training from given weights."""

import sys

import pytest
import torch
from helpers.configs import ONE_BATCH, configure
from helpers.datasets import write_mnist
from torch import nn

from tricklab.errors import UserError
from tricklab.metrics import evaluate
from tricklab.model import find_head, torchvision
from tricklab.run.build import build_net
from tricklab.run.instantiate import build
from tricklab.run.plan import make_plan
from tricklab.run.weights import Weights, load_backbone, read_state, read_weights
from tricklab.training import ImageClassifier

SMALL = "model.widths=[8,8,8]"


@pytest.fixture
def body(run, tmp_path):
    """A checkpoint trained on images of another size."""
    write_mnist(tmp_path)
    done = run(*ONE_BATCH, SMALL, "data=fashion_mnist", f"data.root={tmp_path}", folder="body")
    return done.folder / "checkpoints" / "best.ckpt"


def state(folder):
    weights, _ = read_state(folder / "checkpoints" / "last.ckpt")
    return weights


TUNED = (
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=1",
    "scheduler=cosine",
    "scheduler.warmup=2it",
)


def test_a_body_is_frozen_then_free_at_the_planned_rates(run, body):
    small = ("data.train_size=352", "data.val_size=100", "data.batch_size=32")
    options = (
        *TUNED,
        *small,
        SMALL,
        f"model.weights={body}",
        "model.freeze=2ep",
        "model.backbone_lr_mult=0.1",
    )
    given, _ = read_state(body)
    frozen, free = (run(*options, f"stop_after={n}ep", folder=str(n)) for n in (2, 3))
    head, _ = find_head(build_net(configure(SMALL), (1, 28, 28), 10))
    names = [key for key in given if not key.startswith(f"{head}.")]
    assert all(
        torch.equal(state(frozen.folder)[key], given[key]) for key in names
    )  # batch norm's statistics too
    assert sum(torch.equal(state(free.folder)[key], given[key]) for key in names) == 0
    cfg = configure(*options)
    plan = make_plan(cfg, build(cfg.data, seed=0), 1)
    rates = [0.1 * plan.multiplier(t) for t in range(33)]
    assert free.column("lr") == rates
    assert free.column("lr_body") == pytest.approx(
        [0.0] * 22 + [0.1 * rate for rate in rates[22:]], rel=1e-12
    )
    assert plan.backbone_multiplier(21) == 0


def test_images_are_made_what_the_weights_were_trained_on(run, run_script, tmp_path):
    """Normalised as they were and resized from 8 to 28 pixels, by evaluate too: a dense body takes no other size."""
    write_mnist(tmp_path)
    body = run(
        *ONE_BATCH, "model=mlp", "data=fashion_mnist", f"data.root={tmp_path}", folder="body"
    )
    file = body.folder / "checkpoints" / "best.ckpt"
    done = run("model=mlp", f"model.weights={file}", "stop_after=2ep")
    theirs, ours = (
        read_state(path)[1]["dataset"] for path in (file, done.folder / "checkpoints" / "best.ckpt")
    )
    assert ours["input"] == [1, 28, 28]
    assert (ours["mean"], ours["std"]) == (theirs["mean"], theirs["std"])
    assert (ours["height"], ours["width"]) == (8, 8)
    said = run_script("evaluate.py", f"ckpt={done.folder}/checkpoints/best.ckpt", "resamples=0")
    assert f"test/acc {done.result['metrics']['test/acc']}\n" in said.stdout
    assert f"test/loss {done.result['metrics']['test/loss']}\n" in said.stdout


def test_dropout_acts_while_the_body_is_frozen(run, body, monkeypatch):
    seen, step = [], ImageClassifier.training_step

    def watch(self, batch, index):
        seen.append({type(m).__name__: m.training for m in self.net.modules()})
        return step(self, batch, index)

    monkeypatch.setattr(ImageClassifier, "training_step", watch)
    run(
        *ONE_BATCH[1:],
        SMALL,
        "stop_after=2ep",
        f"model.weights={body}",
        "model.freeze=1ep",
        "model.dropout=0.5",
    )
    assert [(modes["Dropout"], modes["BatchNorm2d"]) for modes in seen] == [(True, False)] * 11 + [
        (True, True)
    ] * 11


def test_a_free_body_with_its_rate_is_plain_training(run, body):
    """Apart from what is loaded, nothing changes: no second rate, two groups of parameters."""
    done = run(*ONE_BATCH, SMALL, f"model.weights={body}")
    assert "lr_body" not in (done.folder / "metrics.csv").read_text()
    apart = run(
        *ONE_BATCH, SMALL, f"model.weights={body}", "model.backbone_lr_mult=0.5", folder="apart"
    )
    groups = torch.load(apart.folder / "checkpoints" / "last.ckpt", weights_only=True)[
        "optimizer_states"
    ][0]
    assert [len(group["params"]) for group in groups["param_groups"]] == [1, 1, 6, 12]
    assert [group["weight_decay"] for group in groups["param_groups"]] == [5e-4, 0.0, 5e-4, 0.0]
    assert (apart.column("lr"), apart.column("lr_body")) == ([0.1], [0.05])


def test_momentum_does_not_gather_while_the_body_is_frozen(run, body):
    done = run(*ONE_BATCH, SMALL, f"model.weights={body}", "model.freeze=1it")
    kept = torch.load(done.folder / "checkpoints" / "last.ckpt", weights_only=True)[
        "optimizer_states"
    ][0]["state"]
    assert sorted(kept) == [0, 1]


def test_the_classifier_is_not_loaded():
    net = build_net(configure(), (1, 8, 8), 10)
    other = build_net(configure("seed=1"), (1, 8, 8), 7).state_dict()
    before = find_head(net)[1].weight.clone()
    load_backbone(net, other)
    assert torch.equal(find_head(net)[1].weight, before)
    assert torch.equal(net[1].weight, other["1.weight"])


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            "model.widths=[16,32,48]",
            r"17.weight is \[48, 32, 3, 3\] in the file, \[64, 32, 3, 3\] in the network",
        ),
        ("model.widths=[16,32]", "17.weight is missing in the file"),
        ("model.widths=[16,32,64,64]", r"21.weight is .* in the file|missing in the network"),
        ("model=mlp", ".* in the network"),
    ],
)
def test_weights_of_another_network_are_refused(other, says):
    with pytest.raises(UserError, match=rf"model\.weights: {says}"):
        load_backbone(
            build_net(configure(), (1, 8, 8), 10),
            build_net(configure(other), (1, 8, 8), 10).state_dict(),
        )


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
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
        (["model.freeze=100ep"], "model.freeze=100ep is 1100 steps; allowed: 0 to 165"),
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
    ],
)
def test_mistakes_are_one_line(run, overrides, says):
    if "model=timm" in overrides:
        pytest.importorskip("timm", reason="needs the extra [timm]")
    with pytest.raises(UserError, match=says) as caught:
        run(*overrides)
    assert "\n" not in str(caught.value)


def test_colour_images_and_a_grey_network_are_refused(run, body):
    with pytest.raises(UserError, match=r"model\.weights take 1 channels, the images have 3"):
        run("data=fake", f"model.weights={body}")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'tricklab\[timm\]'"):
        build_net(configure("model=timm"), (3, 32, 32), 10)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_of_torchvision_is_what_is_asked_for(dropout):
    """Where a network has it itself, not twice; and stochastic depth in proportion."""
    net = torchvision(3, 5, name="mobilenet_v3_small", dropout=dropout)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [dropout]
    paths = [
        m.p
        for m in torchvision(3, 5, name="efficientnet_b0", drop_path=dropout).modules()
        if "Depth" in str(type(m))
    ]
    assert paths == pytest.approx([dropout * i / (len(paths) - 1) for i in range(len(paths))])
    with pytest.raises(
        UserError, match=r"model.drop_path=0.1: resnet18 has no stochastic depth; allowed: 0"
    ):
        torchvision(3, 5, name="resnet18", drop_path=0.1)


def test_published_weights_of_torchvision(run, monkeypatch, tmp_path):
    """From the file that torchvision keeps: size and normalisation are ImageNet's, a grey image gets three channels."""
    from torchvision.models import resnet18

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.manual_seed(3)
    published = resnet18().state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(published, tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth")
    options = (
        "model=torchvision",
        "model.weights=pretrained",
        "data.batch_size=4",
        "model.freeze=1it",
    )
    done = run(*ONE_BATCH, *options)
    facts = read_state(done.folder / "checkpoints" / "last.ckpt")[1]["dataset"]
    assert facts["input"] == [3, 224, 224]
    assert (facts["mean"], facts["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    trained = state(done.folder)
    assert torch.equal(trained["layer4.1.conv2.weight"], published["layer4.1.conv2.weight"])
    assert trained["fc.weight"].shape == (10, 512)


def test_published_weights_of_timm(monkeypatch):
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    create, published = timm.create_model, timm.create_model("resnet18")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: published)
    weights = read_weights(configure("model=timm", "model.weights=pretrained").model)
    monkeypatch.setattr(timm, "create_model", create)
    assert weights.input_spec.shape == (3, 224, 224)
    assert weights.input_spec.mean == [0.485, 0.456, 0.406]
    net = build_net(configure("model=timm"), (3, 64, 64), 10)
    load_backbone(net, weights.state)
    assert torch.equal(net.conv1.weight, published.conv1.weight)


def test_no_network_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        "torch.hub.download_url_to_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no route"))
    )
    with pytest.raises(UserError, match=r"model\.weights=pretrained of resnet18: no route"):
        read_weights(configure("model=torchvision", "model.weights=pretrained").model)


def test_other_networks_take_any_channels_and_dropout():
    for channels in (1, 3, 4):
        net = build_net(configure("model=torchvision", "model.dropout=0.3"), (channels, 32, 32), 7)
        assert net.conv1.in_channels == channels
        assert isinstance(net.fc[0], nn.Dropout)
        assert net.fc[1].out_features == 7
    assert isinstance(build_net(configure("model=torchvision"), (3, 32, 32), 7).fc, nn.Linear)


def test_a_file_of_plain_weights_has_no_images(tmp_path):
    net = build_net(configure(), (1, 8, 8), 10)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    weights = read_weights(configure(f"model.weights={tmp_path}/w.pth").model)
    assert isinstance(weights, Weights)
    assert weights.input_spec is None
    assert weights.state.keys() == net.state_dict().keys()


def test_the_rate_scales_with_the_images_of_a_step(run, capsys):
    options = (
        "optimizer.lr_base_batch_size=256",
        "data.batch_size=64",
        "trainer.accumulate_grad_batches=2",
    )
    done = run(*ONE_BATCH, *options)
    assert done.column("lr") == [0.05]
    assert (
        "optimizer.lr=0.1 per 256 images is 0.05 for the 128 of a step" in capsys.readouterr().out
    )
    cfg = configure(*options)
    assert make_plan(cfg, build(cfg.data, seed=0), 4).lr == 0.2


def test_top_5_from_20_classes_on(run):
    few, many = (run(*ONE_BATCH, "data=fake", f"data.classes={n}", folder=str(n)) for n in (19, 20))
    assert "test/acc_top5" not in few.result["metrics"]
    metrics = many.result["metrics"]
    assert 0 <= metrics["test/acc"] <= metrics["test/acc_top5"] <= 1
    assert len(many.column("val/acc_top5")) == 1


def test_top_5_is_torchmetrics():
    from torchmetrics.functional import accuracy

    logits, labels = torch.randn(500, 20), torch.randint(20, (500,))
    values = evaluate(logits, labels)
    for name, k in (("acc", 1), ("acc_top5", 5)):
        expected = accuracy(
            logits, labels, task="multiclass", num_classes=20, top_k=k, average="micro"
        )
        assert values[name] == pytest.approx(float(expected))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_left_out(name, monkeypatch):
    """And their published weights take images of -1 .. 1, as torchvision's own networks make of ImageNet's."""
    from torchvision import models

    size = {"googlenet": 64, "inception_v3": 96}[name]
    net = build_net(configure("model=torchvision", f"model.name={name}"), (3, size, size), 4)
    assert net(torch.zeros(2, 3, size, size)).shape == (2, 4)  # in training too
    full = models.get_model(name, init_weights=False, aux_logits=True).state_dict()
    best = models.get_model_weights(name)["DEFAULT"]
    monkeypatch.setattr(type(best), "get_state_dict", lambda self, **options: full)
    weights = read_weights(
        configure("model=torchvision", f"model.name={name}", "model.weights=pretrained").model
    )
    load_backbone(net, weights.state)
    image, shown = torch.rand(1, 3, 8, 8), best.transforms()
    normal = (image - torch.tensor(shown.mean).view(3, 1, 1)) / torch.tensor(shown.std).view(
        3, 1, 1
    )
    theirs = models.get_model(name, init_weights=False, transform_input=True)._transform_input(
        normal
    )
    assert torch.allclose(
        (image - weights.input_spec.mean[0]) / weights.input_spec.std[0], theirs, atol=1e-5
    )


def test_another_number_of_channels_changes_nothing_else():
    plain, grey = (build_net(configure("model=torchvision"), (c, 64, 64), 5).conv1 for c in (3, 1))
    assert (plain.stride, plain.padding, plain.kernel_size) == (
        grey.stride,
        grey.padding,
        grey.kernel_size,
    )
    assert grey.bias is None


def test_timm_gets_channels_and_dropout():
    pytest.importorskip("timm", reason="needs the extra [timm]")
    net = build_net(configure("model=timm", "model.dropout=0.4"), (1, 32, 32), 5)
    assert net.conv1.in_channels == 1
    assert net.drop_rate == 0.4


def test_a_file_of_something_else_holds_no_weights(tmp_path):
    torch.save({"epoch": 3, "losses": [1.0]}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth holds no weights"):
        read_weights(configure(f"model.weights={tmp_path}/w.pth").model)


def test_a_network_of_ones_own_needs_no_more_keys(run):
    assert run(*ONE_BATCH, "~model.freeze", "~model.backbone_lr_mult").column("lr") == [0.1]
