"""A network from its config: built for the data, begun from given weights, or read with them from a checkpoint."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tricklab.build import HARMLESS, build, check_target, targets, without
from tricklab.check import check_value
from tricklab.cli import compose_each, read_arguments, unknown
from tricklab.data.batches import Images, Preparation
from tricklab.errors import UserError, printable
from tricklab.model import AUXILIARY, find_head, find_timm, find_torchvision
from tricklab.online import brief_downloads
from tricklab.randomness import seed_default

MAY_CHANGE = (
    "trainer.accelerator",
    "trainer.precision",
)  # besides the data, where a checkpoint is used
UNREADABLE = (OSError, EOFError, RuntimeError, AttributeError, ValueError)
State = dict[str, Tensor]


class Weights(NamedTuple):
    """Weights by name, and the images that they were trained on, where that is known."""

    state: State
    images: Images | None


def build_net(cfg: DictConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the network for images of `shape` (channels, height, width); its weights follow from the seed alone.

    Raises UserError where it does not turn these images into a logit for each class.
    """
    seed_default(cfg.seed, "init")
    try:
        options = without(cfg.model, "weights", "freeze", "body_lr")  # which act on its training
        net: nn.Module = build(options)(shape[0], classes).eval()
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
            reason = printable(" ".join(str(error).split()))[:200]
            hint = "to use a file that was downloaded before: model.weights=PATH"
            raise UserError(
                f"model.weights=pretrained of {model.name}: {reason}; {hint}"
            ) from error
    if not Path(model.weights).is_file():
        raise UserError(
            f"model.weights={model.weights} is not a file; allowed: null, pretrained, a file with weights"
        )
    state, config = read_state(Path(model.weights))
    return Weights(state, read_images(config))


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


def read_images(config: Any) -> Images | None:
    """Return what the network of a run takes, as far as its config says."""
    facts = config.get("dataset")
    return Images(tuple(facts["input"]), list(facts["mean"]), list(facts["std"])) if facts else None


def read_state(path: Path) -> tuple[State, DictConfig]:
    """Read the weights in a checkpoint, an exported or any other file, and the config they were trained under.

    That lies beside a checkpoint's folder, in an exported file, or is empty. Executes nothing; raises UserError.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                config = OmegaConf.create((file.metadata() or {}).get("config", "{}"))
                return {key: file.get_tensor(key) for key in file.keys()}, cast(DictConfig, config)  # noqa: SIM118
        content = whole = torch.load(path, map_location="cpu", weights_only=True)
        content = content.get("state_dict", content.get("model", content))
        ours = [
            key for key in content if str(key).startswith("net.")
        ]  # and not the weights of classes in the loss
        state = {str(key).removeprefix("net."): content[key].detach() for key in ours or content}
    except (*UNREADABLE, SafetensorError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} holds no weights: {error}") from error
    beside = path.parent.parent / "config.yaml"
    config = cast(DictConfig, OmegaConf.load(beside) if beside.is_file() else OmegaConf.create())
    return state, cast(
        DictConfig, OmegaConf.merge(config, {"temperature": whole.get("temperature", 1.0)})
    )


class Trained(NamedTuple):
    """The weights of a checkpoint, the config they were trained under, and the further arguments of a script."""

    state: State
    config: DictConfig
    images: Images
    arguments: dict[str, Any]

    def net(self) -> nn.Module:
        """Build the network for evaluation. Raises UserError where these weights do not fit it."""
        net = build_net(self.config, self.images.shape, len(self.config.dataset.classes))
        try:
            net.to(
                next(x.dtype for x in self.state.values() if x.is_floating_point())
            ).load_state_dict(self.state)
        except RuntimeError as error:
            raise UserError(
                f"ckpt={self.arguments['ckpt']}: {' '.join(str(error).split())[:200]}"
            ) from error
        return net.eval()

    def unaveraged(self) -> State:
        """Return the weights of the last step, where those of the checkpoint are an average; else nothing."""
        path = Path(self.arguments["ckpt"])
        kept = (
            {}
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
        kept = kept.get("current_model_state", {})
        return {
            key.removeprefix("net."): value for key, value in kept.items() if key.startswith("net.")
        }

    def prepare(self) -> Preparation:
        """Return what makes the network's input of images of 0 .. 255."""
        return Preparation(self.images)


def read_trained(words: Sequence[str], **allowed: Any) -> Trained:
    """Read `ckpt=PATH`, the `allowed` arguments of a script with their defaults, and other data than the run's.

    `data=NAME` takes that option whole, `data.KEY=VALUE` changes the run's own. Raises UserError for anything else.
    """
    given = read_arguments(words)
    own = {key: given.pop(key, default) for key, default in {"ckpt": None, **allowed}.items()}
    if not own["ckpt"] or not Path(own["ckpt"]).is_file():
        raise UserError(
            f"ckpt={own['ckpt']}; allowed: the path of a checkpoint, or of an exported file"
        )
    state, config = read_state(Path(own["ckpt"]))
    if not (images := read_images(config)):
        raise UserError(
            f"ckpt={own['ckpt']} has no config.yaml of its run beside its folder; allowed: one that has"
        )
    for target in targets(
        OmegaConf.to_container(OmegaConf.masked_copy(config, ["model", "data", "augment"]))
    ):
        check_target(target, HARMLESS, ["torch.nn.modules"])  # the config may be a stranger's
    change(config, given, [*own, "data", *MAY_CHANGE])
    return Trained(state, config, images, own)


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


def compose_one(words: list[str]) -> DictConfig:
    """Compose the config that these words ask for. Raises UserError where they ask for several."""
    config, *others = compose_each(words).values()
    if others:
        raise UserError(f"{' '.join(words)}; allowed: one, without values between commas")
    return config
