"""Say what is on images: file, class and probability, as CSV.

python scripts/predict.py ckpt=RUN/checkpoints/best.ckpt input=FILE_OR_FOLDER [output=predictions.csv]
"""

import csv
import sys
from contextlib import nullcontext
from pathlib import Path

from tricklab import cli


def main() -> None:
    import torch

    from tricklab.data.folders import image_files
    from tricklab.data.images import decode
    from tricklab.network import read_trained

    trained = read_trained(sys.argv[1:], input=None, output=None)
    source, target, facts = (
        Path(str(trained.arguments["input"])),
        trained.arguments["output"],
        trained.config.dataset,
    )
    files = image_files(source) if source.is_dir() else [source] if source.is_file() else []
    if not files:
        raise cli.UserError(f"input={source}; allowed: an image, or a folder with images")
    if facts.channels not in (1, 3):
        raise cli.UserError(
            f"ckpt={trained.arguments['ckpt']} takes {facts.channels} channels; allowed: 1 or 3"
        )
    size, ground = (facts.height, facts.width), trained.config.data.get("background", "white")
    net, prepare, mode = trained.net(), trained.prepare(), "L" if facts.channels == 1 else "RGB"
    mixed = torch.autocast(
        "cpu", torch.bfloat16, enabled=trained.config.trainer.precision == "bf16-mixed"
    )
    rows: list[tuple[object, ...]] = [("file", "class", "probability")]
    for start in range(0, len(files), 256):
        batch = files[start : start + 256]
        images = torch.stack([decode(file, size, mode, ground) for file in batch])
        with torch.no_grad(), mixed:
            logits = net(prepare(images).to(next(net.parameters()).dtype))
        best = logits.float().softmax(1).max(1)
        classes = [facts.classes[label] for label in best.indices.tolist()]
        rows += zip(batch, classes, best.values.tolist(), strict=True)
    with (
        Path(target).open("w", newline="", encoding="utf-8")
        if target
        else nullcontext(sys.stdout) as file
    ):
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    cli.launch(main, __doc__)
