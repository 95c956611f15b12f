"""Test a checkpoint on the data of its run or on others, also averaged over several views.

python scripts/evaluate.py RUN [data=folder data.root=PATH ...]
    mc=16                   Monte-Carlo dropout: the mean over 16 dropout masks
    tta=8 [augment=light]   test-time augmentation: the mean over 8 augmented views; by default
                            augmented as in training
    resamples=200           bootstrap resamples for the 95 % interval of each result; 0: none
    suite=ood [other=mnist] OOD detection: confidence on noise, on rotated and blurred images and on
                            other data, and how well it separates them from the test set; for the
                            network, each ensemble of views, and the raw weights of an average, side
                            by side; also as ood.csv and ood.png in the run folder

RUN is the folder of a run; ckpt=PATH names a checkpoint.
Names that end in _t are results after temperature scaling, fitted on validation.
"""

import sys

from tricklab.analysis.arguments import compose_one, read_command, read_count
from tricklab.cli.launch import launch
from tricklab.errors import UserError


def main() -> None:
    augment = [argument for argument in sys.argv[1:] if is_augment(argument)]
    others = [argument for argument in sys.argv[1:] if not is_augment(argument)]
    command = read_command(others, mc="0", tta="0", resamples="200", suite="", other="")
    options = command.options
    mc, tta, resamples = (read_count(options, name) for name in ("mc", "tta", "resamples"))
    if options["suite"] not in ("", "ood"):
        raise UserError(f"suite={options['suite']}; allowed: ood")
    if augment and not tta:
        raise UserError(f"{' '.join(augment)}: has an effect only with tta. Expected e.g. tta=8")
    if mc and tta and mc != tta and not options["suite"]:
        raise UserError(f"mc={mc} tta={tta}: expected the same number of views, or one of them")
    augmentation = compose_one(augment).augment if augment else None

    from tricklab.analysis import evaluation, ood  # import torch
    from tricklab.analysis.trained import load_checkpoint
    from tricklab.run.experiment import quiet_lightning

    quiet_lightning()
    checkpoint = load_checkpoint(command.checkpoint, command.overrides)
    if augmentation is not None:
        checkpoint.config.augment = augmentation
    if tta and not checkpoint.config.augment:
        raise UserError(f"tta={tta}: trained without augmentation. Expected e.g. augment=light")
    data = checkpoint.data()
    if options["suite"]:
        rows = ood.run_suite(checkpoint, data, mc, tta, options["other"])
        print(ood.format_table(rows))
    else:
        results = evaluation.evaluate_checkpoint(checkpoint, data, mc, tta, resamples)
        print(evaluation.format_results(results))


def is_augment(argument: str) -> bool:
    return argument.partition("=")[0].split(".")[0] == "augment"


if __name__ == "__main__":
    launch(main, __doc__)
