"""Search strategies of a sweep: with made-up results, whose best is known, and with real runs."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from helpers.configs import configure
from helpers.paths import ROOT
from tricklab import sweep
from tricklab.errors import UserError
from tricklab.jobs.job import RunLength


class Jobs:
    """Stands for the jobs of a sweep, with made-up results.

    `measure` returns the metrics of a job for its values by key and its epoch budget, or None
    if it fails.
    """

    def __init__(self, measure, *overrides):
        self.config = configure(*overrides)
        self.measure = measure
        self.ran = []
        self.planned = []

    def plan(self, overrides):
        self.planned.append(" ".join(overrides))
        values = to_values(overrides)
        trainer = self.config.trainer
        length = RunLength(
            int(values.get("trainer.max_epochs", trainer.max_epochs)),
            int(values.get("trainer.max_steps", trainer.max_steps)),
            trainer.check_val_every_n_epoch,
            values.get("stop_after"),
            "callbacks" in values,
        )
        return SimpleNamespace(length=length)

    def run(self, combinations, epoch_budget=0, label=""):
        self.ran.append((epoch_budget, [" ".join(overrides) for overrides in combinations]))
        jobs = []
        for overrides in combinations:
            metrics = self.measure(to_values(overrides), epoch_budget)
            value = metrics and metrics["val/acc"]
            jobs.append(SimpleNamespace(value=value, result={"metrics": metrics}))
        return jobs


def to_values(overrides):
    return dict(override.split("=") for override in overrides)


def parse(*overrides):
    return OverridesParser.create().parse_overrides(list(overrides))


def test_grid_runs_all_combinations():
    jobs = Jobs(lambda values, budget: {"val/acc": 1.0})
    sweep.grid(parse("model=mlp", "mixup=off,on", "seed=range(2)", "augment=[flip,crop]"), jobs)
    pairs = itertools.product(("off", "on"), (0, 1))
    expected = [f"model=mlp mixup={m} seed={s} augment=[flip,crop]" for m, s in pairs]
    assert jobs.ran == [(0, expected)]


def test_grid_refuses_an_interval():
    jobs = Jobs(lambda values, budget: {"val/acc": 1.0})
    message = r"optimizer.lr=interval\(0,1\): an interval needs sweep=optuna"
    with pytest.raises(UserError, match=message):
        sweep.grid(parse("optimizer.lr=interval(0,1)"), jobs)


def learn(values, budget):
    """Learning rates from 1 to 9: 5 is best, the more so the longer it trains.

    A seed shifts all alike.
    """
    distance = abs(int(values["lr"]) - 5) / 10
    return {"val/acc": 1 - distance * (1 + budget / 100) + int(values["seed"]) / 100}


def fail(values, budget):
    return None


def test_halving_keeps_the_best_with_all_seeds():
    jobs = Jobs(learn, "trainer.max_epochs=18")
    sweep.halving(parse("lr=range(1,10)", "seed=0,1"), jobs, factor=3, rounds=3)
    assert [budget for budget, _ in jobs.ran] == [2, 6, 0]
    assert [len(runs) for _, runs in jobs.ran] == [18, 6, 2]
    assert jobs.ran[1][1] == [f"lr={lr} seed={s}" for lr in (5, 4, 6) for s in (0, 1)]
    assert jobs.ran[2][1] == ["lr=5 seed=0", "lr=5 seed=1"]


def test_halving_drops_failures_and_stops_at_validations(capsys):
    def learn_or_fail(values, budget):
        is_failure = values["lr"] == "5" and values["seed"] == "1"
        return None if is_failure else learn(values, budget)

    jobs = Jobs(learn_or_fail)
    jobs.config.trainer.max_epochs = 10
    jobs.config.trainer.check_val_every_n_epoch = 4
    sweep.halving(parse("lr=4,5,7", "seed=0,1"), jobs, factor=2, rounds=2)
    assert [budget for budget, _ in jobs.ran] == [8, 0]
    assert {run.split()[0] for run in jobs.ran[1][1]} == {"lr=4", "lr=7"}
    assert "lr=4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "override",
    [
        "trainer.max_epochs=1,2",
        "trainer.max_steps=3",
        "trainer.max_steps=3,4",
        "stop_after=2ep",
        "callbacks=early_stopping",
    ],
)
def test_halving_refuses_other_lengths_than_epochs(override):
    jobs = Jobs(learn)
    with pytest.raises(UserError, match=r"ends runs after whole epochs itself. Expected one"):
        sweep.halving(parse(override), jobs, factor=3, rounds=3)
    assert not jobs.ran


def test_halving_has_no_round_without_training():
    jobs = Jobs(learn, "trainer.max_epochs=2")
    sweep.halving(parse("lr=1,4,5,9", "seed=0"), jobs, factor=3, rounds=4)
    assert [(budget, len(runs)) for budget, runs in jobs.ran] == [(1, 4), (0, 2)]


def test_halving_stops_when_all_fail(capsys):
    jobs = Jobs(fail)
    sweep.halving(parse("lr=1,4", "seed=0"), jobs, factor=3, rounds=3)
    assert len(jobs.ran) == 1
    assert "best" not in capsys.readouterr().out


def test_halving_keeps_folds_together():
    def add(values, budget):
        return {"val/acc": int(values["data.fold"]) + int(values["lr"])}

    jobs = Jobs(add, "trainer.max_epochs=9")
    sweep.halving(parse("lr=1,2", "data.fold=0,1,2"), jobs, factor=2, rounds=2)
    assert jobs.ran[1][1] == [f"lr=2 data.fold={n}" for n in (0, 1, 2)]


def search(jobs, *overrides, trials=12, replicates=1, objectives=("val/acc",), batch=3, seed=0):
    """Run `sweep.optuna`, and return all its runs as overrides in one string each."""
    sweep.optuna(parse(*overrides), jobs, trials, replicates, objectives, batch, seed)
    return [run for _, runs in jobs.ran for run in runs]


def quadratic(values, budget):
    """The best learning rate is 0.1; the calibration error rises with it."""
    lr = float(values["lr"])
    return {"val/acc": 1 - (math.log10(lr) + 1) ** 2, "val/ece": lr}


SPACE = ("model=mlp", "lr=tag(log,interval(0.001,10))", "depth=int(interval(1,4))", "mixup=off,on")


def test_optuna_is_reproducible_and_finds_the_optimum(capsys):
    first, again, other = (
        search(Jobs(quadratic), *SPACE, trials=30, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert len(first) == 30
    runs = [to_values(run.split()) for run in first]
    for values in runs:
        assert (values["model"], values["seed"]) == ("mlp", "0")
        assert values["mixup"] in ("off", "on")
    assert {values["depth"] for values in runs} == set("1234")
    lrs = sorted(float(values["lr"]) for values in runs)
    assert 0.001 <= lrs[0] < 0.01 < 1 < lrs[-1] <= 10  # on a logarithmic scale
    best = max(quadratic(values, 0)["val/acc"] for values in runs)
    assert best > 0.95
    printed = capsys.readouterr().out.split("best: ")[1].split()[1].rstrip(":")
    assert best == pytest.approx(float(printed), abs=1e-4)


def test_optuna_keeps_a_fixed_fold():
    for run in search(Jobs(quadratic), "data.fold=2", "seed=5", *SPACE, trials=2):
        assert "data.fold=2" in run
        assert "seed=0" in run
        assert "seed=5" not in run


def test_optuna_uses_the_mean_of_replicates(capsys):
    """The seeds start at the given one: 0.6 * (3 + 4) / 2 = 2.1 is the best mean."""

    def scale(values, budget):
        return {"val/acc": {"off": 0.5, "on": 0.6}[values["mixup"]] * int(values["seed"])}

    jobs = Jobs(scale, "seed=3")
    runs = search(jobs, "seed=3", "mixup=off,on", trials=4, replicates=2, batch=1)
    for i, run in enumerate(runs):
        assert run.endswith(f"seed={3 + i % 2}")
    assert "best: val/acc 2.1000: python train.py -m mixup=on seed=3,4" in capsys.readouterr().out


def test_optuna_returns_a_pareto_front_without_failures(capsys):
    """Accuracy is maximised, calibration error minimised; trials with a failed run don't count."""

    def fail_above(values, budget):
        return None if float(values["lr"]) > 0.3 else quadratic(values, budget)

    search(Jobs(fail_above), *SPACE, trials=12, objectives=("val/acc", "val/ece"))
    lines = []
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("best: "):
            lines.append(line.removeprefix("best: ").split(": python")[0])
    assert len(set(lines)) == len(lines) > 1
    front = sorted(tuple(float(part.split()[1]) for part in line.split(", ")) for line in lines)
    for (_, low), (_, high) in itertools.pairwise(front):
        assert low <= high  # higher accuracy only with a higher error


def test_optuna_prints_no_best_trial_when_all_fail(capsys):
    search(Jobs(fail), *SPACE)
    assert "best" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("seed=0,1", "mixup=off,on"),
            "sweep=optuna, seed=0,1. Expected values of other keys, and sweep.replicates",
        ),
        (("data.fold=0,1", "mixup=off,on"), "sweep=optuna, data.fold=0,1. Expected"),
        (("mixup=on",), "sweep=optuna, no values to choose from"),
        (("lr=interval(0.1,0.01)",), r"lr=interval\(0.1,0.01\): "),
        (("lr=tag(log,interval(0,1))",), r"lr=tag\(log,interval\(0,1\)\): "),
    ],
)
def test_optuna_refuses_an_empty_or_wrong_space(overrides, message):
    with pytest.raises(UserError, match=message):
        search(Jobs(quadratic), *overrides)


def test_optuna_refuses_floats_for_an_integer():
    message = r"whole numbers; use model.depth=int\(interval\(0.5,3\)\)"
    with pytest.raises(UserError, match=message):
        search(Jobs(quadratic, "model=resnet"), "model.depth=interval(0.5,3)")


@pytest.mark.parametrize("names", [(), ("val/ac",), ("val/acc", "test/acc")])
def test_optuna_refuses_unknown_objectives(names):
    jobs = Jobs(quadratic)
    message = r"sweep.objectives=.*; allowed: one or more of val/acc, val/loss, val/ece"
    with pytest.raises(UserError, match=message):
        search(jobs, *SPACE, objectives=names)
    assert not jobs.ran


def test_optuna_refuses_top5_accuracy_of_few_classes():
    message = "val/acc_top5 is only computed for 20 or more classes"
    with pytest.raises(UserError, match=message):
        search(Jobs(quadratic), *SPACE, objectives=("val/acc_top5",))


def test_optuna_maximises_per_class_means_and_minimises_losses():
    names = ["val/balanced_acc", "val/f1_macro", "val/acc", "val/loss", "val/ece"]
    sweep.check_objectives(names)
    directions = [direction.name for direction in sweep.create_study(names, 0).directions]
    assert directions == ["MAXIMIZE"] * 3 + ["MINIMIZE"] * 2


def test_optuna_refuses_objectives_that_runs_of_an_earlier_version_lack():
    with pytest.raises(UserError, match="val/f1_macro is missing in runs of an earlier version"):
        search(Jobs(quadratic), *SPACE, objectives=("val/f1_macro",))


def test_optuna_checks_choices_and_ends_of_intervals_first():
    jobs = Jobs(quadratic)
    lr = "lr=tag(log,interval(0.01,1))"
    search(jobs, "depth=int(interval(1,4))", lr, "net=a,b,c", "tag=x", trials=1)
    assert jobs.planned == [
        "tag=x depth=1 lr=0.01 net=a",
        "tag=x depth=4 lr=1 net=b",
        "tag=x depth=1 lr=0.01 net=c",
    ]


def sweep_of(folder: Path):
    listed = json.loads((folder / "sweep.json").read_text("utf-8"))["jobs"]
    return {" ".join(job["overrides"]): folder / job["folder"] for job in listed}


@pytest.mark.slow
def test_halving_finds_the_best_of_the_grid_in_a_third_of_the_epochs(train, tmp_path):
    """And what survives is the run that was never stopped, to the last bit."""
    rates = "optimizer.lr=1e-6,1e-5,3e-5,1e-4,3e-4,1e-3,3e-3,0.1,1"
    grid = (
        "-m",
        "model=mlp",
        "trainer.max_epochs=9",
        "data.val_size=500",
        rates,
        "seed=0",
        "slots=2",
    )
    done = train(*grid, "sweep=halving", "hydra.sweep.dir=halved")
    assert done.returncode == 0, done.stdout
    rounds = [
        line.split(":")[1].split(",")[0]
        for line in done.stdout.splitlines()
        if " of 9 epochs" in line
    ]
    assert rounds == [" 9 jobs", " 3 jobs", " 1 job"]
    assert train(*grid, "hydra.sweep.dir=whole").returncode == 0
    halved, whole = sweep_of(tmp_path / "halved"), sweep_of(tmp_path / "whole")
    values = {
        overrides: json.loads((folder / "result.json").read_text())["objective"]
        for overrides, folder in whole.items()
    }
    best = max(values, key=values.__getitem__)
    assert f"best: python train.py {best.removesuffix(' seed=0')}\n" in done.stdout
    epochs = [
        max(
            int(line.split(",")[0])
            for line in (folder / "metrics.csv").read_text().splitlines()[1:]
        )
        + 1
        for folder in halved.values()
    ]
    assert sum(epochs) == 21 <= 9 * 9 / 3
    assert (halved[best] / "metrics.csv").read_bytes() == (whole[best] / "metrics.csv").read_bytes()
    ours, theirs = (
        torch.load(f[best] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for f in (halved, whole)
    )
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    again = train(*grid, "sweep=halving", "hydra.sweep.dir=halved").stdout
    rounds = [
        line.split(": ")[1].split(", in")[0]
        for line in again.splitlines()
        if " of 9 epochs" in line
    ]
    assert rounds == ["9 jobs, 9 done", "3 jobs, 3 done", "1 job, 1 done"]
    assert (
        " 9 jobs, 9 done" in train(*grid, "sweep=halving", "hydra.sweep.dir=whole").stdout
    )  # they are in the grid


@pytest.mark.kills
def test_optuna_killed_and_repeated_finds_the_same_best(train, tmp_path):
    overrides = (
        "-m",
        "model=mlp",
        "trainer.max_epochs=2",
        "optimizer.lr=tag(log,interval(0.001,1))",
        "mixup=off,on",
        "slots=2",
        "sweep=optuna",
        "sweep.trials=4",
        "sweep.objectives=[val/acc,val/ece]",
    )
    whole = train(*overrides, "hydra.sweep.dir=whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides, "hydra.sweep.dir=killed"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    while len(list(tmp_path.glob("killed/*/result.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: os.stat(path).st_mtime_ns for path in tmp_path.glob("killed/*/result.json")}
    again = train(*overrides, "hydra.sweep.dir=killed")
    assert again.returncode == 0
    assert {path: os.stat(path).st_mtime_ns for path in done} == done
    assert [line for line in whole.stdout.splitlines() if line.startswith("best")] == [
        line for line in again.stdout.splitlines() if line.startswith("best")
    ]
    assert sweep_of(tmp_path / "whole").keys() == sweep_of(tmp_path / "killed").keys()


@pytest.mark.slow
def test_sweep_with_two_processes_a_job_equals_a_double_batch(train, tmp_path):
    overrides = (
        "model=mlp",
        "model.batch_norm=false",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
    )
    two = train(
        "-m",
        *overrides,
        "data.batch_size=64",
        "trainer=ddp",
        "trainer.devices=2",
        "optimizer.lr=0.05,0.1",
        "name=two",
        "hydra/launcher=ray",
        "hydra.launcher.ray.init.num_cpus=2",
    )
    assert two.returncode == 0, two.stdout + two.stderr
    folders = sweep_of(tmp_path / "sweeps" / "two").values()
    assert len(folders) == 2
    for folder in folders:
        result = json.loads((folder / "result.json").read_text())
        assert result["devices"] == ["cpu", "cpu"]
        lr = next(
            override for override in result["overrides"] if override.startswith("optimizer.lr")
        )
        assert (
            train(*overrides, "data.batch_size=128", lr, f"hydra.run.dir=one{lr[13:]}").returncode
            == 0
        )
        a, b = (
            torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for f in (folder, tmp_path / f"one{lr[13:]}")
        )
        assert all(torch.allclose(a[key], b[key], rtol=0, atol=1e-6) for key in a)
    assert (
        len([f for f in (tmp_path / "sweeps" / "two").iterdir() if f.is_dir() and f.name[0] != "."])
        == 2
    )
