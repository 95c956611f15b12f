"""Data in whole runs: backgrounds, weights of other sizes, and resuming with other data."""

import re

import numpy as np
import pytest
from PIL import Image

from helpers.configs import ONE_BATCH, configure
from tricklab.errors import UserError
from tricklab.run.build import build_data


@pytest.mark.parametrize(
    ("library", "name", "side"), [("timm", "resnet10t", 176), ("torchvision", "squeezenet1_1", 224)]
)
def test_files_get_the_usual_size_of_a_network(class_folders, library, name, side):
    """Also without weights; data.size is another one."""
    root = f"data.root='{class_folders({'train': 9})}'"
    options = (f"model={library}", f"model.name={name}", "data=folder", root, "data.num_workers=0")
    assert build_data(configure(*options)).shape == (3, side, side)
    assert build_data(configure(*options, "data.size=24")).shape == (3, 24, 24)
    assert build_data(configure(*options, "model=convnet")).shape == (3, 32, 32)


def test_resume_refuses_another_mean(run, cached_run):
    folder = cached_run(*ONE_BATCH, "model=mlp").folder
    options = (*ONE_BATCH, "model=mlp", "resume=auto")
    text = (folder / "config.yaml").read_text()
    (mean,) = re.findall(r"  mean:\n  - (\S+)\n", text)
    (folder / "config.yaml").write_text(text.replace(mean, repr(float(mean) + 0.01)))
    with pytest.raises(UserError, match=r"dataset\.mean differs from last\.ckpt"):
        run(*options, folder=folder)
    (folder / "config.yaml").write_text(text)
    assert run(*options, folder=folder).result["status"] == "done"


def test_background_of_prediction_is_that_of_training(class_folders, run, run_script, tmp_path):
    folder = ("data=folder", f"data.root='{class_folders({'train': 9})}'", "data.num_workers=0")
    run(*ONE_BATCH, "model=mlp", *folder, "data.background=black", "data.batch_size=4")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    icon = Image.fromarray(pixels)
    composite = Image.new("RGBA", (8, 8), "black")
    composite.alpha_composite(icon)
    (tmp_path / "icons").mkdir()
    icon.save(tmp_path / "icons" / "clear.png")
    composite.convert("RGB").save(tmp_path / "icons" / "opaque.png")
    predicted = run_script("predict.py", "ckpt=run/checkpoints/best.ckpt", "input=icons")
    clear, opaque = (line.split(",")[1:] for line in predicted.stdout.splitlines()[1:])
    assert clear == opaque
