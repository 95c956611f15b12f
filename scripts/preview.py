"""Show the first images as training sees them, augmented and mixed, with their targets: preview.png.

python scripts/preview.py [data=fashion_mnist augment=flip_crop mixup=on ...]       overrides as for train.py
"""

import sys
from pathlib import Path

from tricklab import cli

ROWS, COLUMNS = 4, 8


def main() -> None:
    configs = cli.compose_each(sys.argv[1:])
    if len(configs) > 1:
        raise cli.UserError(f"{len(configs)} configs; allowed: one, without values between commas")
    (config,) = configs.values()

    from matplotlib import pyplot

    from tricklab.build import build
    from tricklab.network import read_weights

    data = build(config.data, seed=config.seed, augment=build(config.augment), mixup=build(config.mixup))
    if (weights := read_weights(config.model)) and weights.images:
        data.adapt(weights.images)
    first = next(iter(data.training_batches(lambda: (0, 0))), None)
    if first is None:
        raise cli.UserError(f"data.batch_size={data.batch_size} of {len(data.train_rows)} images makes no batch")
    images, targets = data.training_batch(first, (0, 0))
    pixels = (images - data.prepare.shift) / data.prepare.scale / 255  # [B, C, H, W] of 0 .. 1
    figure, grid = pyplot.subplots(ROWS, COLUMNS, figsize=(1.6 * COLUMNS, 1.9 * ROWS), layout="constrained")
    figure.suptitle(cli.title() or "python train.py")
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, target in zip(grid.flat, pixels, targets, strict=False):
        shown = image if len(image) in (1, 3) else image[:1]
        axes.imshow(shown.permute(1, 2, 0).squeeze(2).clamp(0, 1), cmap="gray", vmin=0, vmax=1)
        parts = sorted(zip(target.tolist(), data.classes, strict=True), reverse=True)
        axes.set_title(
            "\n".join(f"{share:.2f} {name}" for share, name in parts[:2] if share > 0), fontsize=8, parse_math=False
        )
    folder = Path(config.hydra.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "preview.png", dpi=150)
    print(folder / "preview.png")


if __name__ == "__main__":
    cli.launch(main, __doc__)
