"""The first images of a training run as the network gets them, with their targets."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy import ndarray
from omegaconf import DictConfig
from torch import Tensor

from tricklab.data.inputs import Preprocess
from tricklab.data.module import ImageData
from tricklab.errors import UserError
from tricklab.run.build import build_data
from tricklab.run.plan import make_plan
from tricklab.run.teacher import build_teacher
from tricklab.run.weights import read_weights

ROWS, COLUMNS = 4, 8  # of a single config
TITLE_WIDTH = 110  # characters
Example = tuple[ndarray, str]  # an image [H, W, C] of 0 .. 1, and its caption


def first_examples(config: DictConfig) -> list[Example]:
    """Return the first training batch, with the teacher's predictions if there is one.

    Raises UserError: there is no batch, or no such teacher.
    """
    weights = read_weights(config.model)
    data = build_data(config, weights and weights.input_spec)
    data.mixup_window = make_plan(config, data, ranks=1).mixup_window
    batch = next(iter(data.training_batches(lambda: (0, 0))), None)
    if batch is None:
        size = f"data.batch_size={data.batch_size}"
        raise UserError(f"{size} of {len(data.train_indices)} images makes no batch")
    images, targets = data.training_batch(batch, (0, 0))  # [B, C, H, W], [B] or [B, K]
    if targets.ndim == 1:  # class indices: the batch is not mixed
        targets = data.one_hot[targets]
    smoothing = config.loss.get("label_smoothing") or 0.0  # applied by the loss
    targets = (1 - smoothing) * targets + smoothing / len(data.classes)
    captions = [format_target(target, data) for target in targets.tolist()]
    teacher = build_teacher(config.loss, data)
    if teacher:
        predicted = (teacher(images) / config.loss.temperature).softmax(1)
        for i, probabilities in enumerate(predicted.tolist()):
            captions[i] += f"\nteacher: {format_target(probabilities, data)}"
    return list(zip(to_pixels(images, data.preprocess), captions, strict=True))


def to_pixels(images: Tensor, preprocess: Preprocess) -> ndarray:
    """Undo the normalisation of images [B, C, H, W]; return [B, H, W, C] of 0 .. 1, C in (1, 3)."""
    pixels = ((images - preprocess.shift) / preprocess.scale / 255).clamp(0, 1)
    if pixels.shape[1] not in (1, 3):
        pixels = pixels[:, :1]
    array: ndarray = pixels.permute(0, 2, 3, 1).numpy()
    return array


def format_target(target: Sequence[float], data: ImageData) -> str:
    """Return the two largest probabilities of a target [K] with their classes, a line each."""
    pairs = zip(target, data.classes, strict=True)
    largest = sorted(pairs, key=lambda pair: -pair[0])[:2]
    return "\n".join(
        f"{probability:.2f} {name}" for probability, name in largest if probability > 0
    )


def draw_preview(examples: Mapping[str, Sequence[Example]], title: str) -> Figure:
    """Draw a row of examples for each label, or several rows for a single one."""
    rows = ROWS if len(examples) == 1 else len(examples)
    figure = Figure(figsize=(1.6 * COLUMNS, 1.9 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False)
    blocks = grid.reshape(len(examples), -1)
    for block, (label, batch) in zip(blocks, examples.items(), strict=True):
        for axes, (image, caption) in zip(block, batch, strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.set_title(caption, fontsize=8, parse_math=False)
        if len(examples) > 1:
            write_row_label(block[0], label.replace("=", "=\n"))
    for axes in grid.flat:
        axes.axis("off")
    figure.suptitle(textwrap.fill(title, TITLE_WIDTH))
    return figure


def write_row_label(axes: Axes, text: str) -> None:
    """Write a text to the left of an image."""
    place = axes.transAxes
    axes.text(-0.1, 0.5, text, transform=place, ha="right", va="center", parse_math=False)
