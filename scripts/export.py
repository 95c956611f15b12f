"""Write the weights of a checkpoint as safetensors, with everything needed to use them.

python scripts/export.py RUN [output=model.safetensors]

RUN is the folder of a run; ckpt=PATH names a checkpoint. The exported file can be used in place of
a checkpoint: ckpt=model.safetensors, model.weights=model.safetensors.
"""

import sys
from pathlib import Path

from tricklab.analysis.arguments import read_command
from tricklab.cli.launch import launch
from tricklab.errors import UserError
from tricklab.files import atomic_open


def main() -> None:
    command = read_command(sys.argv[1:], output="")
    output = command.options["output"] or command.checkpoint.with_suffix(".safetensors")
    path = Path(output)
    if path.suffix != ".safetensors":
        raise UserError(f"output={path}: expected a name that ends in .safetensors")

    from tricklab.analysis.trained import load_checkpoint  # imports torch: takes seconds

    checkpoint = load_checkpoint(command.checkpoint, command.overrides)
    checkpoint.net()  # refuses weights that do not fit the config
    with atomic_open(path) as file:
        file.write(checkpoint.to_safetensors())
    numbers = sum(tensor.numel() for tensor in checkpoint.state.values())
    print(f"{path}: {numbers:,} numbers")


if __name__ == "__main__":
    launch(main, __doc__)
