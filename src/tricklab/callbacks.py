"""Callbacks for checkpoints, progress, and the end of a run by a signal."""

import contextlib
import io
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar, WeightAveraging
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from tricklab.files import atomic_open, read_checkpoint

# SLURM sends one of these before the time limit
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def score(results: Mapping[str, float]) -> tuple[float, float]:
    """Return a key that orders results by accuracy, then by loss; a NaN loss is the worst."""
    loss = results["val/loss"]
    return results["val/acc"], -math.inf if math.isnan(loss) else -loss


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights with the highest val/acc; of equal ones, those with the lowest val/loss."""

    state_key = "best"  # in checkpoints; Lightning's changes with the options

    def __init__(self, **options: Any):
        super().__init__(monitor="val/acc", mode="max", **options)
        self.best: dict[str, float] = {}  # all results of the best evaluation

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Return whether the last evaluation is the best so far, and keep its results if so."""
        results: Any = trainer.lightning_module.results
        is_best = not self.best or score(results) > score(self.best)
        if is_best:
            self.best = dict(results)
        return is_best

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        super().load_state_dict(state_dict)


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoint: of each epoch, every n steps, and on a signal that ends the run.

    None is saved between accumulated batches, and none at a step with a validation, as that saves
    its own.
    """

    state_key = "last"

    def __init__(self, every_n_steps: int | None = None):
        super().__init__(
            filename="last", enable_version_counter=False, save_on_train_epoch_end=True
        )
        self.every_n_steps = every_n_steps
        self.signal = 0  # the number of the one received

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        for number in SIGNALS:
            signal.signal(number, self.request_stop)

    def request_stop(self, number: int, frame: Any) -> None:
        """Handle a signal: stop after the current step. A second one exits immediately."""
        self.signal = number
        signal.signal(number, exit_now)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        received = self.pending_signal(trainer)
        is_due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if not received and not is_due:
            return
        accumulating = trainer.fit_loop._should_accumulate()
        validates = trainer.is_last_batch or trainer.global_step >= pl_module.last_step
        if accumulating or validates:
            return
        pl_module.check_losses_finite()
        trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")
        if received:
            raise SystemExit(128 + received)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if received := self.pending_signal(trainer):
            raise SystemExit(128 + received)

    def pending_signal(self, trainer: pl.Trainer) -> int:
        """Return the number of the signal that any rank received, or 0. Synchronises the ranks."""
        if trainer.world_size == 1:
            return self.signal
        number = torch.tensor(self.signal, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(number, reduce_op="max"))


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Exit immediately, with code 128 + its number, on a signal that is not handled otherwise."""
    with contextlib.ExitStack() as stack:
        for number in SIGNALS:
            previous = signal.signal(number, exit_now)
            stack.callback(signal.signal, number, previous)
        yield


def ignore_signals() -> None:
    """Ignore signals while a failure is recorded: torchrun sends one if another rank has failed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def exit_now(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints atomically and reads them as plain data.

    A file is written beside its final path and renamed. Lightning's temporary file may lie on
    another file system, from which it is copied in parts.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)  # directly to a file, it would hide a full disk
        with atomic_open(Path(path)) as file:
            file.write(content.getbuffer())

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Read plain data; its callbacks only refer to files in the folder of the checkpoint."""
        checkpoint = read_checkpoint(Path(path))
        for state in checkpoint["callbacks"].values():
            if "best_model_path" in state:
                state |= relocate(state, Path(path).parent)
        return checkpoint


def relocate(state: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the paths in the state of a ModelCheckpoint, limited to existing files in `folder`.

    Lightning deletes old checkpoints by these paths. The checkpoint may be a stranger's, or its
    folder may have been moved.
    """

    def find(path: str) -> str:
        file = folder / Path(path).name
        return str(file) if path and file.is_file() else ""

    best = {find(path): value for path, value in state["best_k_models"].items() if find(path)}
    paths: dict[str, Any] = {"dirpath": str(folder), "best_k_models": best}
    for name in ("best_model_path", "last_model_path", "kth_best_model_path"):
        paths[name] = find(str(state[name]))
    return paths


class ProgressBar(RichProgressBar):
    """Lightning's bar on a terminal or in a notebook, else a line per epoch with the time left."""

    start_time = 0.0
    start_step = 0
    validated_step = -1  # the last one with a validation

    @property
    def is_enabled(self) -> bool:
        return super().is_enabled and self.is_visible

    @property
    def is_visible(self) -> bool:
        stream = sys.stderr if self._console_kwargs.get("stderr") else sys.stdout
        return stream.isatty() or "ipykernel" in sys.modules

    def _get_train_description(self, current_epoch: int) -> str:
        total = self.trainer.max_epochs or -1
        text = f"Epoch {current_epoch + 1}"
        if total > 0:
            text += f"/{total}"
        return f"{text:{len(self.validation_description)}}"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start_time = time.time()
        self.start_step = trainer.global_step
        super().on_train_start(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated_step = trainer.global_step
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if super().is_enabled and not self.is_visible:
            self.print_epoch(trainer, pl_module)

    def print_epoch(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print epoch, validation results if there are new ones, and the estimated time left."""
        parts = [self._get_train_description(trainer.current_epoch).strip().lower()]
        if self.validated_step == trainer.global_step:
            parts += [f"{name} {pl_module.results[name]:.4f}" for name in ("val/loss", "val/acc")]
        done = trainer.global_step - self.start_step
        remaining = pl_module.last_step - trainer.global_step
        seconds = round((time.time() - self.start_time) / max(1, done) * remaining)
        print(*parts, f"{timedelta(seconds=seconds)} left", sep=", ", flush=True)


def average_floats_only(callback: WeightAveraging) -> None:
    """Let averages of weights copy integer buffers, such as tables of indices.

    Averaged, they would be cut off: 0.9 * 5 + 0.1 * 5 is 4.999... in float32.
    """
    average = callback._kwargs.get("avg_fn")
    if average is None:
        return

    def average_or_copy(averaged: Tensor, current: Tensor, number: Tensor) -> Tensor:
        return average(averaged, current, number) if averaged.is_floating_point() else current

    callback._kwargs["avg_fn"] = average_or_copy
