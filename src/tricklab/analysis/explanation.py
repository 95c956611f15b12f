"""A page of images with the places that speak for their predicted and their true class."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from numpy import ndarray
from torch import Tensor

from tricklab.analysis.evaluation import evaluate_on
from tricklab.analysis.gradcam import find_layer, grad_cam
from tricklab.analysis.prediction import make_decoder
from tricklab.analysis.trained import LoadedCheckpoint
from tricklab.cli.escape import for_terminal
from tricklab.data.module import ImageData
from tricklab.errors import UserError
from tricklab.metrics import confidence_and_correctness
from tricklab.run.first_batch import to_pixels

HEAT = 0.5  # opacity of a map on its image
UNKNOWN = -1  # the label of an image whose class is not known


class Example(NamedTuple):
    """An image [C, H, W] of 0 .. 255 with its true label, UNKNOWN without one."""

    name: str
    image: Tensor
    label: int


class Explanation(NamedTuple):
    """An example with its probabilities [K], and maps [H, W] of two classes; the second may lack.

    `pixels` [H, W, C] of 0 .. 1 are those that the network takes; `predicted` is the most probable
    class.
    """

    example: Example
    pixels: ndarray
    probabilities: Tensor
    predicted: int
    predicted_map: Tensor
    true_map: Tensor | None


def worst_mistakes(checkpoint: LoadedCheckpoint, data: ImageData, number: int) -> list[Example]:
    """Return the misclassified test images of highest confidence. Raises UserError: none."""
    module = evaluate_on(checkpoint, checkpoint.net(), data)
    confidence, correct = confidence_and_correctness(module.logits, module.labels)
    wrong = (correct == 0).nonzero().squeeze(1)
    if not len(wrong):
        raise UserError("no test image is misclassified; input=PATH explains other images")
    order = wrong[confidence[wrong].argsort(descending=True)][:number]
    images: Any = data.splits.test.images
    pixels = images.index_select(0, order)
    return [
        Example(f"test image {index}", image, int(module.labels[index]))
        for index, image in zip(order.tolist(), pixels, strict=True)
    ]


def read_examples(checkpoint: LoadedCheckpoint, files: Sequence[Path]) -> list[Example]:
    """Decode files; the name of a file's folder is its class, if there is one of that name.

    Raises UserError: a file that can't be decoded.
    """
    decoded = make_decoder(checkpoint)(files)
    for error in decoded.errors.values():
        raise UserError(error)
    classes = checkpoint.classes
    examples = []
    for file, image in zip(files, decoded.images, strict=True):
        folder = file.parent.name
        label = classes.index(folder) if folder in classes else UNKNOWN
        examples.append(Example(file.name, image, label))
    return examples


def explain(checkpoint: LoadedCheckpoint, examples: Sequence[Example]) -> Iterator[Explanation]:
    """Yield the explanation of each example, after printing the layer in use.

    Raises UserError: Grad-CAM is not for such a network.
    """
    net = checkpoint.net().float()
    preprocess = checkpoint.preprocess()
    layer = find_layer(net, preprocess(examples[0].image[None]))
    channels, height, width = layer.shape
    print(f"layer {layer.name}, {channels} maps of {height} x {width}")
    for example in examples:
        inputs = preprocess(example.image[None])
        with torch.no_grad():
            probabilities = net(inputs).softmax(1)[0]
        predicted = int(probabilities.argmax())
        maps = {}
        for label in {predicted, example.label} - {UNKNOWN}:
            maps[label] = grad_cam(net, layer, inputs, torch.tensor([label]))[0]
        is_other = example.label not in (predicted, UNKNOWN)
        true_map = maps[example.label] if is_other else None
        pixels = to_pixels(inputs.detach(), preprocess)[0]
        yield Explanation(example, pixels, probabilities, predicted, maps[predicted], true_map)


def draw_page(explanations: Sequence[Explanation], classes: Sequence[str], title: str) -> Figure:
    """Draw a row for each image: itself, and the maps of its predicted and of its true class."""
    rows = len(explanations)
    figure = Figure(figsize=(7.5, 1 + 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, 3, squeeze=False)
    for axes, explanation in zip(grid, explanations, strict=True):
        example = explanation.example
        for place in axes:
            place.axis("off")
        axes[0].imshow(explanation.pixels, cmap="gray", vmin=0, vmax=1)
        axes[0].set_title(for_terminal(example.name), fontsize=8, parse_math=False)
        show_map(axes[1], explanation, explanation.predicted_map)
        axes[1].set_title(caption("predicted", explanation.predicted, explanation, classes))
        if explanation.true_map is not None:
            show_map(axes[2], explanation, explanation.true_map)
            axes[2].set_title(caption("true", example.label, explanation, classes))
        for place in axes[1:]:
            place.title.set(fontsize=8, parse_math=False)
    figure.suptitle(title, fontsize=10)
    return figure


def caption(kind: str, label: int, explanation: Explanation, classes: Sequence[str]) -> str:
    probability = float(explanation.probabilities[label])
    return f"{kind}: {for_terminal(classes[label])}\n{probability:.3f}"


def show_map(axes: Any, explanation: Explanation, heat: Tensor) -> None:
    """Draw a map over its image."""
    axes.imshow(explanation.pixels.mean(2), cmap="gray", vmin=0, vmax=1)
    axes.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=HEAT)
