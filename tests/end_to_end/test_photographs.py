"""Whole runs on photographs: resumed, on several ranks, with weights, evaluated and predicted."""

import csv
import io

import pytest
import torch

from helpers.configs import configure
from helpers.datasets import write_photographs
from tricklab.errors import UserError
from tricklab.run.build import build_data, build_net
from tricklab.training import ImageClassifier

NET = ("model=convnet", "model.widths=[8]", "model.depth=1", "optimizer.lr=0.01")
CROPS = ("augment=[resized_crop,flip,color]", "mixup=on", "data.size=16", "data.batch_size=8")
STEPS = ("trainer.max_epochs=3", "trainer.log_every_n_steps=1", "callbacks.last.every_n_steps=1")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    write_photographs(root, images=20)
    return f"data.root='{root}'"


@pytest.mark.parametrize("cache", ["memory", "none", "folder"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_within_an_epoch_of_crops_is_exact(
    run, monkeypatch, photographs, tmp_path, cache, workers
):
    cache = f"'{tmp_path / 'cache'}'" if cache == "folder" else cache
    data = ("data=folder", photographs, f"data.cache={cache}", f"data.num_workers={workers}")
    options = (*data, *NET, *CROPS, *STEPS)
    whole = run(*options, folder="whole")

    def stop(self, outputs, batch, batch_idx):
        if self.global_step == 6:  # of 4 an epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "on_train_batch_end", stop)
        with pytest.raises(SystemExit):
            run(*options, folder="parts")
    parts = run(*options, "resume=auto", folder="parts")
    assert parts.metrics_text == whole.metrics_text
    assert parts.result["metrics"] == whole.result["metrics"]
    for name, weight in whole.checkpoint()["state_dict"].items():
        assert torch.equal(parts.checkpoint()["state_dict"][name], weight), name


def test_cache_and_workers_change_no_number(run, photographs, tmp_path):
    options = ("data=folder", photographs, *NET, *CROPS, *STEPS)
    one = run(*options, "data.num_workers=0", folder="one")
    cache = f"data.cache='{tmp_path / 'cache'}'"
    other = run(*options, "data.num_workers=2", cache, folder="other")
    none = run(*options, "data.num_workers=2", "data.cache=none", folder="none")
    assert one.metrics_text == other.metrics_text == none.metrics_text
    assert one.result["config_hash"] == other.result["config_hash"]


def save_weights(path, *model):
    """Save the weights of a network of a library under its own names, and return the network."""
    torch.manual_seed(1)
    net = build_net(configure(*model), (3, 64, 64), 7)
    torch.save(net.state_dict(), path)
    return net


@pytest.mark.parametrize(
    ("model", "side", "mean"),
    [
        (("model=timm", "model.name=test_resnet"), 160, 0.5),
        (("model=torchvision", "model.name=squeezenet1_1"), 224, 0.485),
    ],
)
def test_weights_of_a_file_get_the_input_of_the_published_ones(
    run, photographs, tmp_path, capsys, model, side, mean
):
    """By the name of the network; options of the data come first."""
    save_weights(tmp_path / "w.pth", *model)
    weights = f"model.weights={tmp_path}/w.pth"
    options = ("data=folder", photographs, *model, weights, "data.num_workers=0", "stop_after=1it")
    dataset = run(*options, folder="one").checkpoint()["dataset"]
    assert dataset["input"] == [3, side, side]
    assert dataset["mean"][0] == mean
    assert dataset["interpolation"] in ("bilinear", "bicubic")
    assert "trained with" not in capsys.readouterr().out
    own = ("data.size=48", "data.mean=[0.1]", "data.crop_fraction=0.5", "data.fit=pad")
    dataset = run(*options, *own, folder="other").checkpoint()["dataset"]
    assert dataset["input"] == [3, 48, 48]
    assert dataset["mean"] == [0.1] * 3
    assert (dataset["crop_fraction"], dataset["fit"]) == (0.5, "pad")
    expected = f"warning: the weights were trained with {side} x {side} pixels and mean"
    assert expected in capsys.readouterr().out


def test_new_head_starts_at_zero(run, photographs, tmp_path):
    model = ("model=timm", "model.name=test_resnet")
    net = save_weights(tmp_path / "w.pth", *model)
    options = (f"model.weights={tmp_path}/w.pth", "optimizer.lr=0", "stop_after=1it")
    done = run("data=folder", photographs, *model, *options, "data.num_workers=0")
    weights = done.checkpoint()["state_dict"]
    assert not weights["net.fc.weight"].any()
    first = next(iter(net.state_dict()))
    assert torch.equal(weights[f"net.{first}"], net.state_dict()[first])


def test_frozen_backbone_gets_no_gradients(run, photographs, monkeypatch, tmp_path):
    """Until it is trained, backward passes only through the head."""
    model = ("model=timm", "model.name=test_resnet", "data.size=32", "data.batch_size=8")
    save_weights(tmp_path / "w.pth", *model)
    seen = []

    def record(self, outputs, batch, batch_idx):
        seen.append(next(self.net.parameters()).grad is not None)

    monkeypatch.setattr(ImageClassifier, "on_train_batch_end", record)
    weights = (f"model.weights={tmp_path}/w.pth", "model.freeze=4it", "trainer.max_epochs=2")
    run("data=folder", photographs, *model, *weights, "data.num_workers=0")
    assert seen == [False] * 4 + [True] * 4


def test_prediction_is_evaluation(run, run_script, photographs, tmp_path):
    """Of files that were not resized: the class of each test image, and so the accuracy."""
    data = ("data=folder", photographs, "data.size=24", "data.fit=stretch", "data.num_workers=0")
    data += ("data.interpolation=bicubic", "data.crop_fraction=0.9")
    done = run(*data, *NET, "augment=[resized_crop,flip]", "stop_after=2ep")
    config = configure(*data, *NET, "data.cache=none")
    test = build_data(config).splits.test
    right = 0
    for file, label in zip(test.images.files, test.labels.tolist()):
        output = run_script("predict.py", str(done.folder), f"input='{file.path}'").stdout
        (row,) = csv.DictReader(io.StringIO(output))
        right += row["class"] == ["cat", "dog"][label]
    assert right / len(test.labels) == done.result["metrics"]["test/acc"]


def test_layout_of_imagenet_needs_a_word(class_folders, run, capsys):
    root = class_folders({"train": 10, "val": 5}, size=8)
    options = ("data=folder", f"data.root='{root}'", "model=mlp", "stop_after=1it")
    done = run(*options, "data.num_workers=0", folder="one")
    assert done.result["images"] == {"train": 16, "val": 10, "test": 4}
    assert "data.test=val makes val the test set" in capsys.readouterr().out
    done = run(*options, "data.num_workers=0", "data.test=val", folder="other")
    assert done.result["images"] == {"train": 18, "val": 2, "test": 10}
    with pytest.raises(UserError, match=r"data\.test_size=3: .*/val is the test set"):
        run(*options, "data.test=val", "data.test_size=3", folder="third")
    root = class_folders({"plain/train": 10, "plain/test": 5})
    with pytest.raises(UserError, match=r"data\.test=val: .* has test, train\. Expected train and"):
        run(*options, "data.test=val", f"data.root='{root}/plain'", folder="fourth")
