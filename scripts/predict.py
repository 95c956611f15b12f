"""Classify images: file, class and probability, as CSV.

python scripts/predict.py RUN input=FILE_OR_FOLDER [output=predictions.csv]

RUN is the folder of a run; ckpt=PATH names a checkpoint. Files that can't be decoded are named at
the end, after which the exit code is 1.
"""

import csv
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tricklab.analysis.arguments import read_command
from tricklab.cli.escape import for_csv, for_terminal
from tricklab.cli.launch import launch
from tricklab.errors import UserError
from tricklab.files import atomic_open

TEXT: dict[str, Any] = {  # names of files may be any bytes
    "encoding": "utf-8",
    "errors": "surrogateescape",
    "newline": "",
}


def main() -> None:
    command = read_command(sys.argv[1:], input="", output="")
    source = os.path.expanduser(command.options["input"])
    output = command.options["output"]
    if not source or not (Path(source).is_file() or Path(source).is_dir()):
        raise UserError(f"input={source}: no image there. Expected one, or a folder of images")

    from tricklab.analysis.prediction import check_channels, find_images, predict  # imports torch
    from tricklab.analysis.trained import load_checkpoint

    checkpoint = load_checkpoint(command.checkpoint, command.overrides)
    check_channels(checkpoint)
    files = find_images(Path(source))
    errors: list[str] = []
    with open_output(output) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "class", "probability"))
        for path, name, probability in predict(checkpoint, files, errors):
            writer.writerow((format_path(path), name, probability))
    if output:
        print(f"{output}: {len(files) - len(errors):,} of {len(files):,} images")
    if errors:
        sys.exit("\n".join([*errors, f"error: {len(errors)} of {len(files)} files are left out"]))


@contextmanager
def open_output(path: str) -> Iterator[TextIO]:
    """Open a file that is written as a whole or not at all; the standard output if `path` is ""."""
    if not path:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(**TEXT)
        yield sys.stdout
        return
    with atomic_open(Path(path).expanduser()) as file:
        text = io.TextIOWrapper(file, **TEXT)
        yield text
        text.detach()


def format_path(path: Path) -> object:
    """Return a path unchanged except for formulas, and for escape sequences on a terminal."""
    name = for_csv(str(path))
    return for_terminal(name) if sys.stdout.isatty() else name


if __name__ == "__main__":
    launch(main, __doc__)
