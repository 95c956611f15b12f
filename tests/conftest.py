"""Runs of the real config, in this process and outside it."""

import csv
import functools
import gzip
import hashlib
import json
import logging
import os
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tricklab.cli.check import check
from tricklab.jobs.queue import Composer

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a test process a core; before torch is imported

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
LIBRARIES = (
    "pytorch_lightning",
    "torchvision",
    "sklearn.datasets",
    "scipy.stats",
    "wandb",
    "hydra.main",
    "matplotlib.figure",
)
ONE_BATCH = (
    "stop_after=1it",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=1",
)


def configure(*overrides: str, hydra: bool = False) -> DictConfig:
    return compose_whole(overrides) if hydra else compose_once(overrides)


def compose_whole(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])


def is_group(key: str) -> bool:
    return (CONF / key).is_dir()


with_hydra = Composer(compose_whole, is_group)
compose_once = Composer(lambda words: without_hydra(with_hydra(words)), is_group)


def checked(*overrides: str) -> DictConfig:
    """Compose a config and check it, as the command line does."""
    config = with_hydra(overrides)
    config.hydra.overrides.task = list(overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        check(config)
    return without_hydra(config)


def write_mnist(folder: Path, end: str = "") -> dict[int, Any]:
    """Write the four files of MNIST with 40 and 20 random images, and return these by their number."""
    import numpy as np

    random = np.random.default_rng(0)
    pixels = {n: random.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (40, 20)}
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", 40), ("t10k", 20)):
        for name, array in (
            ("images-idx3", pixels[n]),
            ("labels-idx1", (np.arange(n) % 10).astype(np.uint8)),
        ):
            content = (
                bytes([0, 0, 8, array.ndim])
                + struct.pack(f">{array.ndim}I", *array.shape)
                + array.tobytes()
            )
            file = folder / f"{part}-{name}-ubyte{end}"
            file.write_bytes(gzip.compress(content) if end else content)
    return pixels


def write_cifar(folder: Path, classes: int = 10) -> dict[str, Any]:
    """Write CIFAR's files with 20 random images each, byte for byte as Python 2 did, and return these by name."""
    import numpy as np

    random = np.random.default_rng(0)
    tens = classes == 10
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if tens else ["train", "test"]
    place, meta = ("cifar-10-batches-py", "batches.meta") if tens else ("cifar-100-python", "meta")
    (folder / place).mkdir(parents=True, exist_ok=True)
    pixels = {}
    for name in names:
        pixels[name] = random.integers(0, 256, (20 if tens else 100, 3072), dtype=np.uint8)
        labels = [i % classes for i in range(len(pixels[name]))]
        kind = "labels" if tens else "fine_labels"
        entries = (
            python2_text(kind)
            + python2_list(labels)
            + python2_text("data")
            + python2_array(pixels[name])
        )
        (folder / place / name).write_bytes(b"\x80\x02}(" + entries + b"u.")
    words = [python2_text(f"thing {i}") for i in range(classes)]
    entry = (
        python2_text("label_names" if tens else "fine_label_names") + b"](" + b"".join(words) + b"e"
    )
    (folder / place / meta).write_bytes(b"\x80\x02}(" + entry + b"u.")
    return pixels


def trust_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the files of CIFAR in a folder for the published ones."""
    from tricklab.data import published

    for path in folder.glob("cifar-10*/*"):
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(published.MD5, path.name, md5)


def python2_text(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def python2_list(numbers: list[int]) -> bytes:
    return b"](" + b"".join(b"K" + bytes([number]) for number in numbers) + b"e"


def python2_array(array: Any) -> bytes:
    shape = b"".join(b"J" + struct.pack("<i", size) for size in array.shape) + b"\x86"
    empty = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + python2_text("b")
        + b"\x87R"
    )
    kind = b"cnumpy\ndtype\n" + python2_text("u1") + b"K\x00K\x01\x87R(K\x03" + python2_text("|")
    kind += b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    return (
        empty
        + b"(K\x01"
        + shape
        + kind
        + b"\x89T"
        + struct.pack("<i", array.size)
        + array.tobytes()
        + b"tb"
    )


class Said(NamedTuple):
    """How a script ended, what it printed, and the modules that were imported by then, where these are asked for."""

    returncode: int
    stdout: str
    stderr: str
    modules: frozenset[str] = frozenset()


SERVER = """
import atexit, importlib, json, os, runpy, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    folder, environment, files, *sys.argv = json.loads(line)
    if (child := os.fork()) == 0:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = [os.path.dirname(sys.argv[0]), *environment.get("PYTHONPATH", "").split(os.pathsep)]
        for number, file in enumerate(files[:3]):
            os.dup2(os.open(file, os.O_CREAT | os.O_RDWR), number)
        atexit.register(lambda: print(*sys.modules, file=open(files[3], "w")))
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """A process that has imported some modules; for each command it forks one, as if `python` had imported them."""

    def __init__(self, *modules: str):
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", SERVER, *modules], **pipes)

    def run(
        self, files: Path, folder: Path, *command: str, env: dict[str, str], terminal: str = ""
    ) -> Said:
        """Run a script in a folder; what it prints goes to `files`, or with what it reads to a terminal."""
        places = [terminal or str(files / name) for name in ("in", "out", "err")]
        request = [str(folder), env, [*places, str(files / "modules")], *command]
        print(json.dumps(request), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())  # type: ignore[union-attr]
        out, err = (
            ("", "") if terminal else ((files / name).read_text("utf-8") for name in ("out", "err"))
        )
        return Said(code, out, err, frozenset((files / "modules").read_text().split()))


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[..., Server]]:
    """Servers by what they have imported."""
    start = functools.cache(Server)
    started: list[Server] = []

    def server(*modules: str) -> Server:
        started.append(start(*modules))
        return started[-1]

    yield server
    for one in started:
        one.process.stdin.close()  # type: ignore[union-attr]
        one.process.wait()


@pytest.fixture
def answer(
    servers: Callable[..., Server], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Run `train.py` from another working directory, in a process that has not imported torch before."""

    def answer(*arguments: str) -> Said:
        server, files = (
            servers("tricklab.cli.start", "tricklab.cli.launch"),
            tmp_path_factory.mktemp("said"),
        )
        return server.run(files, tmp_path, str(ROOT / "train.py"), *arguments, env={**os.environ})

    return answer


@pytest.fixture
def fresh(
    servers: Callable[..., Server], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Run a script in a process that has imported other libraries, and nothing of the project."""

    def fresh(*command: str, **options: Any) -> Said:
        server, files = servers(*LIBRARIES), tmp_path_factory.mktemp("said")
        return server.run(files, tmp_path, *command, **{"env": {**os.environ}, **options})

    return fresh


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
def environment() -> Iterator[None]:
    """Restore the environment, in which Lightning's DDP leaves the rank for its children."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def run(tmp_path: Path, environment: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Run a config in this process, in a folder of its own, without what takes as long as all else: bar and picture."""

    def run(
        *overrides: str,
        folder: str | Path = "run",
        choices: dict[str, str] | None = None,
        compose: Callable[..., DictConfig] = configure,
    ) -> Run:
        from tricklab.run import experiment

        if "logger=wandb" not in overrides:  # which shows it
            monkeypatch.setattr(experiment, "draw_calibration", lambda *arguments: None)
        quiet = ("trainer.accelerator=cpu", "callbacks.progress.refresh_rate=0")
        experiment.run(compose(*quiet, *overrides), tmp_path / folder, overrides, choices)
        return Run(tmp_path / folder)

    return run


@pytest.fixture(scope="session")
def kept() -> dict[tuple[str, ...], Path]:
    """The folders of runs by their words."""
    return {}


@pytest.fixture
def trained(
    run: Callable[..., Run],
    kept: dict[tuple[str, ...], Path],
    tmp_path: Path,
    tmp_path_factory: Any,
) -> Any:
    """Return a folder of its own with what a run of these words left, which is trained once for all tests."""

    def trained(*words: str, folder: str = "run") -> Run:
        if words not in kept:
            kept[words] = run(*words, folder=tmp_path_factory.mktemp("kept") / "run").folder
        shutil.copytree(kept[words], tmp_path / folder)
        return Run(tmp_path / folder)

    return trained


@pytest.fixture
def script(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    environment: None,
) -> Callable[..., Said]:
    """Run a script in this process, as if from the command line in another working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))

    def script(name: str, *arguments: str) -> Said:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capfd.readouterr()
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(bool(error.code))
            print(error.code if isinstance(error.code, str) else "", file=sys.stderr)
        return Said(code, *capfd.readouterr())

    return script


@pytest.fixture
def train(
    script: Callable[..., Said], fresh: Callable[..., Said], tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    """Run `train.py` from another working directory, in this process, which has imported torch; or in a new `python`.

    The jobs of a sweep come from one server for all tests, which has imported it too. Launchers and DDP get a fresh
    process: they start others themselves.
    """
    handlers, on_end = logging.root.handlers[:], signal.getsignal(signal.SIGTERM)

    def train(*arguments: str, python: tuple[str, ...] = ()) -> Any:
        if not python and not re.search("hydra/launcher=|trainer=ddp", " ".join(arguments)):
            return script("../train.py", *arguments)
        if not python:
            return fresh(str(ROOT / "train.py"), *arguments)
        command = [sys.executable, *python, str(ROOT / "train.py"), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
        )

    yield train
    logging.root.handlers[:] = handlers  # Hydra's writes to what is closed by then
    signal.signal(signal.SIGTERM, on_end)


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    """Make class folders of random images."""
    import numpy as np
    from PIL import Image

    def tree(
        parts: dict[str, int], classes: tuple[str, ...] = ("cat", "dog"), size: int = 12
    ) -> Path:
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
