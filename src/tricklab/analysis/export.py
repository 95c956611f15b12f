"""A checkpoint as a file for other programs: safetensors, ONNX or torch.export."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tricklab.analysis.trained import LoadedCheckpoint
from tricklab.data.module import ImageData
from tricklab.errors import UserError

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}
INPUT, OUTPUT = "images", "probabilities"
TOLERANCE = 1e-4  # of a probability
CHECKED_IMAGES = 256  # at most
Run = Callable[[Tensor], Tensor]


class Deployed(nn.Module):
    """From images [B, C, H, W] of 0 .. 255, uint8, of the network's size, to probabilities [B, K].

    C is that of the images: grey ones are repeated as each channel of the network.
    """

    def __init__(self, checkpoint: LoadedCheckpoint, temperature: float):
        super().__init__()
        preprocess = checkpoint.preprocess()
        self.net = checkpoint.net().float()
        self.channels = checkpoint.input_spec.shape[0]
        self.scale = nn.Buffer(preprocess.scale.clone())
        self.shift = nn.Buffer(preprocess.shift.clone())
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        images = images.float().expand(-1, self.channels, -1, -1)
        logits = self.net(images * self.scale + self.shift)
        return (logits / self.temperature).softmax(1)


class Checked(NamedTuple):
    """How many images a file was checked on, of which kind, and the largest difference."""

    images: int
    kind: str
    difference: float


def deploy(checkpoint: LoadedCheckpoint, calibrated: bool) -> Deployed:
    """Return the checkpoint as a module; `calibrated`: with its temperature."""
    temperature = checkpoint.temperature if calibrated else 1.0
    return Deployed(checkpoint, temperature).eval()


def input_shape(checkpoint: LoadedCheckpoint) -> tuple[int, int, int]:
    """Return channels of the images, and height and width that the network takes."""
    _, height, width = checkpoint.input_spec.shape
    return int(checkpoint.dataset["channels"]), height, width


def to_onnx(module: Deployed, shape: tuple[int, int, int]) -> bytes:
    """Return a module as ONNX, for batches of any size. Raises UserError: it can't be exported."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("format=onnx needs onnx: pip install 'tricklab[onnx]'") from error
    with quiet_exporter():
        program: Any = export(module, shape, torch.onnx.export, **ONNX_OPTIONS)
    content = io.BytesIO()
    program.save(content)
    return content.getvalue()


def to_torch_export(module: Deployed, shape: tuple[int, int, int]) -> bytes:
    """Return a module as an exported program of torch, for batches of any size."""
    program: Any = export(module, shape, torch.export.export)
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


ONNX_OPTIONS: dict[str, Any] = {
    "dynamo": True,
    "input_names": [INPUT],
    "output_names": [OUTPUT],
    "verbose": False,
}


def export(
    module: Deployed, shape: tuple[int, int, int], exporter: Callable[..., Any], **options: Any
) -> Any:
    """Export a module for batches of any size. Raises UserError: it can't be."""
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    dynamic_shapes = {INPUT: {0: torch.export.Dim("batch")}}
    try:
        return exporter(module, (images,), dynamic_shapes=dynamic_shapes, **options)
    except Exception as error:  # exporters fail on an operation in many ways
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the network can't be exported: {reason}") from error


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence what the exporter of ONNX prints about its own code."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def load_onnx(content: bytes) -> Run:
    """Return a function that runs a model with onnxruntime."""
    try:
        from onnxruntime import InferenceSession
    except ImportError as error:
        raise UserError("format=onnx needs onnxruntime: pip install 'tricklab[onnx]'") from error
    session = InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        (probabilities,) = session.run([OUTPUT], {INPUT: images.numpy()})
        return torch.from_numpy(probabilities)

    return run


def load_torch_export(content: bytes) -> Run:
    """Return a function that runs an exported program."""
    program = torch.export.load(io.BytesIO(content))
    run: Run = torch.no_grad()(program.module())
    return run


def find_images(checkpoint: LoadedCheckpoint, data: ImageData | None) -> tuple[Tensor, str]:
    """Return images to check a file on [N, C, H, W], uint8, and their kind.

    The first test images; without data, or where they have another size, noise.
    """
    shape = input_shape(checkpoint)
    if data is not None and data.image_shape == shape:
        n = min(CHECKED_IMAGES, len(data.splits.test.labels))
        images: Any = data.splits.test.images
        return images.index_select(0, torch.arange(n)), "test images"
    source = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (CHECKED_IMAGES, *shape), dtype=torch.uint8, generator=source)
    return noise, "images of noise"


def check(module: Deployed, run: Run, images: Tensor, kind: str) -> Checked:
    """Compare a loaded file with its module, in batches of several sizes.

    Raises UserError: a probability differs by more than TOLERANCE.
    """
    parts = [part for part in images.tensor_split([1, 4, 64]) if len(part)]
    with torch.no_grad():
        expected = torch.cat([module(part) for part in parts])
    found = torch.cat([run(part) for part in parts])
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE:
        message = f"a probability differs by {difference:.2g} on {len(images)} {kind}"
        raise UserError(f"{message}; allowed: {TOLERANCE:g}. The file is not written")
    return Checked(len(images), kind, difference)
