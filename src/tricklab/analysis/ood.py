"""Out-of-distribution detection: confidence on images that a network was not trained on."""

import csv
import dataclasses
import io
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from tricklab.analysis.arguments import compose_one
from tricklab.analysis.evaluation import ensemble_views, evaluate_on
from tricklab.analysis.trained import LoadedCheckpoint
from tricklab.data.batches import channel_mean_std
from tricklab.data.classes import NoImagesError
from tricklab.data.module import ImageData
from tricklab.files import save_figure, write_text
from tricklab.metrics import BINS, confidence_and_correctness
from tricklab.randomness import generator
from tricklab.run.inputs import resolve_input
from tricklab.run.instantiate import build

COLUMNS = ["view", "images", "confidence", "auroc", "fpr95", "n"]
Transform = Callable[[Tensor], Tensor]
Confidences = dict[str, dict[str, Tensor]]  # [N], by network and test set


class EvaluationSet(NamedTuple):
    """Data whose test images are transformed before they are preprocessed.

    Each network gets a transform of its own, so that all see the same noise.
    """

    name: str
    data: ImageData
    make_transform: Callable[[], Transform | None] = lambda: None


class Noise:
    """Replaces images [B, C, H, W] by uniform noise, another one for each batch."""

    def __init__(self, seed: int):
        self.seed = seed
        self.batches = itertools.count()

    def __call__(self, images: Tensor) -> Tensor:
        source = generator(self.seed, "noise", next(self.batches))
        noise = torch.randint(256, images.shape, generator=source, dtype=torch.uint8)
        return noise.to(images.device)


class GaussianNoise:
    """Replaces images [B, C, H, W] by noise N(mean, std^2), another one for each batch.

    `mean` and `std` are those of each channel, of 0 to 1, `size` is height and width of the noise.
    Values beyond 0 .. 255 are not clipped, which would change both.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], size: Sequence[int], seed: int):
        self.mean = 255 * torch.tensor(mean).view(-1, 1, 1)
        self.std = 255 * torch.tensor(std).view(-1, 1, 1)
        self.size = size
        self.seed = seed
        self.batches = itertools.count()

    def __call__(self, images: Tensor) -> Tensor:
        source = generator(self.seed, "gaussian noise", next(self.batches))
        noise = torch.randn(*images.shape[:2], *self.size, generator=source)
        return (self.mean + self.std * noise).to(images.device)


def rotate(images: Tensor) -> Tensor:
    """Rotate images [B, C, H, W] by 90 degrees."""
    return images.rot90(1, (2, 3))


def blur(images: Tensor) -> Tensor:
    """Gaussian blur of images [B, C, H, W] of 0 .. 255; its std is a tenth of their longer side."""
    sigma = max(images.shape[2:]) / 10
    height, width = images.shape[2:]
    # reflection padding takes at most a side less one pixel
    sides = [2 * min(math.ceil(2 * sigma), side - 1) + 1 for side in (width, height)]
    return gaussian_blur(images, sides, [sigma, sigma])


def to_grey(images: Tensor) -> Tensor:
    """Average the channels of images [B, C, H, W]."""
    return images.float().mean(1, keepdim=True)


def ood_detection_metrics(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """Return how well confidence separates the test set [N] from OOD images [M].

    - `auroc`: probability that a test image has the higher confidence, where ties count half
      (arXiv 1610.02136); 0.5 is chance.
    - `fpr95`: fraction of OOD images at or above the threshold that 95 % of the test images reach
      (arXiv 1706.02690).
    """
    n, m = len(inside), len(outside)
    values = torch.cat([inside, outside]).double()
    _, index, count = values.unique(return_inverse=True, return_counts=True)
    ranks = count.cumsum(0) - (count - 1) / 2  # ties share their middle rank
    wins = ranks[index[:n]].double().sum() - n * (n + 1) / 2  # Mann-Whitney U
    threshold = inside.sort(descending=True).values[math.ceil(0.95 * n) - 1]
    false_positives = (outside >= threshold).double()
    return {"auroc": float(wins / (n * m)), "fpr95": float(false_positives.mean())}


def run_suite(
    checkpoint: LoadedCheckpoint, data: ImageData, mc: int, tta: int, other: str
) -> list[list[object]]:
    """Write `ood.csv` and `ood.png` beside a checkpoint, and return the rows of the table.

    Each row is the mean confidence of a network on a test set, and how well it separates that from
    the data's own. `other` is an option of `conf/data`, "" for one that differs from the run's.
    """
    confidences: Confidences = {}
    rows: list[list[object]] = [list(COLUMNS)]
    sets = list(evaluation_sets(checkpoint, data, other))
    for view, net in networks(checkpoint, mc, tta).items():
        by_set = confidences.setdefault(view, {})
        for part in sets:
            module = evaluate_on(checkpoint, net, part.data, part.make_transform())
            confidence = confidence_and_correctness(module.logits, module.labels)[0]
            by_set[part.name] = confidence
            metrics: list[object] = ["", ""]
            if part.name != "test":
                metrics = list(ood_detection_metrics(by_set["test"], confidence).values())
            mean = float(confidence.mean())
            rows.append([view, part.name, mean, *metrics, len(confidence)])
    folder = find_output_folder(checkpoint.path)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(folder / "ood.csv", table.getvalue())
    draw_confidence(confidences, folder / "ood.png")
    return rows


def format_table(rows: Sequence[Sequence[object]]) -> str:
    """Return rows as lines of aligned columns."""
    lines = []
    for row in rows:
        cells = [f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row]
        lines.append("{:16}{:16}{:>12}{:>10}{:>10}{:>8}".format(*cells))
    return "\n".join(lines)


def find_output_folder(checkpoint: Path) -> Path:
    """Return the run folder of a checkpoint, or the folder that an exported file lies in."""
    file = checkpoint.absolute()
    run_folder = file.parents[1]
    return run_folder if (run_folder / "config.yaml").is_file() else file.parent


def networks(checkpoint: LoadedCheckpoint, mc: int, tta: int) -> dict[str, nn.Module]:
    """Return the network of a checkpoint, with its raw weights if it is an average, and ensembles.

    The keys are the names in the table.
    """
    nets: dict[str, nn.Module] = {"network": checkpoint.net()}
    if raw_weights := checkpoint.raw_weights():
        raw_net = dataclasses.replace(checkpoint, state=raw_weights).net()
        nets = {"average": nets["network"], "last weights": raw_net}
    if mc:
        nets[f"mc={mc}"] = ensemble_views(checkpoint, mc, 0)
    if tta:
        nets[f"tta={tta}"] = ensemble_views(checkpoint, 0, tta)
    return nets


def evaluation_sets(
    checkpoint: LoadedCheckpoint, data: ImageData, other: str
) -> Iterator[EvaluationSet]:
    """Yield the test set, as it is and transformed, then classes left out, and other data."""
    config = checkpoint.config
    # of the images before they are normalised: weights may have brought other moments
    images: Any = data.clean.images
    moments = channel_mean_std(images, data.clean_indices)
    gaussian = partial(GaussianNoise, *moments, data.shape[1:], config.seed)
    yield EvaluationSet("test", data)
    yield EvaluationSet("noise", data, partial(Noise, config.seed))
    yield EvaluationSet("gaussian", data, gaussian)
    yield EvaluationSet("rotation", data, lambda: rotate)
    yield EvaluationSet("blur", data, lambda: blur)
    left_out = load_left_out(checkpoint, data)
    if left_out:
        yield EvaluationSet("other classes", left_out)
    name = other or ("fake" if config.data._target_.endswith(".digits") else "digits")
    is_grey = checkpoint.input_spec.shape[0] == 1
    to_channels = to_grey if is_grey else None
    yield EvaluationSet(name, load_other(checkpoint, name), lambda: to_channels)


def load_other(checkpoint: LoadedCheckpoint, name: str) -> ImageData:
    """Build an option of `conf/data`, preprocessed for the network, with all labels 0."""
    config = compose_one([f"data={name}"]).data
    inputs = resolve_input(config, checkpoint.config.model, checkpoint.input_spec)
    for option in ("input_channels", "mean", "std"):  # `preprocess` below has them
        del inputs[option]
    return without_labels(build(config, seed=checkpoint.config.seed, **inputs), checkpoint)


def load_left_out(checkpoint: LoadedCheckpoint, data: ImageData) -> ImageData | None:
    """Build the test set of the classes that `data.classes` leaves out; None without images."""
    if not data.splits.left_out:
        return None
    config = checkpoint.config.data.copy()
    config.classes = list(data.splits.left_out)
    inputs = resolve_input(config, checkpoint.config.model, checkpoint.input_spec)
    try:
        foreign = build(config, seed=checkpoint.config.seed, only_test=True, **inputs)
    except NoImagesError:
        return None
    return without_labels(foreign, checkpoint)


def without_labels(data: ImageData, checkpoint: LoadedCheckpoint) -> ImageData:
    """Set all labels of the test to 0, as its classes are foreign, and preprocess as in the run."""
    data.preprocess = checkpoint.preprocess()
    test = data.splits.test._replace(labels=data.splits.test.labels * 0)
    data.splits = data.splits._replace(test=test)
    return data


def draw_confidence(confidences: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Draw histograms of the confidence [N]: a column for each network, a row for each test set."""
    from matplotlib.figure import Figure  # takes half a second

    rows, columns = len(next(iter(confidences.values()))), len(confidences)
    figure = Figure(figsize=(1 + 3 * columns, 1 + 1.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    edges = torch.linspace(0, 1, BINS + 1)
    for column, (view, by_set) in zip(grid.T, confidences.items(), strict=True):
        for axes, (name, confidence) in zip(column, by_set.items(), strict=True):
            fractions = torch.histc(confidence.float(), BINS, 0, 1) / len(confidence)
            color = "C0" if name == "test" else "C1"
            axes.stairs(fractions, edges, fill=True, color=color)
            axes.set_title(f"{view}: {name}", fontsize=9, parse_math=False)
    figure.supxlabel("confidence", fontsize=10)
    figure.supylabel("fraction of images", fontsize=10)
    save_figure(figure, path)
