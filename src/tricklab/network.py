"""A network from its config: built for the data, begun from given weights."""

import pickle
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tricklab.build import build, without
from tricklab.data.batches import Images
from tricklab.errors import UserError
from tricklab.model import AUXILIARY, find_head, find_timm, find_torchvision
from tricklab.randomness import seed_default

NOT_NET = ("weights", "freeze", "body_lr")  # stand with the network's options, act on its training
UNREADABLE = (OSError, EOFError, RuntimeError, AttributeError, ValueError)
State = dict[str, Tensor]


class Weights(NamedTuple):
    """Weights by name, and the images that they were trained on, where that is known."""

    state: State
    images: Images | None


def build_net(cfg: DictConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the network for images of `shape` (channels, height, width); its weights follow from the seed alone.

    Raises UserError: a network that does not turn these images into a logit for each class.
    """
    seed_default(cfg.seed, "init")
    try:
        net: nn.Module = build(without(cfg.model, *NOT_NET))(shape[0], classes).eval()
        with torch.no_grad():
            logits = net(torch.zeros(2, *shape))  # lazy layers count their inputs here
    except UserError:
        raise
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"model: {error} (images of {' x '.join(map(str, shape))})") from error
    if logits.shape != (2, classes):
        raise UserError(f"model: gives {tuple(logits.shape)} for 2 images; allowed: (2, {classes})")
    if cfg.trainer.channels_last:
        net = net.to(memory_format=torch.channels_last)
    if cfg.trainer.compile:
        net.compile()  # in place, so the keys in a checkpoint stay the same
    return net.train()


def load_body(net: nn.Module, state: State) -> None:
    """Load all weights but the classifier's. Raises UserError: they are not those of this network."""
    head, own = find_head(net)[0], net.state_dict()
    top = head.rpartition(".")[0] or head
    body = {key: tensor.shape for key, tensor in own.items() if not key.startswith(f"{head}.")}
    given = {key: tensor.shape for key, tensor in state.items() if key in body or not key.startswith(f"{top}.")}
    if wrong := [key for key in {**body, **given} if body.get(key) != given.get(key)]:
        there, wanted = (list(shapes[wrong[0]]) if wrong[0] in shapes else "missing" for shapes in (given, body))
        said = f"{wrong[0]} is {there} in the file, {wanted} in the network"
        raise UserError(f"model.weights: {said}, and {len(wrong) - 1} more differ; allowed: those of the same network")
    net.load_state_dict({key: state[key] for key in body}, strict=False)


def read_weights(model: DictConfig) -> Weights | None:
    """Read what `model.weights` names: nothing, the published weights of a network, or a file.

    Raises UserError: there are none, or they can't be had.
    """
    if model.get("weights") is None:
        return None
    if model.weights == "pretrained":
        source = PUBLISHED.get(model._target_.rpartition(".")[2])
        if not source:
            raise UserError(f"model.weights=pretrained; allowed: a path, or with model={' or model='.join(PUBLISHED)}")
        try:
            return source(model.name)
        except (OSError, RuntimeError) as error:  # whatever the network may answer
            raise UserError(f"model.weights=pretrained of {model.name}: {error}") from error
    if not Path(model.weights).is_file():
        raise UserError(f"model.weights={model.weights} is not a file; allowed: null, pretrained, a file with weights")
    state, config = read_state(Path(model.weights))
    return Weights(state, read_images(config))


def read_images(config: Any) -> Images | None:
    """Return what the network of a run takes, as far as its config says."""
    facts = config.get("dataset")
    return Images(tuple(facts["input"]), list(facts["mean"]), list(facts["std"])) if facts else None


def read_state(path: Path) -> tuple[State, DictConfig]:
    """Read the weights in a checkpoint, an exported or any other file, and the config they were trained under.

    That lies beside a checkpoint's folder or in an exported file; otherwise it is empty. Nothing is executed. Raises
    UserError: the file is not one of weights.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                config = OmegaConf.create((file.metadata() or {}).get("config", "{}"))
                return {key: file.get_tensor(key) for key in file.keys()}, cast(DictConfig, config)  # noqa: SIM118
        content = whole = torch.load(path, map_location="cpu", weights_only=True)
        content = content.get("state_dict", content.get("model", content))
        ours = [key for key in content if str(key).startswith("net.")]  # and not the weights of classes in the loss
        state = {str(key).removeprefix("net."): content[key].detach() for key in ours or content}
    except (*UNREADABLE, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} holds no weights: {error}") from error
    beside = path.parent.parent / "config.yaml"
    config = cast(DictConfig, OmegaConf.load(beside) if beside.is_file() else OmegaConf.create())
    return state, cast(DictConfig, OmegaConf.merge(config, {"temperature": whole.get("temperature", 1.0)}))


def torchvision_weights(name: str) -> Weights:
    """Return the best weights of torchvision for a network, downloaded unless they were before."""
    best: Any = find_torchvision(name).get_model_weights(name)["DEFAULT"]
    images = best.transforms()
    side = images.crop_size[0]
    body = {k: v for k, v in best.get_state_dict(weights_only=True).items() if not k.lower().startswith("aux")}
    old = name in AUXILIARY  # trained before ImageNet's own mean and deviation became usual
    mean, std = ([0.5] * 3, [0.5] * 3) if old else (list(images.mean), list(images.std))
    return Weights(body, Images((3, side, side), mean, std))


def timm_weights(name: str) -> Weights:
    """Return the weights of timm for a network, downloaded unless they were before."""
    net = find_timm(name).create_model(name, pretrained=True)
    facts: Any = net.pretrained_cfg
    return Weights(net.state_dict(), Images(tuple(facts["input_size"]), list(facts["mean"]), list(facts["std"])))


PUBLISHED = {"torchvision": torchvision_weights, "timm": timm_weights}
