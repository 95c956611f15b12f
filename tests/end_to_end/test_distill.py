"""Distillation: what the teacher sees, what it leaves unchanged, resuming, ranks and refusals."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers.configs import ONE_BATCH, configure
from helpers.paths import ROOT
from helpers.runs import Run
from tricklab.data.inputs import InputSpec, Preprocess
from tricklab.errors import UserError
from tricklab.loss import CrossEntropy, Distill
from tricklab.run import teacher as teachers
from tricklab.run.build import build_data, build_net
from tricklab.run.identity import config_hash
from tricklab.run.weights import Weights
from tricklab.teacher import Teacher
from tricklab.training import ImageClassifier

SMALL = ("model=mlp", "model.widths=[8]", "model.dropout=0.2")
TRICKS = ("mixup=on", "augment=light", "loss.label_smoothing=0.1", "trainer.log_every_n_steps=1")
STEPS = ("trainer.max_epochs=2", *SMALL, *TRICKS)


@pytest.fixture
def teacher(cached_run):
    """Return the folder of a trained network."""
    return cached_run(*ONE_BATCH, "model=mlp", "model.widths=[20]", folder="teacher").folder


def distill(folder, *overrides):
    return ("loss=distill", f"loss.teacher='{folder}'", *overrides)


def make_logits(seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(16, 5, generator=source, requires_grad=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_divergence_is_that_of_torch(temperature):
    logits, teacher_logits = make_logits(0), make_logits(1).detach()
    loss = Distill(temperature=temperature, weight=0.3)
    q, p = ((x / temperature).log_softmax(1) for x in (logits, teacher_logits))
    kl = nn.KLDivLoss(reduction="batchmean")(q, p.exp()) * temperature**2
    divergence = loss.divergence(logits, teacher_logits)
    assert torch.allclose(divergence, kl, rtol=1e-5)
    assert loss.divergence(logits, logits).abs() < 1e-6
    (gradient,) = torch.autograd.grad(divergence, logits)
    expected = temperature * (q.exp() - p.exp()) / len(logits)
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert torch.allclose(loss.combine(torch.tensor(2.0), kl), 0.7 * 2 + 0.3 * kl)


def test_cross_entropy_of_a_distilled_network_is_the_plain_one():
    logits, labels = make_logits(), torch.arange(16) % 5
    options = {"label_smoothing": 0.1, "class_weights": [1, 2, 1, 1, 1]}
    assert torch.equal(Distill(**options)(logits, labels), CrossEntropy(**options)(logits, labels))


@pytest.mark.parametrize(
    "expected",
    [
        InputSpec((1, 8, 8), [0.2], [0.5]),
        InputSpec((3, 8, 8), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
        InputSpec((3, 12, 10), [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], interpolation="bicubic"),
    ],
)
def test_teacher_gets_the_images_as_it_expects_them(expected):
    given = InputSpec((1, 8, 8), [0.3], [0.25])
    images = torch.rand(4, 1, 8, 8) * 255
    net = nn.Flatten()
    logits = Teacher(net, expected, given, "")(Preprocess(given)(images))
    assert torch.allclose(logits, Preprocess(expected)(images).flatten(1), atol=1e-5)


def test_teacher_with_the_input_of_the_student_gets_its_batch():
    spec = InputSpec((1, 8, 8), [0.3], [0.25])
    images = torch.randn(4, 1, 8, 8)
    assert Teacher(nn.Identity(), spec, spec._replace(fit="pad"), "")(images) is images


def test_first_step_is_that_of_the_formula(run, teacher):
    """Plain SGD on the mixed, augmented batch, by hand; the teacher is in evaluation mode."""
    plain = ("optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0")
    overrides = (*ONE_BATCH, "model=mlp", "model.widths=[8]", *plain, *TRICKS)
    overrides += distill(teacher, "loss.temperature=3", "loss.weight=0.7")
    done = run(*overrides)
    config = configure(*overrides)
    data = build_data(config)
    batch = next(iter(data.training_batches(lambda: (0, 0))))
    images, targets = data.training_batch(batch, (0, 0))
    net = build_net(config, data.shape, 10)
    teacher_net = teachers.read_own(str(teacher), data.classes)[0].eval()
    p, q = (f(images) / 3 for f in (teacher_net, net))
    kl = F.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean") * 9
    cross_entropy = F.cross_entropy(net(images), targets, label_smoothing=0.1)
    (0.3 * cross_entropy + 0.7 * kl).backward()
    weights = done.checkpoint()["state_dict"]
    for name, parameter in net.named_parameters():
        expected = parameter.detach() - config.optimizer.lr * parameter.grad
        assert torch.allclose(weights[f"net.{name}"], expected, atol=2e-6), name
    assert done.column("train/distill") == pytest.approx([kl.item()], rel=1e-5)
    assert done.column("train/loss") == pytest.approx([cross_entropy.item()], rel=1e-5)


def test_teacher_is_neither_changed_nor_saved_nor_counted(run, teacher, monkeypatch, capsys):
    seen = []
    build = teachers.build_teacher
    monkeypatch.setattr(
        "tricklab.run.experiment.build_teacher", lambda *a: seen.append(build(*a)) or seen[-1]
    )
    before = Run(teacher).checkpoint("best.ckpt")["state_dict"]
    done = run(*STEPS, *distill(teacher))
    for name, value in seen[0].net.state_dict().items():
        assert torch.equal(value, before[f"net.{name}"])
    assert not seen[0].net.training
    assert (
        done.checkpoint()["state_dict"].keys()
        == run(*STEPS, folder="plain").checkpoint()["state_dict"].keys()
    )
    out = capsys.readouterr().out
    assert f"teacher: {teacher}, 1,530 parameters, 1 x 8 x 8" in out
    assert "618 parameters" in out


def test_weight_of_zero_is_the_plain_loss(run, teacher):
    plain = run(*STEPS, folder="plain")
    for number, source in enumerate((str(teacher), "missing")):
        zero = run(*STEPS, *distill(source, "loss.weight=0"), folder=f"zero{number}")
        assert zero.metrics_text == plain.metrics_text
        for name, value in plain.checkpoint()["state_dict"].items():
            assert torch.equal(zero.checkpoint()["state_dict"][name], value)


@pytest.mark.parametrize("step", [7, 15])
def test_distilled_run_resumes_bit_for_bit(run, teacher, monkeypatch, step):
    options = (*STEPS, *distill(teacher), "callbacks.last.every_n_steps=2")
    whole = run(*options, folder="whole")
    training_step = ImageClassifier.training_step

    def crash(self, *arguments):
        if self.global_step == step:
            raise ArithmeticError
        return training_step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "training_step", crash)
        with pytest.raises(ArithmeticError):
            run(*options, folder="parts")
    parts = run(*options, "resume=auto", folder="parts")
    assert parts.metrics_text == whole.metrics_text
    for name, value in whole.checkpoint()["state_dict"].items():
        assert torch.equal(parts.checkpoint()["state_dict"][name], value)


def test_resume_refuses_a_teacher_that_changed(run, cached_run, teacher):
    options = (*STEPS, *distill(teacher))
    run(*options, "stop_after=1ep")
    other = cached_run(*ONE_BATCH, "model=mlp", "model.widths=[20]", "seed=1", folder="other")
    (other.folder / "checkpoints/best.ckpt").replace(teacher / "checkpoints/best.ckpt")
    with pytest.raises(UserError, match=r"resume: loss\.teacher: its weights are not those"):
        run(*options, "resume=auto")


@pytest.mark.slow
def test_two_ranks_distill_as_one_process(run, teacher, tmp_path):
    """Without batch norm, whose statistics are those of a rank, and without mixing."""
    options = ("model=mlp", "model.batch_norm=false", "data.train_size=132", "data.val_size=100")
    options += ("trainer.max_epochs=2", *distill(teacher))
    single = run(*options, "data.batch_size=64")
    command = [sys.executable, str(ROOT / "train.py"), *options, "data.batch_size=32"]
    command += ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "hydra.run.dir=ddp"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    weights = Run(tmp_path / "ddp").checkpoint()["state_dict"]
    for name, value in single.checkpoint()["state_dict"].items():
        assert torch.allclose(weights[name], value, atol=1e-6), name


def test_published_teacher_is_used_as_published(run, monkeypatch):
    """timm's resnet18 for 10 classes, instead of a download."""
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    net = timm.create_model("resnet18", num_classes=10).eval()
    spec = InputSpec((3, 32, 32), [0.5] * 3, [0.2] * 3)
    monkeypatch.setattr(teachers, "download_weights", lambda model: Weights(net.state_dict(), spec))
    data = build_data(configure("data=digits"))
    loss = configure("loss=distill", "loss.teacher=timm:resnet18").loss
    images = torch.randn(2, 1, 8, 8)
    logits = teachers.build_teacher(loss, data)(images)
    raw = (images * data.spec.std[0] + data.spec.mean[0]) * 255
    with torch.no_grad():
        assert torch.allclose(logits, net(Preprocess(spec)(raw)), atol=1e-4)
    fewer = configure("data=fake", "data.num_classes=7")
    with pytest.raises(UserError, match=r"timm:resnet18: its classes .* the 7 of the data"):
        teachers.build_teacher(loss, build_data(fewer))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.teacher=null"], "loss.teacher is missing. Expected the path of a checkpoint"),
        (["loss.teacher=nowhere"], "loss.teacher=nowhere: no such file"),
        (["loss.teacher=timm:resnet1"], "model.name=resnet1; allowed: timm"),
        (
            ["data=fake", "data.height=8", "data.width=8", "data.num_classes=3"],
            "it has the classes",
        ),
        (["data=fake"], "it takes images of 1 x 8 x 8, these are 3 x 32 x 32"),
    ],
)
def test_teacher_is_refused(run, teacher, overrides, message):
    with pytest.raises(UserError, match=message):
        run(*SMALL, *distill(teacher), *overrides)


def test_teacher_with_a_payload_is_refused(run, teacher):
    class Payload:
        def __reduce__(self):
            return os.mkdir, ("owned",)

    path = teacher / "checkpoints" / "best.ckpt"
    torch.save(torch.load(path) | {"x": Payload()}, path)
    with pytest.raises(UserError, match=r"best\.ckpt"):
        run(*SMALL, *distill(teacher))
    assert not os.path.exists("owned")


def test_hash_has_the_teacher():
    plain = configure()
    assert config_hash(configure(*distill("a"))) != config_hash(configure(*distill("b")))
    assert config_hash(configure("loss=cross_entropy")) == config_hash(plain)
