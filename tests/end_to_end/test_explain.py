"""scripts/explain.py: Grad-CAM of predicted and true class."""

import re

import pytest
import torch
from PIL import Image
from torch import nn

from helpers.configs import ONE_BATCH, configure
from helpers.datasets import write_photographs
from tricklab.analysis.explanation import UNKNOWN, explain, read_examples, worst_mistakes
from tricklab.analysis.gradcam import find_layer, grad_cam
from tricklab.analysis.trained import load_checkpoint
from tricklab.errors import UserError
from tricklab.run.build import build_net


def make_net(*overrides, shape=(3, 64, 64), classes=5):
    return build_net(configure(*overrides), shape, classes).eval()


def class_activation_map(features, weights):
    """CAM (arXiv 1512.04150): Grad-CAM's equal if pooling and one linear layer follow."""
    cam = torch.einsum("bkhw,bk->bhw", features, weights).relu()
    enlarged = nn.functional.interpolate(cam[:, None], (64, 64), mode="bilinear")[:, 0]
    return enlarged / enlarged.amax((1, 2), keepdim=True)


def test_map_of_resnet18_is_its_class_activation_map():
    torch.manual_seed(0)
    net = make_net("model=torchvision", "model.name=resnet18")
    images = torch.randn(6, 3, 64, 64)
    classes = torch.arange(6) % 5
    layer = find_layer(net, images[:1])
    assert (layer.name, layer.shape) == ("layer4", (512, 2, 2))
    backbone = nn.Sequential(*list(net.children())[:-2])
    with torch.no_grad():
        expected = class_activation_map(backbone(images), net.fc.weight[classes])
    found = grad_cam(net, layer, images, classes)
    is_empty = expected.isnan().all(2).all(1)  # nothing speaks for the class
    assert (found[is_empty] == 0).all()
    assert is_empty.sum() < 6
    assert torch.allclose(found[~is_empty], expected[~is_empty], atol=1e-5)


class SeveralLayersBehind(nn.Module):
    """As VGG: the map is not only pooled, and several layers follow."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 7, 3, stride=8), nn.ReLU(inplace=True))
        self.classifier = nn.Sequential(nn.Linear(7 * 64, 20), nn.Tanh(), nn.Linear(20, 5))

    def forward(self, images):
        return self.classifier(self.features(images).flatten(1))


def test_map_is_that_of_the_gradient_by_finite_differences():
    torch.manual_seed(0)
    net = SeveralLayersBehind().double().eval()
    image = torch.randn(1, 3, 64, 64, dtype=torch.double)
    layer = find_layer(net, image)
    assert layer.shape == (7, 8, 8)
    with torch.no_grad():
        features = net.features(image)
        weights = []
        for k in range(7):
            step = torch.zeros_like(features)
            step[0, k] = 1e-6
            above, below = (net.classifier((features + d).flatten(1)) for d in (step, -step))
            weights.append((above - below)[0, 2] / 2e-6 / 64)  # the mean over 64 places
        cam = torch.einsum("k,khw->hw", torch.stack(weights), features[0]).relu()
    enlarged = nn.functional.interpolate(cam[None, None], (64, 64), mode="bilinear")[0, 0]
    found = grad_cam(net, layer, image, torch.tensor([2]))[0]
    assert torch.allclose(found, enlarged / enlarged.max(), atol=1e-6)


def test_maps_of_a_batch_are_those_of_its_images():
    net = make_net("model=resnet", "model.depth=8")
    images = torch.randn(3, 3, 64, 64)
    layer = find_layer(net, images[:1])
    classes = torch.tensor([4, 0, 2])
    together = grad_cam(net, layer, images, classes)
    for i in range(3):
        alone = grad_cam(net, layer, images[i : i + 1], classes[i : i + 1])[0]
        assert torch.allclose(together[i], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "name", "shape"),
    [
        (["model=convnet"], "24", (64, 28, 28)),
        (["model=resnet", "model.depth=8"], "6", (64, 56, 56)),
        (["model=torchvision", "model.name=mobilenet_v3_small"], "features", (576, 7, 7)),
        (["model=torchvision", "model.name=squeezenet1_1"], "classifier.2", (10, 13, 13)),
        (["model=timm", "model.name=tf_efficientnet_lite0"], "bn2", (1280, 7, 7)),
        (["model=timm", "model.name=convnext_atto"], "norm_pre", (320, 7, 7)),
    ],
)
def test_layer_is_the_last_feature_map_of_convolutional_networks(overrides, name, shape):
    net = make_net(*overrides, shape=(3, 224, 224), classes=10)
    layer = find_layer(net, torch.zeros(1, 3, 224, 224))
    assert (layer.name, layer.shape) == (name, shape)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=mlp"], "needs feature maps; this network has none of several places"),
        (["model=timm", "model.name=vit_tiny_patch16_224"], "followed by sequences of tokens, in"),
        (["model=timm", "model.name=swin_tiny_patch4_window7_224"], "here channels come last"),
    ],
)
def test_other_networks_are_refused(overrides, message):
    net = make_net(*overrides, shape=(3, 224, 224))
    with pytest.raises(UserError, match=message):
        find_layer(net, torch.zeros(1, 3, 224, 224))


# The page


@pytest.fixture
def trained(run, tmp_path):
    """A run on photographs of two classes, with mistakes."""
    root = tmp_path / "pictures"
    write_photographs(root, images=20)
    data = ("data=folder", f"data.root='{root}'", "data.size=32", "data.label_noise=0.4")
    return run(*data, *ONE_BATCH, "model=convnet", "model.widths=[8]").folder


def test_worst_mistakes_are_wrong_and_of_highest_confidence(trained):
    checkpoint = load_checkpoint(trained)
    data = checkpoint.data()
    examples = worst_mistakes(checkpoint, data, 3)
    images, labels = data.splits.test
    with torch.no_grad():
        probabilities = checkpoint.net()(checkpoint.preprocess()(images)).softmax(1)
    confidence, predicted = probabilities.max(1)
    wrong = confidence.where(predicted != labels, -1.0)
    expected = wrong.argsort(descending=True)[: len(examples)].tolist()
    assert [int(example.name.split()[-1]) for example in examples] == expected
    for example, index in zip(examples, expected):
        assert torch.equal(example.image, images[index])
        assert example.label == labels[index] != predicted[index]


def test_explanation_has_maps_of_predicted_and_true_class(trained, tmp_path):
    checkpoint = load_checkpoint(trained)
    files = [tmp_path / "pictures" / name / "0.jpg" for name in ("cat", "dog")]
    other = tmp_path / "elsewhere" / "x.png"
    other.parent.mkdir()
    Image.new("RGB", (40, 50), "red").save(other)
    examples = read_examples(checkpoint, [*files, other])
    assert [example.label for example in examples] == [0, 1, UNKNOWN]
    net, preprocess = checkpoint.net(), checkpoint.preprocess()
    for explanation in explain(checkpoint, examples):
        inputs = preprocess(explanation.example.image[None])
        layer = find_layer(net, inputs)
        predicted = net(inputs).argmax(1)
        assert explanation.predicted == predicted
        assert torch.equal(explanation.predicted_map, grad_cam(net, layer, inputs, predicted)[0])
        label = explanation.example.label
        if label in (UNKNOWN, int(predicted)):
            assert explanation.true_map is None
        else:
            expected = grad_cam(net, layer, inputs, torch.tensor([label]))[0]
            assert torch.equal(explanation.true_map, expected)


def test_page_is_written_for_mistakes_and_for_files(trained, run_script, tmp_path):
    done = run_script("explain.py", str(trained), "images=2", "output=mistakes.png")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^layer 8, 8 maps of 16 x 16$", done.stdout, re.MULTILINE)
    assert done.stdout.splitlines()[-1] == "mistakes.png: 2 images"
    with Image.open(tmp_path / "mistakes.png") as page:
        assert page.height > 300
    done = run_script("explain.py", str(trained), f"input={tmp_path / 'pictures'}", "images=3")
    assert done.stdout.splitlines()[-1] == "explain.png: 3 images"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["images=0"], "images=0; allowed: 1 to 64"),
        (["images=65"], "images=65; allowed: 1 to 64"),
        (["input=nowhere"], "input=nowhere: no image there"),
        (["layer=2"], "layer does not exist; allowed: "),
    ],
)
def test_wrong_options_are_refused(arguments, message, trained, run_script, tmp_path):
    done = run_script("explain.py", str(trained), *arguments)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "explain.png").exists()


def test_dense_network_is_refused_in_one_line(cached_run, run_script):
    done = run_script("explain.py", str(cached_run(*ONE_BATCH, "model=mlp").folder))
    assert done.stderr.splitlines()[-1].startswith("error: Grad-CAM needs feature maps")
