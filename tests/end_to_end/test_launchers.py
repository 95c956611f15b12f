"""Launchers of Hydra's plugins: real trainings through Ray, submitit and a mock of SLURM."""

import datetime
import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from helpers.paths import ROOT
from helpers.runs import Run, max_difference
from tricklab.jobs.process import run_launched_job

OVERRIDES = ("-m", "model=mlp", "trainer.max_epochs=1", "trainer.log_every_n_steps=1")
RAY = (
    "hydra/launcher=ray",
    "hydra.launcher.ray.init.num_gpus=2",
    "hydra.launcher.ray.init.num_cpus=8",
)
SBATCH = """#!{python}
import os, pathlib, re, subprocess, sys
script = pathlib.Path(sys.argv[1])
(pathlib.Path(__file__).parent / "submitted.sh").write_text(script.read_text())
quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
found = dict(re.findall(r"--(array|nodes|ntasks-per-node)=(?:0-)?([0-9]+)", script.read_text()))
nodes, tasks = int(found["nodes"]), int(found["ntasks-per-node"])
folder, job = pathlib.Path(__file__).parent, os.getpid()
(folder / "job").write_text(str(job))
for i in range(int(found.get("array", 0)) + 1):
    env = os.environ | dict(
        SLURM_JOB_ID=str(job + i), SLURM_NTASKS=str(nodes * tasks),
        SLURM_NTASKS_PER_NODE=str(tasks), SLURM_NNODES=str(nodes),
        SLURM_JOB_NUM_NODES=str(nodes), SLURM_JOB_NODELIST="localhost", SLURM_NODELIST="localhost",
    )
    if "array" in found:
        env |= dict(SLURM_ARRAY_JOB_ID=str(job), SLURM_ARRAY_TASK_ID=str(i))
    ended = folder / f"ended_{{i}}"
    subprocess.Popen(["bash", "-c", f"bash {{script}}; touch {{ended}}"], env=env, **quiet)
print(f"Submitted batch job {{job}}")
"""
SACCT = """#!/bin/bash
cd $(dirname $0)
echo 'JobID|State'
for i in 0 1; do
  if [[ -e ended_$i ]]; then state=COMPLETED; else state=RUNNING; fi
  echo "$(< job)_$i|$state"
  if [[ $i == 0 ]]; then echo "$(< job)|$state"; fi
done
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do if [[ $1 == --output || $1 == --error ]]; then shift; fi; shift; done
bin=$(dirname $0)
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
  (
    export SLURM_PROCID=$rank
    export SLURM_LOCALID=$((rank % SLURM_NTASKS_PER_NODE))
    export SLURM_NODEID=$((rank / SLURM_NTASKS_PER_NODE))
    "$@" 2> $bin/stderr_$rank
    echo $? > $bin/exit_$rank
  ) &
done
wait
"""


def results(sweep: Path):
    """Return the results of a sweep by job folder."""
    listed = json.loads((sweep / "sweep.json").read_text())["jobs"]
    return {
        job["folder"]: json.loads((sweep / job["folder"] / "result.json").read_text())
        for job in listed
    }


def count_simultaneous(jobs: list) -> int:
    """Return the largest number of jobs that ran at a time."""
    starts = [datetime.datetime.fromisoformat(job["started"]).timestamp() for job in jobs]
    spans = [(start, start + job["seconds"]) for start, job in zip(starts, jobs)]
    return max(sum(low <= start < high for low, high in spans) for start in starts)


WITHOUT = """
import runpy, sys
for name in ("hydra_plugins.hydra_ray_launcher", "hydra_plugins.hydra_submitit_launcher", "optuna"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("override", "needs"),
    [
        ("hydra/launcher=ray", "a plugin: pip install 'tricklab[ray]'"),
        ("hydra/launcher=ray_cluster", "a plugin: pip install 'tricklab[ray]'"),
        ("hydra/launcher=slurm", "a plugin: pip install 'tricklab[slurm]'"),
        ("sweep=optuna", "optuna: pip install 'tricklab[optuna]'"),
    ],
)
def test_launcher_that_is_not_installed_is_refused(train, override, needs):
    done = train("-m", "mixup=off,on", override, python=("-c", WITHOUT))
    assert (done.returncode, done.stderr) == (1, f"error: {override} needs {needs}\n")


@pytest.mark.parametrize("sweeper", ["search", "basic"])
def test_slurm_is_refused_on_a_machine_without_it(run_script, tmp_path, monkeypatch, sweeper):
    monkeypatch.setattr("tricklab.cli.start.find_spec", lambda name: True)
    monkeypatch.setattr("shutil.which", lambda command: None)
    done = run_script(
        "../train.py", "-m", "seed=0,1", "hydra/launcher=slurm", f"hydra/sweeper={sweeper}"
    )
    problem = "no sbatch on this machine; start the sweep where SLURM is"
    assert done.returncode == 1
    assert done.stderr == f"error: hydra/launcher=slurm: {problem}, or with hydra/launcher=local\n"
    assert not list(tmp_path.iterdir())


def test_launched_job_runs_where_the_sweep_was_started(tmp_path, monkeypatch):
    """A worker of a Ray cluster starts elsewhere; relative paths are those of the command."""
    (tmp_path / "start").mkdir()
    (tmp_path / "result.json").write_text('{"status": "done", "objective": 0.5}')
    runtime = SimpleNamespace(cwd=str(tmp_path / "start"))
    monkeypatch.setattr(HydraConfig, "get", lambda: SimpleNamespace(runtime=runtime))
    monkeypatch.chdir(tmp_path)
    assert run_launched_job([], tmp_path, OmegaConf.create()) == 0.5
    assert Path.cwd() == tmp_path / "start"


@pytest.mark.kills
def test_ray_runs_two_jobs_on_a_device(train, tmp_path):
    overrides = (
        *OVERRIDES,
        "trainer.max_epochs=40",
        "seed=range(5)",
        "name=s",
        *RAY,
    )  # so long that they meet
    done = train(*overrides, "hydra.launcher.ray.remote.num_gpus=0.5")
    assert done.returncode == 0, done.stderr
    assert "5 of 5 jobs done" in done.stdout
    devices = {}
    for result in results(tmp_path / "sweeps" / "s").values():
        devices.setdefault(result["cuda_visible_devices"], []).append(result)
    assert devices.keys() == set("01")
    assert max(map(count_simultaneous, devices.values())) == 2
    again = train(*overrides)
    assert (again.returncode, again.stdout.splitlines()[0]) == (
        0,
        f"5 jobs, 5 done, in {tmp_path}/sweeps/s",
    )
    assert "Ray" not in again.stdout


@pytest.mark.kills
def test_submitit_runs_the_same_jobs(train, tmp_path):
    assert train(*OVERRIDES, "seed=0,1", "name=ours").returncode == 0
    done = train(*OVERRIDES, "seed=0,1", "name=theirs", "hydra/launcher=submitit_local")
    assert done.returncode == 0, done.stderr
    ours, theirs = (
        sorted((tmp_path / "sweeps" / name).glob("*/metrics.csv")) for name in ("ours", "theirs")
    )
    assert len(ours) == 2
    assert [path.read_text() for path in ours] == [path.read_text() for path in theirs]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Put a mock of SLURM on the PATH; return its folder."""
    for name, text in {
        "sbatch": SBATCH.format(python=sys.executable),
        "srun": SRUN,
        "sacct": SACCT,
        "scancel": "#!/bin/bash\n",
    }.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


@pytest.mark.kills
def test_slurm_runs_jobs_as_an_array(train, tmp_path, slurm):
    options = (
        "hydra/launcher=slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.timeout_min=90",
    )
    done = train(*OVERRIDES, "seed=0,1", "name=s", *options)
    script = (slurm / "submitted.sh").read_text()
    print(script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 jobs done" in done.stdout
    lines = {
        line.removeprefix("#SBATCH --")
        for line in script.splitlines()
        if line.startswith("#SBATCH")
    }
    assert lines >= {
        *("array=0-1%2", "partition=gpu", "time=90", "nodes=1", "ntasks-per-node=1"),
        *("gpus-per-node=1", "cpus-per-task=4", "mem=16GB", "signal=USR2@120"),
    }
    assert "submitit.core._submit" in script
    for result in results(tmp_path / "sweeps" / "s").values():
        assert result["status"] == "done"


@pytest.mark.kills
def test_slurm_runs_a_job_on_two_nodes(train, run, tmp_path, slurm):
    """Four processes, two on each node, are the ranks of one run; as one process trains it."""
    plain = (
        *("model.widths=[16]", "model.batch_norm=false", "optimizer.momentum=0"),
        *("optimizer.nesterov=false", "data.train_size=300", "trainer.deterministic=true"),
    )
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.num_nodes=2", "trainer.devices=2")
    options = ("hydra/launcher=slurm", "hydra.launcher.tasks_per_node=2")
    done = train(*OVERRIDES, *plain, *ddp, *options, "data.batch_size=16", "name=s")
    script = (slurm / "submitted.sh").read_text()
    print(script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 jobs done" in done.stdout
    for option in ("nodes=2", "ntasks-per-node=2", "gpus-per-node=2", "signal=USR2@120"):
        assert f"#SBATCH --{option}\n" in script
    assert len([line for line in script.splitlines() if line.startswith("srun ")]) == 1
    while not (slurm / "ended_0").exists():
        time.sleep(0.1)
    assert [(slurm / f"exit_{rank}").read_text() for rank in range(4)] == ["0\n"] * 4
    assert [(slurm / f"stderr_{rank}").read_text() for rank in range(4)] == [""] * 4
    ((folder, result),) = results(tmp_path / "sweeps" / "s").items()
    job = tmp_path / "sweeps" / "s" / folder
    assert result["devices"] == ["cpu"] * 4
    assert [(job / f"job_rank-{rank}.log").read_text() for rank in (1, 2, 3)] == [""] * 3
    assert (job / "job.log").read_text().count("test accuracy") == 1
    assert "warning" not in (job / "job.log").read_text().lower()
    single = run(*OVERRIDES[1:], *plain, "data.batch_size=64", folder="single")
    difference = max_difference(Run(job), single)
    print(f"largest difference {difference:.1e}")
    assert difference < 1e-6


@pytest.mark.kills
def test_sbatch_script_of_the_documentation_trains_one_run(tmp_path, slurm):
    """On two nodes with a process each, instead of four."""
    text = (ROOT / "scripts" / "README.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", text, re.DOTALL)
    for old, new in {
        "node=4": "node=1",
        "devices=4": "devices=1 trainer.accelerator=cpu model=mlp trainer.max_epochs=1",
        "train.py": str(ROOT / "train.py"),
    }.items():
        assert old in script
        script = script.replace(old, new)
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["sbatch", "job.sh"], cwd=tmp_path, check=True)
    while not (slurm / "ended_0").exists():
        time.sleep(0.1)
    assert [(slurm / f"stderr_{rank}").read_text() for rank in range(2)] == [""] * 2
    assert [(slurm / f"exit_{rank}").read_text() for rank in range(2)] == ["0\n"] * 2
    (path,) = (tmp_path / "runs").glob("*/result.json")
    result = json.loads(path.read_text())
    assert (result["status"], result["devices"]) == ("done", ["cpu"] * 2)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ("hydra/launcher=slurm", "hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=4"),
            "hydra.launcher.nodes=2 hydra.launcher.tasks_per_node=4 does not match "
            "trainer.num_nodes=1 trainer.devices=auto. "
            "Expected trainer=ddp trainer.num_nodes=2 trainer.devices=4, or as many tasks",
        ),
        (
            ("hydra/launcher=slurm", "trainer.num_nodes=2", "trainer.devices=4"),
            "hydra.launcher.nodes=2 hydra.launcher.tasks_per_node=1 does not match "
            "trainer.num_nodes=2 trainer.devices=4. "
            "Expected trainer=ddp trainer.num_nodes=2 trainer.devices=1, or as many tasks",
        ),
        (
            ("trainer.num_nodes=2",),
            "trainer.num_nodes=2 -m hydra/launcher=local: "
            "expected hydra/launcher=slurm, or trainer.num_nodes=1",
        ),
    ],
)
def test_other_processes_than_those_of_a_run_are_refused(train, tmp_path, overrides, expected):
    """They would wait for others that never start, or each train the whole job."""
    done = train("-m", "trainer=ddp", "dry_run=true", "seed=0,1", *overrides)
    assert (done.returncode, done.stderr) == (1, f"error: {expected}\n")
    assert not list(tmp_path.iterdir())
