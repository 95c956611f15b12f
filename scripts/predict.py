"""Classify images: file, class and probability, as CSV.

python scripts/predict.py RUN input=FILE_OR_FOLDER [output=predictions.csv]

RUN is the folder of a run; ckpt=PATH names a checkpoint. Files that can't be decoded are named at
the end, after which the exit code is 1.
"""

import csv
import os
import sys
from pathlib import Path

from tricklab.analysis.arguments import read_command
from tricklab.cli.launch import launch
from tricklab.errors import UserError


def main() -> None:
    command = read_command(sys.argv[1:], input="", output="")
    source = os.path.expanduser(command.options["input"])
    output = command.options["output"]
    if not source or not (Path(source).is_file() or Path(source).is_dir()):
        raise UserError(f"input={source}: no image there. Expected one, or a folder of images")

    from tricklab.analysis import prediction  # imports torch: takes seconds
    from tricklab.analysis.trained import load_checkpoint

    checkpoint = load_checkpoint(command.checkpoint, command.overrides)
    prediction.check_channels(checkpoint)
    files = prediction.find_images(Path(source))
    errors: list[str] = []
    with prediction.open_output(output) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "class", "probability"))
        for path, name, probability in prediction.predict(checkpoint, files, errors):
            writer.writerow((prediction.format_path(path), name, probability))
    if output:
        print(f"{output}: {len(files) - len(errors):,} of {len(files):,} images")
    if errors:
        sys.exit("\n".join([*errors, f"error: {len(errors)} of {len(files)} files are left out"]))


if __name__ == "__main__":
    launch(main, __doc__)
