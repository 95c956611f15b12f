"""Write the weights of a checkpoint as safetensors, with all that is needed to use them.

python scripts/export.py ckpt=RUN/checkpoints/best.ckpt [output=model.safetensors]

The file can stand for the checkpoint: ckpt=model.safetensors, model.weights=model.safetensors.
"""

import sys
from pathlib import Path

from tricklab import cli


def main() -> None:
    from omegaconf import OmegaConf
    from safetensors.torch import save

    from tricklab.network import read_trained

    trained = read_trained(sys.argv[1:], output=None)
    target = Path(
        trained.arguments["output"] or Path(trained.arguments["ckpt"]).with_suffix(".safetensors")
    )
    trained.net()  # that weights and config fit is known before anything is written
    state = {key: tensor.contiguous().clone() for key, tensor in trained.state.items()}
    target.write_bytes(save(state, metadata={"config": OmegaConf.to_yaml(trained.config)}))
    print(f"{target}: {sum(tensor.numel() for tensor in state.values()):,} numbers")


if __name__ == "__main__":
    cli.launch(main, __doc__)
