"""Pretrained weights and checkpoints as the start of a network."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from torch import Tensor, nn

from tricklab.cli.escape import for_terminal
from tricklab.data.batches import Images
from tricklab.errors import UserError
from tricklab.files import CONFIG, parse_yaml, read_checkpoint, read_safetensors, read_yaml
from tricklab.model import AUXILIARY, find_head, find_timm, find_torchvision
from tricklab.run.downloads import brief_downloads

State = dict[str, Tensor]


class Weights(NamedTuple):
    """Weights by name, and the images that they were trained on, where that is known."""

    state: State
    images: Images | None


def load_body(net: nn.Module, state: State) -> None:
    """Load all weights but the classifier's. Raises UserError where they are not those of this network."""
    head, own = find_head(net)[0], net.state_dict()
    top = head.rpartition(".")[0] or head
    body = {key: tensor.shape for key, tensor in own.items() if not key.startswith(f"{head}.")}
    given = {
        key: tensor.shape
        for key, tensor in state.items()
        if key in body or not key.startswith(f"{top}.")
    }
    if wrong := [key for key in {**body, **given} if body.get(key) != given.get(key)]:
        there, wanted = (
            list(shapes[wrong[0]]) if wrong[0] in shapes else "missing" for shapes in (given, body)
        )
        said = f"{wrong[0]} is {there} in the file, {wanted} in the network"
        raise UserError(
            f"model.weights: {said}, and {len(wrong) - 1} more differ; allowed: those of the same network"
        )
    net.load_state_dict({key: state[key] for key in body}, strict=False)


def read_weights(model: DictConfig) -> Weights | None:
    """Read what `model.weights` names: nothing, published weights or a file. Raises UserError if they can't be had."""
    if model.get("weights") is None:
        return None
    if model.weights == "pretrained":
        library = model._target_.rpartition(".")[2]
        if library not in ("torchvision", "timm"):
            raise UserError(
                "model.weights=pretrained; allowed: a path, or with model=torchvision or model=timm"
            )
        try:
            with brief_downloads(library):
                return published(library, model.name)
        except UserError:
            raise
        except Exception as error:  # whatever the network may answer
            reason = for_terminal(" ".join(str(error).split()))[:200]
            hint = "to use a file that was downloaded before: model.weights=PATH"
            raise UserError(
                f"model.weights=pretrained of {model.name}: {reason}; {hint}"
            ) from error
    if not Path(model.weights).is_file():
        raise UserError(
            f"model.weights={model.weights} is not a file; allowed: null, pretrained, a file with weights"
        )
    state, config = read_state(Path(model.weights))
    return Weights(state, read_images(config.get("dataset", {})))


def published(library: str, name: str) -> Weights:
    """Return the best weights of torchvision for a network, or those of timm, downloaded unless they were before."""
    if library == "timm":
        net = find_timm(name).create_model(name, pretrained=True)
        facts: Any = net.pretrained_cfg
        return Weights(
            net.state_dict(),
            Images(tuple(facts["input_size"]), list(facts["mean"]), list(facts["std"])),
        )
    best: Any = find_torchvision(name).get_model_weights(name)["DEFAULT"]
    images = best.transforms()
    body = {
        k: v
        for k, v in best.get_state_dict(weights_only=True).items()
        if not k.lower().startswith("aux")
    }
    old = name in AUXILIARY  # trained before ImageNet's own mean and deviation became usual
    mean, std = ([0.5] * 3, [0.5] * 3) if old else (list(images.mean), list(images.std))
    return Weights(body, Images((3, *images.crop_size, *images.crop_size), mean, std))


def read_images(dataset: Mapping[str, Any]) -> Images | None:
    """Return what the network of a run takes, as far as the `dataset` in its config says.

    Raises UserError: these are no shape, mean and std.
    """
    if not dataset:
        return None
    try:
        images = Images(*(list(dataset[key]) for key in ("input", "mean", "std")))  # type: ignore[arg-type]
        positive = [*images.shape, *images.std]
        valid = len(images.shape) == 3 and len(images.mean) == len(images.std) == images.shape[0]
        valid &= all(type(side) is int and side <= 2**16 for side in images.shape)
        if not valid or not all(0 < number < math.inf for number in [*positive]):
            raise ValueError(f"input={images.shape} mean={images.mean} std={images.std}")
        if not all(math.isfinite(number) for number in images.mean):
            raise ValueError(f"mean={images.mean}")
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"dataset in config.yaml: {error}; expected input, mean and std") from error
    channels, height, width = images.shape
    return images._replace(shape=(channels, height, width))


def read_state(path: Path) -> tuple[State, dict[str, Any]]:
    """Read the weights in a checkpoint, an exported or any other file, and the config of their run.

    The config is a stranger's: plain values that were not judged yet. That of a checkpoint lies
    beside its folder; `dataset`, which says how images were prepared, and the `temperature` are in
    the checkpoint itself. Raises UserError: damage, or a file without weights.
    """
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        return state, parse_yaml(metadata.get(CONFIG, "{}"), f"the config in {path}")
    content = read_checkpoint(path)
    beside = path.parent.parent / "config.yaml"
    config = read_yaml(beside) if beside.is_file() else {}
    if "dataset" in content:
        if config.get("dataset", content["dataset"]) != content["dataset"]:
            raise UserError(
                f"{beside}: dataset is not that of {path.name}; it was edited, or damaged"
            )
        config["dataset"] = content["dataset"]
    return _weights_in(content, path), config | {"temperature": content.get("temperature", 1.0)}


def _weights_in(content: dict[str, Any], path: Path) -> State:
    """Return the tensors by name, of our own checkpoints those of the network alone."""
    weights = content.get("state_dict", content.get("model", content))
    if not isinstance(weights, Mapping) or not weights:
        raise UserError(f"{path} holds no weights")
    ours = [
        key for key in weights if str(key).startswith("net.")
    ]  # and not the loss's class weights
    state = {str(key).removeprefix("net."): weights[key] for key in ours or weights}
    if wrong := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise UserError(f"{path} holds no weights: {wrong[0]} is no tensor")
    return {key: value.detach() for key, value in state.items()}
