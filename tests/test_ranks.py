"""Runs of several processes: exit code, output and results of every rank."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.configs import configure
from helpers.paths import ROOT

from tricklab.cli.start import count_devices
from tricklab.devices import is_first, world_size

TORCHRUN = Path(sys.executable).with_name("torchrun")
WORDS = ("trainer=ddp", "trainer.accelerator=cpu", "model=mlp", "hydra.run.dir=run")
SHORT = ("trainer.max_epochs=1", "callbacks.progress.refresh_rate=0")
LONG = ("trainer.max_epochs=3000", "callbacks.progress.refresh_rate=0")


class Ranks:
    """Processes of torchrun, of one agent or of two, or of Lightning (no agent)."""

    def __init__(self, folder, agents, each, *words, script=ROOT / "train.py"):
        self.folder = folder
        many = (f"trainer.devices={each}", f"trainer.num_nodes={max(agents, 1)}")
        train = [str(script), *WORDS, *many, *words]
        place = (f"--nnodes={agents}", "--master_addr=127.0.0.1", f"--master_port={free_port()}")
        self.agents = []
        for node in range(max(agents, 1)):
            log = ("--log-dir", str(folder / f"log{node}"), "--redirects", "3")
            own = (*place, f"--node_rank={node}", f"--nproc_per_node={each}", *log)
            command = [TORCHRUN, *own, *train] if agents else [sys.executable, *train]
            with (folder / f"out{node}").open("w") as out, (folder / f"err{node}").open("w") as err:
                streams = {"stdout": out, "stderr": err}
                self.agents.append(subprocess.Popen(command, cwd=folder, **streams))
        self.torchrun = bool(agents)

    def end(self):
        """Return the exit code of each agent, which must not hang."""
        return [agent.wait(90) for agent in self.agents]

    def stderr(self):
        """Return what each rank wrote on stderr, or all of Lightning's together."""
        if not self.torchrun:
            return [(self.folder / "err0").read_text()]
        return [path.read_text() for path in sorted(self.folder.glob("log*/*/*/*/stderr.log"))]

    def stdout(self):
        if not self.torchrun:
            return (self.folder / "out0").read_text()
        return "".join(p.read_text() for p in sorted(self.folder.glob("log*/*/*/*/stdout.log")))

    def result(self):
        return json.loads((self.folder / "run" / "result.json").read_text())

    def kill(self, rank):
        """Kill a rank in the middle of training."""
        while not (self.folder / "run" / "metrics.csv").exists():
            assert self.agents[0].poll() is None, self.stderr()
            time.sleep(0.1)
        os.kill(next(pid for pid in self.pids() if rank_of(pid) == rank), signal.SIGKILL)

    def pids(self):
        """Return the processes that run in the folder, but for torchrun's own."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_text().split("\0")
                here = (path / "cwd").readlink() == self.folder
            except OSError:
                continue
            if here and str(ROOT / "train.py") in command and str(TORCHRUN) not in command:
                yield int(path.name)


def rank_of(pid):
    text = Path(f"/proc/{pid}/environ").read_text()
    environment = dict(line.partition("=")[::2] for line in text.split("\0"))
    return int(environment.get("RANK", environment.get("LOCAL_RANK", 0)))


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.parametrize(
    ("environment", "size", "first"),
    [
        ({}, 1, True),
        ({"TORCHELASTIC_RUN_ID": "a", "LOCAL_RANK": "0", "RANK": "1", "WORLD_SIZE": "2"}, 2, False),
        ({"TORCHELASTIC_RUN_ID": "a", "LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}, 1, True),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, 4, False),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "bash"}, 1, True),
        ({"LOCAL_RANK": "1", "PROCESSES_OF_RUN": "3"}, 3, False),
    ],
)
def test_world_size_and_first_rank_come_from_the_environment(monkeypatch, environment, size, first):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (world_size(), is_first()) == (size, first)


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        ((), 1),
        (("trainer.devices=2", "trainer.num_nodes=3"), 6),
        (("trainer.devices=[0,3]",), 2),
        (("trainer.devices='0,3'",), 2),
        (("trainer.devices='3'",), 3),
        (("trainer=ddp", "trainer.accelerator=cpu"), 1),
        (("trainer=ddp",), None),
        (("trainer.devices=-1",), None),
    ],
)
def test_devices_are_counted_as_far_as_they_are_known(words, devices):
    assert count_devices(configure(*words).trainer) == devices


@pytest.mark.parametrize(
    ("environment", "right"),
    [
        (
            {"TORCHELASTIC_RUN_ID": "a", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
            "trainer=ddp trainer.devices=2 trainer.num_nodes=1",
        ),
        (
            {
                "TORCHELASTIC_RUN_ID": "a",
                "LOCAL_RANK": "0",
                "WORLD_SIZE": "4",
                "LOCAL_WORLD_SIZE": "2",
            },
            "trainer=ddp trainer.devices=2 trainer.num_nodes=2",
        ),
        ({"SLURM_NTASKS": "2"}, "trainer=ddp trainer.devices=2 trainer.num_nodes=1"),
    ],
)
def test_processes_that_would_train_apart_are_refused(
    train, tmp_path, monkeypatch, environment, right
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = train("model=mlp", "hydra.run.dir=run")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: trainer.devices=1 trainer.num_nodes=1 does not match the ")
    assert line.endswith(f"Expected {right}")
    assert not list(tmp_path.iterdir())


def test_a_sweep_under_torchrun_is_refused(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = train("-m", "model=mlp", "seed=0,1")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1)
    assert done.stderr.startswith("error: torchrun with -m; use ")
    assert not list(tmp_path.iterdir())


def test_two_processes_of_torchrun_end_well(tmp_path):
    ranks = Ranks(tmp_path, 1, 2, *SHORT)
    assert ranks.end() == [0]
    assert ranks.stderr() == ["", ""]
    result = ranks.result()
    assert (result["status"], result["devices"]) == ("done", ["cpu", "cpu"])
    assert result["images"] == {"train": 1294, "val": 144, "test": 359}
    assert ranks.stdout().count("test accuracy") == 1
    assert " on 359 images (validation " in ranks.stdout()


@pytest.mark.slow
@pytest.mark.parametrize(("agents", "each"), [(0, 2), (0, 3), (1, 3), (2, 1)])
def test_any_number_of_processes_ends_well_with_odd_sizes(tmp_path, agents, each):
    """Of the validation set, some ranks have no image in the last batch."""
    sizes = ("data.train_size=301", "data.val_size=41", "data.batch_size=20")
    ranks = Ranks(tmp_path, agents, each, *SHORT, *sizes)
    assert ranks.end() == [0] * max(agents, 1)
    assert "".join(ranks.stderr()) == ""
    crowded = each > len(os.sched_getaffinity(0))
    assert ranks.stdout().count("trainer.devices=3 processes share ") == int(crowded)
    assert ranks.result()["status"] == "done"
    assert ranks.result()["images"] == {"train": 301, "val": 41, "test": 359}
    assert not list(ranks.pids())


@pytest.mark.slow
@pytest.mark.parametrize("agents", [0, 1, 2])
@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("mixup=of", "mixup=of does not exist"),  # before torch is imported
        ("model.weights=nowhere", "model.weights=nowhere is not a file"),  # before they meet
        ("optimizer.lr=1e20", "step 1: train/loss=nan"),  # in training
    ],
)
def test_a_refusal_is_one_line_of_all_ranks(tmp_path, agents, word, says):
    words = (*SHORT, word, "optimizer.weight_decay=0")
    ranks = Ranks(tmp_path, agents, 2 if agents < 2 else 1, *words)
    assert all(code > 0 for code in ranks.end())
    (line,) = "".join(ranks.stderr()).splitlines()
    assert line.startswith(f"error: {says}")


@pytest.mark.slow
@pytest.mark.parametrize("agents", [1, 2])
def test_a_folder_that_is_taken_is_one_line(tmp_path, agents):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("choices: {}")
    ranks = Ranks(tmp_path, agents, 2 if agents < 2 else 1, *SHORT)
    assert all(code > 0 for code in ranks.end())
    (line,) = "".join(ranks.stderr()).splitlines()
    assert line.startswith("error: hydra.run.dir=run holds a run already")


@pytest.mark.slow
@pytest.mark.parametrize("agents", [0, 1, 2])
@pytest.mark.parametrize("victim", [0, 1])
def test_no_rank_waits_for_one_that_was_killed(tmp_path, agents, victim):
    ranks = Ranks(tmp_path, agents, 2 if agents < 2 else 1, *LONG)
    ranks.kill(victim)
    killed = time.time()
    assert all(code != 0 for code in ranks.end())
    assert time.time() - killed < 45
    time.sleep(1)
    assert not list(ranks.pids())
    if victim:
        assert ranks.result()["status"] == "failed"
        assert "another process of this run" in ranks.result()["reason"]
        assert "".join(ranks.stderr()).startswith("error: another process of this run is gone")


@pytest.mark.slow
@pytest.mark.parametrize("agents", [0, 1, 2])
@pytest.mark.parametrize("victim", [0, 1])
def test_no_rank_waits_for_one_that_fails(tmp_path, agents, victim, monkeypatch):
    """While results are recorded: rank 0 alone does that, the others wait for it."""
    script = tmp_path / "fails.py"
    script.write_text(FAILS)
    monkeypatch.setenv("FAILS", str(victim))
    ranks = Ranks(tmp_path, agents, 2 if agents < 2 else 1, *SHORT, script=script)
    assert all(code != 0 for code in ranks.end())
    assert ranks.result()["status"] == "failed"
    assert "no room" in ranks.result()["reason"]
    assert "".join(ranks.stderr()).count("no room") == 1


FAILS = f"""
import os
from tricklab.run import experiment

def fail(*arguments, **options):
    raise OSError("no room")

if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == os.environ["FAILS"]:
    experiment.count_images = fail
__file__ = {str(ROOT / "train.py")!r}  # runpy would change sys.argv[0], which Lightning starts
exec(compile(open(__file__).read(), __file__, "exec"))
"""
