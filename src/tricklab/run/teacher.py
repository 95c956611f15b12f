"""The teacher of `loss=distill`: a checkpoint of ours, or a published network."""

import torch
from omegaconf import DictConfig
from torch import nn

from tricklab import model
from tricklab.data.inputs import InputSpec
from tricklab.data.module import ImageData
from tricklab.errors import UserError
from tricklab.files import checksum
from tricklab.run.build import show
from tricklab.run.folder import find_best
from tricklab.run.trained import read_trained
from tricklab.run.weights import LIBRARIES, download_weights
from tricklab.teacher import Teacher

OPTION = "loss.teacher"


def build_teacher(loss: DictConfig, data: ImageData) -> Teacher | None:
    """Build the teacher of a loss; None without one, or with a weight of 0.

    Raises UserError: it is missing, damaged, has other classes or can't take these images.
    """
    if "teacher" not in loss or not loss.weight:
        return None
    library, _, name = str(loss.teacher).partition(":")
    read = read_published if library in LIBRARIES and name else read_own
    net, spec = read(loss.teacher, data.classes)
    teacher = Teacher(net, spec, data.spec, checksum(net.state_dict(), {}))
    try:
        teacher(torch.zeros(2, *data.shape))
    except RuntimeError as error:
        shapes = " x ".join(map(str, spec.shape)), " x ".join(map(str, data.shape))
        message = f"it takes images of {shapes[0]}, these are {shapes[1]}"
        raise UserError(f"{OPTION}={loss.teacher}: {message}") from error
    parameters = sum(p.numel() for p in net.parameters())
    show(f"teacher: {loss.teacher}, {parameters:,} parameters, {' x '.join(map(str, spec.shape))}")
    return teacher


def read_own(path: str | None, classes: list[str]) -> tuple[nn.Module, InputSpec]:
    """Return the network of a checkpoint and its input. Raises UserError: it has other classes."""
    trained = read_trained(find_best(path, OPTION), OPTION)
    if trained.classes != classes:
        message = f"it has the classes {trained.classes}, the data {classes}"
        raise UserError(f"{OPTION}={path}: {message}")
    return trained.net(), trained.input_spec


def read_published(source: str, classes: list[str]) -> tuple[nn.Module, InputSpec]:
    """Return a published network and its input. Raises UserError: none, or of other classes.

    Its classes have no names here, only their number is compared.
    """
    library, _, name = source.partition(":")
    target = f"tricklab.model.{library}"
    weights = download_weights(DictConfig({"_target_": target, "name": name}))
    net: nn.Module = getattr(model, library)(3, len(classes), name=name)
    try:
        net.load_state_dict(weights.state)
    except RuntimeError as error:
        message = f"its classes are not as many as the {len(classes)} of the data"
        raise UserError(f"{OPTION}={source}: {message}") from error
    assert weights.input_spec is not None
    return net, weights.input_spec
