"""Composed configs, cached by the options they select: composing takes 0.1 s."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from helpers.paths import CONF
from tricklab.cli.check import check
from tricklab.jobs.queue import Composer

ONE_BATCH = (
    "stop_after=1it",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=1",
)


def configure(*overrides: str, hydra: bool = False) -> DictConfig:
    """Compose the config of `train.py`, with Hydra's own node if `hydra`."""
    return compose_with_hydra(overrides) if hydra else cached_config(overrides)


def compose_and_check(*overrides: str) -> DictConfig:
    """Compose a config and check it, as the command line does."""
    config = cached_config_with_hydra(overrides)
    config.hydra.overrides.task = list(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        check(config)
    return without_hydra(config)


def compose_with_hydra(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def is_group(key: str) -> bool:
    return (CONF / key).is_dir()


cached_config_with_hydra = Composer(compose_with_hydra, is_group)
cached_config = Composer(
    lambda overrides: without_hydra(cached_config_with_hydra(overrides)), is_group
)
