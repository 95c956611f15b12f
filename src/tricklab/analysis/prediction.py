"""Predictions of a checkpoint for image files, a few at a time: any number of files fits."""

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor, nn

from tricklab.analysis.evaluation import make_trainer
from tricklab.analysis.trained import LoadedCheckpoint
from tricklab.cli.escape import for_csv, for_terminal
from tricklab.data.fit import Fit
from tricklab.data.images import decode
from tricklab.data.prefetch import prefetch
from tricklab.data.progress import with_progress
from tricklab.data.search import image_files
from tricklab.devices import count_cores
from tricklab.errors import UserError
from tricklab.files import atomic_open
from tricklab.model import find_head

BATCH = 64  # images at a time
TEXT: dict[str, Any] = {  # names of files may be any bytes
    "encoding": "utf-8",
    "errors": "surrogateescape",
    "newline": "",
}


class Decoded(NamedTuple):
    """Files of a batch, those of their images that can be decoded [B, C, H, W], and why not."""

    files: Sequence[Path]
    images: Tensor
    errors: dict[Path, str]


class Prediction(NamedTuple):
    """Probabilities [K] of a file and the input of the head [D], or why it can't be decoded."""

    file: Path
    probabilities: Tensor | None
    embedding: Tensor | None
    error: str = ""


@dataclass(frozen=True)
class Decoder:
    """Decodes image files as in evaluation."""

    resize: Fit
    mode: str
    background: str

    def __call__(self, files: Sequence[Path]) -> Decoded:
        images = []
        errors = {}
        for file in files:
            try:
                images.append(decode(file, self.resize, self.mode, self.background))
            except UserError as error:
                errors[file] = str(error)
        return Decoded(files, torch.stack(images) if images else torch.empty(0), errors)


def make_decoder(checkpoint: LoadedCheckpoint) -> Decoder:
    """Return what decodes files for a checkpoint.

    Raises UserError: the network takes neither grey nor RGB images.
    """
    dataset = checkpoint.dataset
    channels = dataset["channels"]
    if channels not in (1, 3):
        raise UserError(f"ckpt={checkpoint.path} takes {channels} channels; allowed: 1 or 3")
    spec = checkpoint.input_spec
    size = (dataset["height"], dataset["width"])
    method = "crop" if spec.fit == "none" else spec.fit
    resize = Fit(size, method, spec.crop_fraction, spec.interpolation)
    background = checkpoint.config.data.get("background", "white")
    return Decoder(resize, "L" if channels == 1 else "RGB", background)


def find_images(source: Path) -> list[Path]:
    """Return an image file, or those below a folder. Raises UserError: there are none."""
    files = image_files(source) if source.is_dir() else [source]
    if not files:
        raise UserError(f"input={source}: no image there. Expected one, or a folder of images")
    return files


def predict(checkpoint: LoadedCheckpoint, files: Sequence[Path]) -> Iterator[Prediction]:
    """Yield the prediction of each file, in order, and show the progress.

    As many processes as `data.num_workers` decode, by default one per core. Raises UserError: this
    machine does not have the run's accelerator.
    """
    trainer = make_trainer(checkpoint.config.trainer)
    forward = make_forward(checkpoint, trainer.strategy.root_device)
    batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    workers = checkpoint.config.data.get("num_workers")
    workers = count_cores() if workers is None else workers
    decoded = prefetch(make_decoder(checkpoint), batches, workers)
    for batch in with_progress(map(predict_batch(forward), decoded), len(files), "predicting"):
        yield from batch


def make_forward(
    checkpoint: LoadedCheckpoint, device: torch.device
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return a function from images [B, C, H, W].

    It returns probabilities [B, K] and the input of the head [B, D].
    """
    net = checkpoint.net().to(device)
    preprocess = checkpoint.preprocess().to(device)
    dtype = next(net.parameters()).dtype
    is_mixed = checkpoint.config.trainer.precision == "bf16-mixed"
    inputs: list[Tensor] = []
    keep: Any = partial(keep_input, inputs)
    find_head(net)[1].register_forward_pre_hook(keep)

    @torch.no_grad()
    def forward(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_mixed):
            logits = net(preprocess(images.to(device)).to(dtype))
        return logits.float().softmax(1).cpu(), inputs.pop().float().cpu()

    return forward


def keep_input(inputs: list[Tensor], head: nn.Module, arguments: tuple[Tensor, ...]) -> None:
    """Keep the input of a head, of a convolution the mean over all places."""
    (x,) = arguments
    inputs[:] = [x.mean((2, 3)) if x.ndim == 4 else x]


def predict_batch(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
) -> Callable[[Decoded], list[Prediction]]:
    """Return a function from decoded files to their predictions."""

    def predict(batch: Decoded) -> list[Prediction]:
        probabilities: Iterator[Tensor] = iter(())
        embeddings: Iterator[Tensor] = iter(())
        if len(batch.images):
            probabilities, embeddings = map(iter, forward(batch.images))
        predictions = []
        for file in batch.files:
            if file in batch.errors:
                predictions.append(Prediction(file, None, None, batch.errors[file]))
            else:
                predictions.append(Prediction(file, next(probabilities), next(embeddings)))
        return predictions

    return predict


def header(top: int) -> list[str]:
    """Return the columns of the table: class and probability of the most probable classes."""
    columns = ["file", "class", "probability"]
    for rank in range(2, top + 1):
        columns += [f"class_{rank}", f"probability_{rank}"]
    return columns


def format_row(prediction: Prediction, classes: Sequence[str], top: int) -> list[object]:
    """Return the row of a file; its cells are empty if it can't be decoded."""
    row: list[object] = [format_path(prediction.file)]
    if prediction.probabilities is None:
        return row + [""] * (2 * top)
    largest, labels = prediction.probabilities.topk(top)
    for label, probability in zip(labels.tolist(), largest.tolist(), strict=True):
        row += [for_csv(for_terminal(classes[label])), probability]
    return row


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
