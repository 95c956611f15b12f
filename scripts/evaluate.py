"""Test a checkpoint, on the data of its run or on others; or the mean probability over several views of each image.

python scripts/evaluate.py RUN [data=folder data.root=PATH ...]
    mc=16                   Monte-Carlo dropout: 16 views, each with other units dropped
    tta=8 [augment=light]   test-time augmentation: 8 views, augmented as in training or as said
    resamples=200           of the images, for the interval of 95 % beside each result; 0: none
    suite=ood [other=mnist] how sure it is of noise, of turned and blurred images and of other data, and how well that
                            tells them from the test set; for the network, each of these views, and its weights without
                            their average, side by side; also as ood.csv and ood.png in the folder of the run

Names that end in _t are after the temperature that the checkpoint's validation gave.
"""

import csv
import io
import sys
from collections.abc import Iterator
from typing import Any

from tricklab.cli.launch import launch
from tricklab.errors import UserError
from tricklab.files import write_text
from tricklab.run.experiment import quiet_lightning
from tricklab.run.instantiate import build


def main() -> None:
    from tricklab.analysis.trained import compose_one, read_trained

    quiet_lightning()
    mine = [word for word in sys.argv[1:] if word.split("=")[0].split(".")[0] == "augment"]
    rest = [word for word in sys.argv[1:] if word not in mine]
    trained = read_trained(rest, mc="0", tta="0", resamples="200", suite="", other="")
    config, suite = trained.config, trained.arguments["suite"]
    mc, tta, resamples = (
        count_views(name, trained.arguments[name]) for name in ("mc", "tta", "resamples")
    )
    if suite not in ("", "ood"):
        raise UserError(f"suite={suite}; allowed: ood")
    if mine:
        config.augment = compose_one(mine).augment
    if (
        (mine and not tta)
        or (tta and not config.augment)
        or (mc and tta and mc != tta and not suite)
    ):
        raise UserError(
            f"mc={mc} tta={tta} {' '.join(mine)}; allowed: tta with an augmentation, mc the same or 0"
        )
    data = trained.data()
    if suite:
        show_suite(trained, data, mc, tta)
    else:
        show_results(trained, data, mc, tta, resamples)


def count_views(name: str, given: str) -> int:
    if not given.isdecimal() or int(given) == 1:
        raise UserError(f"{name}={given}; allowed: 0, or 2 views and more")
    return int(given)


def show_results(trained: Any, data: Any, mc: int, tta: int, resamples: int) -> None:
    """Print the number of images, and each result with its interval."""
    import torch

    net = average(trained, mc, tta) if mc or tta else trained.net()
    module = assess(trained, net, data)
    intervals = (
        bootstrap(module.logits, module.labels, module.temperature, resamples) if resamples else {}
    )
    views = {"entropy": net.entropy, "mutual_information": net.information} if mc or tta else {}
    measured = {
        f"test/{name}": torch.cat(parts).double().mean().item() for name, parts in views.items()
    }
    print("images", len(module.labels))
    for name, value in (module.results | measured).items():
        print(
            name,
            value,
            *(["({:.4g} to {:.4g})".format(*intervals[name])] if name in intervals else []),
        )


def show_suite(trained: Any, data: Any, mc: int, tta: int) -> None:
    """Print, write and draw how sure each view of the checkpoint is of each set, and how well that tells it."""
    from tricklab.analysis.ood import draw_confidence, separate
    from tricklab.metrics import judged

    path = trained.path.absolute()
    folder = path.parents[1] if (path.parents[1] / "config.yaml").is_file() else path.parent
    found: dict[str, dict[str, Any]] = {}
    rows: list[list[Any]] = [["view", "images", "confidence", "auroc", "fpr95", "n"]]
    for view, net in views(trained, mc, tta).items():
        confidences = found[view] = {}
        for name, *images in sets(trained, data):
            module = assess(trained, net, *images)
            confidences[name] = judged(module.logits, module.labels)[0]
            told = (
                ["", ""]
                if name == "test"
                else separate(confidences["test"], confidences[name]).values()
            )
            rows.append([view, name, float(confidences[name].mean()), *told, len(module.labels)])
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows(rows)
    write_text(folder / "ood.csv", table.getvalue())
    for row in rows:
        print(
            "{:16}{:16}{:>12}{:>10}{:>10}{:>8}".format(
                *(f"{x:.4f}" if isinstance(x, float) else x for x in row)
            )
        )
    draw_confidence(found, folder / "ood.png")


def views(trained: Any, mc: int, tta: int) -> dict[str, Any]:
    """Return the network of a checkpoint, its means over several views, and its weights without their average."""
    nets = {"network": trained.net()}
    if last := trained.unaveraged():
        nets = {"average": nets["network"], "last weights": trained._replace(state=last).net()}
    nets |= {f"mc={mc}": average(trained, mc, 0)} if mc else {}
    return nets | ({f"tta={tta}": average(trained, 0, tta)} if tta else {})


def average(trained: Any, mc: int, tta: int) -> Any:
    from tricklab.analysis.views import Averaged
    from tricklab.run.instantiate import build_each

    changes = build_each(trained.config.augment) if tta else {}
    return Averaged(
        trained.net(), trained.preprocess(), mc or tta, mc > 0, changes, trained.config.seed
    )


def sets(trained: Any, data: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the test set, the same under each change, and the test set of other data: name, data, change."""
    from tricklab.analysis import ood
    from tricklab.analysis.trained import compose_one

    config = trained.config
    yield "test", data, None
    yield "noise", data, ood.Noise(config.seed)
    yield "rotation", data, ood.rotation
    yield "blur", data, ood.blur
    unlike = "fake" if config.data._target_.endswith(".digits") else "digits"
    name = trained.arguments["other"] or unlike
    other = build(compose_one([f"data={name}"]).data, seed=config.seed)
    other.preprocess, test = trained.preprocess(), other.splits.test
    other.splits = other.splits._replace(
        test=test._replace(labels=test.labels * 0)
    )  # may be more than the network's
    yield name, other, ood.grey if trained.images.shape[0] == 1 else None


def assess(trained: Any, net: Any, data: Any, change: Any = None) -> Any:
    """Evaluate a network on a test set, whose images are changed first; return the module, with results and logits."""
    from torch import nn
    from torchvision.transforms import v2

    from tricklab.analysis.views import Averaged
    from tricklab.training import ImageClassifier

    trainer = make_trainer(trained.config.trainer)
    module, preprocess = ImageClassifier(net), data.preprocess
    module.temperature = trained.temperature
    parts = [v2.Lambda(change)] if change else []
    if isinstance(net, Averaged):  # views are made of the images as they are
        net.make_input = [preprocess.to(trainer.strategy.root_device)]
    else:
        parts.append(preprocess)
    data.preprocess = nn.Sequential(*parts)
    trainer.test(module, datamodule=data, verbose=False)
    data.preprocess = preprocess
    return module


def make_trainer(of_run: Any) -> Any:
    """Return a trainer with a run's accelerator and precision, which evaluates and keeps nothing."""
    import pytorch_lightning as pl
    from pytorch_lightning.utilities.exceptions import MisconfigurationException

    from tricklab.callbacks import ProgressBar

    options = {key: of_run[key] for key in ("accelerator", "precision", "limit_test_batches")}
    off: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_model_summary"), False)
    bar = ProgressBar(refresh_rate=10, console_kwargs={"stderr": True})
    try:
        return pl.Trainer(devices=1, callbacks=[bar], **options, **off)
    except (MisconfigurationException, ImportError, ValueError) as error:
        raise UserError(f"{options}: {error}") from error


def bootstrap(
    logits: Any, labels: Any, temperature: float, resamples: int
) -> dict[str, tuple[float, float]]:
    """Return an interval of 95 % for each result, from images drawn anew (Efron, 1979).

    It holds the middle of the values found. Those of a calibration error are too large, as drawing adds noise to what
    has no sign: its interval is mirrored at the result (the basic bootstrap).
    """
    import numpy as np

    from tricklab.metrics import evaluate

    rng, intervals = np.random.default_rng(0), {}
    drawn = (rng.integers(len(labels), size=len(labels)) for _ in range(resamples))
    found = [evaluate(logits[rows], labels[rows], temperature) for rows in drawn]
    for name, value in evaluate(logits, labels, temperature).items():
        low, high = np.quantile([values[name] for values in found], (0.025, 0.975))
        mirrored = max(0.0, 2 * value - high), max(0.0, 2 * value - low)
        intervals[f"test/{name}"] = mirrored if "ece" in name else (low, high)
    return {name: interval for name, interval in intervals.items() if name != "test/temperature"}


if __name__ == "__main__":
    launch(main, __doc__)
