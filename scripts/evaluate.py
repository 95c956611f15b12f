"""Test a checkpoint, on the data of its run or on others.

python scripts/evaluate.py ckpt=RUN/checkpoints/best.ckpt [data=folder data.root=PATH ...]
"""

import sys

from tricklab import cli


def main() -> None:
    import pytorch_lightning as pl

    from tricklab.build import build
    from tricklab.checkpoint import load_net, read_arguments
    from tricklab.errors import UserError
    from tricklab.experiment import hush
    from tricklab.module import ImageClassifier

    hush()
    arguments, config = read_arguments(sys.argv[1:])
    data = build(config.data, seed=config.seed)
    if data.classes != list(config.dataset.classes):
        raise UserError(f"the data have the classes {data.classes}, the checkpoint {list(config.dataset.classes)}")
    data.mean, data.std = config.dataset.mean, config.dataset.std  # those that the network was trained with
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
    module = ImageClassifier(load_net(arguments.ckpt, config))
    trainer.test(module, datamodule=data, verbose=False)
    for name, value in module.results.items():
        print(name, value)


if __name__ == "__main__":
    cli.launch_script(main, __doc__)
