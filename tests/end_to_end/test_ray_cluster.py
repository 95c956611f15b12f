"""A sweep on a Ray cluster of two nodes, of which one is killed: `pytest -m kills -n 0`."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from helpers.paths import ROOT

RAY = Path(sys.executable).with_name("ray")
JOB = ("model=mlp", "trainer.max_epochs=100", "trainer.accelerator=cpu")
SWEEP = ("-m", *JOB, "seed=range(4)", "name=s", "hydra/launcher=ray_cluster")


class Cluster:
    """Two nodes of Ray on this machine, each with a GPU that is only declared."""

    def __init__(self, folder):
        self.temp = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # names of sockets are short
        self.folder = folder / "elsewhere"  # as on a machine where nobody ran `cd`
        self.folder.mkdir()
        self.address = f"127.0.0.1:{free_port()}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
        self.env = os.environ | token | {"RAY_ADDRESS": self.address}
        port = self.address.split(":")[1]
        head = ("--head", f"--port={port}", "--include-dashboard=false")
        self.nodes = [self.start(*head, f"--temp-dir={self.temp}")]
        self.nodes.append(self.start(f"--address={self.address}"))

    def start(self, *options):
        command = [RAY, "start", *options, "--num-cpus=2", "--num-gpus=1", "--block"]
        command += ["--object-store-memory=80000000", "--disable-usage-stats"]
        env = {name: value for name, value in self.env.items() if name != "RAY_ADDRESS"}
        log = self.folder / f"node{len(options)}.log"
        with log.open("w") as output:
            node = subprocess.Popen(command, cwd=self.folder, env=env, stdout=output, stderr=output)
        wait_for(lambda: "Ray runtime started" in log.read_text(), 60)
        return node

    def train(self, *overrides):
        return subprocess.Popen(
            [sys.executable, ROOT / "train.py", *overrides],
            cwd=self.folder.parent,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def kill(self, node):
        """Kill a node's raylet and workers, as if it had lost its power."""
        for pid in [node.pid, *descendants(node.pid)]:
            if re.search("raylet|ray::", command_of(pid)) or pid == node.pid:
                os.kill(pid, signal.SIGKILL)
        node.wait()

    def has_noticed(self):
        """Whether the cluster knows that a node is dead."""
        log = Path(self.temp) / "session_latest" / "logs" / "gcs_server.out"
        return "Node is dead because" in read(log)

    def stop(self):
        for node in self.nodes:
            pids = [node.pid, *descendants(node.pid)]
            for pid in pids:
                kill_if_alive(pid)
            node.wait()
        shutil.rmtree(self.temp, ignore_errors=True)


def kill_if_alive(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(condition, seconds):
    """Wait until a condition holds. Fails after so many seconds."""
    end = time.time() + seconds
    while not (found := condition()):
        assert time.time() < end, condition
        time.sleep(0.1)
    return found


def all_pids():
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def read(path):
    try:
        return path.read_text().replace("\0", " ")
    except OSError:
        return ""


def command_of(pid):
    return read(Path(f"/proc/{pid}/cmdline"))


def descendants(pid):
    """Return the IDs of the children of a process, and of theirs."""
    found = [pid]
    for parent in found:
        for child in all_pids():
            stat = read(Path(f"/proc/{child}/stat")).rpartition(")")[2].split()
            if stat and int(stat[1]) == parent:
                found.append(child)
    return found[1:]


def processes_of(folder):
    """Return the commands of processes whose working directory is this one."""
    found = {}
    for pid in all_pids():
        try:
            is_here = Path(f"/proc/{pid}/cwd").readlink() == folder
        except OSError:
            continue
        if is_here and pid != os.getpid():
            found[pid] = command_of(pid)
    return found


@pytest.fixture
def cluster(tmp_path):
    started = Cluster(tmp_path)
    yield started
    started.stop()


def results(folder):
    return {
        path.parent: json.loads(path.read_text())
        for path in (folder / "sweeps" / "s").glob("*/result.json")
    }


def is_done(folder):
    return [job for job, result in results(folder).items() if result["status"] == "done"]


def job_on(node, folder):
    """Return the folder of the job that runs on a node, once it has saved a checkpoint."""
    for pid in descendants(node.pid):
        output = Path(f"/proc/{pid}/fd/1")
        log = output.resolve() if output.exists() else output
        if log.name == "job.log" and (log.parent / "checkpoints" / "last.ckpt").exists():
            return log.parent
    return None


@pytest.mark.kills
@pytest.mark.parametrize("driver_dies", [False, True])
def test_sweep_survives_the_death_of_a_node(cluster, tmp_path, driver_dies):
    """Ray moves the job to the other node; if the command dies, too, it is given again."""
    first = cluster.train(*SWEEP)
    wait_for(lambda: is_done(tmp_path), 120)
    interrupted = wait_for(lambda: job_on(cluster.nodes[1], tmp_path), 60)
    done = {job: (job / "result.json").read_text() for job in is_done(tmp_path)}
    cluster.kill(cluster.nodes[1])
    killed = time.time()
    if driver_dies:
        first.kill()
        time.sleep(5)
        assert not processes_of(tmp_path)
    wait_for(cluster.has_noticed, 30)
    print(f"noticed {time.time() - killed:.0f} s after the kill")
    output, errors = first.communicate(timeout=200)
    print(f"first command: {time.time() - killed:.0f} s after the kill\n{output}\n{errors}")
    assert first.returncode == (-signal.SIGKILL if driver_dies else 0)
    again = cluster.train(*SWEEP)
    output, errors = again.communicate(timeout=200)
    print(f"{output}\n{errors}")
    assert again.returncode == 0
    count = len(done) if driver_dies else 4
    assert output.startswith(f"4 jobs, {count} done, in {tmp_path}/sweeps/s\n")
    assert "4 of 4 jobs done" in output
    for job, result in done.items():
        assert (job / "result.json").read_text() == result
    assert "resume: continues after step" in (interrupted / "job.log").read_text()
    time.sleep(5)
    assert not processes_of(tmp_path)
    seed = re.search(r"seed-(\d)", interrupted.name)[1]
    alone = cluster.train(*JOB, f"seed={seed}", "hydra.run.dir=one")
    alone.communicate(timeout=100)
    metrics = (tmp_path / "one" / "metrics.csv").read_text()
    assert (interrupted / "metrics.csv").read_text() == metrics


@pytest.mark.kills
def test_missing_cluster_is_named_in_one_line(train):
    done = train(*SWEEP)
    assert done.returncode == 1
    assert "error: Could not find any running Ray instance." in done.stderr
    assert "Traceback" not in done.stderr
