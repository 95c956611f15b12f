"""Runs killed at any moment resume, and end bit for bit as uninterrupted ones.

`pytest -m kills` kills 30 at random.
"""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import pkgutil
import random
import signal
import time
from unittest import mock

import pytest
import torch
from PIL import Image

from helpers.runs import Run
from tricklab.data.datasets import digits
from tricklab.jobs.job import JobSpec
from tricklab.jobs.process import job_main

OVERRIDES = (
    *(
        "data=folder",
        "data.cache=none",
        "data.mode=L",
        "model=convnet",
        "model.dropout=0.2",
        "model.widths=[8,16]",
    ),
    *("mixup=on", "augment=[light,alternating_flip]", "callbacks=ema", "scheduler.warmup=2ep"),
    *("trainer.accelerator=cpu", "trainer.accumulate_grad_batches=3", "trainer.max_epochs=8"),
    *("data.train_size=350", "data.val_size=80", "data.batch_size=16"),  # 8 steps an epoch
    *("trainer.log_every_n_steps=1", "callbacks.last.every_n_steps=7"),
)
CASES = [  # schedule, workers, processes
    ("cosine", 0, 1),
    ("plateau", 2, 1),
    ("cosine", 2, 1),
    ("plateau", 0, 1),
    ("cosine", 0, 2),
    ("plateau", 2, 2),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The digits as files in class folders."""
    root, source = tmp_path_factory.mktemp("digits"), digits().splits
    for part, (pixels, labels) in (("train", source.train), ("test", source.test)):
        for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
            (root / part / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(root / part / str(label) / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def start(images):
    """Start `python train.py` in a process that has torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tricklab.run.experiment"])

    def start(folder, case, *more, until=("", 0)):
        scheduler, workers, processes = case
        overrides = [
            *OVERRIDES,
            f"data.root={images}",
            f"scheduler={scheduler}",
            f"data.num_workers={workers}",
            *more,
        ]
        overrides += (
            ["trainer=ddp", f"trainer.devices={processes}", "trainer.accelerator=cpu"]
            if processes > 1
            else []
        )
        folder.mkdir(parents=True, exist_ok=True)
        process = context.Process(
            target=run_until_killed,
            args=(*until, JobSpec(overrides, folder, "", None), "", 1, os.getpid()),
        )
        process.start()
        return process

    return start


def run_until_killed(target, number, *arguments):
    """Run a job that is killed at the n-th call of `target`, n being `number`.

    Its temporary files are on another file system.
    """
    os.environ["TMPDIR"] = "/dev/shm"
    if not target:
        return job_main(*arguments)
    real, calls = pkgutil.resolve_name(target), itertools.count(1)

    @functools.wraps(real)
    def call(*values, **options):
        if next(calls) == number:
            os.killpg(0, signal.SIGKILL)
        return real(*values, **options)

    with mock.patch(target, call):
        job_main(*arguments)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """Return an uninterrupted run, and the seconds from its first logged step to its end."""

    def once(case):
        folder = tmp_path_factory.mktemp("whole") / "run"
        process = start(folder, case)
        while last_step(folder) < 0 and process.is_alive():
            time.sleep(0.01)
        began = time.time()
        process.join()
        return Run(folder), time.time() - began

    return functools.cache(once)


def last_step(folder):
    """Return the last step that was logged, or -1."""
    try:
        complete_rows = (folder / "metrics.csv").read_text().split("\n")[:-1]
        return int(complete_rows[-1].split(",")[1])
    except (OSError, IndexError, ValueError):
        return -1


def assert_same(folder, wanted):
    log = (folder / "job.log").read_text()
    assert json.loads((folder / "result.json").read_text())["status"] == "done", log
    assert Run(folder).result["metrics"] == wanted.result["metrics"]
    assert (folder / "metrics.csv").read_text() == (wanted.folder / "metrics.csv").read_text()
    ours, theirs = (
        torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)
        for f in (folder, wanted.folder)
    )
    assert ours["global_step"] == theirs["global_step"]
    assert all(
        torch.equal(ours["state_dict"][key], tensor) for key, tensor in theirs["state_dict"].items()
    )


def kill_at_random(start, folder, case, whole, rng):
    """Start a run, kill all its processes at a random moment of a further step; return the step."""
    wanted, seconds = whole
    last = int(wanted.column("step")[-1])
    process, target = start(folder, case), rng.randrange(last_step(folder) + 1, last)
    while last_step(folder) < target and process.is_alive():
        time.sleep(0.002)
    process.join(rng.random() * seconds / last)
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    for path in folder.glob("checkpoints/*.ckpt"):
        torch.load(path, weights_only=True)
    return last_step(folder)


@pytest.mark.kills
@pytest.mark.parametrize(("number", "case"), [(3, CASES[0]), (2, CASES[3]), (1, CASES[4])])
def test_run_killed_six_times_equals_an_uninterrupted_one(start, whole, tmp_path, number, case):
    """The cases without workers, which take long to start."""
    kill_each(start, whole, tmp_path, [case] * number)


@pytest.mark.kills
def test_runs_killed_thirty_times_equal_uninterrupted_ones(start, whole, tmp_path, capsys):
    steps = kill_each(start, whole, tmp_path, CASES * 5)
    with capsys.disabled():
        print("\nschedule, workers, processes, step of the kill, steps of the run")
        for case, at, of in steps:
            print(*case, at, of, sep=", ")
    assert sum(0 <= at < of for _, at, of in steps) >= 25


def kill_each(start, whole, tmp_path, cases):
    rng, steps = random.Random(0), []
    for n, case in enumerate(cases):
        wanted, folder = whole(case)[0], tmp_path / str(n)
        at = kill_at_random(start, folder, case, whole(case), rng)
        start(folder, case).join()
        assert_same(folder, wanted)
        steps.append((case, at, int(wanted.column("step")[-1])))
    return steps


@pytest.mark.kills
@pytest.mark.parametrize(
    ("moment", "number", "at"),
    [
        (
            "tricklab.training.ImageClassifier.training_step",
            6,
            (0, 1),
        ),  # before the first checkpoint
        ("tricklab.run.folder.os.fsync", 9, (7, 40)),  # while a checkpoint is written
        ("tricklab.run.folder.os.replace", 10, (7, 40)),  # before it is renamed
        ("tricklab.training.ImageClassifier.validation_step", 40, (15, 16)),
        ("tricklab.run.record.Record.finish", 1, (63, 64)),  # after the last step
    ],
)
def test_run_killed_at_a_critical_moment_equals_an_uninterrupted_one(
    start, whole, tmp_path, moment, number, at
):
    wanted, _ = whole(CASES[0])
    process = start(tmp_path / "run", CASES[0], until=(moment, number))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert at[0] <= last_step(tmp_path / "run") <= at[1]
    assert not (tmp_path / "run" / "result.json").exists()
    start(tmp_path / "run", CASES[0]).join()
    assert_same(tmp_path / "run", wanted)


@pytest.mark.slow
def test_run_killed_twice_equals_an_uninterrupted_one(start, whole, tmp_path):
    wanted = whole(CASES[0])[0]
    for rng in (random.Random(1), random.Random(2)):
        kill_at_random(start, tmp_path / "run", CASES[0], whole(CASES[0]), rng)
    start(tmp_path / "run", CASES[0]).join()
    assert_same(tmp_path / "run", wanted)


@pytest.mark.kills
def test_comparison_notices_another_order(start, whole, tmp_path):
    """Otherwise the comparisons above would show nothing."""
    wanted, folder = whole(CASES[0])[0], tmp_path / "run"
    kill_at_random(start, folder, CASES[0], whole(CASES[0]), random.Random(0))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("\nseed: 0\n", "\nseed: 1\n"))
    start(folder, CASES[0], "seed=1").join()
    with pytest.raises(AssertionError):
        assert_same(folder, wanted)
    assert json.loads((folder / "result.json").read_text())["status"] == "done"
