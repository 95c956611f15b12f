"""Every option of every group, found by globbing: a new file is covered as it is."""

import re
from pathlib import Path

import pytest
import torch
from conftest import CONF, ONE_BATCH, checked, configure, trust_cifar, write_cifar, write_mnist
from hydra.utils import get_object
from omegaconf import OmegaConf

from tricklab.cli.config import description, list_options
from tricklab.data.published import find_mnist

FILES = sorted(CONF.rglob("*.yaml"))
OPTIONS = [
    (p.name, o)
    for p in sorted(CONF.iterdir())
    if p.is_dir() and p.name != "hydra"
    for o in list_options(p)
]
GROUPS_OF_OURS = ("data", "augment", "mixup", "model", "penalty", "scheduler")
COMPUTE = ("data", "augment", "mixup", "model", "penalty", "callbacks", "optimizer")
VARIES: tuple[str, ...] = ()
OTHER_NAME = {"mixup=on": "mixup", "mixup=off": "identity"}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_passes_the_check_and_trains_one_batch(group, option, run, tree, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    extra = requirements(group, option, tree, tmp_path, monkeypatch)
    checked(f"{group}={option}")
    done = run(*ONE_BATCH, f"{group}={option}", *extra)
    assert done.result["status"] == "done"
    assert done.result["metrics"].keys() >= {"val/acc", "val/loss", "test/acc", "test/loss"}
    assert len(done.column("lr")) == 1
    assert (done.folder / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if pair[0] in COMPUTE])
def test_the_same_command_twice_gives_the_same_bits(
    group, option, run, tree, tmp_path, monkeypatch
):
    """On a CPU with one thread; an option for which this can't hold would have to be named in VARIES."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    extra = requirements(group, option, tree, tmp_path, monkeypatch)
    words = (*ONE_BATCH[1:], "stop_after=3it", "model.dropout=0.2")
    runs = [run(*words, f"{group}={option}", *extra, folder=folder) for folder in ("one", "two")]
    weights = [
        torch.load(r.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for r in runs
    ]
    same = all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
    same &= (runs[0].folder / "metrics.csv").read_text() == (
        runs[1].folder / "metrics.csv"
    ).read_text()
    assert same == (f"{group}={option}" not in VARIES)


def requirements(group: str, option: str, tree, tmp_path: Path, monkeypatch) -> list[str]:
    """Skip what this machine can't do, with the reason, and return the overrides that an option needs."""
    if option == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if option == "tensorboard":
        pytest.importorskip("tensorboard", reason="needs the extra [tensorboard]")
    overridden = re.search(
        r"override /data: (\w+)", (CONF / group / f"{option}.yaml").read_text("utf-8")
    )
    data = overridden[1] if overridden else option
    if data == "fashion_mnist" and not find_mnist(Path("data"), "FashionMNIST"):
        pytest.skip("needs Fashion-MNIST: apt-get install dataset-fashion-mnist")
    write_mnist(tmp_path)
    write_cifar(tmp_path)
    write_cifar(tmp_path, classes=100)
    trust_cifar(tmp_path, monkeypatch)
    return {
        "folder": [f"data.root='{tree({'train': 9})}'"],
        "mnist": [f"data.root={tmp_path}"],
        "cifar10": [f"data.root={tmp_path}"],
        "cifar100": [f"data.root={tmp_path}", "data.val_size=50"],
        "gpu": ["trainer.accelerator=gpu"],
        "ddp": ["trainer.devices=1"],
    }.get(option, [])


@pytest.mark.parametrize(
    "words", [["penalty=[l1,l2]", "penalty.l1.strength=1"], ["augment=[light,erase]", "penalty=[]"]]
)
def test_the_check_takes_several_options(words):
    checked(*words)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_yaml_says_what_it_is_and_quotes_on_and_off(path):
    text = path.read_text("utf-8")
    assert description(path)
    bare = re.compile(
        r"^[^#'\"]*[:\[,]\s*(on|off|yes|no)\s*([,\]#]|$)", re.MULTILINE | re.IGNORECASE
    )
    assert not bare.search(text)


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[0] in GROUPS_OF_OURS])
def test_one_word_in_three_places(group, option):
    node = OmegaConf.load(CONF / group / f"{option}.yaml")
    node = (
        node.get(option, {}) if group in ("augment", "penalty") else node
    )  # light to strong are made of others
    if "_target_" in node:
        name = OTHER_NAME.get(f"{group}={option}", option)
        assert re.fullmatch(rf"tricklab\.{group}(\.\w+)?\.{name}", node._target_)
        assert get_object(node._target_).__doc__


def test_the_names_that_others_rely_on():
    cfg = configure("penalty=[l1,l2]", "scheduler=cosine", "mixup=on", "data=folder")
    for name in [
        "seed",
        "name",
        "tags",
        "stop_after",
        "data.batch_size",
        "data.root",
        "data.train_size",
        "data.val_size",
        "data.label_noise",
        "model.dropout",
        "loss.label_smoothing",
        "mixup.alpha",
        "penalty.l1.strength",
        "penalty.l2.strength",
        "optimizer.lr",
        "optimizer.weight_decay",
        "scheduler.warmup",
        "scheduler.floor",
        "trainer.max_epochs",
        "trainer.devices",
        "trainer.accumulate_grad_batches",
        "trainer.precision",
    ]:
        node = cfg
        for part in name.split("."):
            assert part in node, name
            node = node[part]
    assert cfg.trainer.devices == 1
    assert {"every", "gamma"} <= set(configure("scheduler=step").scheduler)
    assert {"milestones", "gamma"} <= set(configure("scheduler=multistep").scheduler)
