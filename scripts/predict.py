"""Say what is on images: file, class and probability, as CSV.

python scripts/predict.py RUN input=FILE_OR_FOLDER [output=predictions.csv]

RUN is the folder of a run; ckpt=PATH names a checkpoint. Files that can't be decoded are named at
the end, after which the exit code is 1.
"""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tricklab.cli.escape import for_csv, for_terminal
from tricklab.cli.launch import launch
from tricklab.errors import UserError
from tricklab.files import atomic_open

BATCH = 256  # images at a time
ENCODING: dict[str, Any] = {  # names of files may be any bytes
    "encoding": "utf-8",
    "errors": "surrogateescape",
    "newline": "",
}


def main() -> None:
    from tricklab.analysis.trained import read_trained

    trained = read_trained(sys.argv[1:], input=None, output=None)
    files, target = find_files(trained.arguments["input"]), trained.arguments["output"]
    if trained.dataset["channels"] not in (1, 3):
        channels = trained.dataset["channels"]
        raise UserError(f"ckpt={trained.path} takes {channels} channels; allowed: 1 or 3")
    damaged: list[str] = []
    with open_output(target) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("file", "class", "probability"))
        for rows in predict(trained, files, damaged):
            writer.writerows(rows)
    if target:
        print(f"{target}: {len(files) - len(damaged):,} of {len(files):,} images")
    if damaged:
        sys.exit("\n".join([*damaged, f"error: {len(damaged)} of {len(files)} files are left out"]))


def find_files(source: str | None) -> list[Path]:
    """Return the image that `input` names, or those in the folder. Raises UserError: none."""
    from tricklab.data.search import image_files

    path = Path(str(source)).expanduser()
    files = image_files(path) if path.is_dir() else [path] if path.is_file() else []
    if not files:
        raise UserError(f"input={source}: no image there; expected one, or a folder of images")
    return files


@contextmanager
def open_output(target: str | None) -> Iterator[TextIO]:
    """Open the file `target`, which is written whole or not at all, or the standard output."""
    if not target:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(**ENCODING)
        yield sys.stdout
        return
    with atomic_open(Path(target).expanduser()) as file:
        text = io.TextIOWrapper(file, **ENCODING)
        yield text
        text.detach()


def predict(trained: Any, files: Sequence[Path], damaged: list[str]) -> Iterator[list[Any]]:
    """Yield rows of file, class and probability; what can't be decoded is added to `damaged`."""
    import torch

    net, preprocess = trained.net(), trained.preprocess()
    names = [for_csv(for_terminal(name)) for name in trained.classes]
    dtype = next(net.parameters()).dtype
    mixed = trained.config.trainer.precision == "bf16-mixed"
    for start in range(0, len(files), BATCH):
        found, images = decode_all(trained, files[start : start + BATCH], damaged)
        if not found:
            continue
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = net(preprocess(torch.stack(images)).to(dtype))
        best = logits.float().softmax(1).max(1)
        classes = [names[label] for label in best.indices.tolist()]
        yield list(zip(map(shown, found), classes, best.values.tolist(), strict=True))


def shown(file: Path) -> object:
    """Return the name of a file for the table: as it is, but for what a spreadsheet or a terminal acts on."""
    name = for_csv(str(file))
    return for_terminal(name) if sys.stdout.isatty() else name


def decode_all(
    trained: Any, files: Sequence[Path], damaged: list[str]
) -> tuple[list[Path], list[Any]]:
    """Decode images as in training; return the files that could be decoded, and their pixels."""
    from tricklab.data.images import decode

    facts = trained.dataset
    size, mode = (facts["height"], facts["width"]), "L" if facts["channels"] == 1 else "RGB"
    background = trained.config.data.get("background", "white")
    found, images = [], []
    for file in files:
        try:
            images.append(decode(file, size, mode, background))
            found.append(file)
        except UserError as error:
            damaged.append(str(error))
    return found, images


if __name__ == "__main__":
    launch(main, __doc__)
