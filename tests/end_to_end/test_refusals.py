"""A mistake of the user gets a message of one line and leaves no folder.

What the config alone shows is refused without importing torch, everything else before training.
"""

import gzip
import json
import secrets
import struct
import sys
from pathlib import Path

import pytest
from PIL import Image

import tricklab.data.published
from helpers.configs import ONE_BATCH, compose_and_check
from helpers.datasets import write_mnist
from helpers.paths import CONF
from tricklab.cli.config import list_options
from tricklab.cli.messages import explain
from tricklab.errors import UserError

CPU = "trainer.accelerator=cpu"


def cut_network(monkeypatch, folder: Path) -> None:
    """Make downloads fail, and Debian's package a folder without files."""

    def refuse(root: str, download: bool) -> None:
        (Path(root) / "FashionMNIST" / "raw").mkdir(parents=True)
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", refuse)
    monkeypatch.setattr(tricklab.data.published, "DEBIAN", folder)


def write_damaged_image(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path)
    path.write_bytes(path.read_bytes()[:40])


@pytest.fixture
def wrong_data(tmp_path, monkeypatch):
    """A folder of data sets, each wrong in one way."""
    monkeypatch.setattr(tricklab.data.published, "DEBIAN", tmp_path)
    write_images(tmp_path / "images", cat=8, dog=8)
    write_images(tmp_path / "mixed", cat=8, dog=9)
    write_images(tmp_path / "one", cat=8)
    (tmp_path / "empty").mkdir()
    write_mnist(tmp_path / "mnist")
    labels = bytes([0, 0, 8, 1]) + struct.pack(">I", 40) + bytes([12] * 40)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(labels)
    write_mnist(tmp_path / "cut", ".gz")
    (tmp_path / "cut" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\3"))
    return tmp_path


def write_images(root: Path, **widths: int) -> None:
    """Write six images of each class, with a width for each."""
    for name, width in widths.items():
        (root / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (width, 8)).save(root / name / f"{i}.png")


# overrides, and the start of the message
CONFIG_ERRORS = [
    # names of other tools, and keys in another place
    ("lr=0.1", "lr=0.1: no such option. Did you mean optimizer.lr=0.1?"),
    ("learning_rate=0.1", "learning_rate=0.1: no such option. Did you mean optimizer.lr=0.1?"),
    ("epochs=3", "epochs=3: no such option. Did you mean trainer.max_epochs=3?"),
    ("dropout=0.5", "dropout=0.5: no such option. Did you mean model.dropout=0.5?"),
    ("batch_size=32", "batch_size=32: no such option. Did you mean data.batch_size=32?"),
    ("amp=true", "amp=true: no such option. Did you mean trainer.precision=16-mixed?"),
    ("warmup_epochs=5", "warmup_epochs=5: no such option. Did you mean scheduler.warmup=5ep?"),
    ("mixup_alpha=0.2", "mixup_alpha=0.2: no such option. Did you mean mixup=on mixup.alpha=0.2?"),
    (
        "data=folder data.keep=64",
        "data.keep=64 has no effect: only augment=resized_crop keeps more than the network takes",
    ),
    (
        "data=folder data.jpeg_scaling=true",
        "data.jpeg_scaling=True has no effect: only augment=resized_crop keeps more",
    ),
    (
        "data=folder data.fit=none augment=resized_crop",
        "data.fit=none with augment=resized_crop: images that keep their size are not cropped",
    ),
    (
        "data=folder data.fit=none data.crop_fraction=0.5",
        "data.fit=none with data.crop_fraction: nothing is cropped. Leave one out",
    ),
    (
        "augment=resized_crop augment.resized_crop.scale=[1,0.5]",
        "augment.resized_crop.scale=[1, 0.5]: low is above high; swap them",
    ),
    (
        "data.sampler=balanced loss.class_weights=balanced",
        "data.sampler=balanced loss.class_weights=balanced: rare classes would count twice.",
    ),
    (
        "loss.class_weights=balanced mixup=on",
        "loss.class_weights=balanced with mixing: a mixed image has two classes",
    ),
    (
        "model=mlp model.dropout=[0.0,0.0] model.dropout_kind=gaussian",
        "model.dropout_kind=gaussian with model.dropout=0: nothing is dropped",
    ),
    ("img_size=64", "img_size=64: no such option. Did you mean data.size=64?"),
    ("output_dir=x", "output_dir=x: no such option. Did you mean hydra.run.dir=x?"),
    ("opt=adam", "opt=adam: no such option. Did you mean optimizer=adamw?"),
    (
        "arch=resnet18",
        "arch=resnet18: no such option. Did you mean model=torchvision model.name=resnet18?",
    ),
    ("learing_rate=1", "learing_rate=1: no such option. Did you mean optimizer.lr=1?"),
    ("nesterov=false", "nesterov=false: no such option. Did you mean optimizer.nesterov=false?"),
    (
        "optimizer.weight_deacy=1",
        "optimizer.weight_deacy=1: no such option; allowed: decay_all, fused, layer_decay, lr, "
        "lr_base_batch_size, momentum, nesterov, weight_decay. "
        "Did you mean optimizer.weight_decay=1?",
    ),
    (
        "trainer.lr=1",
        "trainer.lr=1: no such option; allowed: accelerator, accumulate_grad_batches, ",
    ),
    (
        "mixup.alpha=0.2",
        "mixup.alpha=0.2: no such option. It belongs to mixup=on, alternate, cutmix, images_only: "
        "mixup=on mixup.alpha=0.2",
    ),
    (
        "penalty.l1.strength=1",
        "penalty.l1.strength=1: no such option. It belongs to penalty=l1: "
        "penalty=l1 penalty.l1.strength=1",
    ),
    (
        "augment=cutmix",
        f"augment=cutmix does not exist; allowed: {', '.join(list_options(CONF / 'augment'))}. "
        "Did you mean mixup=cutmix?",
    ),
    (
        "model=resnet18",
        "model=resnet18 does not exist; allowed: convnet, mlp, resnet, timm, torchvision. "
        "Did you mean model=torchvision model.name=resnet18?",
    ),
    (
        "model=mlp -m seed=0,1",
        "-m stands between overrides; it goes first: train.py -m ...",
    ),
    (
        "--lr 0.1",
        "--lr: options are KEY=VALUE without dashes, as seed=1. Did you mean optimizer.lr=0.1?",
    ),
    (
        "--epochs=3 seed=1",
        "--epochs: options are KEY=VALUE without dashes, as seed=1. "
        "Did you mean trainer.max_epochs=3?",
    ),
    ("cosine", "cosine: expected KEY=VALUE. Did you mean scheduler=cosine?"),
    ("--experimental-rerun x", "--experimental-rerun is not supported: it would run a pickle; "),
    # one of each kind that the check refuses (more in test_cli.py and test_specs.py)
    ("+foo=1", "+foo: no such option. + adds arguments of a class, as +optimizer.maximize=true"),
    (
        "+trainer.fast_dev_run=true",
        "trainer.fast_dev_run is not supported here; use debug=batch",
    ),
    ("optimizer=adamw optimizer.eps=nan", "optimizer.eps=nan: expected a finite number"),
    ("hydra.run.dir=", "hydra.run.dir= is empty. Expected a folder"),
    ("-m seed=0 hydra.sweep.dir=", "hydra.sweep.dir= is empty. Expected a folder"),
    (
        "-m seed=0 hydra.sweep.subdir=../x",
        "hydra.sweep.subdir=../x: expected a name without / and leading dots",
    ),
    # sweeps
    ("dry_run=true", "dry_run=true has an effect on sweeps alone; add -m for a sweep"),
    ("slots=2", "slots=2 has an effect on sweeps alone; add -m for a sweep"),
    ("sweep=halving", "sweep=halving has an effect on sweeps alone; add -m for a sweep"),
    (
        "scheduler=cosine scheduler=step",
        "scheduler=cosine scheduler=step: scheduler is given twice",
    ),
    ("-m seed=range(0)", "seed=range(0) has no values to sweep over"),
    ("-m scheduler=glob(zz*)", "scheduler=glob(zz*) has no values to sweep over"),
    (
        "-m sweep=optuna data.batch_size=interval(16,32)",
        "data.batch_size=interval(16,32): data.batch_size takes whole numbers; "
        "use data.batch_size=int(interval(16,32))",
    ),
    (
        "-m data=digits,folder data.root=x dry_run=true",
        "data=digits data.root=x dry_run=true: data.root=x: no such option; ",
    ),
    (
        "augment=flip,crop",
        "augment=flip,crop: for all of them together 'augment=[flip,crop]', "
        "for a run each -m augment=flip,crop",
    ),
]
CONFIG_ERRORS_WITH_BLANKS = [
    (
        ["data=folder", "data.root=/my pictures/cats, dogs"],
        "data.root=/my pictures/cats, dogs: quote a path with a comma for Hydra and the shell: "
        "'data.root=\"/my pictures/cats, dogs\"'",
    ),
    (
        ["data=folder", "data.root=/my=pictures"],
        "data.root=/my=pictures: the value can't be parsed; quote it for Hydra and the shell: "
        "'data.root=\"/my=pictures\"'",
    ),
    (["lr = 0.1"], "lr = 0.1: expected KEY=VALUE, without blanks around ="),
    (["name=\x1b[31m"], "name=\\x1b[31m: "),
]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        *((typed.split(), message) for typed, message in CONFIG_ERRORS),
        *CONFIG_ERRORS_WITH_BLANKS,
    ],
)
def test_config_error_is_one_line_without_torch(train_without_torch, tmp_path, overrides, message):
    done = train_without_torch(*overrides)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert "torch" not in done.modules
    assert list(tmp_path.iterdir()) == []


BATCH_NORM = (
    "Expected more than 1 value per channel when training, got input size torch.Size([1, 256])"
)
# overrides, and the start of the message, of what data, model or devices show
BUILD_ERRORS = [
    (
        ["data=folder", "data.root=none"],
        "data.root=none is not a folder. Expected a folder with one folder per class",
    ),
    (["data=folder", "data.root=empty"], "empty has no image in its class folders"),
    (
        ["data=folder", "data.root=one"],
        "data.root=one: need at least 2 classes with images; there is cat",
    ),
    (
        ["data=folder", "data.root=mixed", "data.fit=none", "data.num_workers=0"],
        "data.fit=none: mixed/dog/1.png is not the size of mixed/cat/0.png; data.fit=crop makes",
    ),
    (
        ["data=folder", "data.root=images", "data.test_size=0"],
        "data.test_size=0 of 11 images; allowed: a number from 1 to 11, or a fraction below 1.0",
    ),
    (
        ["data=mnist", "data.root=mnist"],
        "data: training labels: from 12 to 12; allowed: 0 to 9, one for each image",
    ),
    (
        ["data=mnist", "data.root=cut"],
        "cut/train-images-idx3-ubyte.gz is not an idx file: unpack_from requires a buffer "
        "of at least 16 bytes for unpacking 12 bytes at offset 4 (actual buffer size is 4)",
    ),
    (
        ["data.val_size=0"],
        "data.val_size=0 of 1437 images; allowed: a number from 1 to 1437, or a fraction below 1.0",
    ),
    (
        ["data.val_size=1.0"],
        "data.val_size=1.0 of 1437 images; "
        "allowed: a number from 1 to 1437, or a fraction below 1.0",
    ),
    (
        ["data.train_size=5000"],
        "data.train_size=5000 of 1294 images; "
        "allowed: a number from 1 to 1294, or a fraction below 1.0",
    ),
    (
        ["data.folds=3", "data.fold=3"],
        "data.fold=3 data.folds=3; allowed: 2 to 1438 folds, counted from 0",
    ),
    (
        ["data.batch_size=2000", "data.drop_last=true"],
        "1294 training images, data.batch_size=2000, data.drop_last=True, ",
    ),
    (
        ["model=mlp", "data.batch_size=1"],
        f"data.batch_size=1: {BATCH_NORM}; use 2 or more, or no batch norm",
    ),
    (
        ["loss.class_weights=[1,2]"],
        "loss.class_weights=[1.0, 2.0]: expected 10 numbers, one for each class",
    ),
    (
        ["model.weights=nowhere"],
        "model.weights=nowhere is not a file; allowed: null, pretrained, or a file with weights",
    ),
    (
        ["model.weights=mnist/train-labels-idx1-ubyte"],
        "mnist/train-labels-idx1-ubyte is damaged, or not a checkpoint: ",
    ),
    (
        ["model=timm", "model.name=resnet8"],
        "model.name=resnet8; allowed: timm.list_models(). Did you mean 'resnet18'?",
    ),
    (
        ["trainer.max_epochs=-1"],
        "trainer.max_epochs=-1 trainer.max_steps=-1: "
        "the run would take no optimizer step, or never stop",
    ),
    (["model.widths=[]"], "model.widths=[]: expected a non-empty list of int"),
    (["model=resnet", "model.depth=21"], "model.depth=21; allowed: "),
    (
        ["optimizer.momentum=0"],
        "optimizer: Nesterov momentum requires a momentum and zero dampening",
    ),
    (["+optimizer.foreach=true"], "optimizer: `fused` and `foreach` cannot be `True` together."),
    (["trainer.devices=999"], "trainer.devices=999; allowed: 1 to "),
    (
        ["trainer.devices=0"],
        "trainer.devices=0: expected a number, auto for all, or a list, as [0,1]",
    ),
    (["trainer.accelerator=tpu"], "trainer.accelerator=tpu trainer.devices="),
    (["scheduler=cosine", "scheduler.warmup=300ep"], "scheduler.warmup=300ep is 3300 steps; "),
    (
        ["mixup=on", "mixup.start=5ep", "mixup.stop=5ep"],
        "mixup.start=5ep (step 55) must be before mixup.stop=5ep (step 55)",
    ),
]


@pytest.mark.parametrize(
    ("overrides", "message"),
    BUILD_ERRORS,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_build_error_is_one_line_and_leaves_no_folder(
    run, wrong_data, monkeypatch, overrides, message
):
    monkeypatch.chdir(wrong_data)
    before = sorted(wrong_data.rglob("*"))
    with pytest.raises(UserError) as error:
        run(*overrides, compose=compose_and_check)
    assert explain(error.value).startswith(message)
    assert sorted(wrong_data.rglob("*")) == before


def test_package_that_a_callback_misses_is_a_user_error():
    from tricklab.run.experiment import as_user_error

    error = as_user_error(ModuleNotFoundError("psutil is not installed"), None)
    assert isinstance(error, UserError)
    assert str(error) == "psutil is not installed"


def test_build_error_on_the_command_line_is_one_line(train, wrong_data):
    before = sorted(wrong_data.rglob("*"))
    done = train(CPU, "data=folder", "data.root=empty")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: empty has no image in its class folders")
    assert sorted(wrong_data.rglob("*")) == before


def test_failed_download_lists_the_expected_files(train, tmp_path, monkeypatch):
    cut_network(monkeypatch, tmp_path)
    done = train(CPU, "data=fashion_mnist", "data.root=new/deep")
    assert done.stderr == (
        "error: data.root=new/deep: no FashionMNIST there, and no download (no route to host). "
        "Expected a folder with train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte or Debian's package "
        "dataset-fashion-mnist\n"
    )
    assert not list(tmp_path.iterdir())


def test_build_error_keeps_an_existing_folder(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").write_text("mine")
    assert train(CPU, "data.val_size=0", "hydra.run.dir=run").returncode == 1
    assert (tmp_path / "run" / "notes").read_text() == "mine"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"


def test_damaged_image_is_named_or_left_out_and_counted(train, wrong_data):
    write_damaged_image(wrong_data / "images" / "dog" / "x.png")
    options = ("data.root=images", "data.num_workers=0", "data.batch_size=3")
    overrides = (CPU, *ONE_BATCH, "model=mlp", "data=folder", *options)
    done = train(*overrides)
    assert done.stderr.startswith("error: images/dog/x.png can't be decoded: ")
    assert done.stderr.endswith("; data.skip_corrupt=true leaves it out\n")
    done = train(*overrides, "data.skip_corrupt=true")
    assert done.returncode == 0
    expected = (
        "data.skip_corrupt: 1 of 13 images are left out, the first: images/dog/x.png can't be"
    )
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("+logger.mine.api_key=s3cret", "logger.mine.api_key"),
        ("+claim.hf_token=s3cret", "claim.hf_token"),
        ("+claim.passwd=1234", "claim.passwd"),
        ("+claim.token=${oc.env:HOME,s3cret}", "claim.token"),
        ("+hydra.job.env_set.WANDB_API_KEY=s3cret", "hydra.job.env_set.WANDB_API_KEY"),
    ],
)
def test_plain_secret_is_refused(train_without_torch, tmp_path, override, key):
    done = train_without_torch(override)
    assert done.stderr.startswith(f"error: {key}=*** would be written into the run folder; give")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{token: hunter2}", "[{token: hunter2}]", "{a: {api_key: 'x'}}"])
def test_plain_secret_in_a_config_file_is_refused(
    train_without_torch, tmp_path, tmp_path_factory, text
):
    conf = tmp_path_factory.mktemp("conf")
    (conf / "experiment").mkdir()
    (conf / "experiment" / "mine.yaml").write_text(f"# @package _global_\nclaim: {{x: {text}}}")
    done = train_without_torch("experiment=mine", f"hydra.searchpath=[file://{conf}]")
    assert done.returncode == 1
    assert "=*** would be written into the run folder" in done.stderr
    assert "hunter2" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_secret_from_the_environment_is_not_written(train, tmp_path, monkeypatch):
    secret = secrets.token_hex(8)
    monkeypatch.setenv("MINE", secret)
    token = "+claim.token=${oc.env:MINE}"
    done = train(CPU, *ONE_BATCH, "model=mlp", token, "hydra.run.dir=run")
    assert done.returncode == 0
    assert "token: '***'" in (tmp_path / "run" / "config.yaml").read_text()
    assert "token: ${oc.env:MINE}" in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()
    assert secret not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_missing_package_is_named_with_its_extra(train, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    done = train(CPU, "model=timm")
    assert done.stderr == "error: model=timm needs timm: pip install 'tricklab[timm]'\n"


def test_missing_tensorboard_is_named(train, monkeypatch, tmp_path):
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard.{name}", False)
    done = train(CPU, "logger=tensorboard")
    assert done.stderr.startswith("error: Neither `tensorboard` nor `tensorboardX` is")
