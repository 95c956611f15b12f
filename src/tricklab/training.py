"""The network in training and evaluation."""

import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tricklab.data.batches import Batch
from tricklab.data.module import ImageData
from tricklab.duration import Batching
from tricklab.errors import UserError
from tricklab.metrics import evaluate, fit_temperature, share_right
from tricklab.optimizer import (
    Group,
    is_backbone,
    keep_group_names,
    named_weights,
    parameter_groups,
)
from tricklab.penalty import Penalty, weight_stats
from tricklab.randomness import seed_default
from tricklab.scheduler import Curve, Multiplier, Plateau

ONE = (1.0, 1.0)  # the weights of a batch that is a step


class ImageClassifier(pl.LightningModule):
    """Trains `net` on target probabilities or class indices and evaluates it on these, for which `net` is enough.

    Args:
        net: images [B, C, H, W] to logits [B, K].
        loss: logits and the targets of training batches to their mean cross-entropy; it may smooth the targets.
        penalties: by name, with the weights they act on; each `term(weights)` is added to the training loss, each
            `project(weights, lr)` done after a step, see `tricklab.penalty`.
        optimizer: makes an optimizer of parameter groups.
        multiplier: the rate of step t as a share of the first, which is 1 without it, see `tricklab.scheduler`.
        backbone_multiplier: that of all but the classifier, if it is another; at 0 the body is frozen, norms included.
        last_step: the step after which training ends.
        seed: the seed of the run, from which dropout follows.
        accuracy: the name of the training accuracy: `acc`, or `acc_mixed` where images are mixed.
        log_every: optimizer steps between two logged ones; all else in a step is left on the device.
        batching: how many images the batches of a step have, where several make one, by accumulation or on
            several processes; without it one batch is one step.
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        penalties: Mapping[str, Penalty] = MappingProxyType({}),
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        multiplier: Multiplier | None = None,
        backbone_multiplier: Curve | None = None,
        last_step: int = 0,
        seed: int = 0,
        accuracy: str = "acc",
        log_every: int = 10,
        batching: Batching | None = None,
    ):
        super().__init__()
        self.net, self.loss = net, loss
        self.terms = {name: p for name, p in penalties.items() if not p.is_projection}
        self.projections = [p for p in penalties.values() if p.is_projection]
        self.make_optimizer, self.last_step = optimizer, last_step
        self.multiplier, self.backbone_multiplier = (
            multiplier or Multiplier(lambda step: 1.0),
            backbone_multiplier,
        )
        self.seed, self.accuracy, self.log_every = seed, accuracy, log_every
        self.batching = batching
        self.weights = list(named_weights(net).values())
        self.window: list[dict[str, Tensor]] = []  # the batches of the coming optimizer step
        self.losses: list[
            tuple[int, Tensor]
        ] = []  # step and loss of each batch since the last look at them
        self.extra_validation = False  # the coming one, which is due to an end by `last_step` alone
        self.images_seen = 0  # in training, by this process
        self.started = False  # training, after whatever there was to restore
        self.evaluated: list[
            tuple[int, Tensor, Tensor]
        ] = []  # part, logits, labels of the running evaluation
        self.results: dict[str, float] = {}  # of the last evaluation
        self.temperature = 1.0  # fitted on the last validation

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what each step changes: Lightning notes its hook forty times, for which torch's own takes 0.1 ms."""
        if name in ("_current_fx_name", "images_seen"):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images.to(self.weights[0].dtype))
        return logits.float()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self.net, separate_backbone=bool(self.backbone_multiplier))
        optimizer = self.make_optimizer(groups)
        keep_group_names(optimizer)
        return optimizer

    def set_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Give the optimizer the rate of the coming step, and the momentum where that moves too."""
        step = self.global_step
        head = self.multiplier(step)
        backbone = self.backbone_multiplier(step) if self.backbone_multiplier else head
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * (backbone if is_backbone(group) else head)
            if self.multiplier.momentum:
                momentum = self.multiplier.momentum(step)
                group |= (
                    {"betas": (momentum, group["betas"][1])}
                    if "betas" in group
                    else {"momentum": momentum}
                )

    def on_train_start(self) -> None:
        """End at once where a checkpoint is of the end already, which Lightning does not know."""
        self.started = True
        late = any(
            callback.wait_count
            >= max(1, callback.patience)  # patience 0 waits for an evaluation, too
            for callback in self.trainer.early_stopping_callbacks
        )
        if late or self.global_step >= self.last_step:
            self.trainer.should_stop = True

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        seed_default(self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)
        for layer in self.net.modules() if self.backbone_multiplier else ():
            if isinstance(layer, nn.modules.batchnorm._NormBase):
                layer.train(not self.frozen())

    def frozen(self) -> bool:
        """Whether the coming step leaves all but the classifier as it is."""
        return (
            self.backbone_multiplier is not None and self.backbone_multiplier(self.global_step) == 0
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch  # [B, C, H, W], [B, K] or [B]
        self.images_seen += len(images)
        step, logits = self.global_step, self(images)
        total = loss = self.loss(logits, targets)
        self.losses.append((step, loss.detach()))
        of_images, of_all = self.batching.weights(batch_idx, len(images)) if self.batching else ONE
        if of_images != 1:
            total = loss * of_images
        penalties = {name: term.fn(term.weights) for name, term in self.terms.items()}
        for penalty in penalties.values():
            total = total + penalty
        if step % self.log_every == 0:
            means = {"loss": loss, self.accuracy: share_right(logits, targets)}
            if of_images != 1:
                means = {name: mean * of_images for name, mean in means.items()}
            values = means | penalties
            self.window.append({f"train/{name}": value.detach() for name, value in values.items()})
        return total if of_all == 1 else total * of_all

    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]  # read in every step

    on_before_zero_grad: Any = None  # Lightning leaves out a hook that is none
    on_before_backward: Any = None
    on_after_backward: Any = None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.frozen():
            for group in filter(is_backbone, optimizer.param_groups):
                for parameter in group["params"]:
                    parameter.grad = None  # no momentum, no part in the norm of the gradient
        if self.global_step % self.log_every == 0:
            self._log_step(optimizer)
        self.window.clear()

    def _log_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [
            p.grad
            for group in optimizer.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        norm = float(
            torch.stack(torch._foreach_norm(gradients)).norm()
        )  # torch's get_total_norm takes 0.1 ms more
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            norm /= self._loss_scale()  # which is in the gradients still
        means = torch.stack([torch.stack(list(batch.values())) for batch in self.window]).mean(0)
        if self.trainer.world_size > 1:
            means = self.trainer.strategy.reduce(means, reduce_op="mean")
        values = {"train/grad_norm": norm, **dict(zip(self.window[0], means.tolist(), strict=True))}
        if self.terms or self.projections:
            values |= weight_stats(self.weights)
        self.record(self._rates(optimizer.param_groups) | values, self.global_step)
        self.look_at_losses(f", gradient norm {norm:g}")
        if not math.isfinite(norm) and not hasattr(
            self.trainer.precision_plugin, "scaler"
        ):  # which skips such a step
            self._refuse(self.global_step, f"train/grad_norm={norm}")

    def _loss_scale(self) -> float:
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return float(scaler.get_scale()) if scaler else 1.0

    def _rates(self, groups: list[Group]) -> dict[str, float]:
        rates = {"lr": groups[0]["lr"]}
        if self.backbone_multiplier:
            rates["lr_body"] = next(filter(is_backbone, groups))["lr"]
        if self.multiplier.momentum:
            rates["momentum"] = (
                groups[0]["betas"][0] if "betas" in groups[0] else groups[0]["momentum"]
            )
        return rates

    def look_at_losses(self, facts: str = "") -> None:
        """End the run with the step of the first loss that is no number; on a GPU a look at each would be a wait."""
        if not self.losses:
            return
        losses = torch.stack([loss for _, loss in self.losses])
        if self.trainer.world_size > 1:
            losses = self.trainer.strategy.reduce(losses, reduce_op="sum")
        for (step, _), loss in zip(self.losses, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                self._refuse(step, f"train/loss={loss}{facts}")
        self.losses.clear()

    def _refuse(self, step: int, what: str) -> None:
        lr = self.trainer.optimizers[0].defaults["lr"] * self.multiplier(step)
        raise UserError(
            f"step {step}: {what}, lr {lr:g}; try a lower optimizer.lr or a gradient_clip_val"
        )

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        self.set_rates(optimizer)
        before = self._loss_scale() if self.projections else 1.0
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if (
            self.projections and self._loss_scale() >= before
        ):  # a lower one tells of a step that was left out
            self._project(optimizer.param_groups)

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer
    ) -> None:
        for group in optimizer.param_groups:  # 5 us; the optimizer's own takes 35
            for parameter in group["params"]:
                parameter.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if gradient_clip_val:  # Lightning's looks at how it is done, also where nothing is
            super().configure_gradient_clipping(
                optimizer, gradient_clip_val, gradient_clip_algorithm
            )

    @torch.no_grad()
    def _project(self, groups: list[Group]) -> None:
        for group in groups:
            own = {id(p) for p in group["params"] if group["lr"] > 0}  # at 0 it is frozen
            for project in self.projections:
                if weights := [w for w in project.weights if id(w) in own]:
                    project.fn(weights, lr=group["lr"])

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.global_step >= self.last_step:
            every = self.trainer.check_val_every_n_epoch or 1
            self.extra_validation = (
                not self.trainer.is_last_batch or (self.current_epoch + 1) % every > 0
            )
            self.trainer.should_stop = (
                True  # unlike max_steps it validates first, even in the middle of an epoch
            )
            self.trainer.check_val_every_n_epoch = 1  # and in any epoch

    def on_validation_epoch_start(self) -> None:
        self.evaluated.clear()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        images, labels = batch  # [B, C, H, W], [B]
        self.evaluated.append((dataloader_idx, self(images), labels))

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        self.look_at_losses()
        self._finish_evaluation("val/{}", "train/{}_clean")
        if not math.isfinite(self.results["val/loss"]):  # before a checkpoint is written
            self._refuse(self.global_step, f"val/loss={self.results['val/loss']}")
        if isinstance(self.multiplier, Plateau) and not self.extra_validation:
            self.multiplier.step(self.results["val/loss"])
        shown = {
            f"val/{name}": torch.tensor(self.results[f"val/{name}"])
            for name in ("loss", "acc", "ece")
        }
        self.log_dict(shown, logger=False, prog_bar=True)

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_test_epoch_end(self) -> None:
        self._finish_evaluation("test/{}")

    def _finish_evaluation(self, *names: str) -> None:
        """Turn what was evaluated into results, under a name for each part; keep logits and labels of the first."""
        self.results = {}
        for part, name in reversed(list(enumerate(names))):
            batches = [(logits, labels) for n, logits, labels in self.evaluated if n == part]
            self.logits, self.labels = (
                self._together(torch.cat(tensors)) for tensors in zip(*batches, strict=True)
            )
            if name == "val/{}":
                self.temperature = fit_temperature(self.logits, self.labels)
            found = evaluate(self.logits, self.labels, self.temperature)
            if part:
                found = {value: found[value] for value in ("loss", "acc", "ece")}
            self.results = {
                name.format(value): number for value, number in found.items()
            } | self.results
        self.evaluated.clear()
        self.record(self.results, self.global_step)

    def _together(self, tensor: Tensor) -> Tensor:
        """Join what the processes have of an evaluation, [N, ...], in order: each has had one image in turn."""
        if self.trainer.world_size > 1:
            sizes = gather(torch.tensor(len(tensor), device=self.device))
            filled = F.pad(tensor, [0, 0] * (tensor.ndim - 1) + [0, int(sizes.max()) - len(tensor)])
            gathered = gather(filled)  # [processes, N, ...]
            tensor = gathered.transpose(0, 1).flatten(0, 1)[: int(sizes.sum())]
        return tensor.cpu()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["temperature"] = self.temperature
        if isinstance(data := getattr(self.trainer, "datamodule", None), ImageData):
            checkpoint["dataset"] = data.metadata  # how images become the network's input
        if isinstance(self.multiplier, Plateau):
            checkpoint["plateau"] = self.multiplier.state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if isinstance(self.multiplier, Plateau):
            self.multiplier.state = checkpoint["plateau"]

    def record(self, metrics: dict[str, float], step: int) -> None:
        """Hand doubles to the loggers; `self.log` would round them and take a quarter of a small net's step."""
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **metrics}, step)


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors [...] of all ranks, of equal shape, as [ranks, ...]."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.stack(parts)
