"""Every option of every group, found by globbing: a new file is covered as it is."""

import re
from pathlib import Path

import pytest
import torch
from helpers.configs import ONE_BATCH, compose_and_check, configure
from helpers.datasets import trust_cifar, write_cifar, write_mnist
from helpers.paths import CONF
from hydra.utils import get_object
from omegaconf import OmegaConf

from tricklab.cli.config import description, list_options
from tricklab.data.published import find_mnist

FILES = sorted(CONF.rglob("*.yaml"))
OWN_GROUPS = ("data", "augment", "mixup", "model", "penalty", "scheduler")  # functions of ours
COMPUTING_GROUPS = ("data", "augment", "mixup", "model", "penalty", "callbacks", "optimizer")
NOT_REPRODUCIBLE: tuple[str, ...] = ()
FUNCTIONS = {"mixup=on": "mixup", "mixup=off": "identity"}  # with another name than their option


def find_options() -> list[tuple[str, str]]:
    """Return the options of `conf/` with their groups."""
    found = []
    for group in sorted(CONF.iterdir()):
        if group.is_dir() and group.name != "hydra":
            found += [(group.name, option) for option in list_options(group)]
    return found


OPTIONS = find_options()


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_passes_the_check_and_trains_one_batch(
    group, option, run, class_folders, tmp_path, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    extra = find_requirements(group, option, class_folders, tmp_path, monkeypatch)
    compose_and_check(f"{group}={option}")
    done = run(*ONE_BATCH, f"{group}={option}", *extra)
    assert done.result["status"] == "done"
    assert done.result["metrics"].keys() >= {"val/acc", "val/loss", "test/acc", "test/loss"}
    assert len(done.column("lr")) == 1
    assert (done.folder / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "option"), [pair for pair in OPTIONS if pair[0] in COMPUTING_GROUPS]
)
def test_option_gives_the_same_bits_twice(group, option, run, class_folders, tmp_path, monkeypatch):
    """On a CPU with one thread; exceptions would have to be listed in NOT_REPRODUCIBLE."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    extra = find_requirements(group, option, class_folders, tmp_path, monkeypatch)
    overrides = (*ONE_BATCH[1:], "stop_after=3it", "model.dropout=0.2", f"{group}={option}", *extra)
    one, two = (read_results(run(*overrides, folder=folder)) for folder in ("one", "two"))
    is_same = one[0] == two[0] and one[1].keys() == two[1].keys()
    is_same &= all(torch.equal(tensor, two[1][key]) for key, tensor in one[1].items())
    assert is_same == (f"{group}={option}" not in NOT_REPRODUCIBLE)


def read_results(run) -> tuple[str, dict[str, torch.Tensor]]:
    """Return the metrics and the weights of a run."""
    checkpoint = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    return (run.folder / "metrics.csv").read_text(), checkpoint["state_dict"]


def find_requirements(
    group: str, option: str, class_folders, tmp_path: Path, monkeypatch
) -> list[str]:
    """Return the overrides that an option needs. Skips the test if this machine can't run it."""
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
        "folder": [f"data.root='{class_folders({'train': 9})}'"],
        "mnist": [f"data.root={tmp_path}"],
        "cifar10": [f"data.root={tmp_path}"],
        "cifar100": [f"data.root={tmp_path}", "data.val_size=50"],
        "gpu": ["trainer.accelerator=gpu"],
        "ddp": ["trainer.devices=1"],
    }.get(option, [])


@pytest.mark.parametrize(
    "overrides",
    [["penalty=[l1,l2]", "penalty.l1.strength=1"], ["augment=[light,erase]", "penalty=[]"]],
)
def test_check_takes_several_options_of_a_group(overrides):
    compose_and_check(*overrides)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_yaml_has_a_description_and_quotes_on_and_off(path):
    text = path.read_text("utf-8")
    assert description(path)
    unquoted = re.compile(
        r"^[^#'\"]*[:\[,]\s*(on|off|yes|no)\s*([,\]#]|$)", re.MULTILINE | re.IGNORECASE
    )
    assert not unquoted.search(text)


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if pair[0] in OWN_GROUPS])
def test_option_has_the_name_of_its_function(group, option):
    node = OmegaConf.load(CONF / group / f"{option}.yaml")
    if group in ("augment", "penalty"):
        node = node.get(option, {})  # light to strong consist of others
    if "_target_" in node:
        name = FUNCTIONS.get(f"{group}={option}", option)
        assert re.fullmatch(rf"tricklab\.{group}(\.\w+)?\.{name}", node._target_)
        assert get_object(node._target_).__doc__


def test_config_has_the_names_that_others_rely_on():
    config = configure("penalty=[l1,l2]", "scheduler=cosine", "mixup=on", "data=folder")
    for key in [
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
        assert OmegaConf.select(config, key, default="missing") != "missing", key
    assert config.trainer.devices == 1
    assert {"every", "gamma"} <= set(configure("scheduler=step").scheduler)
    assert {"milestones", "gamma"} <= set(configure("scheduler=multistep").scheduler)
