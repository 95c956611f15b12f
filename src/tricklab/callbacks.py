"""Callbacks that Lightning does not have: what is kept of a run, and how it is ended."""

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
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.profilers import PassThroughProfiler
from torch import Tensor

from tricklab.files import atomic_open, read_checkpoint

SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)  # SLURM sends one of these before the end


def rank(results: dict[str, float]) -> tuple[float, float]:
    """Order results by accuracy, then by loss; no number at all is the worst loss."""
    loss = results["val/loss"]
    return results["val/acc"], -math.inf if math.isnan(loss) else -loss


class FewHooks:
    """Switches off five hooks that its callback does not use: Lightning calls each in every step, 2 us for nothing."""

    on_train_batch_start: Any = None
    on_before_zero_grad: Any = None
    on_before_backward: Any = None
    on_after_backward: Any = None
    on_before_optimizer_step: Any = None


class BestCheckpoint(FewHooks, ModelCheckpoint):
    """Keeps the weights with the highest val/acc, of equal ones those with the lower val/loss."""

    state_key = "best"  # Lightning's is made anew from all options, six times a step
    on_train_batch_end: Any = None  # it looks at evaluations alone

    def __init__(self, **options: Any):
        super().__init__(monitor="val/acc", mode="max", **options)
        self.best: dict[str, float] = {}  # all results of that evaluation

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        now: Any = trainer.lightning_module.results
        if better := not self.best or rank(now) > rank(self.best):
            self.best = dict(now)
        return better

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        super().load_state_dict(state_dict)


class LastCheckpoint(FewHooks, ModelCheckpoint):
    """Keeps the newest: that of each epoch, of every so many steps, and of the step at which a signal ends the run.

    None within the window of an accumulation, and none before a validation that is due: that brings its own.
    """

    state_key = "last"

    def __init__(self, every_n_steps: int | None = None):
        super().__init__(
            filename="last", enable_version_counter=False, save_on_train_epoch_end=True
        )
        self.every_n_steps, self.signal = every_n_steps, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        for number in SIGNALS:
            signal.signal(number, self.note)

    def note(self, number: int, frame: Any) -> None:
        """Have the run end after the step it is in; at the second signal it ends at once."""
        self.signal = number
        signal.signal(number, end_at_once)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        end, every = self.must_end(trainer), self.every_n_steps
        if not end and (not every or trainer.global_step % every):
            return
        if (
            trainer.fit_loop._should_accumulate()
            or trainer.is_last_batch
            or trainer.global_step >= pl_module.last_step
        ):
            return
        pl_module.look_at_losses()
        trainer.save_checkpoint(Path(str(self.dirpath)) / "last.ckpt")
        if end:
            raise SystemExit(128 + end)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if end := self.must_end(trainer):
            raise SystemExit(128 + end)

    def must_end(self, trainer: pl.Trainer) -> int:
        """Return the number of the signal that any process was sent, or 0; several wait for each other every step."""
        if trainer.world_size == 1:
            return self.signal
        told = torch.tensor(self.signal, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(told, reduce_op="max"))


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have signals end what runs here with the exit code 128 + their number, at once where nothing else is said."""
    with contextlib.ExitStack() as afterwards:
        for number in SIGNALS:
            afterwards.callback(signal.signal, number, signal.signal(number, end_at_once))
        yield


def ignore_signals() -> None:
    """Have no signal end what is recorded now: torchrun sends one when another process has failed."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def end_at_once(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: Lightning's may come from another file system, in parts."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)  # right into a file, it would hide that a disk is full
        with atomic_open(Path(path)) as file:
            file.write(content.getbuffer())

    def load_checkpoint(self, path: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        """Read plain data; its callbacks remember files of the run's own folder alone."""
        checkpoint = read_checkpoint(Path(path))
        for state in checkpoint["callbacks"].values():
            if "best_model_path" in state:
                state |= own_files(Path(path).parent, state)
        return checkpoint


def own_files(folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a ModelCheckpoint remembers, of files in `folder`: it removes old ones by path.

    A checkpoint may be a stranger's, or its folder may have moved.
    """

    def own(path: str) -> str:
        file = folder / Path(path).name
        return str(file) if path and file.is_file() else ""

    best = {own(path): score for path, score in state["best_k_models"].items() if own(path)}
    names = ("best_model_path", "last_model_path", "kth_best_model_path")
    paths = {name: own(str(state[name])) for name in names}
    return {"dirpath": str(folder), "best_k_models": best, **paths}


class ProgressBar(FewHooks, RichProgressBar):
    """Lightning's, told of every tenth step: it takes 0.1 ms each time, whether it shows it or not.

    Where the output is neither a terminal nor a notebook, a line an epoch, with the time left.
    """

    started: tuple[float, int] = (0.0, 0)  # time and step
    validated = -1  # the step of the last validation

    @property
    def is_enabled(self) -> bool:
        return super().is_enabled and self.is_seen

    @property
    def is_seen(self) -> bool:
        stream = sys.stderr if self._console_kwargs.get("stderr") else sys.stdout
        return stream.isatty() or "ipykernel" in sys.modules

    def _get_train_description(self, current_epoch: int) -> str:
        total = self.trainer.max_epochs or -1
        text = f"Epoch {current_epoch + 1}" + (f"/{total}" if total > 0 else "")
        return f"{text:{len(self.validation_description)}}"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.time(), trainer.global_step
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % 10 == 0 or trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = trainer.global_step
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if not super().is_enabled or self.is_seen:
            return
        parts = [self._get_train_description(trainer.current_epoch).strip().lower()]
        if self.validated == trainer.global_step:
            parts += [f"{name} {pl_module.results[name]:.4f}" for name in ("val/loss", "val/acc")]
        start, first = self.started
        done, left = trainer.global_step - first, pl_module.last_step - trainer.global_step
        seconds = round((time.time() - start) / max(1, done) * left)
        print(*parts, f"{timedelta(seconds=seconds)} left", sep=", ", flush=True)


class NoProfiler(PassThroughProfiler):
    """Lightning's, which measures nothing, without the 40 context managers a step that it makes of that."""

    nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> contextlib.nullcontext[None]:  # type: ignore[override]
        return self.nothing
