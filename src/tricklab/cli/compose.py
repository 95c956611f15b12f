"""Composes and checks configs outside of `train.py`, as for a plan or a preview."""

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from tricklab.cli.config import CONF
from tricklab.cli.overrides import combine, swept_keys


def compose_each(overrides: list[str]) -> dict[str, DictConfig]:
    """Compose and check a config for each combination of values with commas, by what tells it apart: "mixup=on"."""
    from tricklab.cli.check import check  # which needs this module

    configs = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()  # for glob()
        parsed = OverridesParser.create(loader).parse_overrides(overrides)
        for words in combine(parsed):
            config = compose("train", words, return_hydra_config=True)
            check(config)
            told = [word for word in words if word.split("=")[0] in swept_keys(parsed)]
            configs[" ".join(told) or f"scheduler={config.hydra.runtime.choices.scheduler}"] = (
                config
            )
    return configs
