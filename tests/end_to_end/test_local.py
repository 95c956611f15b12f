"""The defaults of a machine, in the git-ignored `conf/local/default.yaml`."""

import os
import shutil

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from helpers.configs import configure
from helpers.paths import CONF, ROOT
from tricklab.cli.check import check
from tricklab.cli.config import to_plain
from tricklab.cli.help import format_help
from tricklab.cli.messages import explain
from tricklab.errors import UserError
from tricklab.run.identity import config_hash

DATA_ROOT = "data: {root: /data}\n"


@pytest.fixture
def conf(tmp_path):
    """Return a copy of `conf/` without a local file."""
    return shutil.copytree(CONF, tmp_path / "conf", ignore=shutil.ignore_patterns("local"))


@pytest.fixture
def compose_local(conf):
    """Return a function that composes and checks a config with a local file."""

    def compose_local(text, *overrides):
        if text is not None:
            (conf / "local").mkdir(exist_ok=True)
            (conf / "local" / "default.yaml").write_text(text)
        with initialize_config_dir(str(conf), version_base="1.3"):
            config = compose("train", list(overrides), return_hydra_config=True)
            check(config)
        return config

    return compose_local


def test_local_values_win_over_options_and_lose_to_experiments_and_the_command_line(
    compose_local,
):
    text = "data: {num_workers: 3}\nseed: 7\noptimizer: {lr: 0.5}\nhydra: {run: {dir: elsewhere}}\n"
    config = compose_local(text)
    assert (config.data.num_workers, config.seed, config.optimizer.lr) == (3, 7, 0.5)
    assert config.hydra.run.dir == "elsewhere"
    assert compose_local(text, "optimizer.lr=0.25").optimizer.lr == 0.25
    experiment = compose_local(text, "experiment=fashion_92")
    assert experiment.optimizer.lr == configure("experiment=fashion_92").optimizer.lr != 0.5


@pytest.mark.parametrize("header", ["", "# @package _global_\n"])
def test_local_values_count_only_for_options_that_are_selected(compose_local, header):
    text = header + DATA_ROOT + "logger: {wandb: {entity: us}}\n"
    digits = compose_local(text)
    assert "root" not in digits.data
    assert digits.logger == {}
    selected = compose_local(text, "data=mnist", "logger=wandb")
    assert (selected.data.root, selected.logger.wandb.entity) == ("/data", "us")
    with pytest.raises(UserError, match=r"data.root: no such option.* It belongs to data=cifar10"):
        compose_local(text, "data.root=x")


def test_local_file_changes_the_hash_by_its_values_alone(compose_local):
    without = config_hash(to_plain(compose_local(None)))
    assert without == config_hash(to_plain(configure(hydra=True)))
    assert config_hash(to_plain(compose_local(""))) == without
    assert config_hash(to_plain(compose_local(DATA_ROOT))) == without
    changed = config_hash(to_plain(compose_local("seed: 7\n")))
    assert changed == config_hash(to_plain(configure("seed=7", hydra=True))) != without


def test_local_file_is_not_in_the_help(compose_local, conf):
    compose_local("seed: 7\n")
    assert format_help(conf) == format_help()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sead: 7\n", "default.yaml: sead: no such option"),
        ("data: {rooot: /data}\n", "default.yaml: data.rooot: no such option; allowed: "),
        ("data:\n", "data is empty. Expected an option of it, or keys below it"),
        ("seed: x\n", "seed=x: expected int, got str"),
        ("data: {root: /a\n", "while parsing a flow mapping"),
        ("[1, 2]\n", "In 'local/default': "),
    ],
)
def test_local_file_with_a_mistake_is_one_line(compose_local, text, message):
    with pytest.raises((HydraException, OmegaConfBaseException, UserError, YAMLError)) as error:
        compose_local(text)
    line = explain(error.value)
    assert message in line
    assert "\n" not in line


@pytest.mark.slow
def test_local_file_counts_for_runs_and_for_jobs(fork_script, tmp_path, compose_local):
    """The jobs of a sweep find the config with which they were planned."""
    compose_local("trainer: {max_epochs: 1}\ndata: {root: /data}\n")
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copy(ROOT / "train.py", tmp_path)
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    done = fork_script(str(tmp_path / "train.py"), "-m", "model=mlp", "mixup=off,on", env=env)
    assert "2 of 2 jobs done" in done.stdout, done.stdout + done.stderr
    for config in tmp_path.glob("sweeps/*/*/config.yaml"):
        assert "max_epochs: 1\n" in config.read_text()
        assert "local" not in config.read_text()
