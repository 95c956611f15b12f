"""Files in `conf/`: descriptions, names, and the keys that others rely on."""

import re

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from helpers.configs import compose_and_check, configure
from helpers.options import OPTIONS
from helpers.paths import CONF
from tricklab.cli.config import description

FILES = sorted(CONF.rglob("*.yaml"))
OWN_GROUPS = ("data", "augment", "mixup", "model", "penalty", "scheduler")  # functions of ours
FUNCTIONS = {"mixup=on": "mixup", "mixup=off": "identity"}  # named otherwise than their option
UNQUOTED_BOOL = re.compile(
    r"^[^#'\"]*[:\[,]\s*(on|off|yes|no)\s*([,\]#]|$)", re.MULTILINE | re.IGNORECASE
)
STABLE_KEYS = [
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
]


@pytest.mark.parametrize(
    "overrides",
    [["penalty=[l1,l2]", "penalty.l1.strength=1"], ["augment=[light,erase]", "penalty=[]"]],
)
def test_check_takes_several_options_of_a_group(overrides):
    compose_and_check(*overrides)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_yaml_has_a_description_and_quotes_on_and_off(path):
    assert description(path)
    assert not UNQUOTED_BOOL.search(path.read_text("utf-8"))


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
    for key in STABLE_KEYS:
        assert OmegaConf.select(config, key, default="missing") != "missing", key
    assert config.trainer.devices == 1
    assert {"every", "gamma"} <= set(configure("scheduler=step").scheduler)
    assert {"milestones", "gamma"} <= set(configure("scheduler=multistep").scheduler)
