"""Loading of photographs, without a network: ours, torchvision's and timm's loader in turns."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from tricklab.analysis.benchmark.rounds import Round
from tricklab.cli.compose import compose_each
from tricklab.data.cache import decode_all
from tricklab.data.image_files import ImageFiles
from tricklab.data.module import ImageData
from tricklab.devices import keep_freed_memory
from tricklab.run.build import build_data

BATCH = 128
ALONE = 500  # images that are decoded to measure a core


def load_in_turns(root: Path, side: int, workers: int) -> Round:
    """Return the images/s of each loader: random resized crops, flips and normalised floats."""
    torch.set_num_threads(1)
    return {
        "torchvision, ImageFolder": measure(torchvision_loader(root, side, workers)),
        "timm, create_loader": measure(timm_loader(root, side, workers)),
        **measure_ours(root, side, workers),
    }


def measure(loader: Iterable[Any]) -> float:
    started = time.perf_counter()
    images = sum(len(batch[0]) for batch in loader)
    return images / (time.perf_counter() - started)


def measure_ours(root: Path, side: int, workers: int) -> Round:
    """Return the images/s of the first epoch, decoding included, of later ones, and of decoding."""
    keep_freed_memory()  # as each command does
    folder = ("data=folder", f"data.root={root}", f"data.size={side}", f"data.batch_size={BATCH}")
    spec = ("data.mean=[0.5]", "data.std=[0.5]", "data.test_size=2", "data.val_size=2")
    options = (*folder, *spec, f"data.num_workers={workers}", "augment=[resized_crop,flip]")
    cached, lazy = compose_each([*options, "data.cache=memory,none"]).values()
    files: Any = build_data(lazy).train.images
    started = time.perf_counter()
    decode_all(files, "memory")
    decoding = time.perf_counter() - started
    data = build_data(cached)
    seconds = [load_epoch(data, number) for number in range(3)]
    images = len(data.train_indices)
    return {
        "ours, first epoch": images / (decoding + seconds[0]),
        "ours, later epochs": images / min(seconds[1:]),
        "decoding alone, one core": decoding_speed(files),
    }


def load_epoch(data: ImageData, number: int) -> float:
    """Return the seconds that the batches of an epoch take, until they are ready for a network."""
    started = time.perf_counter()
    for index, batch in enumerate(data.training_batches(lambda: (number, 0))):
        data.training_batch(batch, (number, index))
    return time.perf_counter() - started


def decoding_speed(files: ImageFiles) -> float:
    started = time.perf_counter()
    for index in range(ALONE):
        files.decode(index)
    return ALONE / (time.perf_counter() - started)


def torchvision_loader(root: Path, side: int, workers: int) -> Iterable[Any]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    to_float = v2.ToDtype(torch.float32, scale=True)
    steps = [v2.RandomResizedCrop(side), v2.RandomHorizontalFlip(), v2.ToImage(), to_float]
    transform = v2.Compose([*steps, v2.Normalize([0.5] * 3, [0.5] * 3)])
    dataset = ImageFolder(str(root), transform)
    return DataLoader(dataset, BATCH, shuffle=True, num_workers=workers)


def timm_loader(root: Path, side: int, workers: int) -> Iterable[Any]:
    from timm.data import create_dataset, create_loader

    loader: Iterable[Any] = create_loader(
        create_dataset("", str(root)),
        input_size=(3, side, side),
        batch_size=BATCH,
        is_training=True,
        scale=(0.08, 1.0),
        color_jitter=0.0,
        interpolation="bilinear",
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        num_workers=workers,
        use_prefetcher=False,
        persistent_workers=False,
    )
    return loader
