"""Every option in `conf/` trains, and gives the same bits twice."""

import re
from pathlib import Path

import pytest
import torch

from helpers.configs import ONE_BATCH, compose_and_check
from helpers.datasets import trust_cifar, write_cifar, write_mnist
from helpers.options import OPTIONS, RGB_ONLY
from helpers.paths import CONF
from tricklab.data.published import find_mnist

COMPUTING_GROUPS = ("data", "augment", "mixup", "model", "penalty", "callbacks", "optimizer")
NOT_REPRODUCIBLE: tuple[str, ...] = ()


@pytest.fixture
def require(class_folders, cached_run, tmp_path, monkeypatch):
    """Return a function: the overrides an option needs; skips if this machine can't run it."""

    def require(group: str, option: str) -> list[str]:
        skip_unless_available(group, option)
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
        write_mnist(tmp_path)
        write_cifar(tmp_path)
        write_cifar(tmp_path, classes=100)
        trust_cifar(tmp_path, monkeypatch)
        root = class_folders({"train": 9, "val": 3})
        rows = [f"{path},{path.parent.name}" for path in sorted(root.glob("train/*/*.png"))]
        (tmp_path / "table.csv").write_text("\n".join(["path,label", *rows]))
        small = [f"data.root='{root}'", "data.size=32"]
        overrides = {
            "folder": [f"data.root='{root}'"],
            "table": [f"data.table='{tmp_path}/table.csv'"],
            "imagenette_128": small,
            "imagenette_224": [*small, "data.train_size=9", "model.weights=null", "model.freeze=0"],
            "mnist": [f"data.root={tmp_path}"],
            "cifar10": [f"data.root={tmp_path}"],
            "cifar100": [f"data.root={tmp_path}", "data.val_size=50"],
            "gpu": ["trainer.accelerator=gpu"],
            "ddp": ["trainer.devices=1"],
            **{name: ["data=fake", "data.height=8", "data.width=8"] for name in RGB_ONLY},
        }
        if option == "distill":
            teacher = cached_run(*ONE_BATCH, "model=mlp", folder="teacher").folder
            overrides["distill"] = [f"loss.teacher='{teacher}'"]
        return overrides.get(option, [])

    return require


def skip_unless_available(group: str, option: str) -> None:
    if option == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if option == "mlflow":
        pytest.importorskip("mlflow", reason="needs mlflow")
    if option == "tensorboard":
        pytest.importorskip("tensorboard", reason="needs the extra [tensorboard]")
    text = (CONF / group / f"{option}.yaml").read_text("utf-8")
    data = re.search(r"override /data: (\w+)", text)
    name = data[1] if data else option
    if name == "fashion_mnist" and not find_mnist(Path("data"), "FashionMNIST"):
        pytest.skip("needs Fashion-MNIST: apt-get install dataset-fashion-mnist")


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_passes_the_check_and_trains_one_batch(group, option, run, require):
    required = require(group, option)
    compose_and_check(f"{group}={option}")
    done = run(*ONE_BATCH, f"{group}={option}", *required)
    assert done.result["status"] == "done"
    assert done.result["metrics"].keys() >= {"val/acc", "val/loss", "test/acc", "test/loss"}
    assert len(done.column("lr")) == 1
    assert (done.folder / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.kills
@pytest.mark.parametrize(
    ("group", "option"), [pair for pair in OPTIONS if pair[0] in COMPUTING_GROUPS]
)
def test_option_gives_the_same_bits_twice(group, option, run, require):
    """On a CPU with one thread; exceptions would have to be listed in NOT_REPRODUCIBLE."""
    required = require(group, option)
    overrides = ("stop_after=3it", "model.dropout=0.2", f"{group}={option}", *required)
    one = run(*ONE_BATCH[1:], *overrides, folder="one")
    two = run(*ONE_BATCH[1:], *overrides, folder="two")
    assert has_same_bits(one, two) == (f"{group}={option}" not in NOT_REPRODUCIBLE)


def has_same_bits(one, two) -> bool:
    """Compare metrics and weights of two runs."""
    weights, other = one.checkpoint()["state_dict"], two.checkpoint()["state_dict"]
    if one.metrics_text != two.metrics_text or weights.keys() != other.keys():
        return False
    return all(torch.equal(weights[name], other[name]) for name in weights)
