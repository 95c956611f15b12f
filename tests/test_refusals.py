"""Bad input gets one line and leaves nothing behind: from the config alone without torch, else before training."""

import gzip
import json
import secrets
import struct
import sys
from pathlib import Path

import pytest
from conftest import CONF, ONE_BATCH, checked, write_mnist
from PIL import Image

import tricklab.data.published
from tricklab.cli.config import list_options
from tricklab.cli.messages import explain
from tricklab.errors import UserError

CPU = "trainer.accelerator=cpu"


def no_network(monkeypatch, folder: Path) -> None:
    def refuse(root: str, download: bool) -> None:
        (Path(root) / "FashionMNIST" / "raw").mkdir(parents=True)
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", refuse)
    monkeypatch.setattr(tricklab.data.published, "DEBIAN", folder)


def damaged_image(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path)
    path.write_bytes(path.read_bytes()[:40])


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Data of which each is wrong in one way."""
    monkeypatch.setattr(tricklab.data.published, "DEBIAN", tmp_path)
    for root, sizes in (("images", (8, 8)), ("mixed", (8, 9)), ("one", (8,))):
        for name, size in zip(("cat", "dog"), sizes):
            (tmp_path / root / name).mkdir(parents=True)
            for i in range(6):
                Image.new("RGB", (size, 8)).save(tmp_path / root / name / f"{i}.png")
    (tmp_path / "empty").mkdir()
    write_mnist(tmp_path / "mnist")
    labels = bytes([0, 0, 8, 1]) + struct.pack(">I", 40) + bytes([12] * 40)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(labels)
    write_mnist(tmp_path / "cut", ".gz")
    (tmp_path / "cut" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\3"))
    return tmp_path


# what is typed, and the line that answers it
TYPED = [
    # names of other tools, and keys in another place
    ("lr=0.1", "lr=0.1: no such option. Did you mean optimizer.lr=0.1?"),
    ("learning_rate=0.1", "learning_rate=0.1: no such option. Did you mean optimizer.lr=0.1?"),
    ("epochs=3", "epochs=3: no such option. Did you mean trainer.max_epochs=3?"),
    ("dropout=0.5", "dropout=0.5: no such option. Did you mean model.dropout=0.5?"),
    ("batch_size=32", "batch_size=32: no such option. Did you mean data.batch_size=32?"),
    ("amp=true", "amp=true: no such option. Did you mean trainer.precision=16-mixed?"),
    ("warmup_epochs=5", "warmup_epochs=5: no such option. Did you mean scheduler.warmup=5ep?"),
    ("mixup_alpha=0.2", "mixup_alpha=0.2: no such option. Did you mean mixup=on mixup.alpha=0.2?"),
    ("img_size=64", "img_size=64: no such option. Did you mean data=folder data.resize=64?"),
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
        "optimizer.weight_deacy=1: no such option; allowed: fused, lr, lr_per, momentum, nesterov, "
        "weight_decay. Did you mean optimizer.weight_decay=1?",
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
        "--epochs: options are KEY=VALUE without dashes, as seed=1. Did you mean trainer.max_epochs=3?",
    ),
    ("cosine", "cosine: expected KEY=VALUE. Did you mean scheduler=cosine?"),
    ("--experimental-rerun x", "--experimental-rerun is not supported: it would run a pickle; "),
    # one of each kind that the check refuses; the others stand in test_cli.py
    ("+foo=1", "+foo: no such option. + adds arguments of a class, as +optimizer.maximize=true"),
    (
        "+trainer.fast_dev_run=true",
        "trainer.fast_dev_run would not do here what it says; use debug=batch",
    ),
    ("optimizer=adamw optimizer.eps=nan", "optimizer.eps=nan: expected a finite number"),
    ("hydra.run.dir=", "hydra.run.dir= is empty; expected a folder"),
    ("-m seed=0 hydra.sweep.dir=", "hydra.sweep.dir= is empty; expected a folder"),
    (
        "-m seed=0 hydra.sweep.subdir=../x",
        "hydra.sweep.subdir=../x: expected a name without / and leading dots",
    ),
    # sweeps
    ("dry=true", "dry=true has an effect on sweeps alone; add -m for a sweep"),
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
        "data.batch_size=interval(16,32): data.batch_size takes whole numbers; use data.batch_size=int(interval(16,32))",
    ),
    (
        "-m data=digits,folder data.root=x dry=true",
        "data=digits data.root=x dry=true: data.root=x: no such option; ",
    ),
    (
        "augment=flip,crop",
        "augment=flip,crop: for all of them together 'augment=[flip,crop]', for a run each -m augment=flip,crop",
    ),
]
WITH_BLANKS = [
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
    ("words", "says"), [*((typed.split(), says) for typed, says in TYPED), *WITH_BLANKS]
)
def test_the_config_alone_is_answered_in_one_line_without_torch(answer, tmp_path, words, says):
    done = answer(*words)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {says}")
    assert "torch" not in done.modules
    assert list(tmp_path.iterdir()) == []


BATCH_NORM = (
    "Expected more than 1 value per channel when training, got input size torch.Size([1, 256])"
)
ROWS = [
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
        ["data=folder", "data.root=mixed", "data.resize=null", "data.num_workers=0"],
        "mixed/dog/1.png is not the size of mixed/cat/0.png; data.resize=32 makes them equal",
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
        "cut/train-images-idx3-ubyte.gz is not an idx file: unpack_from requires a buffer of at least 16 bytes for unpacking 12 bytes at offset 4 (actual buffer size is 4)",
    ),
    (
        ["data.val_size=0"],
        "data.val_size=0 of 1437 images; allowed: a number from 1 to 1437, or a fraction below 1.0",
    ),
    (
        ["data.val_size=1.0"],
        "data.val_size=1.0 of 1437 images; allowed: a number from 1 to 1437, or a fraction below 1.0",
    ),
    (
        ["data.train_size=5000"],
        "data.train_size=5000 of 1294 images; allowed: a number from 1 to 1294, or a fraction below 1.0",
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
        ["loss.weight=[1,2]"],
        "loss.weight=[1, 2]; allowed: 10 numbers of 0 or more, not all of them 0",
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
        "trainer.max_epochs=-1 trainer.max_steps=-1: the run would take no step, or never stop",
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
        ["mixup=on", "mixup.begin=5ep", "mixup.end=5ep"],
        "mixup.begin=5ep mixup.end=5ep: begin (step 55) must be before end (step 55)",
    ),
]


@pytest.mark.parametrize(
    ("words", "says"), ROWS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_one_line_and_no_folder(run, there, monkeypatch, words, says):
    monkeypatch.chdir(there)
    before = sorted(there.rglob("*"))
    with pytest.raises(UserError) as refused:
        run(*words, compose=checked)
    assert explain(refused.value).startswith(says)
    assert sorted(there.rglob("*")) == before


def test_a_package_that_a_callback_misses_is_a_mistake_of_the_user():
    from tricklab.run.experiment import as_user_error

    plain = as_user_error(ModuleNotFoundError("psutil is not installed"), None)
    assert isinstance(plain, UserError)
    assert str(plain) == "psutil is not installed"


def test_the_same_from_the_command_line(train, there):
    before = sorted(there.rglob("*"))
    done = train(CPU, "data=folder", "data.root=empty")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: empty has no image in its class folders")
    assert sorted(there.rglob("*")) == before


def test_no_download_is_said_with_what_was_looked_for(train, tmp_path, monkeypatch):
    no_network(monkeypatch, tmp_path)
    done = train(CPU, "data=fashion_mnist", "data.root=new/deep")
    assert done.stderr == (
        "error: data.root=new/deep: no FashionMNIST there, and no download (no route to host). Expected a folder with "
        "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte "
        "or Debian's package dataset-fashion-mnist\n"
    )
    assert not list(tmp_path.iterdir())


def test_what_was_there_stays(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").write_text("mine")
    assert train(CPU, "data.val_size=0", "hydra.run.dir=run").returncode == 1
    assert (tmp_path / "run" / "notes").read_text() == "mine"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"


def test_a_damaged_image_is_named_or_left_out_and_counted(train, there):
    damaged_image(there / "images" / "dog" / "x.png")
    words = (
        CPU,
        *ONE_BATCH,
        "data=folder",
        "data.root=images",
        "data.num_workers=0",
        "model=mlp",
        "data.batch_size=3",
    )
    done = train(*words)
    assert done.stderr.startswith("error: images/dog/x.png can't be decoded: ")
    assert done.stderr.endswith("; data.skip_damaged=true leaves it out\n")
    done = train(*words, "data.skip_damaged=true")
    assert done.returncode == 0
    assert (
        "data.skip_damaged: 1 of 13 images are left out, the first: images/dog/x.png can't be"
        in done.stdout
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("+logger.mine.api_key=s3cret", "logger.mine.api_key"),
        ("+claim.hf_token=s3cret", "claim.hf_token"),
        ("+claim.passwd=1234", "claim.passwd"),
        ("+claim.token=${oc.env:HOME,s3cret}", "claim.token"),
        ("+hydra.job.env_set.WANDB_API_KEY=s3cret", "hydra.job.env_set.WANDB_API_KEY"),
    ],
)
def test_a_plain_secret_is_refused(answer, tmp_path, word, said):
    done = answer(word)
    assert done.stderr.startswith(f"error: {said}=*** would be written into the run folder; give")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{token: hunter2}", "[{token: hunter2}]", "{a: {api_key: 'x'}}"])
def test_a_plain_secret_in_a_config_file_is_refused(answer, tmp_path, tmp_path_factory, text):
    conf = tmp_path_factory.mktemp("conf")
    (conf / "experiment").mkdir()
    (conf / "experiment" / "mine.yaml").write_text(f"# @package _global_\nclaim: {{x: {text}}}")
    done = answer("experiment=mine", f"hydra.searchpath=[file://{conf}]")
    assert done.returncode == 1
    assert "=*** would be written into the run folder" in done.stderr
    assert "hunter2" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_secret_of_the_environment_is_not_written_down(train, tmp_path, monkeypatch):
    secret = secrets.token_hex(8)
    monkeypatch.setenv("MINE", secret)
    words = (CPU, *ONE_BATCH, "model=mlp", "+claim.token=${oc.env:MINE}", "hydra.run.dir=run")
    done = train(*words)
    assert done.returncode == 0
    assert "token: '***'" in (tmp_path / "run" / "config.yaml").read_text()
    assert "token: ${oc.env:MINE}" in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()
    assert secret not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_a_missing_package_is_named(train, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert (
        train(CPU, "model=timm").stderr
        == "error: model=timm needs timm: pip install 'tricklab[timm]'\n"
    )
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard.{name}", False)
    assert train(CPU, "logger=tensorboard").stderr.startswith(
        "error: Neither `tensorboard` nor `tensorboardX` is"
    )
