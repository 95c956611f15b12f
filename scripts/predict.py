"""Say what is on images: file, class and probability, as CSV.

python scripts/predict.py ckpt=RUN/checkpoints/best.ckpt input=FILE_OR_FOLDER [output=predictions.csv]
"""

import csv
import sys
from pathlib import Path

from tricklab import cli


def main() -> None:
    import torch

    from tricklab.checkpoint import read_trained
    from tricklab.data.files import decode, image_files
    from tricklab.errors import UserError

    trained = read_trained(sys.argv[1:], input=None, output=None)
    arguments, facts = trained.arguments, trained.config.dataset
    source, size, mode = Path(str(arguments.input)), (facts.height, facts.width), {1: "L", 3: "RGB"}[facts.channels]
    files = image_files(source) if source.is_dir() else [source] if source.is_file() else []
    if not files:
        raise UserError(f"input={arguments.input}; allowed: an image, or a folder with images")
    net, prepare = trained.net(), trained.prepare
    with Path(arguments.output or "/dev/stdout").open("w", newline="", encoding="utf-8") as target:
        table = csv.writer(target)
        table.writerow(["file", "class", "probability"])
        for start in range(0, len(files), 256):
            batch = files[start : start + 256]
            images = torch.stack([decode(file, size, mode) for file in batch])
            with torch.no_grad():
                best = net(prepare(images)).softmax(1).max(1)
            for file, probability, label in zip(batch, best.values.tolist(), best.indices.tolist(), strict=True):
                table.writerow([file, facts.classes[label], probability])


if __name__ == "__main__":
    cli.launch_script(main, __doc__)
