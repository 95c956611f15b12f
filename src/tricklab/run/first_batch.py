"""The first training batch as the network gets it, with its targets."""

from collections.abc import Sequence

from numpy import ndarray
from omegaconf import DictConfig
from torch import Tensor

from tricklab.data.inputs import Preprocess
from tricklab.data.module import ImageData
from tricklab.errors import UserError
from tricklab.logger import Example
from tricklab.teacher import Teacher


def first_examples(loss: DictConfig, data: ImageData, teacher: Teacher | None) -> list[Example]:
    """Return the images of the first batch and their targets, with the teacher's predictions.

    Raises UserError: there is no batch.
    """
    batch = next(iter(data.training_batches(lambda: (0, 0))), None)
    if batch is None:
        size = f"data.batch_size={data.batch_size}"
        raise UserError(f"{size} of {len(data.train_indices)} images makes no batch")
    images, targets = data.training_batch(batch, (0, 0))  # [B, C, H, W], [B] or [B, K]
    if targets.ndim == 1:  # class indices: the batch is not mixed
        targets = data.one_hot[targets]
    smoothing = loss.get("label_smoothing") or 0.0  # applied by the loss
    targets = (1 - smoothing) * targets + smoothing / len(data.classes)
    captions = [format_target(target, data) for target in targets.tolist()]
    if teacher:
        predicted = (teacher(images) / loss.temperature).softmax(1)
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
