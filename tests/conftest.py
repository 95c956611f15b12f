"""Fixtures: runs of the real config, in this process and in others."""

import functools
import logging
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from helpers.commands import LIBRARIES, ForkServer, Output
from helpers.configs import configure
from helpers.paths import ROOT
from helpers.runs import Run
from tricklab.files import use_libyaml

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one test process a core; before torch is imported
use_libyaml()  # as each command does

OWN_PROCESS = re.compile("hydra/launcher=|trainer=ddp")  # they start processes themselves


@pytest.fixture(scope="session")
def fork_servers() -> Iterator[Callable[..., ForkServer]]:
    """Return the server that has imported these modules, started at its first use."""
    started: list[ForkServer] = []

    @functools.cache
    def find_server(*modules: str) -> ForkServer:
        started.append(ForkServer(*modules))
        return started[-1]

    yield find_server
    for server in started:
        server.stop()


@pytest.fixture
def train_without_torch(
    fork_servers: Callable[..., ForkServer],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Output]:
    """Run `train.py` in another working directory and a process without torch."""

    def train_without_torch(*overrides: str) -> Output:
        server = fork_servers("tricklab.cli.start", "tricklab.cli.launch")
        files = tmp_path_factory.mktemp("output")
        return server.run(files, tmp_path, str(ROOT / "train.py"), *overrides, env={**os.environ})

    return train_without_torch


@pytest.fixture
def fork_script(
    fork_servers: Callable[..., ForkServer],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Output]:
    """Run a script in a process that has imported libraries, and nothing of the project."""

    def fork_script(*command: str, **options: Any) -> Output:
        server = fork_servers(*LIBRARIES)
        files = tmp_path_factory.mktemp("output")
        options = {"env": {**os.environ}, **options}
        return server.run(files, tmp_path, *command, **options)

    return fork_script


@pytest.fixture
def restored_environ() -> Iterator[None]:
    """Restore the environment, in which Lightning's DDP leaves the rank for its children."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def run(
    tmp_path: Path, restored_environ: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Run]:
    """Run a config in this process, in a folder of its own.

    Without what takes as long as the rest: the progress bar and both figures of the test.
    """

    def run(
        *overrides: str,
        folder: str | Path = "run",
        choices: dict[str, str] | None = None,
        compose: Callable[..., DictConfig] = configure,
    ) -> Run:
        from tricklab.run import experiment

        monkeypatch.setattr(experiment, "draw_confusion", lambda *arguments: None)
        if "logger=wandb" not in overrides:  # W&B logs the figure
            monkeypatch.setattr(experiment, "draw_calibration", lambda *arguments: None)
        quiet = ("trainer.accelerator=cpu", "callbacks.progress.refresh_rate=0")
        experiment.run(compose(*quiet, *overrides), tmp_path / folder, overrides, choices)
        return Run(tmp_path / folder)

    return run


@pytest.fixture(scope="session")
def run_cache() -> dict[tuple[str, ...], Path]:
    """Folders of runs by their overrides."""
    return {}


@pytest.fixture
def cached_run(
    run: Callable[..., Run],
    run_cache: dict[tuple[str, ...], Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Run]:
    """Return a copy of a run with these overrides, which is trained once for all tests."""

    def cached_run(*overrides: str, folder: str = "run") -> Run:
        if overrides not in run_cache:
            original = tmp_path_factory.mktemp("cache") / "run"
            run_cache[overrides] = run(*overrides, folder=original).folder
        shutil.copytree(run_cache[overrides], tmp_path / folder)
        return Run(tmp_path / folder)

    return cached_run


@pytest.fixture
def run_script(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    restored_environ: None,
) -> Callable[..., Output]:
    """Run a script in this process, as if from the command line in another working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))

    def run_script(name: str, *arguments: str) -> Output:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capfd.readouterr()
        try:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(bool(error.code))
            print(error.code if isinstance(error.code, str) else "", file=sys.stderr)
        return Output(code, *capfd.readouterr())

    return run_script


@pytest.fixture
def train(
    run_script: Callable[..., Output], fork_script: Callable[..., Output], tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    """Run `train.py` in another working directory.

    In this process, which has imported torch; in a forked one if it starts processes itself (a
    launcher, DDP); or in a new one with `python`, the interpreter's options.
    """
    handlers = logging.root.handlers[:]
    on_sigterm = signal.getsignal(signal.SIGTERM)

    def train(*overrides: str, python: tuple[str, ...] = ()) -> Any:
        if python:
            command = [sys.executable, *python, str(ROOT / "train.py"), *overrides]
            return subprocess.run(
                command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8"
            )
        if OWN_PROCESS.search(" ".join(overrides)):
            return fork_script(str(ROOT / "train.py"), *overrides)
        return run_script("../train.py", *overrides)

    yield train
    logging.root.handlers[:] = handlers  # Hydra's write to streams that are closed by now
    signal.signal(signal.SIGTERM, on_sigterm)


@pytest.fixture
def class_folders(tmp_path: Path) -> Callable[..., Path]:
    """Make class folders of random images, in a path with spaces and an umlaut."""

    from helpers.datasets import write_class_folders

    def class_folders(images: dict[str, int], **options: Any) -> Path:
        root = tmp_path / "bilder für später"
        write_class_folders(root, images, **options)
        return root

    return class_folders


@pytest.fixture
def project_copy(tmp_path: Path) -> Path:
    """A copy of the project without results, as rows are written beside the claims."""
    from helpers.projects import copy_project

    return copy_project(tmp_path)
