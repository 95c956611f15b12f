"""The scripts, each from the command line and from the path of a checkpoint alone."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ONE_BATCH, ROOT, write_mnist
from PIL import Image
from safetensors.torch import load_file

from tricklab.analysis.trained import load_checkpoint
from tricklab.data.images import decode
from tricklab.training import ImageClassifier


def test_evaluate_gives_the_numbers_of_the_run(run, script):
    done = run("model=mlp", "trainer.max_epochs=2", "mixup=on", "augment=light")
    best = f"ckpt={done.folder}/checkpoints/best.ckpt"
    said = script("evaluate.py", best, "resamples=0")
    assert said.returncode == 0, said.stderr
    first, *lines = said.stdout.splitlines()
    assert first == "images 359"
    metrics = dict(line.split() for line in lines)
    expected = {k: v for k, v in done.result["metrics"].items() if k.startswith("test/")}
    assert {k: float(v) for k, v in metrics.items()} == expected
    assert script("evaluate.py", str(done.folder), "resamples=0").stdout == said.stdout


def test_evaluate_on_other_data(run, script, tree):
    """data=NAME is that option whole, whatever the order of the words."""
    done = run(
        "data=folder", f"data.root='{tree({'train': 6, 'test': 3})}'", "model=mlp", "stop_after=1it"
    )
    other = tree({"other/train": 5, "other/test": 4})
    best, root = f"ckpt={done.folder}/checkpoints/best.ckpt", f"data.root='{other}/other'"
    said = [
        script("evaluate.py", best, "resamples=0", *words).stdout
        for words in (["data=folder", root], [root, "data=folder"], [root[:]])
    ]
    assert said[0] == said[1]
    assert "test/acc" in said[0]
    assert said[0] != script("evaluate.py", best, "resamples=0").stdout


def test_double_precision_is_told_to_the_last_digit(run, script):
    done = run(*ONE_BATCH[1:], "stop_after=1ep", "trainer.precision=64-true")
    said = script("evaluate.py", f"ckpt={done.folder}/checkpoints/best.ckpt", "resamples=0").stdout
    assert f"test/loss {done.result['metrics']['test/loss']}\n" in said


def test_plan_counts_the_processes(script):
    one, two = (
        script("plan.py", "trainer.accelerator=cpu", *words).stdout
        for words in ([], ["trainer.devices=2"])
    )
    assert "165 steps" in one
    assert "90 steps" in two


def test_plan_refuses_what_training_refuses(script):
    said = script("plan.py", "scheduler=step,cosine", "data.batch_size=big")
    assert said.returncode == 1
    assert said.stderr.strip() == "error: data.batch_size=big: expected int, got str"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_predict_names_the_classes_of_files(run, tree, script, precision):
    root = tree({"train": 12, "test": 4})
    done = run(
        "data=folder",
        f"data.root='{root}'",
        "model=mlp",
        "trainer.max_epochs=2",
        "data.resize=16",
        f"trainer.precision={precision}",
    )
    said = script("predict.py", f"ckpt={done.folder}/checkpoints/best.ckpt", f"input={root}/test")
    assert said.returncode == 0, said.stderr
    rows = list(csv.DictReader(io.StringIO(said.stdout)))
    assert [row["file"] for row in rows] == [
        str(root / "test" / c / f"{i}.png") for c in ("cat", "dog") for i in range(4)
    ]
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    checkpoint = load_checkpoint(done.folder)
    net = checkpoint.net()
    images = torch.stack(
        [
            decode(root / "test" / c / f"{i}.png", (16, 16), "RGB")
            for c in ("cat", "dog")
            for i in range(4)
        ]
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        logits = net(checkpoint.preprocess()(images))
    expected = logits.float().softmax(1).amax(1)
    assert [float(row["probability"]) for row in rows] == expected.tolist()
    right = sum(row["class"] in row["file"] for row in rows) / len(rows)
    assert right == done.result["metrics"]["test/acc"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["ckpt=/nowhere.ckpt"],
            "ckpt=/nowhere.ckpt: no such file. Expected the path of a checkpoint",
        ),
        (["{best}", "data=digit"], "data=digit does not exist"),
        (["{best}", "data.batchsize=3"], "data.batchsize does not exist"),
        (
            ["{best}", "data=fake", "data.classes=3"],
            "the data have the classes ['0', '1', '2'], the checkpoint",
        ),
        (["{best}", "data.batch_size=abc"], "data.batch_size=abc: expected int, got str"),
        (
            ["{best}", "model.widths=[8]"],
            "model.widths does not exist; allowed: ckpt, data, mc, other, resamples, suite, trainer.accelerator",
        ),
        (["{best}", "trainer.accelerator=tpu"], "tpu"),
        (["ckpt={folder}/config.yaml"], "is damaged, or not a checkpoint"),
        (["{best}", "mc=1"], "mc=1; allowed: 0, or 2 and more"),
        (["{best}", "tta=x"], "tta=x; allowed: 0, or 2 and more"),
        (["{best}", "mc=4"], "mc=4: the network has no dropout"),
        (["{best}", "tta=4"], "tta=4: trained without augmentation. Expected e.g. augment=light"),
        (["{best}", "augment=flip"], "augment=flip: has an effect only with tta"),
        (
            ["{best}", "tta=4", "augment=flip,crop"],
            "augment=flip,crop: several values. Expected one each, without commas",
        ),
        (["{best}", "mc=01"], "mc=01; allowed: 0, or 2 and more"),
        (
            ["{best}", "tta=4", "mc=3", "augment=flip"],
            "mc=3 tta=4: expected the same number of views",
        ),
        (["{best}", "tta=4", "augment=flib"], "augment=flib does not exist; allowed: affine"),
    ],
)
def test_mistakes_are_one_line(run, script, arguments, says):
    done = run("debug=batch", "model=mlp")
    best = f"ckpt={done.folder}/checkpoints/best.ckpt"
    said = script("evaluate.py", *(a.format(best=best, folder=done.folder) for a in arguments))
    assert said.returncode == 1
    assert says in said.stderr
    assert len(said.stderr.splitlines()) == 1


def test_an_exported_file_gives_the_same_logits(run, script, tmp_path):
    done = run(
        "model=resnet", "model.depth=8", "trainer.max_epochs=1", "trainer.channels_last=true"
    )
    best = done.folder / "checkpoints" / "best.ckpt"
    said = script("export.py", f"ckpt={best}", "output=m.safetensors")
    assert said.returncode == 0, said.stderr
    ours, theirs = (load_checkpoint(path) for path in (best, tmp_path / "m.safetensors"))
    images = torch.randn(50, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(ours.net()(images), theirs.net()(images))
    plain = load_file(tmp_path / "m.safetensors")
    assert plain.keys() == ours.net().state_dict().keys()
    assert ours.config == theirs.config
    said = script("evaluate.py", "ckpt=m.safetensors", "resamples=0")
    assert f"test/acc {done.result['metrics']['test/acc']}" in said.stdout


def test_plan_writes_the_rates_of_training(run, script, tmp_path):
    options = [
        "scheduler=cosine",
        "scheduler.warmup=10%",
        "trainer.max_epochs=3",
        "optimizer.lr_per=256",
    ]
    said = script("plan.py", *options, "hydra.run.dir=plan")
    assert said.returncode == 0, said.stderr
    done = run("model=mlp", *options, "trainer.log_every_n_steps=1")
    with (tmp_path / "plan" / "plan.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row.keys() for row in rows[:1]] == [{"step": "", "lr": ""}.keys()]
    assert [float(row["lr"]) for row in rows] == done.column("lr")
    assert [int(row["step"]) for row in rows] == list(range(33))
    assert Image.open(tmp_path / "plan" / "plan.png").size == (1200, 675)
    assert "lr: 33 steps, first 0.01667, peak 0.05" in said.stdout


def test_plan_draws_several_at_once(script, tmp_path):
    said = script(
        "plan.py",
        "scheduler=step,cosine",
        "trainer.max_epochs=2",
        "hydra.run.dir=p",
        "model.body_lr=0.5",
    )
    assert said.returncode == 0, said.stderr
    with (tmp_path / "p" / "plan.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ["scheduler=step", "scheduler=step_body", "scheduler=cosine", "scheduler=cosine_body"]
    assert list(rows[0]) == ["step", *names]
    assert [float(row["scheduler=cosine_body"]) for row in rows] == pytest.approx(
        [float(row["scheduler=cosine"]) / 2 for row in rows]
    )
    assert all(f"  {mark}  {name}: 22 steps" in said.stdout for mark, name in zip("abcd", names))


def test_plan_says_what_it_amounts_to(script):
    given = ("scheduler=linear", "trainer.max_steps=4", "trainer.max_epochs=1")
    said = script(
        "plan.py", *given, "optimizer=adamw", "optimizer.lr=0.4", "optimizer.weight_decay=0.5"
    )
    left = 0.8 * 0.85 * 0.9 * 0.95
    assert f"first 0.4, peak 0.4, last 0.1, sum 1, weight decay leaves {left:.4g}" in said.stdout
    assert "lower when val/loss no longer falls" in script("plan.py", "scheduler=plateau").stdout
    refused = script("plan.py", *given, "optimizer.lr=4", "optimizer.weight_decay=0.5")
    assert refused.returncode == 1
    assert (
        "optimizer.lr=4 optimizer.weight_decay=0.5 optimizer.momentum=0.9: a step at the peak LR 4 would"
        in refused.stderr
    )
    assert (
        "would multiply weights by -1"
        in script("plan.py", "penalty=decay", "penalty.decay.strength=20").stderr
    )


def test_plan_knows_what_momentum_does_to_weight_decay(script):
    """As the optimizer itself does it to a weight that has no gradient."""
    said = script("plan.py", "data.train_size=1280", "trainer.max_epochs=100", "model=mlp").stdout
    w = torch.ones(1, dtype=torch.double, requires_grad=True)
    sgd = torch.optim.SGD([w], lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for _ in range(1000):
        w.grad = torch.zeros(1, dtype=torch.double)
        sgd.step()
    assert float(said.split("weight decay leaves about ")[1].split()[0]) == pytest.approx(
        w.item(), rel=0.01
    )


def test_preview_has_a_row_for_each(script, tmp_path, monkeypatch):
    shown, words = [], []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.imshow", lambda self, image, **kw: shown.append(image)
    )
    monkeypatch.setattr(
        "matplotlib.axes.Axes.text", lambda self, x, y, text, **kw: words.append(text)
    )
    said = script("preview.py", "augment=none,flip,crop", "hydra.run.dir=p")
    assert said.returncode == 0, said.stderr
    assert [word for word in words if word] == [
        "augment=\nnone",
        "augment=\nflip",
        "augment=\ncrop",
    ]
    assert len(shown) == 24
    assert all(
        (plain == flipped).all() or (plain == flipped[:, ::-1]).all()
        for plain, flipped in zip(shown, shown[8:16])
    )


def test_preview_shows_what_training_gets(run, script, tmp_path, monkeypatch):
    """Its first image has the pixels and the target of the first image that the network is trained on."""
    seen = {}
    monkeypatch.setattr(
        "matplotlib.axes.Axes.imshow", lambda self, image, **kw: seen.setdefault("image", image)
    )
    monkeypatch.setattr(
        "matplotlib.axes.Axes.set_title", lambda self, text, **kw: seen.setdefault("title", text)
    )
    said = script("preview.py", "augment=light", "mixup=on", "mixup.alpha=5.0", "hydra.run.dir=p")
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "p" / "preview.png").is_file()
    step = ImageClassifier.training_step
    keep = lambda self, batch, index: step(self, seen.setdefault("batch", batch) and batch, index)  # noqa: E731
    monkeypatch.setattr(ImageClassifier, "training_step", keep)
    run(*ONE_BATCH, "augment=light", "mixup=on", "mixup.alpha=5.0")
    images, targets = seen["batch"]
    normal = (images[0, 0] - images[0, 0].min()) / (images[0, 0].max() - images[0, 0].min())
    shown = (seen["image"] - seen["image"].min()) / (seen["image"].max() - seen["image"].min())
    assert torch.allclose(normal, torch.tensor(shown)[..., 0], atol=1e-5)
    share, label = targets[0].max(0)
    assert seen["title"].splitlines()[0] == f"{share:.2f} {label}"


@pytest.mark.parametrize("mixing", ["off", "on"])
def test_preview_shows_smoothed_targets(script, monkeypatch, mixing):
    """0.9 of the target and 0.1 spread over ten classes, as the loss has it."""
    titles = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.set_title", lambda self, text, **kw: titles.append(text)
    )
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *arguments, **kw: None)
    words = (f"mixup='{mixing}'", *(["mixup.alpha=5.0"] if mixing == "on" else []))
    said = script("preview.py", "loss=cross_entropy,smooth", *words, "hydra.run.dir=p")
    assert said.returncode == 0, said.stderr
    plain, smooth = titles[:8], titles[8:]
    for before, after in zip(plain, smooth, strict=True):
        shares = [float(line.split()[0]) for line in after.splitlines()]
        largest = float(before.split()[0])
        assert shares[0] == pytest.approx(0.9 * largest + 0.01, abs=0.011)
        assert after.split()[1] == before.split()[1]
        assert mixing == "on" or shares == [0.91, 0.01]


NAME = ImageClassifier.__module__.split(".")[0]
NEW = f"net_{NAME[::-1]}"


@pytest.fixture
def renamed(tmp_path):
    """A copy of the project under another name, as an installation would leave it."""
    skipped = shutil.ignore_patterns("*.egg-info", "*.dist-info", "__pycache__")
    for part in ("conf", "src", "tests", "scripts", "notebooks", ".github", ".ci"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=skipped)
    for file in (path for path in ROOT.iterdir() if path.is_file()):
        shutil.copy(file, tmp_path)
    command = [sys.executable, str(tmp_path / "scripts" / "rename.py")]
    for wrong in (["torch"], ["My-Lab"], [], ["class"]):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: NAME={''.join(wrong)}; allowed")
    subprocess.run([*command, NEW], check=True)
    about = tmp_path / "src" / f"{NEW}-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NEW}\nVersion: 0\n")
    return tmp_path


def test_a_renamed_copy_has_no_word_of_the_old_name(renamed):
    old = re.compile(NAME, re.IGNORECASE)
    for path in renamed.rglob("*"):
        assert not old.search(path.name)
        if path.is_file() and path.suffix != ".png":
            assert not old.search(path.read_text("utf-8"))
    assert (renamed / "src" / NEW / "scheduler.py").is_file()


@pytest.mark.slow
def test_a_renamed_copy_passes_its_tests(renamed):
    """Those in which names occur: of targets, in hashes, of modules that another process imports, in files."""
    chosen = [
        "test_measure.py::test_the_rows_beside_a_recipe_are_its_own",
        "test_conf.py::test_one_word_in_three_places",
        "test_security.py::test_no_config_calls_them",
        "test_jobs.py::test_jobs_are_single_runs_and_run_once",
    ]
    env = os.environ | {"PYTHONPATH": str(renamed / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", *(f"tests/{name}" for name in chosen)],
        cwd=renamed,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_other_folders_are_prepared_as_in_training(run, script, tree):
    """`data=folder` alone once set the size of pictures back to 32 pixels."""
    root = tree({"train": 12, "test": 4}, size=40)
    data = ("data=folder", f"data.root='{root}'", "data.resize=40", "data.mode=L")
    done = run(*data, "model=mlp", "model.widths=[8]", "trainer.max_epochs=2")
    said = script("evaluate.py", str(done.folder), "data=folder", f"data.root='{root}/test'")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("images 8\n")
    assert f"test/acc {done.result['metrics']['test/acc']} " in said.stdout
    assert f"test/loss {done.result['metrics']['test/loss']} " in said.stdout


def test_evaluate_takes_all_images_of_another_folder(run, script, tree):
    """Of a folder without parts it once took the fifth that training would have set apart."""
    root = tree({"mine": 10, "other": 7, "only/test": 3}, size=12)
    data = ("data=folder", f"data.root='{root}/mine'", "data.resize=12")
    done = run(*ONE_BATCH, *data, "model=mlp", "model.widths=[8]")
    for other, images in {"mine": 4, "other": 14, "only": 6}.items():
        said = script("evaluate.py", str(done.folder), f"data.root='{root}/{other}'", "resamples=0")
        assert said.stdout.splitlines()[0] == f"images {images}", said.stderr


def test_evaluate_downloads_only_what_was_named(run, script, tmp_path, monkeypatch):
    write_mnist(tmp_path / "mnist")
    done = run(*ONE_BATCH, "model=mlp", "data=mnist", f"data.root={tmp_path}/mnist")
    (tmp_path / "mnist").rename(tmp_path / "elsewhere")
    asked = []
    monkeypatch.setattr("torchvision.datasets.MNIST", lambda *a, **k: asked.append(a) or 1 / 0)
    said = script("evaluate.py", str(done.folder))
    assert "no MNIST there" in said.stderr
    assert not asked
    assert "no download" in script("evaluate.py", str(done.folder), "data=mnist").stderr
    assert asked


def test_predict_names_what_is_damaged_and_goes_on(run, script, tree, tmp_path):
    root = tree({"train": 6})
    done = run(*ONE_BATCH, "data=folder", f"data.root='{root}'", "data.resize=12", "model=mlp")
    (root / "train" / "cat" / "0.png").write_bytes(b"")
    (root / "train" / "dog" / "1.png").write_text("no picture")
    (root / "train" / "dog" / "2.png").rename(root / "train" / "dog" / os.fsdecode(b"caf\xe9.png"))
    said = script("predict.py", str(done.folder), f"input={root}/train", "output=out.csv")
    assert said.returncode == 1
    *named, last = said.stderr.splitlines()
    assert [Path(line.split(" can't be decoded")[0]).name for line in named] == ["0.png", "1.png"]
    assert last == "error: 2 of 12 files are left out"
    content = (tmp_path / "out.csv").read_bytes()
    assert len(content.splitlines()) == 1 + 10
    assert b"caf\xe9.png" in content


def test_names_of_classes_are_no_formulas_in_predictions(run, script, tree):
    evil = "=cmd|' C'!A0\x1b[2J"
    root = tree({"train": 6}, classes=(evil, "dog"))
    done = run(*ONE_BATCH, "data=folder", f"data.root='{root}'", "data.resize=12", "model=mlp")
    said = script("predict.py", str(done.folder), f"input={root}/train")
    rows = list(csv.DictReader(io.StringIO(said.stdout)))
    assert len(rows) == 12
    assert {row["class"] for row in rows} <= {"'=cmd|' C'!A0\\x1b[2J", "dog"}
    assert any(row["class"] != "dog" for row in rows)
