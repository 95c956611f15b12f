"""The first images of a training run as the network gets them, with their targets."""

import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from omegaconf import DictConfig

from tricklab.logger import Example
from tricklab.run.build import build_data
from tricklab.run.first_batch import first_examples
from tricklab.run.plan import make_plan
from tricklab.run.teacher import build_teacher
from tricklab.run.weights import read_weights

ROWS, COLUMNS = 4, 8  # of a single config
TITLE_WIDTH = 110  # characters


def preview(config: DictConfig) -> list[Example]:
    """Return the first training batch of a config. Raises UserError: there is none."""
    weights = read_weights(config.model)
    data = build_data(config, weights and weights.input_spec)
    data.mixup_window = make_plan(config, data, ranks=1).mixup_window
    return first_examples(config.loss, data, build_teacher(config.loss, data))


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
