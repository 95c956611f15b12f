"""Predictions of a checkpoint for image files: class and probability."""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from tricklab.analysis.trained import LoadedCheckpoint
from tricklab.cli.escape import for_csv, for_terminal
from tricklab.data.fit import Fit
from tricklab.data.images import decode
from tricklab.data.search import image_files
from tricklab.errors import UserError
from tricklab.files import atomic_open

BATCH = 256  # images at a time
Row = tuple[Path, str, float]  # file, class and probability
TEXT: dict[str, Any] = {  # names of files may be any bytes
    "encoding": "utf-8",
    "errors": "surrogateescape",
    "newline": "",
}


def find_images(source: Path) -> list[Path]:
    """Return an image file, or those below a folder. Raises UserError: there are none."""
    files = image_files(source) if source.is_dir() else [source]
    if not files:
        raise UserError(f"input={source}: no image there. Expected one, or a folder of images")
    return files


def check_channels(checkpoint: LoadedCheckpoint) -> None:
    """Raise UserError if the network takes neither grey nor RGB images."""
    channels = checkpoint.dataset["channels"]
    if channels not in (1, 3):
        raise UserError(f"ckpt={checkpoint.path} takes {channels} channels; allowed: 1 or 3")


def predict(
    checkpoint: LoadedCheckpoint, files: Sequence[Path], errors: list[str]
) -> Iterator[Row]:
    """Yield the most probable class of each file; errors of decoding are appended to `errors`."""
    net = checkpoint.net()
    preprocess = checkpoint.preprocess()
    dtype = next(net.parameters()).dtype
    is_mixed = checkpoint.config.trainer.precision == "bf16-mixed"
    names = [for_csv(for_terminal(name)) for name in checkpoint.classes]
    for start in range(0, len(files), BATCH):
        decoded = decode_files(checkpoint, files[start : start + BATCH], errors)
        if not decoded:
            continue
        images = torch.stack(list(decoded.values()))  # [B, C, H, W]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            logits = net(preprocess(images).to(dtype))
        probabilities, labels = logits.float().softmax(1).max(1)
        for file, label, p in zip(decoded, labels.tolist(), probabilities.tolist(), strict=True):
            yield file, str(names[label]), p


def decode_files(
    checkpoint: LoadedCheckpoint, files: Sequence[Path], errors: list[str]
) -> dict[Path, Tensor]:
    """Decode images [C, H, W] as in training; errors are appended to `errors`."""
    dataset = checkpoint.dataset
    spec = checkpoint.input_spec
    size = (dataset["height"], dataset["width"])
    method = "crop" if spec.fit == "none" else spec.fit
    resize = Fit(size, method, spec.crop_fraction, spec.interpolation)
    mode = "L" if dataset["channels"] == 1 else "RGB"
    background = checkpoint.config.data.get("background", "white")
    decoded = {}
    for file in files:
        try:
            decoded[file] = decode(file, resize, mode, background)
        except UserError as error:
            errors.append(str(error))
    return decoded


@contextmanager
def open_output(path: str) -> Iterator[TextIO]:
    """Open a file that is written as a whole or not at all; the standard output if `path` is ""."""
    if not path:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(**TEXT)
        yield sys.stdout
        return
    with atomic_open(Path(path).expanduser()) as file:
        text = io.TextIOWrapper(file, **TEXT)
        yield text
        text.detach()


def format_path(path: Path) -> object:
    """Return a path unchanged except for formulas, and for escape sequences on a terminal."""
    name = for_csv(str(path))
    return for_terminal(name) if sys.stdout.isatty() else name
