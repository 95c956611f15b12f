"""A checkpoint with everything needed to use it: for evaluation, prediction and export."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from torch import nn

from tricklab.analysis.arguments import compose_one, find_checkpoint
from tricklab.analysis.untrusted import validate_config
from tricklab.cli.messages import unknown_name
from tricklab.cli.specs import find_spec, find_target
from tricklab.cli.values import check_value
from tricklab.data.evaluation import FINDERS, build_test_data
from tricklab.data.inputs import InputSpec, Preprocess
from tricklab.data.module import ImageData
from tricklab.errors import UserError
from tricklab.files import CHECKSUM, CONFIG, checksum, read_checkpoint, to_yaml
from tricklab.run.build import build_net
from tricklab.run.inputs import resolve_input
from tricklab.run.instantiate import build
from tricklab.run.weights import State, read_input_spec, read_state

DECODING_KEYS = ("mode", "background")  # of `data`: how image files are decoded
MAX_SIDE = 2**16  # pixels


class LoadedCheckpoint(NamedTuple):
    """The weights of a checkpoint, the config they were trained with, and the input they expect.

    `dataset` holds the classes, and `height`, `width` and `channels` of the images before
    preprocessing. `own_data`: `config.data` reads the files of the run; `data_overridden`: the
    overrides name data.
    """

    path: Path
    state: State
    config: DictConfig
    dataset: Mapping[str, Any]
    input_spec: InputSpec
    temperature: float
    own_data: bool
    data_overridden: bool

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
            options |= inputs | {"seed": seed}
            data = build_test_data(target, self.classes, **options)
        else:
            data = build(config, seed=seed, download=self.data_overridden, **inputs)
        if data.classes != self.classes:
            reason = f"the data have the classes {data.classes}, the checkpoint {self.classes}"
            raise UserError(reason)
        if data.shape != self.input_spec.shape:  # data.size is an option of evaluation, too
            build_net(self.config, data.shape, len(self.classes))  # refuses what it can't take
        return data

    def preprocess(self) -> Preprocess:
        """Return the module that turns images of 0 .. 255 into the network's input."""
        return Preprocess(self.input_spec)

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
    file = find_checkpoint(path)
    state, metadata = read_state(file)
    dataset = check_dataset(metadata.get("dataset"), file)
    input_spec = read_input_spec(dataset)
    assert input_spec is not None  # None only without a dataset
    config = validate_config(metadata, f"the config of {file}")
    data_of_run = copy.deepcopy(config.data)
    apply_overrides(config, overrides, dataset)
    temperature = metadata.get("temperature", 1.0)
    check_value("temperature", temperature, 1.0)
    return LoadedCheckpoint(
        path=file,
        state=state,
        config=config,
        dataset=dataset,
        input_spec=input_spec,
        temperature=float(temperature),
        own_data=same_files(data_of_run, config.data),
        data_overridden=any(is_data_key(key) for key in overrides),
    )


def check_dataset(dataset: Any, path: Path) -> dict[str, Any]:
    """Return `dataset` of a config. Raises UserError: it is missing or malformed."""
    if not dataset:
        raise UserError(f"ckpt={path} has no config.yaml of its run beside its folder")
    if not isinstance(dataset, dict) or not _has_classes(dataset) or not _has_size(dataset):
        raise UserError(f"the config of {path}: dataset has no class names, or no image size")
    return dict(dataset)


def _has_classes(dataset: Mapping[str, Any]) -> bool:
    classes = dataset.get("classes")
    return isinstance(classes, list) and all(isinstance(name, str) for name in classes)


def _has_size(dataset: Mapping[str, Any]) -> bool:
    sizes = [dataset.get(key) for key in ("channels", "height", "width")]
    return all(type(size) is int and 0 < size <= MAX_SIDE for size in sizes)


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
        check_value(key, OmegaConf.select(config, key), default, spec)


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
