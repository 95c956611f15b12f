"""Lightning's loop over the batches of an epoch, with direct calls. Results stay the same.

Lightning calls each hook of a step through several functions, which look up again what is the same
in all steps: 0.4 ms, a quarter of a small network's step. Deletable: used by `tricklab.fast` alone.
"""

from typing import Any

import torch
from pytorch_lightning.loops.optimization.automatic import ClosureResult
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor

HOOKS = (  # of a step, of the module and of each callback, in their order
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
SKIP_EPOCH = -1  # returned by the module's `on_train_batch_start`


class DirectLoop(_TrainingEpochLoop):
    """Trains on the batches of an epoch as Lightning does, hooks, counters and logs included.

    What is not plain is left to Lightning: the first step after a checkpoint, several devices,
    accumulated batches, mixed precision, validation within an epoch.
    """

    is_plain = False

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        self.is_plain = is_plain(self.trainer)
        self.hooks = {name: find_hooks(self.trainer, name) for name in HOOKS}
        selector: Any = self.trainer._data_connector._datahook_selector
        self.batch_hooks = [getattr(selector.get_instance(name), name) for name in BATCH_HOOKS]

    def advance(self, data_fetcher: Any) -> None:
        """Train on a batch. Raises StopIteration at the end of the epoch."""
        if self.restarting or not self.is_plain:
            super().advance(data_fetcher)
            return
        batch, _, _ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        progress = self.batch_progress
        progress.is_last_batch = data_fetcher.done
        batch = self.to_device(batch)
        progress.increment_ready()
        self.expect_logs(batch)
        if self.call("on_train_batch_start", batch, batch_idx) == SKIP_EPOCH:
            progress.is_last_batch = True
            progress.increment_processed()
            raise StopIteration
        progress.increment_started()
        output = self.take_step(batch, batch_idx)
        progress.increment_processed()
        self.call("on_train_batch_end", output, batch, batch_idx)
        self.end_batch()

    def to_device(self, batch: Any) -> Any:
        prepare, transfer, process = self.batch_hooks
        batch = transfer(prepare(batch, 0), self.trainer.strategy.root_device, 0)
        return process(batch, 0)

    def expect_logs(self, batch: Any) -> None:
        """Let `module.log` find the size of a batch."""
        connector = self.trainer._logger_connector
        connector._first_loop_iter = connector._first_loop_iter is None
        self._results.batch = batch
        self._results.batch_size = None
        self._results.dataloader_idx = None

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a hook of all callbacks, then that of the module; return the latter's response."""
        trainer = self.trainer
        module = trainer.lightning_module
        module._current_fx_name = name  # tells `module.log` where it is called
        for hook in self.hooks[name]:
            hook(trainer, module, *arguments)
        hook = getattr(module, name)
        response = hook(*arguments) if hook else None
        module._current_fx_name = None
        return response

    def take_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Take an optimizer step; return what the module's `training_step` has returned."""
        epoch = self.trainer.current_epoch
        module = self.trainer.lightning_module
        optimizer = self.trainer.optimizers[0]
        results: list[ClosureResult] = []

        @torch.enable_grad()
        def closure() -> Tensor | None:
            module._current_fx_name = "training_step"
            results.append(to_result(module.training_step(batch, batch_idx)))
            self.compute_gradients(results[0].closure_loss, optimizer, epoch, batch_idx)
            return results[0].loss

        progress = self.automatic_optimization.optim_progress.optimizer.step
        progress.increment_ready()
        module.optimizer_step(epoch, batch_idx, optimizer, closure)
        progress.increment_completed()
        return results[0].asdict() if results[0].loss is not None else {}

    def compute_gradients(
        self, loss: Tensor | None, optimizer: Any, epoch: int, batch_idx: int
    ) -> None:
        """Set the gradients of a loss, if there is one; clip them where that is asked for."""
        trainer = self.trainer
        module = trainer.lightning_module
        progress = self.automatic_optimization.optim_progress.optimizer.zero_grad
        progress.increment_ready()
        self.call("on_before_zero_grad", optimizer)
        progress.increment_started()
        module.optimizer_zero_grad(epoch, batch_idx, optimizer)
        progress.increment_completed()
        if loss is not None:
            self.call("on_before_backward", loss)
            module.backward(loss)
            self.call("on_after_backward")
        self.call("on_before_optimizer_step", optimizer)
        module.configure_gradient_clipping(
            optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        )

    def end_batch(self) -> None:
        """Pass on what was logged with `module.log`, if anything was."""
        connector = self.trainer._logger_connector
        if self._results:
            connector.on_batch_end()
        self._results.batch = None
        self.batch_progress.increment_completed()
        if self._results:
            connector.update_train_step_metrics()

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Validate at the end of an epoch, and stop where that is asked for."""
        trainer = self.trainer
        is_last = self._num_ready_batches_reached() or trainer.should_stop
        if is_last or trainer.received_sigterm or not self.is_plain:
            super().on_advance_end(data_fetcher)
        else:
            self._batches_that_stepped += 1


def to_result(output: Any) -> ClosureResult:
    """Return the result of a step; of a tensor, without Lightning's division by 1 and its copy."""
    if not isinstance(output, Tensor):
        return ClosureResult.from_training_step_output(output)
    result = ClosureResult(None)
    result.closure_loss = output
    result.loss = output.detach()
    return result


def is_plain(trainer: Any) -> bool:
    """Whether each batch is a step in float32 on one device, and validation ends an epoch."""
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and trainer.lightning_module.automatic_optimization
        and trainer.accumulate_grad_batches == 1
        and trainer.val_check_interval == 1.0
        and trainer.check_val_every_n_epoch is not None
        and not trainer.lr_scheduler_configs
    )


def find_hooks(trainer: Any, name: str) -> list[Any]:
    """Return a hook of each callback that has it."""
    hooks = [getattr(callback, name) for callback in trainer.callbacks]
    return [hook for hook in hooks if hook]
