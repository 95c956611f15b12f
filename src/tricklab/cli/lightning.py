"""Lightning's arguments and callbacks that work here, and alternatives to the others.

Schedules, resume and `best.ckpt` depend on the number and order of steps and on the ends of
epochs, as planned before the run. Arguments and callbacks that would change these unnoticed
are refused by name, as are those without an effect.
"""

from typing import Any

from tricklab.errors import UserError

# Arguments of pl.Trainer to be given as +trainer.KEY=VALUE, with a value of their type.
# Those in conf/trainer/default.yaml are known from there.
EXTRA_ARGUMENTS: dict[str, Any] = {
    "benchmark": True,
    "gradient_clip_algorithm": "norm",
    "inference_mode": True,
}

# Alternatives to all other arguments
ARGUMENT_ALTERNATIVES = {
    "barebones": "turn off what it turns off: callbacks.progress.refresh_rate=0",
    "callbacks": "use callbacks=early_stopping"
    " or +callbacks.NAME._target_=pytorch_lightning.callbacks.X",
    "default_root_dir": "use hydra.run.dir=FOLDER",
    "enable_autolog_hparams": "every logger gets the whole config",
    "enable_checkpointing": "best.ckpt and last.ckpt are always written",
    "enable_progress_bar": "use callbacks.progress.refresh_rate=0",
    "fast_dev_run": "use debug=batch",
    "limit_predict_batches": "scripts/predict.py predicts all images of its input",
    "logger": "use logger=wandb or logger=tensorboard",
    "max_time": "use job_timeout=SECONDS in a sweep, or stop_after=300it",
    "min_epochs": "use callbacks.early_stopping.patience, or no early stopping",
    "min_steps": "use callbacks.early_stopping.patience, or no early stopping",
    "model_registry": "use logger=wandb logger.wandb.log_checkpoint=true",
    "overfit_batches": "use debug=overfit or data.train_size=NUMBER",
    "plugins": "use trainer.precision and trainer.sync_batchnorm",
    "reload_dataloaders_every_n_epochs": "each epoch has its own order and augmentation already",
    "use_distributed_sampler": "the images are divided among the processes already",
    "val_check_interval": "use trainer.check_val_every_n_epoch: "
    "resume and sweep=halving count epochs",
}

# Callbacks that work, by the class name in their _target_
ALLOWED_CALLBACKS = (
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "RichModelSummary",
    "WeightAveraging",
)

# These may replace our progress bar, but not join it
PROGRESS_BARS = ("RichProgressBar", "TQDMProgressBar")

ABSTRACT = "it is a base class"

# Alternatives to all other callbacks
CALLBACK_ALTERNATIVES = {
    "BackboneFinetuning": "use model.freeze=3ep and model.backbone_lr_mult",
    "BaseFinetuning": "use model.freeze=3ep and model.backbone_lr_mult",
    "BasePredictionWriter": "use scripts/predict.py",
    "BatchSizeFinder": "the LR schedule depends on data.batch_size, which must be known before",
    "Callback": ABSTRACT,
    "Checkpoint": ABSTRACT,
    "GradientAccumulationScheduler": "use trainer.accumulate_grad_batches: the schedule knows it",
    "LambdaCallback": "it takes functions, which a config can't hold",
    "LearningRateFinder": "use a sweep: -m optimizer.lr=0.03,0.1,0.3",
    "ModelPruning": "use penalty=l1_prox",
    "ProgressBar": ABSTRACT,
    "SpikeDetection": ABSTRACT,
    "StochasticWeightAveraging": "use callbacks=ema: it would replace scheduler's LR by its own",
    "ThroughputMonitor": "images_per_second stands in result.json",
    "Timer": "use job_timeout=SECONDS in a sweep, or stop_after=300it",
}


def check_argument(name: str) -> None:
    """Raise UserError, with an alternative, for an argument of the trainer that is refused."""
    if name in ARGUMENT_ALTERNATIVES:
        alternative = ARGUMENT_ALTERNATIVES[name]
        raise UserError(f"trainer.{name} is not supported here; {alternative}")


def check_callback(name: str, target: str) -> None:
    """Raise UserError, with an alternative, for a callback of Lightning that is refused.

    `name` is its key below `callbacks`, `target` its `_target_`.
    """
    class_name = target.rpartition(".")[2]
    if not target.startswith("pytorch_lightning."):
        return
    if class_name in CALLBACK_ALTERNATIVES:
        alternative = CALLBACK_ALTERNATIVES[class_name]
        raise UserError(f"callbacks.{name}: {class_name} can't be used here; {alternative}")
    if class_name in PROGRESS_BARS and name != "progress":
        alternative = f"callbacks.progress._target_={target}"
        raise UserError(f"callbacks.{name}: there is a progress bar already; use {alternative}")
