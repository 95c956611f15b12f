"""Test a checkpoint, on the data of its run or on others.

python scripts/evaluate.py ckpt=RUN/checkpoints/best.ckpt [data=folder data.root=PATH ...]
"""

import sys

from tricklab import cli


def main() -> None:
    import pytorch_lightning as pl

    from tricklab.build import build
    from tricklab.checkpoint import read_trained
    from tricklab.errors import UserError
    from tricklab.experiment import hush
    from tricklab.module import ImageClassifier

    hush()
    trained = read_trained(sys.argv[1:])
    config = trained.config
    data = build(config.data, seed=config.seed)
    if data.classes != list(config.dataset.classes):
        raise UserError(f"the data have the classes {data.classes}, the checkpoint {list(config.dataset.classes)}")
    data.adapt(tuple(config.dataset.input), list(config.dataset.mean), list(config.dataset.std))
    trainer = pl.Trainer(
        accelerator=config.trainer.accelerator,
        precision=config.trainer.precision,
        limit_test_batches=config.trainer.limit_test_batches,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = ImageClassifier(trained.net())
    trainer.test(module, datamodule=data, verbose=False)
    for name, value in module.results.items():
        print(name, value)


if __name__ == "__main__":
    cli.launch_script(main, __doc__)
