"""Write the weights of a checkpoint as safetensors, with all that is needed to use them.

python scripts/export.py RUN [output=model.safetensors]

RUN is the folder of a run; ckpt=PATH names a checkpoint.
The file can stand for the checkpoint: ckpt=model.safetensors, model.weights=model.safetensors.
"""

import sys
from pathlib import Path

from tricklab.cli.launch import launch
from tricklab.errors import UserError
from tricklab.files import atomic_open


def main() -> None:
    from tricklab.analysis.trained import read_trained

    trained = read_trained(sys.argv[1:], output=None)
    target = Path(trained.arguments["output"] or trained.path.with_suffix(".safetensors"))
    if target.suffix != ".safetensors":
        raise UserError(f"output={target}; expected a name that ends in .safetensors")
    trained.net()  # weights and config fit each other, before anything is written
    with atomic_open(target) as file:
        file.write(trained.to_safetensors())
    numbers = sum(tensor.numel() for tensor in trained.state.values())
    print(f"{target}: {numbers:,} numbers")


if __name__ == "__main__":
    launch(main, __doc__)
