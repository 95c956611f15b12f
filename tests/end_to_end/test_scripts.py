"""Scripts, each from the command line: evaluate, predict, export, plan, preview and rename."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.configs import ONE_BATCH
from helpers.datasets import write_mnist
from helpers.paths import ROOT
from tricklab.analysis import prediction
from tricklab.analysis.trained import load_checkpoint
from tricklab.data.fit import Fit
from tricklab.data.images import decode
from tricklab.model import find_head
from tricklab.training import ImageClassifier


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text)))


# All scripts


@pytest.mark.parametrize(
    ("script_name", "argument", "message"),
    [
        ("evaluate.py", "--help", "python scripts/evaluate.py RUN"),
        ("evaluate.py", "mc=2", "ckpt is missing. Expected the path of a checkpoint"),
        ("evaluate.py", "ckpt=none.ckpt", "ckpt=none.ckpt: no such file. Expected the path of a"),
        ("predict.py", "--help", "python scripts/predict.py RUN"),
        ("predict.py", "none", "ckpt=none: no such file"),
        ("export.py", "--help", "python scripts/export.py RUN"),
        ("export.py", "none", "ckpt=none: no such file"),
        ("plan.py", "--help", "python scripts/plan.py"),
        ("plan.py", "scheduler=cosin", "scheduler=cosin does not exist; allowed: constant, "),
        ("preview.py", "--help", "python scripts/preview.py"),
        ("preview.py", "augment=flib", "augment=flib does not exist; allowed: affine, "),
        ("schema.py", "--help", "python scripts/schema.py"),
        ("schema.py", "now", "now: expected no argument"),
        ("benchmark.py", "--help", "python scripts/benchmark.py"),
        ("benchmark.py", "step", "step: no such part; allowed: steps, start, growth, files"),
    ],
)
def test_scripts_answer_without_importing_torch(
    fork_servers, tmp_path, tmp_path_factory, script_name, argument, message
):
    server = fork_servers("tricklab.cli.start", "tricklab.cli.launch")
    path = str(ROOT / "scripts" / script_name)
    files = tmp_path_factory.mktemp("output")
    done = server.run(files, tmp_path, path, argument, env={**os.environ})
    assert message in done.stdout + done.stderr
    assert (done.returncode == 0) == (argument == "--help")
    assert "torch" not in done.modules


# evaluate.py


def test_evaluate_reproduces_the_test_results_of_the_run(cached_run, run_script):
    run = cached_run("model=mlp", "trainer.max_epochs=2", "mixup=on", "augment=light")
    done = run_script("evaluate.py", f"ckpt={run.folder}/checkpoints/best.ckpt", "resamples=0")
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == "images 359"
    results = dict(line.split() for line in lines)
    metrics = run.result["metrics"]
    expected = {name: value for name, value in metrics.items() if name.startswith("test/")}
    assert {name: float(value) for name, value in results.items()} == expected
    assert run_script("evaluate.py", str(run.folder), "resamples=0").stdout == done.stdout


def test_evaluate_prints_doubles_to_the_last_digit(run, run_script):
    done = run(*ONE_BATCH[1:], "stop_after=1ep", "trainer.precision=64-true")
    output = run_script("evaluate.py", str(done.folder), "resamples=0").stdout
    assert f"test/loss {done.result['metrics']['test/loss']}\n" in output


def test_evaluate_takes_data_overrides_in_any_order(run, run_script, class_folders):
    root = class_folders({"train": 6, "test": 3})
    done = run("data=folder", f"data.root='{root}'", "model=mlp", "stop_after=1it")
    other = f"data.root='{class_folders({'other/train': 5, 'other/test': 4})}/other'"
    first, second, own = (
        run_script("evaluate.py", str(done.folder), "resamples=0", *overrides).stdout
        for overrides in (["data=folder", other], [other, "data=folder"], [])
    )
    assert first == second
    assert "test/acc" in first
    assert first != own


def test_evaluate_decodes_other_folders_as_in_training(run, run_script, class_folders):
    """`data=folder` alone must not reset the image size to the default of 32 pixels."""
    root = class_folders({"train": 12, "test": 4}, size=40)
    data = ("data=folder", f"data.root='{root}'", "data.size=40", "data.mode=L")
    run = run(*data, "model=mlp", "model.widths=[8]", "trainer.max_epochs=2")
    done = run_script("evaluate.py", str(run.folder), "data=folder", f"data.root='{root}/test'")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("images 8\n")
    for name in ("test/acc", "test/loss"):
        assert f"{name} {run.result['metrics'][name]} " in done.stdout


def test_evaluate_takes_all_images_of_another_folder(run, run_script, class_folders):
    """Nothing is split off for training from a folder that is not the run's."""
    root = class_folders({"mine": 10, "other": 7, "only/test": 3}, size=12)
    data = ("data=folder", f"data.root='{root}/mine'", "data.size=12")
    run = run(*ONE_BATCH, *data, "model=mlp", "model.widths=[8]")
    for other, images in {"mine": 4, "other": 14, "only": 6}.items():
        data = f"data.root='{root}/{other}'"
        done = run_script("evaluate.py", str(run.folder), data, "resamples=0")
        assert done.stdout.splitlines()[0] == f"images {images}", done.stderr


def test_evaluate_downloads_only_data_named_on_the_command_line(
    run, run_script, tmp_path, monkeypatch
):
    write_mnist(tmp_path / "mnist")
    run = run(*ONE_BATCH, "model=mlp", "data=mnist", f"data.root={tmp_path}/mnist")
    (tmp_path / "mnist").rename(tmp_path / "elsewhere")
    downloads = []

    def download(*arguments, **options):
        downloads.append(arguments)
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    assert "no MNIST there" in run_script("evaluate.py", str(run.folder)).stderr
    assert not downloads
    assert "no download" in run_script("evaluate.py", str(run.folder), "data=mnist").stderr
    assert downloads


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "data=digit"], "data=digit does not exist"),
        (["RUN", "data.batchsize=3"], "data.batchsize does not exist"),
        (["RUN", "data.batch_size=abc"], "data.batch_size=abc: expected int, got str"),
        (
            ["RUN", "data=fake", "data.channels=1", "data.num_classes=3"],
            "the data have the classes ['0', '1', '2'], the checkpoint",
        ),
        (
            ["RUN", "model.widths=[8]"],
            "model.widths does not exist; allowed: ckpt, data, mc, other, resamples, suite, "
            "trainer.accelerator",
        ),
        (["RUN", "trainer.accelerator=tpu"], "trainer.accelerator=tpu trainer.precision=32-true"),
        (["ckpt=RUN/config.yaml"], "is damaged, or not a checkpoint"),
        (["RUN", "mc=1"], "mc=1; allowed: 0, or 2 and more"),
        (["RUN", "mc=01"], "mc=01; allowed: 0, or 2 and more"),
        (["RUN", "tta=x"], "tta=x; allowed: 0, or 2 and more"),
        (["RUN", "mc=4"], "mc=4: the network has no dropout"),
        (["RUN", "tta=4"], "tta=4: trained without augmentation. Expected e.g. augment=light"),
        (["RUN", "augment=flip"], "augment=flip: has an effect only with tta"),
        (
            ["RUN", "tta=4", "mc=3", "augment=flip"],
            "mc=3 tta=4: expected the same number of views",
        ),
        (
            ["RUN", "tta=4", "augment=flip,crop"],
            "augment=flip,crop: several values. Expected one each, without commas",
        ),
        (["RUN", "tta=4", "augment=flib"], "augment=flib does not exist; allowed: affine"),
    ],
)
def test_evaluate_refuses_in_one_line(cached_run, run_script, arguments, message):
    run = cached_run("debug=batch", "model=mlp")
    arguments = [argument.replace("RUN", str(run.folder)) for argument in arguments]
    done = run_script("evaluate.py", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


# predict.py


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_predict_gives_class_and_probability_of_files(run, class_folders, run_script, precision):
    root = class_folders({"train": 12, "test": 4})
    data = ("data=folder", f"data.root='{root}'", "data.size=16")
    run = run(*data, "model=mlp", "trainer.max_epochs=2", f"trainer.precision={precision}")
    done = run_script("predict.py", str(run.folder), f"input={root}/test")
    assert done.returncode == 0, done.stderr
    rows = read_csv(done.stdout)
    files = [root / "test" / name / f"{i}.png" for name in ("cat", "dog") for i in range(4)]
    assert [row["file"] for row in rows] == [str(file) for file in files]
    checkpoint = load_checkpoint(run.folder)
    net = checkpoint.net()
    images = torch.stack([decode(file, Fit((16, 16)), "RGB") for file in files])
    is_mixed = precision == "bf16-mixed"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
        logits = net(checkpoint.preprocess()(images))
    probabilities, labels = logits.float().softmax(1).max(1)
    assert [float(row["probability"]) for row in rows] == probabilities.tolist()
    assert [row["class"] for row in rows] == [checkpoint.classes[i] for i in labels.tolist()]
    hits = sum(row["class"] in row["file"] for row in rows)
    assert hits / len(rows) == run.result["metrics"]["test/acc"]


@pytest.fixture
def tree_run(run, class_folders):
    """A run on class folders, which are returned with it."""

    def train(*classes):
        root = class_folders({"train": 6}, classes=classes)
        data = ("data=folder", f"data.root='{root}'", "data.size=12")
        return run(*ONE_BATCH, *data, "model=mlp").folder, root / "train"

    return train


def test_predict_names_damaged_files_and_continues(tree_run, run_script, tmp_path):
    run, root = tree_run("cat", "dog")
    (root / "cat" / "0.png").write_bytes(b"")
    (root / "dog" / "1.png").write_text("not an image")
    (root / "dog" / "2.png").rename(root / "dog" / os.fsdecode(b"caf\xe9.png"))
    done = run_script("predict.py", str(run), f"input={root}", "output=out.csv")
    assert done.returncode == 1
    *errors, last = done.stderr.splitlines()
    damaged = [Path(line.split(" can't be decoded")[0]).name for line in errors]
    assert damaged == ["0.png", "1.png"]
    assert last == "error: 2 of 12 files are left out"
    content = (tmp_path / "out.csv").read_bytes()
    rows = read_csv(content.decode("utf-8", "surrogateescape"))
    assert len(rows) == 12
    assert [Path(row["file"]).name for row in rows if not row["class"]] == ["0.png", "1.png"]
    assert b"caf\xe9.png" in content


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("model", [["model=mlp"], ["model=timm", "model.name=resnet10t"]])
def test_predict_gives_several_classes_and_embeddings(
    run, class_folders, run_script, tmp_path, monkeypatch, model, workers
):
    monkeypatch.setattr(prediction, "BATCH", 4)  # several batches
    root = class_folders({"train": 6}, classes=("ant", "bee", "cow"))
    folder = run(*ONE_BATCH, "data=folder", f"data.root='{root}'", "data.size=32", *model).folder
    (root / "train" / "ant" / "0.png").write_bytes(b"damaged")
    (root / "train" / "cow" / "5.png").write_bytes(b"damaged")
    options = ("top=3", "output=out.csv", "embeddings=e.npz", f"data.num_workers={workers}")
    done = run_script("predict.py", str(folder), f"input={root}", *options)
    assert "error: 2 of 18 files are left out" in done.stderr
    rows = read_csv((tmp_path / "out.csv").read_text("utf-8"))
    with np.load(tmp_path / "e.npz") as file:
        embeddings, files = file["embeddings"], file["files"]
    assert files.tolist() == [row["file"] for row in rows]
    checkpoint = load_checkpoint(folder)
    net = checkpoint.net()
    head = find_head(net)[1]
    for i, row in enumerate(rows):
        if i in (0, 17):
            assert list(row.values())[1:] == [""] * 6
            assert np.isnan(embeddings[i]).all()
            continue
        with torch.no_grad():
            logits = net(checkpoint.preprocess()(decode(files[i], Fit((32, 32)), "RGB")[None]))
            from_embedding = head(torch.from_numpy(embeddings[i])[None])
        assert torch.allclose(logits, from_embedding, atol=1e-5)
        order = logits[0].argsort(descending=True).tolist()
        names = [row["class"], row["class_2"], row["class_3"]]
        assert names == [checkpoint.classes[label] for label in order]
        shown = [float(row[f"probability{rank}"]) for rank in ("", "_2", "_3")]
        assert shown == pytest.approx(logits.softmax(1)[0, order].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("top=0", "top=0; allowed: 1 to 10, the number of classes"),
        ("top=11", "top=11; allowed: 1 to 10"),
        ("embeddings=e.csv", "embeddings=e.csv: expected a name that ends in .npz"),
    ],
)
def test_predict_refuses_wrong_options(option, message, cached_run, run_script, tmp_path):
    run = cached_run("debug=batch", "model=mlp")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    done = run_script("predict.py", str(run.folder), "input=a.png", option)
    assert done.stderr == f"error: {done.stderr.removeprefix('error: ')}"
    assert message in done.stderr
    assert not list(tmp_path.glob("e.*"))


def test_predict_writes_no_embeddings_without_an_image(cached_run, run_script, tmp_path):
    run = cached_run("debug=batch", "model=mlp")
    (tmp_path / "a.png").write_bytes(b"damaged")
    done = run_script("predict.py", str(run.folder), "input=a.png", "embeddings=e.npz")
    assert done.stderr.splitlines()[-1] == "error: embeddings: no file can be decoded"
    assert not (tmp_path / "e.npz").exists()


def test_predict_escapes_class_names_that_are_formulas(tree_run, run_script):
    run, root = tree_run("=cmd|' C'!A0\x1b[2J", "dog")
    rows = read_csv(run_script("predict.py", str(run), f"input={root}").stdout)
    assert len(rows) == 12
    assert {row["class"] for row in rows} <= {"'=cmd|' C'!A0\\x1b[2J", "dog"}
    assert any(row["class"] != "dog" for row in rows)


def test_predict_refuses_an_input_without_images(cached_run, run_script, tmp_path):
    run = cached_run("debug=batch", "model=mlp")
    (tmp_path / "empty").mkdir()
    for value in ("", "input=nowhere", "input=empty"):
        done = run_script("predict.py", str(run.folder), *filter(None, [value]))
        assert done.returncode == 1
        assert f"{value or 'input='}: no image there. Expected one, or a folder" in done.stderr
        assert done.stdout == ""


# plan.py


def test_plan_writes_the_learning_rates_of_training(run, run_script, tmp_path):
    options = ("scheduler=cosine", "scheduler.warmup=10%", "optimizer.lr_base_batch_size=256")
    options += ("trainer.max_epochs=3",)
    done = run_script("plan.py", *options, "hydra.run.dir=plan")
    assert done.returncode == 0, done.stderr
    assert "lr: 33 steps, first 0.01667, peak 0.05" in done.stdout
    run = run("model=mlp", *options, "trainer.log_every_n_steps=1")
    rows = read_csv((tmp_path / "plan" / "plan.csv").read_text())
    assert list(rows[0]) == ["step", "lr"]
    assert [int(row["step"]) for row in rows] == list(range(33))
    assert [float(row["lr"]) for row in rows] == run.column("lr")
    assert Image.open(tmp_path / "plan" / "plan.png").size == (1200, 675)


def test_plan_compares_schedules_with_a_backbone_lr(run_script, tmp_path):
    options = ("scheduler=step,cosine", "trainer.max_epochs=2", "model.backbone_lr_mult=0.5")
    done = run_script("plan.py", *options, "hydra.run.dir=p")
    assert done.returncode == 0, done.stderr
    rows = read_csv((tmp_path / "p" / "plan.csv").read_text())
    names = ["scheduler=step", "scheduler=step_body", "scheduler=cosine", "scheduler=cosine_body"]
    assert list(rows[0]) == ["step", *names]
    for row in rows:
        half = float(row["scheduler=cosine"]) / 2
        assert float(row["scheduler=cosine_body"]) == pytest.approx(half)
    for mark, name in zip("abcd", names):
        assert f"  {mark}  {name}: 22 steps" in done.stdout


def test_plan_counts_the_steps_of_several_processes(run_script):
    one = run_script("plan.py", "trainer.accelerator=cpu").stdout
    two = run_script("plan.py", "trainer.accelerator=cpu", "trainer.devices=2").stdout
    assert "165 steps" in one
    assert "90 steps" in two


def test_plan_summarizes_lrs_and_weight_decay(run_script):
    options = ("scheduler=linear", "trainer.max_steps=4", "trainer.max_epochs=1")
    adamw = ("optimizer=adamw", "optimizer.lr=0.4", "optimizer.weight_decay=0.5")
    output = run_script("plan.py", *options, *adamw).stdout
    remaining = 0.8 * 0.85 * 0.9 * 0.95
    assert "first 0.4, peak 0.4, last 0.1, sum 1" in output
    assert f"weight decay leaves {remaining:.4g}" in output
    output = run_script("plan.py", *options, *adamw, "optimizer.decay_all=true").stdout
    assert f"weight decay, also of biases and norms, leaves {remaining:.4g}" in output
    output = run_script("plan.py", "scheduler=plateau").stdout
    assert "lower when val/loss no longer falls" in output


def test_plan_weight_decay_of_sgd_is_amplified_by_momentum(run_script):
    """Compared with the optimizer's effect on a weight whose gradient is 0."""
    output = run_script(
        "plan.py", "data.train_size=1280", "trainer.max_epochs=100", "model=mlp"
    ).stdout
    weight = torch.ones(1, dtype=torch.double, requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for _ in range(1000):
        weight.grad = torch.zeros(1, dtype=torch.double)
        sgd.step()
    remaining = float(output.split("weight decay leaves about ")[1].split()[0])
    assert remaining == pytest.approx(weight.item(), rel=0.01)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["scheduler=step,cosine", "data.batch_size=big"],
            "data.batch_size=big: expected int, got str",
        ),
        (
            ["optimizer.lr=4", "optimizer.weight_decay=0.5"],
            "optimizer.lr=4 optimizer.weight_decay=0.5 optimizer.momentum=0.9: a step at the peak "
            "LR 4 would",
        ),
        (["penalty=decay", "penalty.decay.strength=20"], "would multiply weights by -1"),
    ],
)
def test_plan_refuses_what_training_refuses(run_script, overrides, message):
    done = run_script("plan.py", *overrides)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


# preview.py


@pytest.fixture
def drawn(monkeypatch):
    """Images, titles and texts, in the order of drawing."""
    drawn = {"imshow": [], "set_title": [], "text": []}
    axes = "matplotlib.axes.Axes"
    monkeypatch.setattr(f"{axes}.imshow", lambda self, image, **_: drawn["imshow"].append(image))
    monkeypatch.setattr(
        f"{axes}.set_title", lambda self, text, **_: drawn["set_title"].append(text)
    )
    monkeypatch.setattr(f"{axes}.text", lambda self, x, y, text, **_: drawn["text"].append(text))
    return drawn


def test_preview_draws_a_row_for_each_option(run_script, drawn):
    done = run_script("preview.py", "augment=none,flip,crop", "hydra.run.dir=p")
    assert done.returncode == 0, done.stderr
    labels = [text for text in drawn["text"] if text]
    assert labels == ["augment=\nnone", "augment=\nflip", "augment=\ncrop"]
    images = drawn["imshow"]
    assert len(images) == 3 * 8
    for plain, flipped in zip(images[:8], images[8:16]):
        assert (plain == flipped).all() or (plain == flipped[:, ::-1]).all()


def test_preview_shows_the_first_batch_of_training(run, run_script, drawn, tmp_path, monkeypatch):
    options = ("augment=light", "mixup=on", "mixup.alpha=5.0")
    done = run_script("preview.py", *options, "hydra.run.dir=p")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p" / "preview.png").is_file()
    batches = []
    training_step = ImageClassifier.training_step

    def record_batch(self, batch, batch_idx):
        batches.append(batch)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", record_batch)
    run(*ONE_BATCH, *options)
    images, targets = batches[0]
    shown = torch.tensor(drawn["imshow"][0])[..., 0]
    assert torch.allclose(scale_to_unit(images[0, 0]), scale_to_unit(shown), atol=1e-5)
    probability, label = targets[0].max(0)
    assert drawn["set_title"][0].splitlines()[0] == f"{probability:.2f} {label}"


def scale_to_unit(image):
    return (image - image.min()) / (image.max() - image.min())


@pytest.mark.parametrize("mixing", [["mixup='off'"], ["mixup='on'", "mixup.alpha=5.0"]])
def test_preview_shows_smoothed_targets(run_script, drawn, monkeypatch, mixing):
    """0.9 of the target, and 0.1 spread over ten classes."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *arguments, **options: None)
    done = run_script("preview.py", "loss=cross_entropy,smooth", *mixing, "hydra.run.dir=p")
    assert done.returncode == 0, done.stderr
    titles = drawn["set_title"]
    for plain, smooth in zip(titles[:8], titles[8:], strict=True):
        largest, label = plain.splitlines()[0].split()
        probabilities = [float(line.split()[0]) for line in smooth.splitlines()]
        assert probabilities[0] == pytest.approx(0.9 * float(largest) + 0.01, abs=0.011)
        assert smooth.split()[1] == label
        assert len(mixing) == 2 or probabilities == [0.91, 0.01]


def test_preview_shows_the_predictions_of_the_teacher(run_script, drawn, cached_run, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *arguments, **options: None)
    teacher = cached_run(*ONE_BATCH, "model=mlp", folder="teacher").folder
    options = ("loss=distill", f"loss.teacher='{teacher}'", "hydra.run.dir=p")
    titles = []
    for temperature in (1, 1000):
        done = run_script("preview.py", *options, f"loss.temperature={temperature}")
        assert done.returncode == 0, done.stderr
        titles += drawn["set_title"][-32:]
    captions = [re.search(r"teacher: (0\.\d\d) \d\n(0\.\d\d) \d$", title) for title in titles]
    assert all(captions)
    assert max(float(caption[1]) for caption in captions[:32]) > 0.12
    assert {float(caption[1]) for caption in captions[32:]} == {0.1}  # ten classes


# rename.py

NAME = ImageClassifier.__module__.split(".")[0]
NEW_NAME = f"net_{NAME[::-1]}"


@pytest.fixture
def copied(tmp_path):
    """A copy of the project."""
    skipped = shutil.ignore_patterns("*.egg-info", "*.dist-info", "__pycache__")
    for part in ("conf", "src", "tests", "scripts", "notebooks", ".github", ".ci"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=skipped)
    for file in (path for path in ROOT.iterdir() if path.is_file()):
        shutil.copy(file, tmp_path)
    return tmp_path


def rename(folder, *arguments):
    command = [sys.executable, str(folder / "scripts" / "rename.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["torch", "My-Lab", "", "class"])
def test_rename_refuses_names_that_are_no_new_module(copied, name):
    done = rename(copied, *filter(None, [name]))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: NAME={name}; allowed: small letters, digits and _")


def test_rename_refuses_a_word_of_the_project(copied):
    done = rename(copied, "scheduler")
    assert done.returncode == 1
    assert done.stderr.startswith("error: NAME=scheduler is a word of the project already")


def test_renamed_copy_has_no_trace_of_the_old_name(copied):
    assert rename(copied, NEW_NAME).returncode == 0
    old_name = re.compile(NAME, re.IGNORECASE)
    for path in copied.rglob("*"):
        assert not old_name.search(path.name)
        if path.is_file() and path.suffix != ".png":
            assert not old_name.search(path.read_text("utf-8"))
    assert (copied / "src" / NEW_NAME / "scheduler.py").is_file()


@pytest.mark.kills
def test_renamed_copy_passes_tests_that_rely_on_names(copied):
    """On `_target_`s, hashes, imports in other processes, and files."""
    assert rename(copied, NEW_NAME).returncode == 0
    metadata = copied / "src" / f"{NEW_NAME}-0.dist-info" / "METADATA"  # as if installed
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {NEW_NAME}\nVersion: 0\n")
    names = [
        "end_to_end/test_measure.py::test_rows_beside_a_recipe_have_its_hashes",
        "unit/test_conf.py::test_option_has_the_name_of_its_function",
        "end_to_end/test_security.py::test_find_target_refuses_what_is_no_option",
        "end_to_end/test_jobs.py::test_sweep_runs_each_job_once",
    ]
    tests = [f"tests/{name}" for name in names]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", *tests],
        cwd=copied,
        env=os.environ | {"PYTHONPATH": str(copied / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
