"""scripts/export.py: safetensors, ONNX and torch.export, and the model card beside them."""

import re

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.configs import ONE_BATCH
from helpers.datasets import write_photographs
from tricklab.analysis import export
from tricklab.analysis.trained import load_checkpoint
from tricklab.errors import UserError

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")


def fake(channels, height, width):
    sizes = f"data.channels={channels} data.height={height} data.width={width}"
    return ["data=fake", "data.images=60", "data.test_images=200", *sizes.split()]


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path)
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def test_exported_file_has_the_logits_and_config_of_its_checkpoint(run, run_script, tmp_path):
    options = ("model=resnet", "model.depth=8", "trainer.channels_last=true")
    run = run(*options, "trainer.max_epochs=1")
    done = run_script("export.py", str(run.folder), "output=m.safetensors")
    assert done.returncode == 0, done.stderr
    original = load_checkpoint(run.folder)
    exported = load_checkpoint(tmp_path / "m.safetensors")
    images = torch.randn(50, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(original.net()(images), exported.net()(images))
    assert load_file(tmp_path / "m.safetensors").keys() == original.net().state_dict().keys()
    assert original.config == exported.config
    done = run_script("evaluate.py", "ckpt=m.safetensors", "resamples=0")
    assert f"test/acc {run.result['metrics']['test/acc']}" in done.stdout


def test_files_are_written_beside_the_checkpoint(cached_run, run_script):
    run = cached_run("debug=batch", "model=mlp")
    assert run_script("export.py", str(run.folder)).returncode == 0
    names = {path.name for path in (run.folder / "checkpoints").iterdir()}
    assert {"best.safetensors", "README.md"} <= names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=onyx"], "format=onyx does not exist; allowed: onnx, .* Did you mean 'onnx'"),
        (["format=onnx", "output=m.pt2"], r"output=m.pt2: expected a name that ends in \.onnx"),
        (["output=m.bin"], r"output=m.bin: expected a name that ends in \.safetensors"),
        (["temperature=true"], "temperature=true: a safetensors file has it apart"),
        (["card=no"], "card=no; allowed: true, false"),
    ],
)
def test_wrong_options_are_refused(arguments, message, cached_run, run_script, tmp_path):
    run = cached_run("debug=batch", "model=mlp")
    done = run_script("export.py", str(run.folder), *arguments)
    assert done.returncode == 1
    assert re.search(message, done.stderr)
    assert not list(tmp_path.glob("m.*"))


MODELS = [
    (["model=convnet"], (1, 17, 40)),
    (["model=resnet", "model.depth=8", "model.drop_path=0.2"], (3, 21, 16)),
    (["model=timm", "model.name=resnet10t"], (1, 32, 32)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "shape"), MODELS)
def test_onnx_has_the_probabilities_of_the_network(model, shape, run, run_script, tmp_path):
    run = run(*model, *fake(*shape), "trainer.max_epochs=1", "optimizer.lr=0.01")
    done = run_script("export.py", str(run.folder), "output=m.onnx", "card=false")
    assert done.returncode == 0, done.stderr
    assert re.search(r"largest difference \S+ on 200 test images", done.stdout)
    checkpoint = load_checkpoint(run.folder)
    images = torch.randint(256, (1000, *shape), dtype=torch.uint8)
    for count in (1, 3, 1000):
        found = run_onnx(tmp_path / "m.onnx", images[:count])
        with torch.no_grad():
            logits = checkpoint.net()(checkpoint.preprocess()(images[:count]))
        expected = logits.softmax(1)
        assert (found - expected).abs().max() < 1e-4
        assert torch.equal(found.argmax(1), expected.argmax(1))


@pytest.mark.slow
def test_temperature_is_applied_on_request(cached_run, run_script, tmp_path):
    run = cached_run("model=mlp", "trainer.max_epochs=3")
    checkpoint = load_checkpoint(run.folder)
    assert abs(checkpoint.temperature - 1) > 0.05
    images = torch.randint(256, (50, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        logits = checkpoint.net()(checkpoint.preprocess()(images))
    for kind, name in {"onnx": "m.onnx", "torch_export": "m.pt2"}.items():
        for option, temperature in {"false": 1.0, "true": checkpoint.temperature}.items():
            arguments = (f"format={kind}", f"output={name}", f"temperature={option}")
            done = run_script("export.py", str(run.folder), *arguments)
            assert done.returncode == 0, done.stderr
            if kind == "onnx":
                found = run_onnx(tmp_path / name, images)
            else:
                found = torch.export.load(tmp_path / name).module()(images)
            assert torch.allclose(found, (logits / temperature).softmax(1), atol=1e-5)
            card = (tmp_path / "README.md").read_text("utf-8")
            assert f"divided by the temperature {temperature:.4g} within" in card


def test_file_that_differs_is_not_kept(cached_run, run_script, tmp_path, monkeypatch):
    run = cached_run("debug=batch", "model=mlp")
    load = export.load_torch_export
    monkeypatch.setattr(
        export, "load_torch_export", lambda content: lambda images: load(content)(images) + 2e-4
    )
    done = run_script("export.py", str(run.folder), "output=m.pt2")
    assert done.returncode == 1
    assert "a probability differs by 0.0002 on 256 test images; allowed: 0.0001." in done.stderr
    assert not (tmp_path / "m.pt2").exists()


def test_network_that_can_not_be_exported_is_answered_in_one_line(cached_run, monkeypatch):
    checkpoint = load_checkpoint(cached_run("debug=batch", "model=mlp").folder)
    module = export.deploy(checkpoint, calibrated=False)

    def branch(x):
        return x if x.sum() > 0 else -x  # depends on the data

    monkeypatch.setattr(module.net, "forward", branch)
    with pytest.raises(UserError, match="the network can't be exported: ") as error:
        export.to_torch_export(module, (1, 8, 8))
    assert "\n" not in str(error.value)


def test_without_the_data_noise_is_checked_and_nothing_evaluated(run, run_script, tmp_path):
    root = tmp_path / "pictures"
    write_photographs(root, images=12)
    data = ("data=folder", f"data.root='{root}'", "data.size=16")
    run = run(*ONE_BATCH, *data, "model=mlp")
    root.rename(tmp_path / "elsewhere")
    done = run_script("export.py", str(run.folder), "output=m.pt2")
    assert done.returncode == 0, done.stderr
    assert "warning: without its data, neither evaluated nor checked on them" in done.stdout
    assert "on 256 images of noise" in done.stdout
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "Not evaluated: the data were not found" in card
    assert "- images: RGB, 16 x 16 pixels" in card
    assert "# mlp for 2 classes" in card
    assert "data=folder data.root=PATH data.size=16" in card  # no path of this machine
    assert str(tmp_path) not in card
    assert "- resized before by `crop`, crop fraction 1, bilinear" in card


# The model card


def read_card(path):
    _, header, body = path.read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(header), body


def test_card_has_the_results_of_the_run_and_code_that_runs(cached_run, run_script, tmp_path):
    run = cached_run("model=mlp", "trainer.max_epochs=3")
    done = run_script("export.py", str(run.folder), "output=m.pt2")
    assert done.stdout.splitlines()[-1] == "README.md: model card"
    header, body = read_card(tmp_path / "README.md")
    accuracy = run.result["metrics"]["test/acc"]
    (entry,) = header["model-index"]
    (result,) = entry["results"]
    assert result["metrics"][0]["value"] == pytest.approx(accuracy, abs=1e-6)
    assert header["pipeline_tag"] == "image-classification"
    assert "license" not in header
    assert re.search(
        rf"^\| accuracy +\| {accuracy:.4f} \| 0\.\d+ to [01]\.\d+ ", body, re.MULTILINE
    )
    assert "\n    python train.py model=mlp trainer.max_epochs=3\n" in body
    code = re.search("```python\n(.*?)```", body, re.DOTALL)[1]
    scope = {}
    exec(code, scope)
    assert scope["probabilities"].shape == (1, 10)


def test_card_of_onnx_has_code_that_runs(cached_run, run_script, tmp_path):
    run = cached_run("model=mlp", "trainer.max_epochs=3")
    done = run_script("export.py", str(run.folder), "output=m.onnx")
    assert done.returncode == 0, done.stderr
    code = re.search("```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)[1]
    scope = {}
    exec(code, scope)
    assert np.allclose(scope["probabilities"].sum(1), 1)


def test_card_of_someone_else_is_kept(cached_run, run_script, tmp_path):
    run = cached_run("debug=batch", "model=mlp")
    (tmp_path / "README.md").write_text("# Mine\n")
    done = run_script("export.py", str(run.folder), "output=m.safetensors")
    assert done.stdout.splitlines()[-1] == "m.card.md: model card"
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    run_script("export.py", str(run.folder), "output=n.safetensors", "card=false")
    assert not (tmp_path / "n.card.md").exists()


def test_names_in_a_card_are_escaped(class_folders, run, run_script, tmp_path):
    classes = ("<script>", "a](x)", "---")
    root = class_folders({"train": 6}, classes=classes)
    folder = run(*ONE_BATCH, "data=folder", f"data.root='{root}'", "data.size=12", "model=mlp")
    done = run_script("export.py", str(folder.folder), "output=m.safetensors")
    assert done.returncode == 0, done.stderr
    header, body = read_card(tmp_path / "README.md")
    assert header["tags"] == ["image-classification", "pytorch", "safetensors"]
    assert r"\<script\>" in body
    assert r"a\](x)" in body
