"""The training loss against formulas, torch and timm, and in runs."""

import math

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from sklearn.utils.class_weight import compute_class_weight
from timm.loss import LabelSmoothingCrossEntropy
from torch import nn

from helpers.configs import configure
from tricklab.errors import UserError
from tricklab.loss import CrossEntropy, Entropy, balanced_weights
from tricklab.run.build import build_loss
from tricklab.run.instantiate import build
from tricklab.training import ImageClassifier

WEIGHTS = [1.0, 0.0, 2.5, 1.0, 0.1]
LABELS = torch.tensor([0, 3, 3, 1, 3])  # of training images


def make_batch(seed=0, images=64, classes=5):
    source = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=source, requires_grad=True)
    labels = torch.randint(classes, (images,), generator=source)
    mixed = torch.rand(images, classes, generator=source).softmax(1)
    return logits, labels, mixed


def formula(logits, probabilities, smoothing=0.0, weights=None):
    """The mean over images of - sum_k w_k q_k log p_k, in double and by loops."""
    total = 0.0
    for row, target in zip(logits.tolist(), probabilities.tolist()):
        log_norm = math.log(sum(math.exp(x) for x in row))
        for k, (x, q) in enumerate(zip(row, target)):
            smoothed = (1 - smoothing) * q + smoothing / len(row)
            total -= (weights[k] if weights else 1.0) * smoothed * (x - log_norm)
    return total / len(logits)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_loss_is_its_formula_for_indices_and_probabilities(smoothing, weights):
    logits, labels, mixed = make_batch()
    loss = CrossEntropy(smoothing, weights)
    one_hot = F.one_hot(labels, 5).float()
    for targets, probabilities in ((labels, one_hot), (one_hot, one_hot), (mixed, mixed)):
        expected = formula(logits, probabilities, smoothing, weights)
        assert loss(logits, targets).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_loss_of_indices_has_the_gradient_of_their_probabilities(smoothing, weights):
    logits, labels, _ = make_batch()
    loss = CrossEntropy(smoothing, weights)
    of_indices = gradient(loss(logits, labels), logits)
    of_probabilities = gradient(loss(logits, F.one_hot(labels, 5).float()), logits)
    assert torch.allclose(of_indices, of_probabilities, rtol=1e-5, atol=1e-8)


def test_plain_loss_of_indices_equals_torch_bit_for_bit():
    logits, labels, _ = make_batch()
    ours, theirs = CrossEntropy()(logits, labels), F.cross_entropy(logits, labels)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(ours, logits), gradient(theirs, logits))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_loss_of_probabilities_equals_torch_bit_for_bit(smoothing, weights):
    logits, _, mixed = make_batch()
    tensor = None if weights is None else torch.tensor(weights)
    theirs = nn.CrossEntropyLoss(label_smoothing=smoothing, weight=tensor)(logits, mixed)
    ours = CrossEntropy(smoothing, weights)(logits, mixed)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(ours, logits), gradient(theirs, logits))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_loss_of_indices_equals_torch_on_one_hot_targets_bit_for_bit(smoothing):
    logits, labels, _ = make_batch()
    one_hot = torch.eye(5).index_select(0, labels)
    oracle = nn.CrossEntropyLoss(label_smoothing=smoothing, weight=torch.tensor(WEIGHTS))
    theirs = oracle(logits, one_hot)
    ours = CrossEntropy(smoothing, WEIGHTS)(logits, labels)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(ours, logits), gradient(theirs, logits))


def test_weighted_loss_is_a_mean_over_images_not_over_weights():
    """Two images of class 0 with weight 2: twice the plain loss. torch's mean would be plain."""
    logits, labels = torch.randn(2, 3), torch.tensor([0, 0])
    plain = CrossEntropy()(logits, labels).item()
    weighted = CrossEntropy(class_weights=[2, 1, 1])(logits, labels).item()
    assert weighted == pytest.approx(2 * plain)


def test_smoothed_loss_equals_timm():
    logits, labels, _ = make_batch()
    expected = LabelSmoothingCrossEntropy(0.1)(logits, labels).item()
    assert CrossEntropy(0.1)(logits, labels).item() == pytest.approx(expected, abs=1e-6)
    option = build(configure("loss=smooth").loss)
    one_hot = F.one_hot(labels, 5).float()
    assert option(logits, one_hot).item() == pytest.approx(expected, abs=1e-6)


def test_loss_takes_a_single_image():
    logits, labels, mixed = make_batch(images=1)
    assert CrossEntropy(0.1)(logits, labels).ndim == CrossEntropy(0.1)(logits, mixed).ndim == 0


def test_class_weights_move_with_the_loss():
    loss = CrossEntropy(class_weights=WEIGHTS).to("meta")
    assert loss.class_weights.device.type == "meta"
    assert CrossEntropy().class_weights is None


@pytest.mark.parametrize("seed", range(10))
def test_balanced_weights_are_those_of_scikit_learn(seed):
    rng = torch.Generator().manual_seed(seed)
    labels = torch.rand(500, generator=rng).pow(3).mul(7).long()
    labels[labels == 5] = 6  # a class without images
    weights = torch.tensor(balanced_weights(labels, 9), dtype=torch.double)
    present = labels.unique()
    expected = compute_class_weight("balanced", classes=present.numpy(), y=labels.numpy())
    assert weights[present].tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert weights[[5, 7, 8]].tolist() == [0, 0, 0]
    assert weights[labels].mean().item() == pytest.approx(1)


def test_balanced_weights_give_each_class_the_same_part_of_the_loss():
    labels = torch.tensor([0] * 90 + [1] * 9 + [2])
    loss = CrossEntropy(class_weights=balanced_weights(labels, 3))
    logits = torch.zeros(100, 3)
    parts = [loss(logits[labels == c], labels[labels == c]) * (labels == c).sum() for c in range(3)]
    assert torch.stack(parts).tolist() == pytest.approx([100 / 3 * math.log(3)] * 3, rel=1e-5)


@pytest.mark.parametrize(("classes", "line"), [(4, "[1.667,1.667,0,0.5556]"), (20, None), (21, "")])
def test_balanced_weights_are_resolved_and_printed_if_they_are_few(classes, line, capsys):
    loss = build_loss(configure("loss.class_weights=balanced").loss, classes, LABELS)
    expected = torch.tensor(balanced_weights(LABELS, classes))
    assert torch.equal(loss.state_dict()["class_weights"], expected)
    lines = capsys.readouterr().out.splitlines()
    if classes > 20:
        assert lines == []
    elif line:
        assert lines == [f"loss.class_weights={line}"]
    else:
        assert len(lines) == 1


@pytest.mark.parametrize("smoothing", [1.0, 1.5, -0.1, math.nan])
def test_smoothing_outside_of_its_range_is_refused(smoothing):
    with pytest.raises(UserError, match=r"label_smoothing=.* leaves nothing of the targets"):
        CrossEntropy(smoothing)


@pytest.mark.parametrize("weights", [[0, 0], [], [1, -1], [1, math.inf], [1, math.nan], [1, "2"]])
def test_invalid_class_weights_are_refused(weights):
    with pytest.raises(UserError, match=r"loss\.class_weights=.*: expected numbers of 0 or more"):
        CrossEntropy(class_weights=weights)


@pytest.mark.parametrize("targets", [torch.tensor([0, 1]), torch.full((2, 3), 1 / 3)])
def test_class_weights_of_another_number_of_classes_are_refused(targets):
    loss = CrossEntropy(class_weights=[1, 2])
    match = r"loss\.class_weights=\[1\.0, 2\.0\]: expected 3 numbers, one for each class"
    with pytest.raises(UserError, match=match):
        loss(torch.zeros(2, 3), targets)


def test_smoothing_leaves_something_of_the_targets():
    with pytest.raises(UserError, match=r"loss\.label_smoothing=1\.0 leaves nothing"):
        build_loss(configure("loss.label_smoothing=1.0").loss, 10, LABELS)
    assert build_loss(configure("loss.label_smoothing=0.99").loss, 10, LABELS)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"_target_": "NLLLoss"}, "does not take class indices .* and probabilities"),
        ({"_target_": "BCEWithLogitsLoss"}, "does not take class indices .* and probabilities"),
        ({"_target_": "CrossEntropyLoss", "reduction": "sum"}, "not a mean over the images"),
        ({"_target_": "CrossEntropyLoss", "reduction": "none"}, "not a mean over the images"),
    ],
)
def test_loss_of_other_targets_or_no_mean_is_refused(loss, message):
    config = OmegaConf.create({**loss, "_target_": f"torch.nn.{loss['_target_']}"})
    with pytest.raises(UserError, match=message):
        build_loss(config, 10, LABELS)


def test_mixed_targets_are_smoothed_once(run, monkeypatch):
    """Smoothing twice by 0.1 would be smoothing once by 0.19."""
    seen = {}
    step = ImageClassifier.training_step

    def record(self, batch, index):
        seen["targets"], seen["logits"] = batch[1], self.net(batch[0]).detach()
        return step(self, batch, index)

    monkeypatch.setattr(ImageClassifier, "training_step", record)
    done = run("debug=batch", "model=mlp", "mixup=on", "mixup.alpha=1.0", "loss=smooth")
    assert 0.1 < seen["targets"].max(1).values.mean() < 0.999  # mixed, not smoothed yet
    once, twice = (formula(seen["logits"], seen["targets"], eps) for eps in (0.1, 0.19))
    assert done.column("train/loss")[0] == pytest.approx(once, abs=1e-6)
    assert abs(once - twice) > 1e-3


@pytest.mark.parametrize("kappa", [0.0, 0.1, 2.0])
def test_entropy_of_the_predictions_is_subtracted(kappa):
    logits, labels, mixed = make_batch()
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    for targets in (labels, mixed):
        loss = Entropy(kappa, label_smoothing=0.1)(logits, targets)
        expected = CrossEntropy(label_smoothing=0.1)(logits, targets) - kappa * entropy
        assert torch.allclose(loss, expected, atol=1e-6)
        gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, expected)]
        assert torch.allclose(*gradients, atol=1e-7)


def test_entropy_lowers_the_confidence():
    logits = torch.tensor([[3.0, 0.0]], requires_grad=True)
    label = torch.tensor([0])
    gradients = [
        torch.autograd.grad(Entropy(kappa)(logits, label), logits)[0][0, 0] for kappa in (0, 1)
    ]
    assert gradients[0] < 0 < gradients[1]
