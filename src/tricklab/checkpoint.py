"""A trained network and how it was trained, from the path of a checkpoint alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf
from torch import nn

from tricklab.cli import CONF, options, unknown
from tricklab.data.module import Preparation
from tricklab.errors import UserError
from tricklab.network import State, build_net, read_state


class Trained(NamedTuple):
    """The weights of a checkpoint, the config they were trained under, and the further arguments of a script."""

    state: State
    config: DictConfig
    arguments: DictConfig

    def net(self) -> nn.Module:
        """Build the network with these weights, for evaluation."""
        facts = self.config.dataset
        net = build_net(self.config, tuple(facts.input), len(facts.classes))
        net.load_state_dict(self.state)
        return net.eval()

    @property
    def prepare(self) -> Preparation:
        """What makes the network's input of images of 0 .. 255."""
        facts = self.config.dataset
        return Preparation(facts.input, facts.mean, facts.std)


def read_trained(arguments: Sequence[str], **allowed: Any) -> Trained:
    """Read `ckpt=PATH`, the `allowed` arguments of a script, and overrides of the run's own config.

    `data=NAME` takes that option whole.

    Raises:
        UserError: a path without a run, or an argument that is not one.
        OmegaConfBaseException: a key that the config does not have.
    """
    given = OmegaConf.from_dotlist(list(arguments))
    own = OmegaConf.create({key: given.pop(key, value) for key, value in {"ckpt": None, **allowed}.items()})
    if not own.ckpt or not Path(own.ckpt).is_file():
        raise UserError(f"ckpt={own.ckpt}; allowed: the path of a checkpoint, or of an exported file")
    state, config = read_state(Path(own.ckpt))
    if "dataset" not in config:
        raise UserError(
            f"ckpt={own.ckpt} has no config.yaml beside its folder; allowed: a checkpoint in that of its run"
        )
    if isinstance(given.get("data"), str):
        config.data = read_data(given.pop("data"))
    OmegaConf.set_struct(config, True)
    config.merge_with(given)
    return Trained(state, config, own)


def read_data(option: str) -> DictConfig:
    """Read an option of conf/data as Hydra would compose it."""
    if option not in options(CONF / "data"):
        raise UserError(unknown(f"data={option}", option, options(CONF / "data")))
    files = [OmegaConf.load(CONF / "data" / f"{name}.yaml") for name in ("_options", option)]
    data = cast(DictConfig, OmegaConf.merge(*files))
    del data["defaults"]
    return data
