"""Which of Lightning's arguments and callbacks work here; what to do instead of the others.

Schedules, resume and `best.ckpt` rest on the number of steps, their order and the end of an epoch being those that the
plan of a run says. What would change these without its knowledge is refused by name, and what would do nothing too.
"""

from typing import Any

from tricklab.errors import UserError

# Arguments of pl.Trainer besides those in conf/trainer/default.yaml, to be given as +trainer.KEY=VALUE
EXTRA: dict[str, Any] = {  # with a value of the type that it takes
    "benchmark": True,
    "gradient_clip_algorithm": "norm",
    "inference_mode": True,
}


ARGUMENT_ALTERNATIVES = {  # of the other arguments
    "barebones": "turn off what it turns off: callbacks.progress.refresh_rate=0",
    "callbacks": "use callbacks=early_stopping or +callbacks.NAME._target_=pytorch_lightning.callbacks.X",
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
    "model_registry": "use logger=wandb logger.wandb.checkpoint=true",
    "overfit_batches": "use debug=overfit or data.train_size=NUMBER",
    "plugins": "use trainer.precision and trainer.sync_batchnorm",
    "reload_dataloaders_every_n_epochs": "each epoch has its own order and augmentation already",
    "use_distributed_sampler": "the images are divided among the processes already",
    "val_check_interval": "use trainer.check_val_every_n_epoch: resume and sweep=halving count epochs",
}


# Callbacks, by the last word of their _target_
WORKING = (
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


BARS = ("RichProgressBar", "TQDMProgressBar")  # instead of ours


ABSTRACT = "it is a base class"


CALLBACK_ALTERNATIVES = {
    "BackboneFinetuning": "use model.freeze=3ep and model.body_lr",
    "BaseFinetuning": "use model.freeze=3ep and model.body_lr",
    "BasePredictionWriter": "use scripts/predict.py",
    "BatchSizeFinder": "the LR schedule depends on data.batch_size, which must be known before",
    "Callback": ABSTRACT,
    "Checkpoint": ABSTRACT,
    "GradientAccumulationScheduler": "use trainer.accumulate_grad_batches, which the schedule knows",
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
    """Refuse an argument of the trainer by name. Raises UserError: says what to use instead."""
    if name in ARGUMENT_ALTERNATIVES:
        raise UserError(
            f"trainer.{name} would not do here what it says; {ARGUMENT_ALTERNATIVES[name]}"
        )


def check_callback(name: str, target: str) -> None:
    """Refuse a callback of Lightning by the name of its class. Raises UserError: says what to use instead."""
    kind = target.rpartition(".")[2]
    if not target.startswith("pytorch_lightning."):
        return
    if kind in CALLBACK_ALTERNATIVES:
        raise UserError(
            f"callbacks.{name}: {kind} can't be used here; {CALLBACK_ALTERNATIVES[kind]}"
        )
    if kind in BARS and name != "progress":
        raise UserError(
            f"callbacks.{name}: there is a bar already; use callbacks.progress._target_={target}"
        )
