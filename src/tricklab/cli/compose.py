"""Composes and checks configs outside of `train.py`, for a plan or a preview."""

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from tricklab.cli.check import check
from tricklab.cli.config import CONF
from tricklab.cli.overrides import combine, swept_keys


def compose_each(overrides: list[str]) -> dict[str, DictConfig]:
    """Compose and check a config for each combination of swept values.

    Returns the configs by their swept overrides ("mixup=on"), or by the schedule if there
    are none. Raises UserError: a config is wrong.
    """
    configs = {}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()  # resolves glob()
        parsed = OverridesParser.create(loader).parse_overrides(overrides)
        keys = swept_keys(parsed)
        for combination in combine(parsed):
            config = compose("train", combination, return_hydra_config=True)
            check(config)
            swept = [override for override in combination if override.split("=")[0] in keys]
            label = " ".join(swept) or f"scheduler={config.hydra.runtime.choices.scheduler}"
            configs[label] = config
    return configs
