"""Pretrained weights and checkpoints: their tensors, and the input that they expect."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import Size, Tensor, nn

from tricklab.cli.escape import for_terminal
from tricklab.data.fit import INTERPOLATIONS, METHODS
from tricklab.data.inputs import InputSpec
from tricklab.errors import UserError
from tricklab.files import CONFIG, parse_yaml, read_checkpoint, read_safetensors, read_yaml
from tricklab.model import AUXILIARY, find_head, find_timm, find_torchvision
from tricklab.run.downloads import brief_downloads

State = dict[str, Tensor]
MAX_SIDE = 2**16  # pixels
LIBRARIES = ("timm", "torchvision")
TIMM_FITS = {"center": "crop", "squash": "stretch", "border": "pad"}  # by crop mode


class Weights(NamedTuple):
    """Weights by name, and the input that they were trained on, if that is known."""

    state: State
    input_spec: InputSpec | None


def load_backbone(net: nn.Module, state: State) -> None:
    """Load all weights but those of the head. Raises UserError: they do not fit this network."""
    head, layer = find_head(net)
    head_parent = head.rpartition(".")[0] or head
    wanted = {
        key: tensor.shape
        for key, tensor in net.state_dict().items()
        if not key.startswith(f"{head}.")
    }
    given = {
        key: tensor.shape
        for key, tensor in state.items()
        if key in wanted or not key.startswith(f"{head_parent}.")
    }
    check_same_shapes(given, wanted, classes=len(next(layer.parameters(recurse=False))))
    net.load_state_dict({key: state[key] for key in wanted}, strict=False)


def check_same_shapes(given: Mapping[str, Size], wanted: Mapping[str, Size], classes: int) -> None:
    """Raise UserError if the weights of a file differ from the network's in names or shapes."""
    different = [key for key in {**wanted, **given} if wanted.get(key) != given.get(key)]
    if not different:
        return
    key = different[0]
    shapes = f"{_show(given.get(key))} in the file, {_show(wanted.get(key))} in the network"
    message = f"model.weights: {key} is {shapes}, and {len(different) - 1} more differ"
    hint = "use weights of the same network"
    if all(key in given and wanted.get(key, ())[:1] == (classes,) for key in different):
        hint = "only the last layer may be new, so this takes a network with a single head"
    raise UserError(f"{message}; {hint}")


def zero_head(net: nn.Module) -> None:
    """Let a new head start at zero (arXiv 1912.11370), all classes equally probable.

    Some networks draw large weights for it, which features of a good backbone take long to undo.
    """
    for parameter in find_head(net)[1].parameters(recurse=False):
        nn.init.zeros_(parameter)


def _show(shape: Size | None) -> str:
    return "missing" if shape is None else str(list(shape))


def read_weights(model: DictConfig) -> Weights | None:
    """Read the weights of `model.weights`: None, published weights or those of a file.

    A file that does not say what input it expects is taken for a copy of the published weights of
    that network. Raises UserError: they are not available.
    """
    if model.get("weights") is None:
        return None
    if model.weights == "pretrained":
        return download_weights(model)
    path = Path(model.weights)
    if not path.is_file():
        allowed = "null, pretrained, or a file with weights"
        raise UserError(f"model.weights={model.weights} is not a file; allowed: {allowed}")
    state, config = read_state(path)
    spec = read_input_spec(config.get("dataset", {}))
    return Weights(state, spec or published_input(model))


def download_weights(model: DictConfig) -> Weights:
    """Return the published weights of a network. Raises UserError: none, or no connection."""
    library = model._target_.rpartition(".")[2]
    if library not in LIBRARIES:
        hint = "needs model=torchvision or model=timm; for a file: model.weights=PATH"
        raise UserError(f"model.weights=pretrained {hint}")
    try:
        with brief_downloads(library):
            return pretrained_weights(library, model.name)
    except UserError:
        raise
    except Exception as error:  # the libraries raise exceptions of many kinds
        reason = for_terminal(" ".join(str(error).split()))[:200]
        hint = "to use a file that was downloaded before: model.weights=PATH"
        raise UserError(f"model.weights=pretrained of {model.name}: {reason}; {hint}") from error


def pretrained_weights(library: str, name: str) -> Weights:
    """Return the default weights of timm, or the best of torchvision, from cache or network."""
    if library == "timm":
        net = find_timm(name).create_model(name, pretrained=True)
        return Weights(net.state_dict(), timm_input(net.pretrained_cfg))
    best: Any = find_torchvision(name).get_model_weights(name)["DEFAULT"]
    state = {
        key: tensor
        for key, tensor in best.get_state_dict(weights_only=True).items()
        if not key.lower().startswith("aux")
    }
    return Weights(state, torchvision_input(name))


def published_input(model: DictConfig) -> InputSpec | None:
    """Return the input that the published weights of a network expect; None for our own networks.

    Nothing is downloaded.
    """
    library = model._target_.rpartition(".")[2]
    if library == "torchvision":
        return torchvision_input(model.name)
    if library == "timm" and (config := find_timm(model.name).get_pretrained_cfg(model.name)):
        return timm_input(config.to_dict())
    return None


def torchvision_input(name: str) -> InputSpec:
    """Return the input of torchvision's best weights, from their `transforms`."""
    transforms: Any = find_torchvision(name).get_model_weights(name)["DEFAULT"].transforms()
    mean, std = list(transforms.mean), list(transforms.std)
    if name in AUXILIARY:  # trained before the mean and std of ImageNet became usual
        mean, std = [0.5] * 3, [0.5] * 3
    side = transforms.crop_size[0]
    fraction = side / transforms.resize_size[0]
    interpolation = transforms.interpolation.value
    return InputSpec((3, side, side), mean, std, "crop", fraction, interpolation)


def timm_input(config: Mapping[str, Any]) -> InputSpec:
    """Return the input of timm's weights, from their `pretrained_cfg`."""
    channels, height, width = config["input_size"]
    return InputSpec(
        (channels, height, width),
        list(config["mean"]),
        list(config["std"]),
        TIMM_FITS[config.get("crop_mode", "center")],
        config.get("crop_pct", 1.0),
        config.get("interpolation", "bilinear"),
    )


def read_input_spec(dataset: Mapping[str, Any]) -> InputSpec | None:
    """Return the input of a run's network from `dataset` in its config; None if it is missing.

    Raises UserError: the values are no shape, mean and std.
    """
    if not dataset:
        return None
    try:
        shape, mean, std = (list(dataset[key]) for key in ("input", "mean", "std"))
        channels, height, width = shape
        if not (len(mean) == len(std) == channels and all(map(_is_side, shape))):
            raise ValueError(f"input={shape} mean={mean} std={std}")
        if not all(0 < number < math.inf for number in std):
            raise ValueError(f"std={std}")
        if not all(math.isfinite(number) for number in mean):
            raise ValueError(f"mean={mean}")
        fit, crop_fraction, interpolation = _read_fit(dataset)
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"dataset in config.yaml: {error}; expected input, mean and std") from error
    return InputSpec((channels, height, width), mean, std, fit, crop_fraction, interpolation)


def _read_fit(dataset: Mapping[str, Any]) -> tuple[str, float, str]:
    """Return fit, crop fraction and interpolation. Raises an error: invalid values."""
    fit = dataset.get("fit", "crop")
    crop_fraction = dataset.get("crop_fraction", 1.0)
    interpolation = dataset.get("interpolation", "bilinear")
    if fit not in (*METHODS, "none") or interpolation not in INTERPOLATIONS:
        raise ValueError(f"fit={fit} interpolation={interpolation}")
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction={crop_fraction}")
    return fit, crop_fraction, interpolation


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= MAX_SIDE


def read_state(path: Path) -> tuple[State, dict[str, Any]]:
    """Read the weights of a checkpoint, an export or any other file, and the config of their run.

    The config is a stranger's: plain values that are not judged yet. That of a checkpoint lies
    beside its folder; `dataset`, the metadata of the images, and `temperature` are stored in the
    checkpoint itself. Raises UserError: damage, or a file without weights.
    """
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        return state, parse_yaml(metadata.get(CONFIG, "{}"), f"the config in {path}")
    content = read_checkpoint(path)
    config_path = path.parent.parent / "config.yaml"
    config = read_yaml(config_path) if config_path.is_file() else {}
    if "dataset" in content:
        if config.get("dataset", content["dataset"]) != content["dataset"]:
            reason = f"dataset differs from {path.name}; the file was edited, or is damaged"
            raise UserError(f"{config_path}: {reason}")
        config["dataset"] = content["dataset"]
    config["automatic"] = content.get("automatic", config.get("automatic"))
    config["temperature"] = content.get("temperature", 1.0)
    return _find_weights(content, path), config


def _find_weights(content: dict[str, Any], path: Path) -> State:
    """Return the tensors by name; of our own checkpoints, only those of the network."""
    weights = content.get("state_dict", content.get("model", content))
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"{path} holds no weights")
    of_net = [key for key in weights if str(key).startswith("net.")]  # not the class weights
    state = {str(key).removeprefix("net."): weights[key] for key in of_net or weights}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path} holds no weights: {key} is not a tensor")
    return {key: value.detach() for key, value in state.items()}
