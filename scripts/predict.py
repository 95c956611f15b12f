"""Classify images: file, class and probability, as CSV.

python scripts/predict.py RUN input=FILE_OR_FOLDER
    output=predictions.csv    instead of the standard output
    top=5                     as many classes, in columns class_2, probability_2, ...
    embeddings=FILE.npz       the input of the head: embeddings [N, D] and files [N]
    data.num_workers=4        processes that decode, by default one per core

RUN is the folder of a run; ckpt=PATH names a checkpoint. Files that can't be decoded have empty
cells (rows of NaN) and are named at the end, after which the exit code is 1.
"""

import contextlib
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tricklab.analysis.arguments import read_command
from tricklab.cli.launch import launch
from tricklab.errors import UserError

if TYPE_CHECKING:  # imports torch
    from tricklab.analysis.trained import LoadedCheckpoint


def main() -> None:
    command = read_command(sys.argv[1:], input="", output="", top="1", embeddings="")
    options = command.options
    source = os.path.expanduser(options["input"])
    if not source or not (Path(source).is_file() or Path(source).is_dir()):
        raise UserError(f"input={source}: no image there. Expected one, or a folder of images")
    if options["embeddings"] and not options["embeddings"].endswith(".npz"):
        raise UserError(f"embeddings={options['embeddings']}: expected a name that ends in .npz")

    from tricklab.analysis import prediction  # imports torch: takes seconds
    from tricklab.analysis.trained import load_checkpoint

    checkpoint = load_checkpoint(command.checkpoint, command.overrides)
    top = read_top(options["top"], len(checkpoint.classes))
    prediction.make_decoder(checkpoint)  # refuses a network of other images
    files = prediction.find_images(Path(source))
    errors = write_predictions(checkpoint, files, top, options["output"], options["embeddings"])
    for path in filter(None, (options["output"], options["embeddings"])):
        print(f"{path}: {len(files) - len(errors):,} of {len(files):,} images")
    if errors:
        sys.exit("\n".join([*errors, f"error: {len(errors)} of {len(files)} files are left out"]))


def write_predictions(
    checkpoint: "LoadedCheckpoint", files: Sequence[Path], top: int, output: str, embeddings: str
) -> list[str]:
    """Write the table and the embeddings, unless their path is ""; return errors of decoding."""
    from tricklab.analysis.embeddings import open_embeddings
    from tricklab.analysis.prediction import format_row, header, open_output, predict

    errors = []
    with contextlib.ExitStack() as stack:
        writer = csv.writer(stack.enter_context(open_output(output)), lineterminator="\n")
        writer.writerow(header(top))
        kept = stack.enter_context(open_embeddings(embeddings, files)) if embeddings else None
        for predicted in predict(checkpoint, files):
            writer.writerow(format_row(predicted, checkpoint.classes, top))
            if kept:
                kept.add(predicted.embedding)
            if predicted.error:
                errors.append(predicted.error)
    return errors


def read_top(text: str, classes: int) -> int:
    """Return the number of classes in a row. Raises UserError: none, or more than there are."""
    if not text.isdecimal() or not 1 <= int(text) <= classes:
        raise UserError(f"top={text}; allowed: 1 to {classes}, the number of classes")
    return int(text)


if __name__ == "__main__":
    launch(main, __doc__)
