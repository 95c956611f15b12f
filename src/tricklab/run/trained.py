"""A checkpoint as a trained network: the weights, and everything needed to use them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from tricklab.cli.values import check_value
from tricklab.data.inputs import InputSpec, Preprocess
from tricklab.errors import UserError
from tricklab.run.build import build_net
from tricklab.run.untrusted import validate_config
from tricklab.run.weights import State, read_input_spec, read_state

MAX_SIDE = 2**16  # pixels


@dataclass
class TrainedNetwork:
    """The weights of a checkpoint, the config they were trained with, and the input they expect.

    `dataset` holds the classes, and `height`, `width` and `channels` of the images before
    preprocessing.
    """

    path: Path
    state: State
    config: DictConfig
    dataset: Mapping[str, Any]
    input_spec: InputSpec
    temperature: float

    @property
    def classes(self) -> list[str]:
        return list(self.dataset["classes"])

    def net(self) -> nn.Module:
        """Build the network in evaluation mode. Raises UserError: the weights do not fit it."""
        net = build_net(self.config, self.input_spec.shape, len(self.classes))
        dtype = next((x.dtype for x in self.state.values() if x.is_floating_point()), None)
        try:
            net.to(dtype).load_state_dict(self.state)
        except RuntimeError as error:
            raise UserError(f"ckpt={self.path}: {' '.join(str(error).split())[:200]}") from error
        return net.eval()

    def preprocess(self) -> Preprocess:
        """Return the module that turns images of 0 .. 255 into the network's input."""
        return Preprocess(self.input_spec)


def read_trained(file: Path, option: str) -> TrainedNetwork:
    """Read a checkpoint or an exported file, the value of `option`. Raises UserError: damage."""
    state, metadata = read_state(file)
    dataset = check_dataset(metadata.get("dataset"), file, option)
    input_spec = read_input_spec(dataset)
    assert input_spec is not None  # None only without a dataset
    config = validate_config(metadata, f"the config of {file}")
    temperature = metadata.get("temperature", 1.0)
    check_value("temperature", temperature, 1.0)
    return TrainedNetwork(file, state, config, dataset, input_spec, float(temperature))


def check_dataset(dataset: Any, path: Path, option: str) -> dict[str, Any]:
    """Return `dataset` of a config. Raises UserError: it is missing or malformed."""
    if not dataset:
        raise UserError(f"{option}={path} has no config.yaml of its run beside its folder")
    if not isinstance(dataset, dict) or not _has_classes(dataset) or not _has_size(dataset):
        raise UserError(f"the config of {path}: dataset has no class names, or no image size")
    return dict(dataset)


def _has_classes(dataset: Mapping[str, Any]) -> bool:
    classes = dataset.get("classes")
    return isinstance(classes, list) and all(isinstance(name, str) for name in classes)


def _has_size(dataset: Mapping[str, Any]) -> bool:
    sizes = [dataset.get(key) for key in ("channels", "height", "width")]
    return all(type(size) is int and 0 < size <= MAX_SIDE for size in sizes)
