"""Write a checkpoint for other programs, with a model card (README.md) beside it.

python scripts/export.py RUN [output=FILE]
    format=safetensors     the weights and all that is needed to use them here, in place of a
                           checkpoint: ckpt=FILE, model.weights=FILE; the default
    format=onnx            with the preprocessing: images [B, C, H, W] of 0 to 255, uint8, to
                           probabilities [B, K]; checked with onnxruntime before it is kept
    format=torch_export    the same for torch.export.load
    temperature=true       scale the logits by the temperature that was fitted on validation
    card=false             no model card

RUN is the folder of a run; ckpt=PATH names a checkpoint.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tricklab.analysis.arguments import Command, read_command
from tricklab.cli.launch import launch
from tricklab.cli.messages import unknown_name
from tricklab.cli.overrides import to_bool
from tricklab.errors import UserError
from tricklab.files import atomic_open, write_text

if TYPE_CHECKING:  # import torch
    from tricklab.analysis.trained import LoadedCheckpoint
    from tricklab.data.module import ImageData

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torch_export": ".pt2"}
RESAMPLES = 200  # of the intervals in the card


def main() -> None:
    options = {"output": "", "format": "", "temperature": "false", "card": "true"}
    command = read_command(sys.argv[1:], **options)
    kind, path = find_output(command)
    calibrated = to_bool("temperature", command.options["temperature"])
    has_card = to_bool("card", command.options["card"])
    if calibrated and kind == "safetensors":
        problem = "a safetensors file has it apart. Expected format=onnx or torch_export"
        raise UserError(f"temperature=true: {problem}")

    from tricklab.analysis.trained import load_checkpoint  # imports torch: takes seconds
    from tricklab.run.experiment import quiet_lightning

    quiet_lightning()
    checkpoint = load_checkpoint(command.checkpoint, command.overrides)
    checkpoint.net()  # refuses weights that do not fit the config
    data = find_data(checkpoint)
    content, message = make_file(checkpoint, data, kind, calibrated)
    with atomic_open(path) as file:
        file.write(content)
    print(f"{path}: {message}")
    if has_card:
        print(f"{write_card(checkpoint, data, kind, path, calibrated)}: model card")


def find_output(command: Command) -> tuple[str, Path]:
    """Return the format and the path. Raises UserError: an unknown format, or another's suffix."""
    output = command.options["output"]
    by_suffix = {suffix: kind for kind, suffix in SUFFIXES.items()}
    kind = command.options["format"] or by_suffix.get(Path(output).suffix, "safetensors")
    if kind not in SUFFIXES:
        raise UserError(unknown_name(f"format={kind}", kind, SUFFIXES))
    path = Path(output or command.checkpoint.with_suffix(SUFFIXES[kind]))
    if path.suffix != SUFFIXES[kind]:
        raise UserError(f"output={path}: expected a name that ends in {SUFFIXES[kind]}")
    return kind, path


def find_data(checkpoint: "LoadedCheckpoint") -> "ImageData | None":
    """Return the data of a checkpoint, None with a warning if they are not here."""
    try:
        return checkpoint.data()
    except UserError as error:
        print(f"warning: without its data, neither evaluated nor checked on them: {error}")
        return None


def make_file(
    checkpoint: "LoadedCheckpoint", data: "ImageData | None", kind: str, calibrated: bool
) -> tuple[bytes, str]:
    """Return the content of a file, and what it holds. Raises UserError: it differs."""
    from tricklab.analysis import export

    if kind == "safetensors":
        numbers = sum(tensor.numel() for tensor in checkpoint.state.values())
        return checkpoint.to_safetensors(), f"{numbers:,} numbers"
    formats: Any = {
        "onnx": (export.to_onnx, export.load_onnx),
        "torch_export": (export.to_torch_export, export.load_torch_export),
    }
    write, load = formats[kind]
    module = export.deploy(checkpoint, calibrated)
    content = write(module, export.input_shape(checkpoint))
    images, of = export.find_images(checkpoint, data)
    checked = export.check(module, load(content), images, of)
    difference = f"largest difference {checked.difference:.2g} on {checked.images} {checked.kind}"
    return content, f"{len(content):,} bytes, {difference}"


def write_card(
    checkpoint: "LoadedCheckpoint",
    data: "ImageData | None",
    kind: str,
    path: Path,
    calibrated: bool,
) -> Path:
    """Write the model card of an exported file, with an evaluation if there are data."""
    from tricklab.analysis import model_card
    from tricklab.analysis.evaluation import evaluate_checkpoint
    from tricklab.analysis.export import input_shape

    evaluation = evaluate_checkpoint(checkpoint, data, 0, 0, RESAMPLES) if data else None
    temperature = checkpoint.temperature if calibrated else 1.0
    shape = input_shape(checkpoint)
    subject = model_card.Subject(path.name, kind, shape, temperature, evaluation)
    card = model_card.card_path(path)
    write_text(card, model_card.format_card(checkpoint, subject))
    return card


if __name__ == "__main__":
    launch(main, __doc__)
