"""Training and evaluation of a network.

One optimizer step is, in this order:

    on_train_batch_start        seed dropout; freeze the batch norm of a frozen backbone
    optimizer_step              set LR and momentum, then call what is indented
        training_step               forward, loss (with a teacher, its divergence), penalty terms
        (Lightning)                 set the gradients to zero, backward
        on_before_optimizer_step    drop the gradients of a frozen backbone, log
        (Lightning)                 clip the gradients, optimizer.step()
        _project                    penalties that are projections
    on_train_batch_end          stop after the last step

Of accumulated batches, each calls on_train_batch_start, training_step, backward and
on_train_batch_end; the first sets the gradients to zero; the last calls the rest.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from tricklab.data.batches import Batch
from tricklab.data.module import ImageData
from tricklab.duration import Batching
from tricklab.errors import UserError
from tricklab.loss import Distill
from tricklab.metrics import (
    evaluate,
    evaluate_briefly,
    fit_temperature,
    soft_accuracy,
    weight_stats,
)
from tricklab.optimizer import (
    Group,
    is_backbone,
    keep_group_names,
    named_weights,
    parameter_groups,
)
from tricklab.penalty import Penalty
from tricklab.randomness import seed_default
from tricklab.scheduler import Curve, Multiplier, Plateau
from tricklab.teacher import Teacher


class ImageClassifier(pl.LightningModule):
    """Trains `net` and evaluates it; evaluation needs nothing but `net`.

    Args:
        net: images [B, C, H, W] to logits [B, K].
        loss: logits and targets of a training batch, class indices [B] or probabilities [B, K], to
            the mean cross-entropy. It may smooth the targets; evaluation never does.
        teacher: images to logits [B, K], from which the network learns as well; `loss` is then a
            `tricklab.loss.Distill`.
        penalties: by name; terms are added to the training loss, projections applied after each
            step, see `tricklab.penalty`.
        optimizer: makes an optimizer of parameter groups.
        multiplier: the LR at step t as a multiple of the base LR; its `momentum(t)`, if any, is the
            momentum itself, see `tricklab.scheduler`.
        backbone_multiplier: the same for the backbone, if it differs. At 0 the backbone is frozen,
            including the statistics of its norms.
        layer_decay: the LR of layer i of L is multiplied by this to the power L - i; 1 for none.
        decay_all: whether weight decay acts on biases, norms and embeddings, too.
        last_step: training ends after this step.
        seed: of the run; dropout is seeded from it.
        accuracy: name of the training accuracy: `acc`, or `acc_mixed` if images are mixed.
        log_every: optimizer steps between two logged ones; the others do not wait for the device.
        batching: sizes of the batches, if several make a step (accumulation, several ranks).
    """

    images_seen = 0  # in training, on this rank
    started = False  # whether training has begun; until then, a checkpoint may fail to load
    forced_validation = False  # the next one is due only because training ends at `last_step`
    temperature = 1.0  # fitted on the last validation
    automatic: Mapping[str, Any] = MappingProxyType({})  # see `tricklab.run.automatic`
    logits: Tensor  # of the last evaluation, [N, K], on the CPU
    labels: Tensor  # [N]

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        teacher: Teacher | None = None,
        penalties: Mapping[str, Penalty] = MappingProxyType({}),
        optimizer: Callable[..., Optimizer] = torch.optim.SGD,
        multiplier: Multiplier | None = None,
        backbone_multiplier: Curve | None = None,
        layer_decay: float = 1.0,
        decay_all: bool = False,
        last_step: int = 0,
        seed: int = 0,
        accuracy: str = "acc",
        log_every: int = 10,
        batching: Batching | None = None,
    ):
        super().__init__()
        self.net = net
        self.loss = loss
        self.teacher = teacher
        self.terms = {name: p for name, p in penalties.items() if not p.is_projection}
        self.projections = [p for p in penalties.values() if p.is_projection]
        self.make_optimizer = optimizer
        self.multiplier = multiplier or Multiplier(lambda step: 1.0)
        self.backbone_multiplier = backbone_multiplier
        self.layer_decay = layer_decay
        self.decay_all = decay_all
        self.last_step = last_step
        self.seed = seed
        self.accuracy = accuracy
        self.log_every = log_every
        self.batching = batching
        self.weights = list(named_weights(net).values())
        self.results: dict[str, float] = {}  # of the last evaluation
        self._losses: list[tuple[int, Tensor]] = []  # unchecked losses and their steps
        self._accumulated_logs: list[dict[str, Tensor]] = []  # of each batch of the next step
        self._evaluated: list[tuple[int, Tensor, Tensor]] = []  # dataloader, logits, labels

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images.to(self.weights[0].dtype))
        return logits.float()

    def configure_optimizers(self) -> Optimizer:
        groups = parameter_groups(
            self.net, bool(self.backbone_multiplier), self.layer_decay, self.decay_all
        )
        optimizer = self.make_optimizer(groups)
        keep_group_names(optimizer)
        return optimizer

    # Training, in the order of a step

    def on_fit_start(self) -> None:
        if self.teacher:
            self.teacher.to(self.device)

    def on_train_start(self) -> None:
        """Stop at once if the checkpoint was saved at the end of training.

        Lightning knows neither `last_step` nor that early stopping had already stopped the run.
        """
        self.started = True
        stopped_early = any(
            # A patience of 0 also waits for one evaluation
            callback.wait_count >= max(1, callback.patience)
            for callback in self.trainer.early_stopping_callbacks
        )
        if stopped_early or self.global_step >= self.last_step:
            self.trainer.should_stop = True

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_default(self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)
        if self.backbone_multiplier is None:
            return
        is_trained = not self.backbone_frozen()
        for layer in self.net.modules():
            if isinstance(layer, nn.modules.batchnorm._NormBase):
                layer.train(is_trained)
        if self.trainer.world_size == 1:  # DDP waits for all gradients
            self._skip_backward_of_backbone(is_trained)

    def _skip_backward_of_backbone(self, is_trained: bool) -> None:
        """Compute gradients of the backbone only if they are used: a third of the time."""
        optimizer = self.trainer.optimizers[0]
        for group in filter(is_backbone, optimizer.param_groups):
            for parameter in group["params"]:
                parameter.requires_grad_(is_trained)

    def backbone_frozen(self) -> bool:
        """Whether the next step changes only the head."""
        multiplier = self.backbone_multiplier
        return multiplier is not None and multiplier(self.global_step) == 0

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        self.set_lr(optimizer)
        scale = self._amp_scale() if self.projections else 1.0
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # The scaler lowers its scale when it skips a step with non-finite gradients
        was_skipped = self.projections and self._amp_scale() < scale
        if self.projections and not was_skipped:
            self._project(optimizer.param_groups)

    def set_lr(self, optimizer: Optimizer) -> None:
        """Set the LR of the next step in each group, and the momentum if it is scheduled."""
        step = self.global_step
        head = self.multiplier(step)
        backbone = self.backbone_multiplier(step) if self.backbone_multiplier else head
        for group in optimizer.param_groups:
            lr = optimizer.defaults["lr"] * (backbone if is_backbone(group) else head)
            group["lr"] = lr * group.get("lr_scale", 1.0)
        if self.multiplier.momentum:
            momentum = self.multiplier.momentum(step)
            for group in optimizer.param_groups:
                set_momentum(group, momentum)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch  # [B, C, H, W], [B] or [B, K]
        self.images_seen += len(images)
        loss_weight, total_weight = self._batch_weights(batch_idx, len(images))
        step = self.global_step
        logits = self(images)
        loss = self.loss(logits, targets)
        means = {"loss": loss}
        objective = loss
        if self.teacher:
            assert isinstance(self.loss, Distill)
            means["distill"] = self.loss.divergence(logits, self.teacher(images))
            objective = self.loss.combine(loss, means["distill"])
        penalties = {name: term.fn(term.weights) for name, term in self.terms.items()}
        total = sum(penalties.values(), start=scale_by(objective, loss_weight))
        self._losses.append((step, objective.detach()))
        if step % self.log_every == 0:
            means[self.accuracy] = soft_accuracy(logits, targets)
            weighted = {name: scale_by(mean, loss_weight) for name, mean in means.items()}
            self._log_batch(weighted | penalties)
        return scale_by(total, total_weight)

    def _batch_weights(self, batch_idx: int, images: int) -> tuple[float, float]:
        """Return the weights of the loss and of the total, see `Batching.weights`.

        The first corrects the loss for batches of unequal size; logs are weighted likewise. The
        second corrects everything for a step of fewer batches, as Lightning divides by
        `accumulate`.
        """
        return self.batching.weights(batch_idx, images) if self.batching else (1.0, 1.0)

    def _log_batch(self, values: Mapping[str, Tensor]) -> None:
        logs = {f"train/{name}": value.detach() for name, value in values.items()}
        self._accumulated_logs.append(logs)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.backbone_frozen():
            drop_gradients(filter(is_backbone, optimizer.param_groups))
        if self.global_step % self.log_every == 0:
            self._log_step(optimizer)
        self._accumulated_logs.clear()

    @torch.no_grad()
    def _project(self, groups: list[Group]) -> None:
        for group in groups:
            if group["lr"] <= 0:  # frozen, or the schedule is at 0
                continue
            in_group = {id(p) for p in group["params"]}
            for projection in self.projections:
                weights = [w for w in projection.weights if id(w) in in_group]
                if weights:
                    projection.fn(weights, lr=group["lr"])

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.global_step < self.last_step:
            return
        every = self.trainer.check_val_every_n_epoch or 1
        is_due = self.trainer.is_last_batch and (self.current_epoch + 1) % every == 0
        self.forced_validation = not is_due
        # Before it stops for should_stop, Lightning validates, also within an epoch
        self.trainer.should_stop = True
        self.trainer.check_val_every_n_epoch = 1  # and in any epoch

    # Logging of a step

    def _log_step(self, optimizer: Optimizer) -> None:
        norm = self._gradient_norm(optimizer)
        values = self._current_lrs(optimizer)
        values |= {"train/grad_norm": norm} | self._mean_logs()
        if self.terms or self.projections:
            values |= weight_stats(self.weights)
        self._log_exactly(values, self.global_step)
        self.check_losses_finite(f", gradient norm {norm:g}")
        if not math.isfinite(norm) and self._find_scaler() is None:
            self._raise_diverged(self.global_step, f"train/grad_norm={norm}")

    def _gradient_norm(self, optimizer: Optimizer) -> float:
        """Return the norm of all gradients together, before they are clipped."""
        gradients = []
        for group in optimizer.param_groups:
            gradients += [p.grad for p in group["params"] if p.grad is not None]
        # torch's get_total_norm takes 0.1 ms more
        norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
        # A fused optimizer unscales within its step
        scaled = getattr(optimizer, "_step_supports_amp_scaling", False)
        return norm / self._amp_scale() if scaled else norm

    def _amp_scale(self) -> float:
        """Return the factor of loss and gradients in mixed precision with float16, else 1."""
        scaler = self._find_scaler()
        return float(scaler.get_scale()) if scaler else 1.0

    def _find_scaler(self) -> Any:
        """Return the scaler of float16, which skips steps with non-finite gradients, else None."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _current_lrs(self, optimizer: Optimizer) -> dict[str, float]:
        """Return the LR of the head, of the backbone (before `layer_decay`) and of each layer."""
        groups = optimizer.param_groups
        values = {"lr": groups[0]["lr"]}
        if self.backbone_multiplier:
            multiplier = self.backbone_multiplier(self.global_step)
            values["lr_body"] = optimizer.defaults["lr"] * multiplier
        values |= {f"lr_layer{g['layer']}": g["lr"] for g in reversed(groups) if "layer" in g}
        if self.multiplier.momentum:
            values["momentum"] = get_momentum(groups[0])
        return values

    def _mean_logs(self) -> dict[str, float]:
        """Return the means over the batches of the step, on all ranks."""
        batches = [torch.stack(list(logs.values())) for logs in self._accumulated_logs]
        means = torch.stack(batches).mean(0)
        if self.trainer.world_size > 1:
            means = self.trainer.strategy.reduce(means, reduce_op="mean")
        return dict(zip(self._accumulated_logs[0], means.tolist(), strict=True))

    def check_losses_finite(self, details: str = "") -> None:
        """Raise UserError with the step of the first non-finite loss since the last check.

        Losses are checked several at a time, as `.item()` in each step would synchronise a GPU.
        """
        if not self._losses:
            return
        losses = torch.stack([loss for _, loss in self._losses])
        if self.trainer.world_size > 1:
            losses = self.trainer.strategy.reduce(losses, reduce_op="sum")
        for (step, _), loss in zip(self._losses, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                self._raise_diverged(step, f"train/loss={loss}{details}")
        self._losses.clear()

    def _raise_diverged(self, step: int, problem: str) -> NoReturn:
        lr = self.trainer.optimizers[0].defaults["lr"] * self.multiplier(step)
        hint = "try a lower optimizer.lr or a gradient_clip_val"
        raise UserError(f"step {step}: {problem}, lr {lr:g}; {hint}")

    def _log_exactly(self, metrics: Mapping[str, float], step: int) -> None:
        """Pass doubles to the loggers.

        `self.log` would round them to float32, and take a quarter of a small network's step.
        """
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **metrics}, step)

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        self._evaluated.clear()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        images, labels = batch  # [B, C, H, W], [B]
        self._evaluated.append((dataloader_idx, self(images), labels))

    def on_validation_epoch_end(self) -> None:
        """Evaluate, on training images without augmentation too (`train/..._clean`)."""
        if self.trainer.sanity_checking:
            return
        self.check_losses_finite()
        self.logits, self.labels = self._gather_evaluated(0)
        self.temperature = fit_temperature(self.logits, self.labels)
        results = evaluate(self.logits, self.labels, self.temperature)
        clean = evaluate_briefly(*self._gather_evaluated(1))
        self.results = {f"val/{name}": value for name, value in results.items()}
        self.results |= {f"train/{name}_clean": value for name, value in clean.items()}
        self._finish_evaluation()
        val_loss = self.results["val/loss"]
        if not math.isfinite(val_loss):  # before a checkpoint is saved
            self._raise_diverged(self.global_step, f"val/loss={val_loss}")
        if isinstance(self.multiplier, Plateau) and not self.forced_validation:
            self.multiplier.step(val_loss)
        self._show_in_progress_bar("val/loss", "val/acc", "val/ece")

    def _show_in_progress_bar(self, *names: str) -> None:
        values = {name: torch.tensor(self.results[name]) for name in names}
        self.log_dict(values, logger=False, prog_bar=True)

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self.logits, self.labels = self._gather_evaluated(0)
        results = evaluate(self.logits, self.labels, self.temperature)
        self.results = {f"test/{name}": value for name, value in results.items()}
        self._finish_evaluation()

    def _finish_evaluation(self) -> None:
        self._evaluated.clear()
        self._log_exactly(self.results, self.global_step)

    def _gather_evaluated(self, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Return logits [N, K] and labels [N] of a dataloader, from all ranks."""
        batches = [batch for index, *batch in self._evaluated if index == dataloader_idx]
        logits, labels = zip(*batches, strict=True)
        return self._all_gather(torch.cat(logits)), self._all_gather(torch.cat(labels))

    def _all_gather(self, tensor: Tensor) -> Tensor:
        """All-gather [n, ...] from all ranks, undo the round-robin split: [N, ...] on the CPU."""
        if self.trainer.world_size > 1:
            sizes = stack_ranks(torch.tensor(len(tensor), device=self.device))
            missing = int(sizes.max()) - len(tensor)
            padded = F.pad(tensor, [0, 0] * (tensor.ndim - 1) + [0, missing])
            interleaved = stack_ranks(padded).transpose(0, 1).flatten(0, 1)
            tensor = interleaved[: int(sizes.sum())]
        return tensor.cpu()

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["temperature"] = self.temperature
        checkpoint["automatic"] = dict(self.automatic)
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageData):
            checkpoint["dataset"] = data.metadata  # how images become inputs of the network
        if isinstance(self.multiplier, Plateau):
            checkpoint["plateau"] = self.multiplier.state
        if self.teacher:
            checkpoint["teacher"] = self.teacher.digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if isinstance(self.multiplier, Plateau):
            self.multiplier.state = checkpoint["plateau"]
        if self.teacher and checkpoint["teacher"] != self.teacher.digest:
            problem = "its weights are not those that the run began with"
            raise UserError(f"resume: loss.teacher: {problem}; restore them, or start a new run")


def scale_by(value: Tensor, weight: float) -> Tensor:
    """Return value * weight, without an operation if the weight is 1."""
    return value if weight == 1 else value * weight


def drop_gradients(groups: Iterable[Group]) -> None:
    """Set gradients to None: the parameters gather no momentum and do not count in the norm."""
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = None


def set_momentum(group: Group, momentum: float) -> None:
    """Set the momentum of SGD, or the first beta of Adam."""
    if "betas" in group:
        group["betas"] = (momentum, group["betas"][1])
    else:
        group["momentum"] = momentum


def get_momentum(group: Group) -> float:
    value: float = group["betas"][0] if "betas" in group else group["momentum"]
    return value


def stack_ranks(tensor: Tensor) -> Tensor:
    """All-gather tensors of the same shape [...] into [ranks, ...]."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)
