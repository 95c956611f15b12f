"""Per-class results of the test set: `classes.csv`, `confusion.csv` and `confusion.png`."""

import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tricklab.cli.escape import for_csv, for_terminal
from tricklab.files import save_figure, write_text
from tricklab.metrics import class_metrics, class_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

MAX_LABELLED = 20  # classes in a matrix with names and counts
MAX_PAIRS = 20  # listed beside the matrix of more classes
MAX_NAME = 24  # characters
MAX_PIXELS = 500  # on each side of a matrix without names
FONTS = (  # the first comes with matplotlib, the others have letters that it lacks
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "Microsoft YaHei",
)


class Pair(NamedTuple):
    """Images of the class `label` that were predicted as another, and their fraction of it."""

    label: int
    predicted: int
    images: int
    fraction: float


def write_classes(confusion: Tensor, classes: Sequence[str], folder: Path) -> None:
    """Write `classes.csv`, a row for each class, and `confusion.csv`, the counts [K, K].

    A score that is 0 / 0 is an empty cell; the mean of the other cells of `recall` is the balanced
    accuracy, that of `f1` the macro F1.
    """
    names = [for_csv(for_terminal(name)) for name in classes]
    scores = class_scores(confusion)
    table = zip(names, confusion.sum(1).tolist(), *map(to_cells, scores.values()), strict=True)
    write_rows(folder / "classes.csv", [("class", "n", *scores), *table])
    counts = [[name, *row] for name, row in zip(names, confusion.tolist(), strict=True)]
    write_rows(folder / "confusion.csv", [["true class", *names], *counts])


def to_cells(values: Tensor) -> list[object]:
    """Return the values of a tensor [K], "" for NaN."""
    return ["" if value != value else value for value in values.tolist()]


def write_rows(path: Path, rows: Iterable[Sequence[object]]) -> None:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(path, table.getvalue())


def draw_confusion(confusion: Tensor, classes: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix [K, K] as PNG; of many classes, also the most frequent mistakes."""
    from matplotlib import rc_context  # half a second
    from matplotlib.figure import Figure

    fonts = find_fonts()
    names = make_drawable(classes, fonts)
    with rc_context({"font.family": fonts, "axes.titlesize": 10}):
        figure = Figure(layout="constrained")
        draw = draw_labelled if len(classes) <= MAX_LABELLED else draw_with_pairs
        draw(figure, confusion, names)
        figure.suptitle(describe(confusion), fontsize=10)
        save_figure(figure, path)


def describe(confusion: Tensor) -> str:
    """Return the number of images and both accuracies."""
    images = int(confusion.sum())
    acc = int(confusion.trace()) / images
    balanced = class_metrics(confusion)["balanced_acc"]
    return f"test set, {images:,} images\naccuracy {acc:.4f}, balanced {balanced:.4f}"


def find_fonts() -> list[str]:
    """Return those of `FONTS` that are installed."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [name for name in FONTS if name in installed]


def make_drawable(names: Sequence[str], fonts: Sequence[str]) -> list[str]:
    """Return names of at most `MAX_NAME` characters; with one that no font has, "class 3"."""
    from matplotlib.font_manager import findfont, get_font

    known = set[int]().union(*(get_font(findfont(font)).get_charmap() for font in fonts))
    printable = [for_terminal(name) for name in names]
    return [
        shorten(name) if known.issuperset(map(ord, name)) else f"class {i}"
        for i, name in enumerate(printable)
    ]


def shorten(name: str) -> str:
    """Return a name without its middle if it is long: names often differ only at their end."""
    half = MAX_NAME // 2
    return name if len(name) <= MAX_NAME else f"{name[: half - 1]}…{name[-half:]}"


def draw_labelled(figure: "Figure", confusion: Tensor, names: Sequence[str]) -> None:
    """Draw a matrix with counts in its cells and names on both axes."""
    k = len(names)
    cell = max(0.5, 2.4 / k)  # inches
    longest = 0.09 * max(map(len, names))
    figure.set_size_inches(k * cell + longest + 0.6, k * cell + longest + 0.9)
    axes = figure.subplots()
    draw_matrix(axes, confusion)
    ticks: Any = {"fontsize": 9, "parse_math": False}
    axes.set_xticks(range(k), names, rotation=90 if longest > cell else 0, **ticks)
    axes.set_yticks(range(k), names, **ticks)
    size = min(9, 100 * cell / len(f"{int(confusion.max()):,}"))
    inside: Any = {"ha": "center", "va": "center", "fontsize": size, "in_layout": False}
    dark = to_fractions(confusion) > 0.3
    for row, column in itertools.product(range(k), repeat=2):
        count = int(confusion[row, column])
        color = "white" if dark[row, column] else "black" if count else "0.75"
        axes.text(column, row, f"{count:,}", color=color, **inside)


def draw_with_pairs(figure: "Figure", confusion: Tensor, names: Sequence[str]) -> None:
    """Draw a matrix without names, and beside it the most frequent mistakes."""
    figure.set_size_inches(13, 6)
    matrix, table = figure.subplots(1, 2)
    order = order_by_confusion(confusion)
    image = draw_matrix(matrix, confusion[order][:, order])
    figure.colorbar(image, ax=matrix, label="fraction of the true class", shrink=0.8)
    matrix.set(xticks=[], yticks=[], title=f"{len(names):,} classes, clustered by confusion")
    pairs = find_pairs(confusion)
    write_pairs(table, pairs[:MAX_PAIRS], names)
    shown = f"{min(len(pairs), MAX_PAIRS)} of {len(pairs):,} pairs"
    table.set_title(f"confused classes, {shown}" if pairs else "no image is misclassified")


def draw_matrix(axes: "Axes", confusion: Tensor) -> "AxesImage":
    """Draw fractions of the true class; of too many classes, the largest of neighbours.

    The colour is that of the square root, which shows small fractions, too.
    """
    from matplotlib.colors import PowerNorm

    fractions = to_fractions(confusion)
    if len(fractions) > MAX_PIXELS:
        fractions = F.adaptive_max_pool2d(fractions[None], MAX_PIXELS)[0]
    axes.set(xlabel="predicted class", ylabel="true class")
    return axes.imshow(fractions.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1))


def to_fractions(confusion: Tensor) -> Tensor:
    """Return the counts [K, K] as fractions of the true class; 0 for one without images."""
    return confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)


def order_by_confusion(confusion: Tensor) -> Tensor:
    """Return the classes in the order of an average linkage: those that are confused are near."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    fractions = to_fractions(confusion)
    distances = (2 - (fractions + fractions.T)).fill_diagonal_(0)
    return torch.from_numpy(leaves_list(linkage(squareform(distances.numpy()), "average")))


def find_pairs(confusion: Tensor) -> list[Pair]:
    """Return all pairs of different classes that were confused, the most frequent first."""
    mistakes = confusion.clone().fill_diagonal_(0)
    labels, predicted = mistakes.nonzero(as_tuple=True)
    counts = mistakes[labels, predicted]
    fractions = to_fractions(confusion)[labels, predicted]
    order = counts.argsort(descending=True, stable=True)
    columns = [column[order].tolist() for column in (labels, predicted, counts, fractions)]
    return [Pair(*row) for row in zip(*columns, strict=True)]


def write_pairs(axes: "Axes", pairs: Sequence[Pair], names: Sequence[str]) -> None:
    """Write a line for each pair: names of both classes, images, percentage of the true class."""
    axes.axis("off")
    rows = [("true class", "predicted class", "images", "of the class")]
    for pair in pairs:
        ends = names[pair.label], f"→ {names[pair.predicted]}"
        rows.append((*ends, f"{pair.images:,}", f"{pair.fraction:.1%}"))
    columns = ((0.0, "left"), (0.38, "left"), (0.82, "right"), (1.0, "right"))
    for i, row in enumerate(rows):
        y = 1 - (i + 0.5) / (MAX_PAIRS + 1)
        style: Any = {"va": "center", "fontsize": 9, "weight": "normal" if i else "bold"}
        for text, (x, side) in zip(row, columns, strict=True):
            axes.text(x, y, text, ha=side, parse_math=False, in_layout=False, **style)
