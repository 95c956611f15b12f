"""Runs of the real config, in this process and outside it."""

import csv
import gzip
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
ONE_BATCH = (
    "stop_after=1it",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=1",
)


def configure(*overrides: str, hydra: bool = False) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=hydra)


def write_mnist(folder: Path, end: str = "") -> dict[int, Any]:
    """Write the four files of MNIST with 40 and 20 random images, and return these by their number."""
    import numpy as np

    random = np.random.default_rng(0)
    pixels = {n: random.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (40, 20)}
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", 40), ("t10k", 20)):
        for name, array in (("images-idx3", pixels[n]), ("labels-idx1", (np.arange(n) % 10).astype(np.uint8))):
            content = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            file = folder / f"{part}-{name}-ubyte{end}"
            file.write_bytes(gzip.compress(content) if end else content)
    return pixels


class Run:
    """What a run left in its folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text("utf-8"))

    def column(self, name: str) -> list[float]:
        with (self.folder / "metrics.csv").open(newline="") as file:
            return [float(row[name]) for row in csv.DictReader(file) if row[name]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    """Run a config in this process, in a folder of its own."""

    def run(*overrides: str, folder: str = "run", choices: dict[str, str] | None = None) -> Run:
        from tricklab import experiment

        experiment.run(configure("trainer.accelerator=cpu", *overrides), tmp_path / folder, overrides, choices)
        return Run(tmp_path / folder)

    return run


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python train.py` from another working directory."""

    def train(*arguments: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *python, str(ROOT / "train.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")

    return train


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """Make class folders of random images."""
    import numpy as np
    from PIL import Image

    def tree(parts: dict[str, int], classes: tuple[str, ...] = ("cat", "dog"), size: int = 12) -> Path:
        random, root = np.random.default_rng(0), tmp_path / "bilder für später"
        for part, images in parts.items():
            for name in classes:
                folder = root / part / name
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(images):
                    pixels = random.integers(0, 256, (size, size + i, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.png")
        return root

    return tree
