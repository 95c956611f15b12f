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

from helpers.paths import ROOT
from helpers.runs import Run, max_difference

TORCHRUN = Path(sys.executable).with_name("torchrun")
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "model=mlp", "hydra.run.dir=run")
SHORT = ("trainer.max_epochs=1", "callbacks.progress.refresh_rate=0")
PLAIN = (
    *SHORT,
    *("model=mlp", "model.widths=[16]", "model.batch_norm=false", "optimizer.momentum=0"),
    *("optimizer.nesterov=false", "trainer.deterministic=true"),
)
LONG = ("trainer.max_epochs=3000", "callbacks.progress.refresh_rate=0")
ONE_NODE = {"TORCHELASTIC_RUN_ID": "a", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
TWO_NODES = ONE_NODE | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def stress(*values):
    return pytest.param(*values, marks=pytest.mark.kills)


class Ranks:
    """Processes of one or two agents of torchrun, or started by Lightning (no agent).

    Each agent starts `per_agent` ranks; by default there are two ranks in all.
    """

    def __init__(self, folder, agents, *overrides, per_agent=None, script=ROOT / "train.py"):
        self.folder = folder
        self.torchrun = bool(agents)
        nodes = max(agents, 1)
        per_agent = per_agent or 2 // nodes
        devices = (f"trainer.devices={per_agent}", f"trainer.num_nodes={nodes}")
        train = [str(script), *DDP, *devices, *overrides]
        port = free_port()
        self.agents = []
        for node in range(nodes):
            launcher = [sys.executable]
            if agents:
                launcher = self.torchrun_command(nodes, node, per_agent, port)
            self.agents.append(self.start(node, [*launcher, *train]))

    def torchrun_command(self, nodes, node, per_agent, port):
        return [
            TORCHRUN,
            f"--nnodes={nodes}",
            f"--node_rank={node}",
            f"--nproc_per_node={per_agent}",
            "--master_addr=127.0.0.1",
            f"--master_port={port}",
            *("--log-dir", str(self.folder / f"log{node}"), "--redirects", "3"),
        ]

    def start(self, node, command):
        with (
            (self.folder / f"out{node}").open("w") as stdout,
            (self.folder / f"err{node}").open("w") as stderr,
        ):
            return subprocess.Popen(command, cwd=self.folder, stdout=stdout, stderr=stderr)

    def wait(self):
        """Return the exit code of each agent, which must not hang."""
        return [agent.wait(90) for agent in self.agents]

    def stderr(self):
        """Return stderr of each rank, or of Lightning's all together."""
        if not self.torchrun:
            return [(self.folder / "err0").read_text()]
        return [path.read_text() for path in sorted(self.folder.glob("log*/*/*/*/stderr.log"))]

    def stdout(self):
        if not self.torchrun:
            return (self.folder / "out0").read_text()
        paths = sorted(self.folder.glob("log*/*/*/*/stdout.log"))
        return "".join(path.read_text() for path in paths)

    def result(self):
        return json.loads((self.folder / "run" / "result.json").read_text())

    def kill(self, rank):
        """Kill a rank in the middle of training."""
        while not (self.folder / "run" / "metrics.csv").exists():
            assert self.agents[0].poll() is None, self.stderr()
            time.sleep(0.1)
        pid = next(pid for pid in self.pids() if read_rank(pid) == rank)
        os.kill(pid, signal.SIGKILL)

    def pids(self):
        """Yield the processes of the run, without torchrun's own."""
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_text().split("\0")
                is_here = (path / "cwd").readlink() == self.folder
            except OSError:
                continue
            if is_here and str(ROOT / "train.py") in command and str(TORCHRUN) not in command:
                yield int(path.name)


def read_rank(pid):
    text = Path(f"/proc/{pid}/environ").read_text()
    environment = dict(line.partition("=")[::2] for line in text.split("\0"))
    return int(environment.get("RANK", environment.get("LOCAL_RANK", 0)))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (ONE_NODE, "trainer=ddp trainer.devices=2 trainer.num_nodes=1"),
        (TWO_NODES, "trainer=ddp trainer.devices=2 trainer.num_nodes=2"),
        ({"SLURM_NTASKS": "2"}, "trainer=ddp trainer.devices=2 trainer.num_nodes=1"),
        (
            {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2"},
            "trainer=ddp trainer.devices=2 trainer.num_nodes=2",
        ),
    ],
)
def test_launcher_with_more_processes_than_devices_is_refused(
    train, tmp_path, monkeypatch, environment, expected
):
    """Each would train a run of its own."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = train("model=mlp", "hydra.run.dir=run")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: trainer.devices=1 trainer.num_nodes=1 does not match the ")
    assert line.endswith(f"Expected {expected}")
    assert not list(tmp_path.iterdir())


def test_tasks_without_a_number_for_each_node_are_refused(train, tmp_path, monkeypatch):
    """Lightning would answer with a traceback on each rank."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    done = train("trainer=ddp", "trainer.devices=2", "trainer.num_nodes=1", "hydra.run.dir=run")
    problem = "srun --ntasks=2: expected --nodes and --ntasks-per-node instead"
    assert (done.returncode, done.stderr) == (1, f"error: {problem}\n")
    assert not list(tmp_path.iterdir())


def test_run_on_several_machines_that_was_started_on_one_is_refused(train, tmp_path):
    """It would wait for the others for ever."""
    done = train("model=mlp", "trainer.num_nodes=2", "trainer.strategy=ddp")
    problem = "trainer.num_nodes=2 waits for other machines. Expected a start by torchrun or srun"
    assert (done.returncode, done.stderr) == (1, f"error: {problem}\n")
    assert not list(tmp_path.iterdir())


def test_sweep_under_torchrun_is_refused(train, tmp_path, monkeypatch):
    for name, value in ONE_NODE.items():
        monkeypatch.setenv(name, value)
    done = train("-m", "model=mlp", "seed=0,1")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: torchrun with -m; use ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("per_agent", [slow(1), stress(2)])
def test_two_agents_train_as_one_process(run, tmp_path, monkeypatch, per_agent):
    """As one process with the batches of all ranks: 2 x 1 or 2 x 2."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # otherwise torchrun warns that it sets that
    sizes = ("data.train_size=300", "data.val_size=100")  # the last batch has fewer images
    ranks = Ranks(tmp_path, 2, *PLAIN, *sizes, "data.batch_size=16", per_agent=per_agent)
    assert ranks.wait() == [0, 0]
    assert ranks.stderr() == [""] * 2 * per_agent
    assert [(tmp_path / f"err{node}").read_text() for node in (0, 1)] == ["", ""]
    result = ranks.result()
    assert result["status"] == "done"
    assert result["devices"] == ["cpu"] * 2 * per_agent
    assert result["images"] == {"train": 300, "val": 100, "test": 359}
    assert ranks.stdout().count("test accuracy") == 1
    assert " on 359 images (validation " in ranks.stdout()
    batch_size = f"data.batch_size={16 * 2 * per_agent}"
    single = run(*PLAIN, *sizes, batch_size, folder="single")
    difference = max_difference(Run(tmp_path / "run"), single)
    print(f"{2 * per_agent} ranks: largest difference {difference:.1e}")
    assert difference < 1e-6


@pytest.mark.parametrize(
    ("agents", "per_agent"),
    [stress(0, 3), stress(0, 2), stress(1, 3)],
)
def test_ranks_of_any_number_split_odd_sizes(tmp_path, agents, per_agent):
    """In the last batch of the validation set some ranks have no image."""
    sizes = ("data.train_size=301", "data.val_size=41", "data.batch_size=20")
    ranks = Ranks(tmp_path, agents, *SHORT, *sizes, per_agent=per_agent)
    assert ranks.wait() == [0] * max(agents, 1)
    assert "".join(ranks.stderr()) == ""
    has_too_few_cores = per_agent > len(os.sched_getaffinity(0))
    warnings = ranks.stdout().count("trainer.devices=3 processes share ")
    assert warnings == int(has_too_few_cores)
    assert ranks.result()["status"] == "done"
    assert ranks.result()["images"] == {"train": 301, "val": 41, "test": 359}
    assert not list(ranks.pids())


ERRORS = {
    "mixup=of": "mixup=of does not exist",  # before torch is imported
    "model.weights=nowhere": "model.weights=nowhere is not a file",  # before they meet
    "optimizer.lr=1e20": "step 1: train/loss=nan",  # in training
}


@pytest.mark.parametrize(
    ("agents", "override"),
    [
        slow(1, "mixup=of"),
        slow(2, "model.weights=nowhere"),
        slow(0, "optimizer.lr=1e20"),
        stress(0, "mixup=of"),
        stress(2, "mixup=of"),
        stress(0, "model.weights=nowhere"),
        stress(1, "model.weights=nowhere"),
        stress(1, "optimizer.lr=1e20"),
        stress(2, "optimizer.lr=1e20"),
    ],
)
def test_error_is_printed_once_for_all_ranks(tmp_path, agents, override):
    ranks = Ranks(tmp_path, agents, *SHORT, override, "optimizer.weight_decay=0")
    assert all(code > 0 for code in ranks.wait())
    (line,) = "".join(ranks.stderr()).splitlines()
    assert line.startswith(f"error: {ERRORS[override]}")


@pytest.mark.parametrize(
    "agents",
    [slow(1), stress(2)],
)
def test_folder_of_another_run_is_refused_once_for_all_ranks(tmp_path, agents):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("choices: {}")
    ranks = Ranks(tmp_path, agents, *SHORT)
    assert all(code > 0 for code in ranks.wait())
    (line,) = "".join(ranks.stderr()).splitlines()
    assert line.startswith("error: hydra.run.dir=run holds a run already")


@pytest.mark.parametrize(
    ("agents", "victim"),
    [slow(0, 1), stress(2, 1), stress(1, 0)],
)
def test_killed_rank_stops_the_others(tmp_path, agents, victim):
    ranks = Ranks(tmp_path, agents, *LONG)
    ranks.kill(victim)
    killed = time.time()
    assert all(code != 0 for code in ranks.wait())
    assert time.time() - killed < 45
    time.sleep(1)
    assert not list(ranks.pids())
    if victim:
        assert ranks.result()["status"] == "failed"
        assert "another process of this run" in ranks.result()["reason"]
        assert "".join(ranks.stderr()).startswith("error: another process of this run is gone")


@pytest.mark.parametrize(
    ("agents", "victim"),
    [slow(0, 0), stress(1, 1), stress(2, 0)],
)
def test_failing_rank_stops_the_others(tmp_path, agents, victim, monkeypatch):
    """While results are recorded: rank 0 alone does that, the others wait for it."""
    script = tmp_path / "fails.py"
    script.write_text(FAILING_TRAIN)
    monkeypatch.setenv("FAILS", str(victim))
    ranks = Ranks(tmp_path, agents, *SHORT, script=script)
    assert all(code != 0 for code in ranks.wait())
    assert ranks.result()["status"] == "failed"
    assert "no room" in ranks.result()["reason"]
    assert "".join(ranks.stderr()).count("no room") == 1


FAILING_TRAIN = f"""
import os
from tricklab.run import experiment

def fail(*arguments, **options):
    raise OSError("no room")

if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == os.environ["FAILS"]:
    experiment.count_images = fail
__file__ = {str(ROOT / "train.py")!r}  # runpy would change sys.argv[0], which Lightning starts
exec(compile(open(__file__).read(), __file__, "exec"))
"""


@pytest.mark.slow
def test_watch_that_is_stopped_does_not_abort_the_process(monkeypatch):
    """Torch's C++ code does not survive the end of Python in another thread."""
    environment = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "0"}
    for name, value in (environment | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", SLOW_STORE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "terminate called" not in done.stderr


# The thread is inside of torch's store, for a second, when the run ends
SLOW_STORE = """
import time
from datetime import timedelta
from tricklab.run import ranks

def ask_for_a_second():
    try:
        ranks.connect().wait(["never"], timedelta(seconds=1))
    except RuntimeError:
        return ""

ranks.read_failure = ask_for_a_second
watch = ranks.Watch(print)
time.sleep(0.7)
watch.stop()
assert not watch.threads[0].is_alive()
"""
