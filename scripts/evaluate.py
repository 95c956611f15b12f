"""Test a checkpoint, on the data of its run or on others; or the mean probability over several views of each image.

python scripts/evaluate.py ckpt=RUN/checkpoints/best.ckpt [data=folder data.root=PATH ...]
    mc=16                   Monte-Carlo dropout: 16 views, each with other units dropped
    tta=8 [augment=light]   test-time augmentation: 8 views, augmented as in training or as said
    resamples=200           of the images, for the interval of 95 % beside each result; 0: none

Names that end in _t are after the temperature that the checkpoint's validation gave.
"""

import sys
from typing import Any

from tricklab import cli


def main() -> None:
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.utilities.exceptions import MisconfigurationException
    from torch import nn

    from tricklab.build import build, build_each
    from tricklab.checkpoint import compose_one, read_trained
    from tricklab.errors import UserError
    from tricklab.experiment import hush
    from tricklab.module import ImageClassifier
    from tricklab.views import Averaged

    hush()
    mine = [word for word in sys.argv[1:] if word.split("=")[0].split(".")[0] == "augment"]
    trained = read_trained([word for word in sys.argv[1:] if word not in mine], mc="0", tta="0", resamples="200")
    config, net = trained.config, trained.net()
    mc, tta, resamples = (count_views(name, trained.arguments[name]) for name in ("mc", "tta", "resamples"))
    if mine:
        config.augment = compose_one(mine).augment
    if (mine and not tta) or (tta and not config.augment) or (mc and tta and mc != tta):
        raise UserError(f"mc={mc} tta={tta} {' '.join(mine)}; allowed: tta with an augmentation, mc the same or 0")
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
    if mc or tta:
        prepare = data.prepare.to(trainer.strategy.root_device)
        data.prepare = nn.Identity()  # views are made of the images as they are
        augment = build_each(config.augment) if tta else {}
        net = views = Averaged(net, prepare, mc or tta, mc > 0, augment, config.seed)
    module = ImageClassifier(net)
    module.temperature = config.get("temperature", 1.0)
    trainer.test(module, datamodule=data, verbose=False)
    results = dict(module.results)
    intervals = bootstrap(module.logits, module.labels, module.temperature, resamples) if resamples else {}
    if mc or tta:
        for name, parts in {"entropy": views.entropy, "mutual_information": views.information}.items():
            results[f"test/{name}"] = torch.cat(parts).double().mean().item()
    for name, value in results.items():
        print(name, value, *(["({:.4g} to {:.4g})".format(*intervals[name])] if name in intervals else []))


def bootstrap(logits: Any, labels: Any, temperature: float, resamples: int) -> dict[str, tuple[float, float]]:
    """Return the interval that holds 95 % of the values over images drawn anew (Efron, 1979), for each result."""
    import numpy as np

    from tricklab.module import evaluate

    rng = np.random.default_rng(0)
    drawn = (rng.integers(len(labels), size=len(labels)) for _ in range(resamples))
    found = [evaluate(logits[rows], labels[rows], temperature) for rows in drawn]
    return {f"test/{name}": tuple(np.quantile([values[name] for values in found], (0.025, 0.975))) for name in found[0]}


def count_views(name: str, given: str) -> int:
    if not given.isdecimal() or int(given) == 1:
        raise cli.UserError(f"{name}={given}; allowed: 0, or 2 views and more")
    return int(given)


if __name__ == "__main__":
    cli.launch(main, __doc__)
