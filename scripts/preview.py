"""Show the first images as training sees them, augmented and mixed, with their targets: preview.png.

python scripts/preview.py [data=fashion_mnist augment=light mixup=on ...]       overrides as for train.py
python scripts/preview.py data=fashion_mnist augment=none,crop,flip,erase      a row for each
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tricklab.cli.compose import compose_each
from tricklab.cli.launch import launch
from tricklab.cli.overrides import title
from tricklab.errors import UserError
from tricklab.run.build import build_data
from tricklab.run.plan import make_plan
from tricklab.run.weights import read_weights

ROWS, COLUMNS = 4, 8


def main() -> None:
    configs = compose_each(sys.argv[1:])

    from matplotlib import pyplot

    rows = ROWS if len(configs) == 1 else len(configs)
    size = (1.6 * COLUMNS, 1.9 * rows)
    figure, grid = pyplot.subplots(rows, COLUMNS, figsize=size, layout="constrained", squeeze=False)
    for part, (label, config) in zip(grid.reshape(len(configs), -1), configs.items(), strict=True):
        for axes, (image, text) in zip(part, first_images(config), strict=False):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.set_title(text, fontsize=8, parse_math=False)
        if len(configs) > 1:
            word = label.replace("=", "=\n")
            part[0].text(
                -0.1,
                0.5,
                word,
                transform=part[0].transAxes,
                ha="right",
                va="center",
                parse_math=False,
            )
    for axes in grid.flat:
        axes.axis("off")
    figure.suptitle(title() or "python train.py")
    folder = Path(next(iter(configs.values())).hydra.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "preview.png", dpi=150)
    print(folder / "preview.png")


def first_images(config: DictConfig) -> list[tuple[Any, str]]:
    """Return the first batch: images [H, W, C] of 0 .. 1, and the two largest shares of their targets."""
    data = build_data(config)
    data.integer_targets = False  # all are shown as shares
    data.mixup_window = make_plan(config, data, ranks=1).mixup_window
    if (weights := read_weights(config.model)) and weights.input_spec:
        data.match_input_spec(weights.input_spec)
    first = next(iter(data.training_batches(lambda: (0, 0))), None)
    if first is None:
        raise UserError(
            f"data.batch_size={data.batch_size} of {len(data.train_indices)} images makes no batch"
        )
    images, targets = data.training_batch(first, (0, 0))
    smoothing = config.loss.get("label_smoothing") or 0.0  # the loss smooths targets itself
    targets = (1 - smoothing) * targets + smoothing / len(data.classes)
    pixels = ((images - data.preprocess.shift) / data.preprocess.scale / 255).clamp(0, 1)
    shown = pixels if pixels.shape[1] in (1, 3) else pixels[:, :1]
    shares = [
        sorted(zip(target, data.classes, strict=True), key=lambda pair: -pair[0])[:2]
        for target in targets.tolist()
    ]
    texts = [
        "\n".join(f"{share:.2f} {name}" for share, name in largest if share > 0)
        for largest in shares
    ]
    return list(zip(shown.permute(0, 2, 3, 1).numpy(), texts, strict=True))


if __name__ == "__main__":
    launch(main, __doc__)
