"""A trained network and how it was trained, from the path of a checkpoint alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tricklab.cli import options, unknown
from tricklab.errors import UserError
from tricklab.experiment import build_net

CONF = Path(__file__).parents[2] / "conf"


def read_arguments(arguments: Sequence[str], **allowed: Any) -> tuple[DictConfig, DictConfig]:
    """Read `ckpt=PATH`, the `allowed` arguments of a script, and overrides of the run's own config.

    Returns:
        The arguments, and the `config.yaml` beside the checkpoint's folder, overridden; `data=NAME` takes that option.

    Raises:
        UserError: a path without a run, or an argument that is not one.
        OmegaConfBaseException: a key that the config does not have.
    """
    given = OmegaConf.from_dotlist(list(arguments))
    own = {"ckpt": given.pop("ckpt", None), **{k: given.pop(k, v) for k, v in allowed.items()}}
    path = Path(str(own["ckpt"])).parent.parent / "config.yaml"
    if not own["ckpt"] or not Path(own["ckpt"]).is_file() or not path.is_file():
        raise UserError(f"ckpt={own['ckpt']}; allowed: the path of a checkpoint in the folder of its run")
    config = cast(DictConfig, OmegaConf.load(path))
    if isinstance(given.get("data"), str):
        config.data = read_data(given.pop("data"))
    OmegaConf.set_struct(config, True)
    config.merge_with(given)
    return OmegaConf.create(own), config


def read_data(option: str) -> DictConfig:
    """Read an option of conf/data as Hydra would compose it."""
    if option not in options(CONF / "data"):
        raise UserError(unknown(f"data={option}", option, options(CONF / "data")))
    files = [OmegaConf.load(CONF / "data" / f"{name}.yaml") for name in ("_options", option)]
    data = cast(DictConfig, OmegaConf.merge(*files))
    del data["defaults"]
    return data


def load_net(ckpt: str, config: DictConfig) -> nn.Module:
    """Build the network of a run and load its weights; nothing in the checkpoint is ever executed."""
    facts = config.dataset
    net = build_net(config, (facts.channels, facts.height, facts.width), len(facts.classes))
    state = torch.load(ckpt, map_location="cpu", weights_only=True)["state_dict"]
    net.load_state_dict({k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")})
    return net.eval()
