"""Test a checkpoint, on the data of its run or on others.

python scripts/evaluate.py ckpt=RUN/checkpoints/best.ckpt [data=folder data.root=PATH ...]
"""

import sys
from typing import Any

from tricklab import cli


def main() -> None:
    import pytorch_lightning as pl
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

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
    data.adapt(trained.images)
    options = {key: config.trainer[key] for key in ("accelerator", "precision", "limit_test_batches")}
    off: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    try:
        trainer = pl.Trainer(devices=1, **options, **off)
    except (MisconfigurationException, ImportError, ValueError) as error:
        raise UserError(f"{options}: {error}") from error
    module = ImageClassifier(trained.net())
    trainer.test(module, datamodule=data, verbose=False)
    for name, value in module.results.items():
        print(name, value)


if __name__ == "__main__":
    cli.launch(main, __doc__)
