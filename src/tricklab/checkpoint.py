"""A trained network and how it was trained, from the path of a checkpoint alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from tricklab.build import HARMLESS, check_target, targets
from tricklab.check import check_value
from tricklab.cli import compose_each, unknown
from tricklab.data.batches import Images, Preparation
from tricklab.errors import UserError
from tricklab.network import State, build_net, read_images, read_state

MAY_CHANGE = ("trainer.accelerator", "trainer.precision")


class Trained(NamedTuple):
    """The weights of a checkpoint, the config they were trained under, and the further arguments of a script."""

    state: State
    config: DictConfig
    images: Images
    arguments: dict[str, Any]

    def net(self) -> nn.Module:
        """Build the network with these weights, for evaluation. Raises UserError: weights and config do not fit."""
        net = build_net(self.config, self.images.shape, len(self.config.dataset.classes))
        try:
            net.to(next(x.dtype for x in self.state.values() if x.is_floating_point())).load_state_dict(self.state)
        except RuntimeError as error:
            raise UserError(f"ckpt={self.arguments['ckpt']}: {' '.join(str(error).split())[:200]}") from error
        return net.eval()

    def unaveraged(self) -> State:
        """Return the weights of the last step, where those of the checkpoint are an average; else nothing."""
        path = Path(self.arguments["ckpt"])
        kept = {} if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        kept = kept.get("current_model_state", {})
        return {key.removeprefix("net."): value for key, value in kept.items() if key.startswith("net.")}

    def prepare(self) -> Preparation:
        """Return what makes the network's input of images of 0 .. 255."""
        return Preparation(self.images)


def read_trained(words: Sequence[str], **allowed: Any) -> Trained:
    """Read `ckpt=PATH`, the `allowed` arguments of a script with their defaults, and other data than the run's.

    `data=NAME` takes that option whole, `data.KEY=VALUE` changes the run's own. Raises UserError: a path without a run,
    or an argument that is not one.
    """
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    own = {key: given.pop(key, default) for key, default in {"ckpt": None, **allowed}.items()}
    if not own["ckpt"] or not Path(own["ckpt"]).is_file():
        raise UserError(f"ckpt={own['ckpt']}; allowed: the path of a checkpoint, or of an exported file")
    state, config = read_state(Path(own["ckpt"]))
    images = read_images(config)
    if not images:
        raise UserError(f"ckpt={own['ckpt']} has no config.yaml of its run beside its folder; allowed: one that has")
    for target in targets(OmegaConf.to_container(OmegaConf.masked_copy(config, ["model", "data", "augment"]))):
        check_target(target, HARMLESS, ["torch.nn.modules"])  # the config may be a stranger's
    change(config, given, [*own, "data", *MAY_CHANGE])
    return Trained(state, config, images, own)


def compose_one(words: list[str]) -> DictConfig:
    """Compose the config that these words ask for. Raises UserError: they ask for several."""
    configs = list(compose_each(words).values())
    if len(configs) > 1:
        raise UserError(f"{' '.join(words)}; allowed: one, without values between commas")
    return configs[0]


def change(config: DictConfig, given: dict[str, str], allowed: Sequence[str]) -> None:
    """Put the data and the options that were asked for in place of the run's."""
    if "data" in given:
        words = [f"{key}={given.pop(key)}" for key in list(given) if key.split(".")[0] == "data"]
        config.data = compose_one(words).data
    for key, value in given.items():
        if not key.startswith("data.") and key not in MAY_CHANGE:
            raise UserError(unknown(key, key, allowed))
        default = OmegaConf.select(config, key, default=config)
        if default is config:
            raise UserError(unknown(key, key.split(".")[1], map(str, config.data)))
        OmegaConf.update(config, key, OmegaConf.from_dotlist([f"v={value}"]).v)
        check_value(key, OmegaConf.select(config, key), default)
