"""Draw the first images as the network gets them, augmented and mixed, with targets: preview.png.

python scripts/preview.py [data=fashion_mnist augment=light mixup=on ...]    as for train.py
python scripts/preview.py data=fashion_mnist augment=none,crop,flip,erase    a row for each
"""

import sys
from pathlib import Path

from tricklab.cli.compose import compose_each
from tricklab.cli.launch import launch
from tricklab.cli.overrides import title


def main() -> None:
    configs = compose_each(sys.argv[1:])

    # imports torch: takes seconds
    from tricklab.analysis.preview import draw_preview, preview

    examples = {label: preview(config) for label, config in configs.items()}
    figure = draw_preview(examples, title() or "python train.py")
    folder = Path(next(iter(configs.values())).hydra.run.dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "preview.png", dpi=150)
    print(folder / "preview.png")


if __name__ == "__main__":
    launch(main, __doc__)
