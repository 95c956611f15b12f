"""A checkpoint with its data: for evaluation, prediction and export."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tricklab.analysis.arguments import compose_one
from tricklab.cli.messages import unknown_name
from tricklab.cli.specs import find_spec, find_target
from tricklab.cli.values import check_value
from tricklab.data.evaluation import FINDERS, build_test_data
from tricklab.data.module import ImageData
from tricklab.errors import UserError
from tricklab.files import CHECKSUM, CONFIG, checksum, read_checkpoint, to_yaml
from tricklab.run.build import build_net
from tricklab.run.folder import find_best
from tricklab.run.inputs import resolve_input
from tricklab.run.instantiate import build
from tricklab.run.trained import TrainedNetwork, read_trained
from tricklab.run.weights import State

DECODING_KEYS = ("mode", "background")  # of `data`: how image files are decoded


@dataclass
class LoadedCheckpoint(TrainedNetwork):
    """A trained network and data to use it on.

    `own_data`: `config.data` reads the files of the run; `data_overridden`: the overrides name
    data.
    """

    own_data: bool
    data_overridden: bool

    def raw_weights(self) -> State:
        """Return the weights of the last step if those of the checkpoint are an average, or {}."""
        if self.path.suffix == ".safetensors":
            return {}
        state = read_checkpoint(self.path).get("current_model_state", {})
        return {
            key.removeprefix("net."): value
            for key, value in state.items()
            if key.startswith("net.")
        }

    def data(self) -> ImageData:
        """Build the data. Raises UserError: they are not found, or have other classes.

        Class folders other than the run's are a test set as a whole, or in their part `test`. Only
        data that an override names are downloaded.
        """
        config = self.config.data
        seed = self.config.seed
        inputs = resolve_input(config, self.config.model, self.input_spec)
        target = config._target_.rpartition(".")[2]
        if target in FINDERS and not self.own_data:
            options: Any = {key: value for key, value in config.items() if key != "_target_"}
            options |= inputs | {"seed": seed, "classes": None}  # all those of the files
            data = build_test_data(target, self.classes, options)
        else:
            data = build(config, seed=seed, download=self.data_overridden, **inputs)
        if data.classes != self.classes:
            reason = f"the data have the classes {data.classes}, the checkpoint {self.classes}"
            raise UserError(reason)
        if data.shape != self.input_spec.shape:  # data.size is an option of evaluation, too
            build_net(self.config, data.shape, len(self.classes))  # refuses what it can't take
        return data

    def to_safetensors(self) -> bytes:
        """Return the content of a file with the weights, and everything else as metadata."""
        from safetensors.torch import save

        config: Any = OmegaConf.to_container(self.config)
        config |= {"dataset": dict(self.dataset), "temperature": self.temperature}
        metadata = {CONFIG: to_yaml(config)}
        state = {key: tensor.contiguous().clone() for key, tensor in self.state.items()}
        return save(state, metadata | {CHECKSUM: checksum(state, metadata)})


def load_checkpoint(
    path: str | Path, overrides: Mapping[str, str] = MappingProxyType({})
) -> LoadedCheckpoint:
    """Load a checkpoint, an exported file, or the best checkpoint of a run folder.

    Of `overrides` by key, `data` replaces the data with an option of `conf/data`, and all others
    change the run's own config. Raises UserError: a damaged file, or an invalid override.
    """
    trained = read_trained(find_best(path, "ckpt"), "ckpt")
    config = trained.config
    data_of_run = copy.deepcopy(config.data)
    apply_overrides(config, overrides, trained.dataset)
    return LoadedCheckpoint(
        **vars(trained),
        own_data=same_files(data_of_run, config.data),
        data_overridden=any(is_data_key(key) for key in overrides),
    )


def is_data_key(key: str) -> bool:
    return key.split(".")[0] == "data"


def apply_overrides(
    config: DictConfig, overrides: Mapping[str, str], dataset: Mapping[str, Any]
) -> None:
    """Change a run's config in place. Raises UserError: no such option, or an invalid value."""
    remaining = dict(overrides)
    if "data" in overrides:
        keys = filter(is_data_key, overrides)
        arguments = [f"{key}={remaining.pop(key)}" for key in keys]
        other = compose_one(arguments).data
        config.data = decode_alike(other, config.data, dataset, arguments)
    for key, value in remaining.items():
        default = OmegaConf.select(config, key, default=config)
        if default is config:
            raise UserError(unknown_name(key, key.split(".")[1], map(str, config.data)))
        OmegaConf.update(config, key, OmegaConf.from_dotlist([f"v={value}"]).v)
        spec = find_spec(key, find_target(key, config))
        value = OmegaConf.select(config, key)
        plain = OmegaConf.to_object(value) if OmegaConf.is_config(value) else value
        check_value(key, plain, default, spec)


def decode_alike(
    data: DictConfig, data_of_run: DictConfig, dataset: Mapping[str, Any], arguments: Sequence[str]
) -> DictConfig:
    """Return a config of other data, decoded as in the run except where `arguments` differ."""
    decoding = {"mode": "L" if dataset["channels"] == 1 else "RGB"}
    decoding |= {key: data_of_run[key] for key in DECODING_KEYS if key in data_of_run}
    overridden = {argument.partition("=")[0].removeprefix("data.") for argument in arguments}
    inherited = {
        key: value for key, value in decoding.items() if key in data and key not in overridden
    }
    return OmegaConf.merge(data, inherited)  # type: ignore[return-value]


def same_files(one: DictConfig, other: DictConfig) -> bool:
    """Whether two configs of data read the same files."""
    places = []
    for data in (one, other):
        paths = [Path(data.get(key) or "").expanduser().resolve() for key in ("root", "table")]
        places.append((data._target_, *paths))
    return places[0] == places[1]
