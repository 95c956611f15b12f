"""Draw where a network finds its predicted and the true class of an image: Grad-CAM, explain.png.

python scripts/explain.py RUN                          the worst mistakes on the test set
python scripts/explain.py RUN input=FILE_OR_FOLDER     other images; a folder's name is their class
    images=8                    at most so many
    output=explain.png

RUN is the folder of a run; ckpt=PATH names a checkpoint. For convolutional networks.
"""

import os
import sys
from pathlib import Path

from tricklab.analysis.arguments import read_command
from tricklab.cli.launch import launch
from tricklab.errors import UserError
from tricklab.files import save_figure

MAX_IMAGES = 64  # on a page


def main() -> None:
    command = read_command(sys.argv[1:], input="", images="8", output="explain.png")
    options = command.options
    number = read_number(options["images"])
    source = Path(os.path.expanduser(options["input"]))
    if options["input"] and not source.exists():
        raise UserError(f"input={source}: no image there. Expected one, or a folder of images")

    from tricklab.analysis import explanation  # imports torch: takes seconds
    from tricklab.analysis.prediction import find_images
    from tricklab.analysis.trained import load_checkpoint
    from tricklab.run.experiment import quiet_lightning

    quiet_lightning()
    checkpoint = load_checkpoint(command.checkpoint, command.overrides)
    if options["input"]:
        examples = explanation.read_examples(checkpoint, find_images(source)[:number])
        title = f"Grad-CAM of {len(examples)} images"
    else:
        examples = explanation.worst_mistakes(checkpoint, checkpoint.data(), number)
        title = f"Grad-CAM of the {len(examples)} mistakes of highest confidence"
    explained = list(explanation.explain(checkpoint, examples))
    figure = explanation.draw_page(explained, checkpoint.classes, title)
    output = Path(options["output"]).expanduser()
    save_figure(figure, output)
    print(f"{output}: {len(examples)} images")


def read_number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_IMAGES:
        raise UserError(f"images={text}; allowed: 1 to {MAX_IMAGES}")
    return int(text)


if __name__ == "__main__":
    launch(main, __doc__)
