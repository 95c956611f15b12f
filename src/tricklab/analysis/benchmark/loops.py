"""Ways to train the same network: a plain loop, plain Lightning and this project.

Each returns the images/s of `steps` training steps, after some that are not timed.
"""

import contextlib
import copy
import functools
import gc
import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tricklab.analysis.benchmark.cases import WARMUP_STEPS, Overrides
from tricklab.cli.compose import compose_each
from tricklab.data.module import ImageData
from tricklab.fast import skip_overhead
from tricklab.run.build import build_data, build_module, build_net, build_trainer
from tricklab.run.experiment import quiet_lightning
from tricklab.run.plan import make_plan

Batches = Iterable[tuple[Tensor, Tensor]]  # images [B, C, H, W] and labels [B]
Augment = Callable[[Tensor], Tensor]  # images [B, C, H, W] uint8
SGD: dict[str, Any] = {
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
    "foreach": True,
}
MAX_DATALOADER_STEPS = 25  # it is much slower


@functools.cache
def compose_and_load(overrides: Overrides) -> tuple[DictConfig, ImageData]:
    """Return the config and the data of some overrides, once for all turns of a process."""
    (config,) = compose_each(list(overrides)).values()
    return config, build_data(config)


def make_net(config: DictConfig, data: ImageData) -> nn.Module:
    """Return the network of a plain loop, in torch's own memory format."""
    config = copy.deepcopy(config)
    config.trainer.channels_last = False
    return build_net(config, data.shape, len(data.classes)).train()


def plain_loop(overrides: Overrides, steps: int) -> float:
    """Train without a framework; a batch is gathered from one uint8 tensor of all images."""
    _, data = compose_and_load(overrides)
    return time_plain_loop(overrides, gather_batches(data, steps + WARMUP_STEPS), steps)


def dataloader_loop(overrides: Overrides, workers: int, steps: int) -> float:
    """Train without a framework; a DataLoader transforms each image in memory."""
    _, data = compose_and_load(overrides)
    steps = min(MAX_DATALOADER_STEPS, steps)
    dataset = TransformedImages(data, (steps + WARMUP_STEPS) * data.batch_size)
    return time_plain_loop(overrides, make_dataloader(dataset, data, workers), steps)


def image_folder_loop(overrides: Overrides, root: Path, workers: int, steps: int) -> float:
    """Train without a framework; a DataLoader decodes and transforms each file in class folders."""
    from torchvision.datasets import ImageFolder

    _, data = compose_and_load(overrides)
    dataset = ImageFolder(str(root), make_transform(data))
    return time_plain_loop(overrides, make_dataloader(dataset, data, workers), steps)


def time_plain_loop(overrides: Overrides, batches: Batches, steps: int) -> float:
    config, data = compose_and_load(overrides)
    net = make_net(config, data)
    optimizer = torch.optim.SGD(net.parameters(), **SGD)
    started = 0.0
    for step, (images, labels) in enumerate(batches):
        if step == WARMUP_STEPS:
            started = time.perf_counter()
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return steps * data.batch_size / (time.perf_counter() - started)


def gather_batches(
    data: ImageData, steps: int, augment: Sequence[Augment] = ()
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield augmented, then normalised random batches, with one gather each."""
    labels = data.splits.train.labels
    images: Any = data.splits.train.images
    scale = 1 / (255 * data.std[0])
    shift = -data.mean[0] / data.std[0]
    for _ in range(steps):
        indices = torch.randint(len(labels), (data.batch_size,))
        batch = images.index_select(0, indices)
        for transform in augment:
            batch = transform(batch)
        yield batch.float().mul_(scale).add_(shift), labels.index_select(0, indices)


def make_dataloader(dataset: Dataset[Any], data: ImageData, workers: int) -> DataLoader[Any]:
    return DataLoader(dataset, data.batch_size, shuffle=True, num_workers=workers)


def make_transform(data: ImageData) -> Any:
    """Return the usual transform of a PIL image: to float, normalised."""
    from torchvision.transforms import v2

    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([v2.ToImage(), to_float, v2.Normalize(data.mean, data.std)])


class TransformedImages(Dataset[Any]):
    """Single PIL images of a training set, repeated up to `size`."""

    def __init__(self, data: ImageData, size: int):
        from torchvision.transforms.v2.functional import to_pil_image

        images, labels = data.splits.train
        indices = torch.arange(min(size, len(labels)))
        self.images = [to_pil_image(image) for image in images.index_select(0, indices)]
        self.labels = labels.tolist()
        self.transform = make_transform(data)
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        index %= len(self.images)
        return self.transform(self.images[index]), self.labels[index]


class PlainModule(pl.LightningModule):
    """The network and optimizer of the plain loop."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net
        self.started = 0.0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        if batch_idx == WARMUP_STEPS:
            self.started = time.perf_counter()
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), **SGD)


def plain_lightning(overrides: Overrides, steps: int) -> float:
    """Train as the plain loop does, by Lightning without logger, checkpoints and progress bar."""
    quiet_lightning()
    config, data = compose_and_load(overrides)
    module = PlainModule(make_net(config, data))
    extras = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    disabled: dict[str, Any] = dict.fromkeys(extras, False)
    trainer = pl.Trainer(accelerator=config.trainer.accelerator, max_epochs=1, **disabled)
    trainer.fit(module, gather_batches(data, steps + WARMUP_STEPS))
    return steps * data.batch_size / (time.perf_counter() - module.started)


def ours(overrides: Overrides, steps: int) -> float:
    """Train as `python train.py` does, including its files, checkpoints and progress bar."""
    length = (f"stop_after={steps + WARMUP_STEPS}it", "trainer.max_epochs=1000")
    config, data = compose_and_load((*overrides, *length))
    return steps * data.batch_size / fit(config, data).seconds


class Timing(NamedTuple):
    """The `perf_counter` at the end of the first step; seconds of training and of a checkpoint."""

    first_step_end: float
    seconds: float
    checkpoint: float


class Clock(pl.Callback):
    """Times training after the warm-up steps; it stands still during evaluation."""

    def __init__(self) -> None:
        self.first_step_end = 0.0
        self.seconds = 0.0
        self.started = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step not in (1, WARMUP_STEPS):
            return
        self.started = time_when_done()
        self.seconds = 0.0
        if trainer.global_step == 1:
            self.first_step_end = self.started

    def on_validation_start(self, *arguments: Any) -> None:
        self.seconds += time_when_done() - self.started

    def on_validation_end(self, *arguments: Any) -> None:
        self.started = time.perf_counter()


def keep(net: nn.Module) -> nn.Module:
    """Return a network as it is."""
    return net


def time_when_done() -> float:
    """Return the `perf_counter` once a GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def fit(
    config: DictConfig,
    data: ImageData,
    callbacks: Sequence[pl.Callback] = (),
    prepare: Callable[[nn.Module], nn.Module] = keep,
) -> Timing:
    """Train what `prepare` makes of the network in a temporary folder; write one more checkpoint.

    The `callbacks` are called before those of the config.
    """
    quiet_lightning()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = build_trainer(config, Path(folder))
        trainer.callbacks[:0] = [clock, *callbacks]  # type: ignore[attr-defined]
        plan = make_plan(config, data, trainer.world_size)
        data.mixup_window = plan.mixup_window
        net = prepare(build_net(config, data.shape, len(data.classes)))
        torch.set_num_threads(config.trainer.threads)
        module = build_module(config, data, net, plan)
        gc.freeze()
        skip_overhead(trainer, module)
        trainer.fit(module, datamodule=data)
        started = time.perf_counter()
        trainer.save_checkpoint(Path(folder) / "again.ckpt")
        checkpoint = time.perf_counter() - started
    return Timing(clock.first_step_end, clock.seconds, checkpoint)
