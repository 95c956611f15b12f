"""How a sweep chooses: with made-up results, so that what should be chosen is known; and with real runs."""

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
from conftest import ROOT, configure
from hydra.core.override_parser.overrides_parser import OverridesParser

from tricklab import sweep
from tricklab.errors import UserError
from tricklab.jobs.job import RunLength


class Jobs:
    """Stands for the jobs of a sweep: `measure` makes the results of a job from its words and epochs, or None."""

    def __init__(self, measure, *words):
        self.config, self.measure, self.ran, self.planned = configure(*words), measure, [], []

    def plan(self, words):
        self.planned.append(" ".join(words))
        given = {word.split("=")[0]: word.split("=")[1] for word in words}
        trainer = self.config.trainer
        epochs = int(given.get("trainer.max_epochs", trainer.max_epochs))
        steps = int(given.get("trainer.max_steps", trainer.max_steps))
        stop = given.get("stop_after")
        return SimpleNamespace(
            length=RunLength(
                epochs, steps, trainer.check_val_every_n_epoch, stop, "callbacks" in given
            )
        )

    def run(self, combinations, epoch_budget=0, label=""):
        self.ran.append((epoch_budget, [" ".join(words) for words in combinations]))
        found = [
            self.measure(dict(word.split("=") for word in words), epoch_budget)
            for words in combinations
        ]
        return [SimpleNamespace(value=m and m["val/acc"], result={"metrics": m}) for m in found]


def parse(*words):
    return OverridesParser.create().parse_overrides(list(words))


def test_a_grid_is_all_combinations():
    jobs = Jobs(lambda words, until: {"val/acc": 1.0})
    sweep.grid(parse("model=mlp", "mixup=off,on", "seed=range(2)", "augment=[flip,crop]"), jobs)
    assert jobs.ran == [
        (
            0,
            [
                f"model=mlp mixup={m} seed={s} augment=[flip,crop]"
                for m in ("off", "on")
                for s in (0, 1)
            ],
        )
    ]
    with pytest.raises(
        UserError, match=r"optimizer.lr=interval\(0,1\): an interval needs sweep=optuna"
    ):
        sweep.grid(parse("optimizer.lr=interval(0,1)"), jobs)


def learn(words, until):
    """Rates from 1 to 9, of which 5 is best, and the more so the longer it trains; a seed shifts all alike."""
    return {
        "val/acc": 1 - abs(int(words["lr"]) - 5) / 10 * (1 + until / 100) + int(words["seed"]) / 100
    }


def test_halving_keeps_the_best_with_all_their_seeds():
    jobs = Jobs(learn, "trainer.max_epochs=18")
    sweep.halving(parse("lr=range(1,10)", "seed=0,1"), jobs, factor=3, rounds=3)
    assert [until for until, _ in jobs.ran] == [2, 6, 0]
    assert [len(words) for _, words in jobs.ran] == [18, 6, 2]
    assert jobs.ran[1][1] == [f"lr={lr} seed={s}" for lr in (5, 4, 6) for s in (0, 1)]
    assert jobs.ran[2][1] == ["lr=5 seed=0", "lr=5 seed=1"]


def test_halving_drops_what_fails_and_validates_where_it_stops(capsys):
    jobs = Jobs(
        lambda words, until: (
            None if words["lr"] == "5" and words["seed"] == "1" else learn(words, until)
        )
    )
    jobs.config.trainer.max_epochs, jobs.config.trainer.check_val_every_n_epoch = 10, 4
    sweep.halving(parse("lr=4,5,7", "seed=0,1"), jobs, factor=2, rounds=2)
    assert [until for until, _ in jobs.ran] == [8, 0]
    assert {word.split()[0] for word in jobs.ran[1][1]} == {"lr=4", "lr=7"}
    assert "lr=4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "word",
    [
        "trainer.max_epochs=1,2",
        "trainer.max_steps=3",
        "trainer.max_steps=3,4",
        "stop_after=2ep",
        "callbacks=early_stopping",
    ],
)
def test_halving_counts_epochs(word):
    jobs = Jobs(learn)
    with pytest.raises(UserError, match="ends runs after whole epochs itself; expected one"):
        sweep.halving(parse(word), jobs, factor=3, rounds=3)
    assert not jobs.ran


def test_halving_has_no_round_without_training_and_stops_when_all_fail(capsys):
    jobs = Jobs(learn, "trainer.max_epochs=2")
    sweep.halving(parse("lr=1,4,5,9", "seed=0"), jobs, factor=3, rounds=4)
    assert [(until, len(words)) for until, words in jobs.ran] == [(1, 4), (0, 2)]
    jobs = Jobs(lambda words, until: None)
    capsys.readouterr()
    sweep.halving(parse("lr=1,4", "seed=0"), jobs, factor=3, rounds=3)
    assert len(jobs.ran) == 1
    assert "best" not in capsys.readouterr().out


def test_halving_keeps_folds_together():
    jobs = Jobs(
        lambda words, until: {"val/acc": int(words["data.fold"]) + int(words["lr"])},
        "trainer.max_epochs=9",
    )
    sweep.halving(parse("lr=1,2", "data.fold=0,1,2"), jobs, factor=2, rounds=2)
    assert jobs.ran[1][1] == [f"lr=2 data.fold={n}" for n in (0, 1, 2)]


def search(jobs, *words, trials=12, replicates=1, objectives=("val/acc",), batch=3, seed=0):
    sweep.optuna(parse(*words), jobs, trials, replicates, objectives, batch, seed)
    return [words for _, batch in jobs.ran for words in batch]


def quadratic(words, until):
    return {"val/acc": 1 - (math.log10(float(words["lr"])) + 1) ** 2, "val/ece": float(words["lr"])}


SPACE = ("model=mlp", "lr=tag(log,interval(0.001,10))", "depth=int(interval(1,4))", "mixup=off,on")


def test_optuna_proposes_the_same_again_and_comes_near(capsys):
    first, again, other = (
        search(Jobs(quadratic), *SPACE, trials=30, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert len(first) == 30
    parts = [dict(word.split("=") for word in words.split()) for words in first]
    assert all(
        part["model"] == "mlp" and part["seed"] == "0" and part["mixup"] in ("off", "on")
        for part in parts
    )
    assert {part["depth"] for part in parts} == set("1234")
    rates = sorted(float(part["lr"]) for part in parts)
    assert 0.001 <= rates[0] < 0.01 < 1 < rates[-1] <= 10  # by their logarithm
    assert max(quadratic(part, 0)["val/acc"] for part in parts) > 0.95
    said = capsys.readouterr().out.split("best: ")[1]
    assert max(quadratic(part, 0)["val/acc"] for part in parts) == pytest.approx(
        float(said.split()[1][:-1]), abs=1e-4
    )


def test_optuna_keeps_a_fold_that_is_given():
    ran = search(Jobs(quadratic), "data.fold=2", "seed=5", *SPACE, trials=2)
    assert all(
        "data.fold=2" in words and "seed=0" in words and "seed=5" not in words for words in ran
    )


def test_optuna_takes_the_mean_of_replicates(capsys):
    """The seeds follow on the one that is given, and half of the difference between them is what counts."""
    jobs = Jobs(
        lambda words, until: {
            "val/acc": {"off": 0.5, "on": 0.6}[words["mixup"]] * int(words["seed"])
        },
        "seed=3",
    )
    ran = search(jobs, "seed=3", "mixup=off,on", trials=4, replicates=2, batch=1)
    assert all(words.endswith(f"seed={3 + i % 2}") for i, words in enumerate(ran))
    assert "best: val/acc 2.1000: python train.py -m mixup=on seed=3,4" in capsys.readouterr().out


def test_optuna_with_two_objectives_and_failures(capsys):
    """Accuracy is maximised, calibration error minimised; a trial of which a replicate failed is none."""
    jobs = Jobs(lambda words, until: None if float(words["lr"]) > 0.3 else quadratic(words, until))
    search(jobs, *SPACE, trials=12, objectives=("val/acc", "val/ece"))
    said = [
        line.split(": python")[0]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("best")
    ]
    front = sorted(tuple(float(part.split()[1]) for part in line[6:].split(", ")) for line in said)
    assert len(front) > 1
    assert all(
        a[1] <= b[1] for a, b in itertools.pairwise(front)
    )  # more accuracy only for more error
    assert len(set(said)) == len(said)
    search(Jobs(lambda words, until: None), *SPACE)
    assert "best" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ("seed=0,1", "mixup=off,on"),
            "sweep=optuna, seed=0,1; expected values of other keys, and sweep.replicates",
        ),
        (("data.fold=0,1", "mixup=off,on"), "sweep=optuna, data.fold=0,1; expected"),
        (("mixup=on",), "sweep=optuna, no values to choose from"),
        (("lr=interval(0.1,0.01)",), r"lr=interval\(0.1,0.01\): "),
        (("lr=tag(log,interval(0,1))",), r"lr=tag\(log,interval\(0,1\)\): "),
    ],
)
def test_optuna_needs_something_to_search(words, says):
    with pytest.raises(UserError, match=says):
        search(Jobs(quadratic), *words)


@pytest.mark.parametrize("names", [(), ("val/ac",), ("val/acc", "test/acc")])
def test_an_objective_is_a_result_of_validation(names):
    jobs = Jobs(quadratic)
    with pytest.raises(
        UserError, match=r"sweep.objectives=.*; allowed: one or more of val/acc, val/loss, val/ece"
    ):
        search(jobs, *SPACE, objectives=names)
    assert not jobs.ran


def test_all_that_optuna_may_choose_is_checked_first():
    jobs = Jobs(quadratic)
    search(
        jobs,
        "depth=int(interval(1,4))",
        "lr=tag(log,interval(0.01,1))",
        "net=a,b,c",
        "tag=x",
        trials=1,
    )
    assert jobs.planned == [
        f"tag=x depth={d} lr={lr} net={net}"
        for d, lr, net in ((1, "0.01", "a"), (4, "1", "b"), (1, "0.01", "c"))
    ]


def sweep_of(folder: Path):
    listed = json.loads((folder / "sweep.json").read_text("utf-8"))["jobs"]
    return {" ".join(job["overrides"]): folder / job["folder"] for job in listed}


@pytest.mark.slow
def test_halving_finds_the_best_of_the_grid_at_a_third_of_its_epochs(train, tmp_path):
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
        words: json.loads((folder / "result.json").read_text())["objective"]
        for words, folder in whole.items()
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


@pytest.mark.slow
def test_optuna_killed_and_run_again_ends_with_the_same_best(train, tmp_path):
    words = (
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
    whole = train(*words, "hydra.sweep.dir=whole")
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words, "hydra.sweep.dir=killed"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    while len(list(tmp_path.glob("killed/*/result.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: os.stat(path).st_mtime_ns for path in tmp_path.glob("killed/*/result.json")}
    again = train(*words, "hydra.sweep.dir=killed")
    assert again.returncode == 0
    assert {path: os.stat(path).st_mtime_ns for path in done} == done
    assert [line for line in whole.stdout.splitlines() if line.startswith("best")] == [
        line for line in again.stdout.splitlines() if line.startswith("best")
    ]
    assert sweep_of(tmp_path / "whole").keys() == sweep_of(tmp_path / "killed").keys()


@pytest.mark.slow
def test_two_processes_in_a_sweep_are_one_with_the_double_batch(train, tmp_path):
    words = (
        "model=mlp",
        "model.batch_norm=false",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
    )
    two = train(
        "-m",
        *words,
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
        lr = next(word for word in result["overrides"] if word.startswith("optimizer.lr"))
        assert (
            train(*words, "data.batch_size=128", lr, f"hydra.run.dir=one{lr[13:]}").returncode == 0
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
