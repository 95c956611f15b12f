"""Sweeps through the command line: their jobs, results, and deaths of jobs and drivers."""

import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from helpers.configs import configure
from helpers.paths import ROOT
from tricklab.cli.config import to_plain
from tricklab.cli.names import sweep_name
from tricklab.cli.overrides import quote
from tricklab.jobs import process, queue
from tricklab.jobs.job import Job, JobSpec
from tricklab.jobs.process import job_main
from tricklab.jobs.queue import Jobs
from tricklab.run.identity import config_hash

SERVERS = pytest.mark.xdist_group("servers")  # which start once for all

SHORT = ("model=mlp", "trainer.max_epochs=1")
LONG = ("model=mlp", "trainer.max_epochs=80", "name=long", "slots=2")


def jobs(folder: Path) -> dict[str, Path]:
    """Return the folders of the jobs of a sweep by their overrides."""
    listed = json.loads((folder / "sweep.json").read_text("utf-8"))["jobs"]
    return {" ".join(job["overrides"]): folder / job["folder"] for job in listed}


def result(folder: Path):
    return json.loads((folder / "result.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (("model=mlp", "seed=0,1", "optimizer.lr=0.1"), "digits_mlp_optimizer.lr-0.1_by_seed"),
        (
            ("seed=range(3)", "optimizer.lr=0.1", "model=mlp", "slots=2"),
            "digits_mlp_optimizer.lr-0.1_by_seed",
        ),
        (("mixup=on,off", "penalty=[l1,l2]", "seed=1"), "digits_mlp_penalty-l1-l2_by_mixup"),
        (("seed=0,1", "name=mine"), "mine"),
    ],
)
def test_sweep_name_stays_when_the_grid_grows(monkeypatch, overrides, name):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *overrides])
    fixed = [override for override in overrides if override.startswith("name=")]
    assert sweep_name(_root_=configure("model=mlp", *fixed, hydra=True)) == name


@pytest.mark.parametrize(
    "override",
    [
        "name=a",
        "tags=[b]",
        "slots=3",
        "dry_run=true",
        "job_timeout=9",
        "logger=tensorboard",
        "resume=auto",
    ],
)
def test_config_hash_ignores_what_affects_no_result(override):
    assert hash_of(override) == hash_of()


def test_config_hash_differs_by_seed():
    assert hash_of("seed=1") != hash_of()


def hash_of(*overrides):
    return config_hash(to_plain(configure(*overrides, hydra=True)))


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        ("0,11,0.5\n,11,\n1,22,0.75\n", 0.75),
        ("0,11,0.5\n1,22,0.7", None),  # killed while it wrote 0.75
        ("0,11,0.5\n", None),
        ("", None),
    ],
)
def test_job_value_counts_complete_rows_only(tmp_path, rows, value):
    job = Job.__new__(Job)
    job.epoch_budget, job.folder = 2, tmp_path
    (tmp_path / "metrics.csv").write_text("epoch,step,val/acc\n" + rows)
    assert job.value == value


@SERVERS
def test_sweep_runs_each_job_once(train, tmp_path):
    overrides = ("-m", *SHORT, "stop_after=1it", "slots=2")
    first = train(*overrides, "mixup=off,on")
    assert first.returncode == 0, first.stderr
    name = "digits_mlp_stop_after-1it_trainer.max_epochs-1_by_mixup"
    folder = tmp_path / "sweeps" / name
    assert first.stdout.startswith(f"2 jobs, 0 done, in {folder}")
    assert "2 of 2: done 0." in first.stdout
    assert "2 of 2 jobs done" in first.stdout
    times = modification_times(folder)
    assert len(times) == 2
    assert train(*overrides, "mixup=off,on").stdout.startswith("2 jobs, 2 done")
    assert modification_times(folder) == times
    dry = train(*overrides, "mixup=off,on,cutmix", "dry_run=true").stdout
    assert dry.startswith("3 jobs, 2 done")
    assert dry.count("python train.py") == 1
    assert "mixup=cutmix" in dry
    assert "logger.wandb.group" not in dry


def modification_times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}


@SERVERS
def test_job_equals_a_single_run(train, tmp_path):
    overrides = (*SHORT, "mixup=on", "trainer.log_every_n_steps=1")
    assert train("-m", *overrides, "seed=1", "hydra.sweep.dir=sweep").returncode == 0
    assert train(*overrides, "seed=1", "hydra.run.dir=run").returncode == 0
    (job,) = jobs(tmp_path / "sweep").values()
    run = tmp_path / "run"
    assert (job / "metrics.csv").read_text() == (run / "metrics.csv").read_text()
    assert result(job)["config_hash"] == result(run)["config_hash"] == job.name[-12:]
    assert "test accuracy" in (job / "job.log").read_text()


def test_jobs_have_group_and_name_in_wandb(train):
    done = train("-m", *SHORT, "logger=wandb", "mixup=off,on", "name=mine", "dry_run=true")
    assert done.stdout.count(" logger.wandb.group=mine") == 2
    assert "logger.wandb.name='\"'\"'mixup=on'\"'\"'" in done.stdout


@pytest.mark.slow
def test_arms_are_lists_of_overrides(train, run_script, tmp_path):
    arms = "sweep.arms={plain:[],both:['mixup=on','scheduler=cosine']}"
    assert train("-m", *SHORT, "sweep=arms", arms, "seed=0,1", "name=x").returncode == 0
    folder = tmp_path / "sweeps" / "x"
    varied = [sorted({*job.split()} - {*SHORT, "name=x"}) for job in jobs(folder)]
    assert sorted(varied) == [
        ["mixup=on", "scheduler=cosine", "seed=0"],
        ["mixup=on", "scheduler=cosine", "seed=1"],
        ["seed=0"],
        ["seed=1"],
    ]
    report = run_script("report.py", str(folder)).stdout
    assert "## Differences to base" in report
    assert "mixup=on scheduler=cosine" in report
    assert "Effect of" not in report  # scheduler and mixup differ together


def test_arms_without_a_list_are_refused(train):
    refused = train("-m", *SHORT, "sweep=arms")
    assert refused.returncode == 1
    assert "sweep=arms without sweep.arms. Expected lists of overrides by name" in refused.stderr


@pytest.mark.slow
@SERVERS
def test_sweep_with_a_failed_job_finishes_the_others_and_fails(train, tmp_path):
    done = train("-m", *SHORT, "data.train_size=1,50", "name=part")
    assert done.returncode == 1
    assert "1 of 2 jobs done" in done.stdout
    assert "failed: UserError: 1 training images, data.batch_size=128, " in done.stdout
    assert "the same command again resumes these: python train.py -m model=mlp" in done.stdout
    assert sorted(result(f)["status"] for f in jobs(tmp_path / "sweeps" / "part").values()) == [
        "done",
        "failed",
    ]


@pytest.mark.slow
def test_job_of_another_sweeper_is_checked(train, tmp_path):
    train(
        "-m",
        *SHORT,
        "model.dropout=1.5",
        "hydra/sweeper=basic",
        "hydra/launcher=basic",
        "hydra.sweep.dir=s",
    )
    (log,) = tmp_path.glob("s/*/job.log")
    assert "error: model.dropout=1.5; allowed: 0 or more, less than 1" in log.read_text()


@pytest.mark.slow
@SERVERS
def test_pool_gives_each_slot_a_device(train, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert (
        train("-m", *SHORT, "seed=range(4)", "trainer.accelerator=cpu", "name=placed").returncode
        == 0
    )
    results = [result(folder) for folder in jobs(tmp_path / "sweeps" / "placed").values()]
    assert {found["cuda_visible_devices"] for found in results} == {"5", "GPU-7"}


@pytest.mark.parametrize(
    ("overrides", "visible", "expected"),
    [
        ((), None, [""]),
        ((), "0,1", ["0", "1"]),
        (("slots=3",), "0,1", ["0", "1", "0"]),
        (("slots=2",), "0,1,2,3", ["0,2", "1,3"]),
        (("trainer=ddp",), "0,1", ["0,1"]),
        (("slots=2",), "", ["", ""]),
    ],
)
def test_pool_divides_devices_among_slots(monkeypatch, overrides, visible, expected):
    monkeypatch.setattr(Path, "glob", lambda *pattern: [])  # no GPU in /proc
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    pool = process.LocalPool(configure(*overrides))
    assert [pool.free.get() for _ in range(pool.size)] == expected


@pytest.mark.parametrize(("slots", "cores"), [(1, 8), (2, 4), (3, 2), (9, 1)])
def test_pool_divides_cores_among_slots(monkeypatch, slots, cores):
    monkeypatch.setattr(process, "count_cores", lambda: 8)
    assert process.LocalPool(configure(f"slots={slots}")).cores == cores


@pytest.mark.parametrize(
    "value", ["20260301", "1e5", "null", "true", "a b", "it's", "/a/b", "x=1", "", "a,b", "ü"]
)
def test_quoted_text_is_parsed_as_that_text(value):
    assert OverridesParser.create().parse_override(f"x={quote(value)}").value() == value


@pytest.mark.slow
@SERVERS
def test_jobs_use_the_searchpath_of_the_sweep(train, tmp_path):
    """Configs of one's own, outside the project."""
    for folder, name in (("one", "one"), ("an other", "her")):
        path = tmp_path / folder / "experiment" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text("# @package _global_\nseed: 3\n")
    path = f"hydra.searchpath=['file://{tmp_path}/an other']"
    done = train(
        "-m", *SHORT, "experiment=one,her", path, "name=found", "--config-dir", f"{tmp_path}/one"
    )
    assert done.returncode == 0, done.stdout
    assert len(jobs(tmp_path / "sweeps" / "found")) == 2


def test_launcher_that_is_ended_lets_its_job_save(monkeypatch, tmp_path):
    signals = []

    def join(seconds=None):
        if not signals:
            raise SystemExit(143)

    job = SimpleNamespace(start=lambda: None, join=join, pid=1)
    context = SimpleNamespace(
        set_forkserver_preload=lambda names: None,
        Process=lambda **options: job,
    )
    monkeypatch.setattr(process.multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr(process, "kill_process_group", lambda process, by: signals.append(by))
    with pytest.raises(SystemExit):
        process.run_job(JobSpec([], tmp_path, "", None), "", 0, [])
    assert signals == [signal.SIGTERM]


def test_job_ends_with_its_driver_without_pidfd(monkeypatch):
    def none(process):
        raise OSError(38, "Function not implemented")

    def gone(process, by):
        raise ProcessLookupError

    ended = []
    monkeypatch.setattr(process.os, "pidfd_open", none)
    monkeypatch.setattr(process.os, "kill", gone)
    monkeypatch.setattr(process.os, "killpg", lambda *arguments: ended.append(arguments))
    process.exit_with_parent(1)
    assert ended == [(0, signal.SIGKILL)]


@pytest.mark.slow
def test_launcher_of_hydra_runs_the_same_jobs(train, tmp_path):
    overrides = ("-m", *SHORT, "seed=0,1", "name=any", "trainer.log_every_n_steps=1")
    ours = train(*overrides)
    theirs = train(*overrides, "hydra/launcher=basic", "hydra.sweep.dir=theirs")
    assert (ours.returncode, theirs.returncode) == (0, 0), theirs.stderr
    for folder in jobs(tmp_path / "sweeps" / "any").values():
        other = tmp_path / "theirs" / folder.name
        assert (folder / "metrics.csv").read_text() == (other / "metrics.csv").read_text()
    times = modification_times(tmp_path / "theirs")
    assert len(times) == 2
    assert train(*overrides, "hydra/launcher=basic", "hydra.sweep.dir=theirs").returncode == 0
    assert modification_times(tmp_path / "theirs") == times
    wrong = train(
        "-m", *SHORT, "model.dropout=0.1,1.5", "hydra/launcher=basic", "hydra.sweep.dir=wrong"
    )
    assert wrong.returncode == 1
    assert "model.dropout=1.5; allowed: 0 or more, less than 1" in wrong.stderr


def test_parallel_processes_need_a_common_folder(train, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    done = train(*SHORT)
    assert (done.returncode, done.stderr) == (
        1,
        "error: processes of torchrun or srun must share a folder. Expected hydra.run.dir=FOLDER\n",
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("choices: {}")
    monkeypatch.setenv("RANK", "0")
    assert "hydra.run.dir=run holds a run already" in train(*SHORT, "hydra.run.dir=run").stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("seed=0,1", "mixup=on,of"), "mixup=of does not exist"),
        (
            ("seed=0,1", "model.dropout=0.1,1.5"),
            "model.dropout=1.5: model.dropout=1.5; allowed: 0 or more, less than 1",
        ),
        (("seed=0,1", "resume=auto"), "resume=auto -m: a sweep resumes by itself"),
        (
            ("seed=0,1", "hydra/sweeper=basic"),
            "hydra/launcher=local: expected hydra/sweeper=search",
        ),
        (("seed=0,1", "slots=0"), "slots=0; allowed: 1 or more"),
        (("seed=0,1", "slots=1,2"), "slots has several values. Expected one"),
        (("seed=0,1", "sweep=grid,halving"), "sweep has several values. Expected one"),
    ],
)
def test_sweep_with_a_wrong_job_is_refused_before_the_first(train, tmp_path, overrides, message):
    done = train("-m", *SHORT, *overrides)
    assert done.returncode == 1
    assert message in done.stderr
    assert "jobs" not in done.stdout
    assert not list(tmp_path.rglob("result.json"))


def start(tmp_path: Path, *overrides: str) -> "subprocess.Popen[str]":
    """Start a sweep that takes long, and wait until its jobs train."""
    command, since = [sys.executable, str(ROOT / "train.py"), "-m", *LONG, *overrides], time.time()
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    checkpoints = "sweeps/long/*/checkpoints/last.ckpt"
    while sum(path.stat().st_mtime > since for path in tmp_path.glob(checkpoints)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def find_lock_holder(folder: Path) -> int:
    """Return the ID of the process that holds the lock of a run."""
    inode = os.stat(folder / ".lock").st_ino
    with open("/proc/locks") as file:
        return next(int(line.split()[4]) for line in file if line.split()[5].endswith(f":{inode}"))


def is_alive(process: int) -> bool:
    return (
        Path(f"/proc/{process}").exists()
        and "Z" not in Path(f"/proc/{process}/stat").read_text().split()[2]
    )


@pytest.mark.kills
@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs /proc")
def test_sweep_survives_kills_of_job_and_driver(train, tmp_path):
    """A killed job leaves the other alone; Ctrl-C and a killed driver end all.

    The same command resumes all of them.
    """
    sweep = tmp_path / "sweeps" / "long"
    process = start(tmp_path, "seed=0,1")
    one, other = jobs(sweep).values()
    os.killpg(find_lock_holder(one), signal.SIGKILL)
    out, _ = process.communicate()
    assert process.returncode == 1
    assert "1 of 2 jobs done" in out
    assert "killed: " in out
    assert result(other)["status"] == "done"

    process = start(tmp_path, "seed=0,2")
    other = train("-m", *LONG, "seed=0,2,3")
    assert (other.returncode, other.stderr.split(";")[0]) == (
        1,
        f"error: the sweep in {sweep} is running",
    )
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert out.count("interrupted: SIGTERM") == 2

    process = start(tmp_path, "seed=0,2")
    workers = [find_lock_holder(folder) for folder in jobs(sweep).values()]
    process.kill()
    process.communicate()
    deadline = time.time() + 5
    while any(map(is_alive, workers)) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))

    last = train("-m", *LONG, "seed=0,1,2")
    assert last.returncode == 0, last.stdout
    assert last.stdout.startswith("3 jobs, 1 done")
    train(*LONG[:-1], "seed=0", "hydra.run.dir=whole")  # without slots
    assert (one / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_interrupt_between_two_submissions_ends_the_first(monkeypatch):
    ended = threading.Event()
    at_work = SimpleNamespace(pid=0, is_alive=lambda: not ended.is_set())
    submit = ThreadPoolExecutor.submit

    def submit_one(executor, *arguments):
        if pool.processes:
            raise KeyboardInterrupt
        future = submit(executor, *arguments)
        while not pool.processes:
            time.sleep(0.01)
        return future

    monkeypatch.setattr(
        process, "run_job", lambda *arguments: (arguments[-1].append(at_work), ended.wait())
    )
    monkeypatch.setattr(process, "kill_process_group", lambda job, by: ended.set())
    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit_one)
    pool = process.LocalPool(configure("slots=2"))
    with pytest.raises(KeyboardInterrupt):
        pool.run([None, None])
    assert ended.is_set()


def test_interrupt_at_the_start_of_the_progress_thread_ends_it(monkeypatch):
    start, before = threading.Thread.start, threading.active_count()

    def start_and_stop(thread):
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_and_stop)
    monkeypatch.setattr(queue, "print_progress", lambda jobs, is_over: is_over.wait())
    with pytest.raises(KeyboardInterrupt):
        Jobs.run_pending(SimpleNamespace(launch=None), [])
    assert threading.active_count() == before


@pytest.mark.slow
def test_ctrl_c_while_the_first_jobs_start_ends_the_sweep(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "-m",
        *LONG,
        "trainer.max_epochs=100000",
        "seed=0,1,2",
    ]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout.readline().startswith("3 jobs, 0 done")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "0 of 3 jobs done" in out


@pytest.mark.kills
def test_sweep_closes_files_after_each_job(train, tmp_path):
    """A sweep may have more jobs than a process may open files."""
    with_few = ("bash", "-c", 'ulimit -n 40; exec "$@"', "-")
    command = [
        *with_few,
        sys.executable,
        str(ROOT / "train.py"),
        "-m",
        *SHORT,
        "stop_after=1it",
        "seed=range(18)",
        "slots=2",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "18 of 18 jobs done" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["it's a b, c=ü", "x" * 200])
def test_sweep_accepts_any_folder_name(train, tmp_path, name):
    quoted = name.replace("'", "\\'")
    folder = f"hydra.sweep.dir='{quoted}'" if len(name) < 200 else f"name={name}"
    done = train("-m", *SHORT, "mixup=off,on", "logger=wandb", folder, "stop_after=1it")
    assert "2 of 2 jobs done" in done.stdout, done.stdout + done.stderr


def run_recording_job(folder):
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)

    def write(*arguments, **options):
        seen = [os.getenv("CUDA_VISIBLE_DEVICES"), os.getenv("CORES_OF_RUN")]
        (folder / "seen").write_text(f"{multiprocessing.get_start_method()} {seen}")

    runpy.run_path = write
    job_main(JobSpec([], folder, "", None), "", 3, os.getppid())


@SERVERS
def test_job_forks_workers_and_sees_its_cores_and_all_gpus(tmp_path):
    """All GPUs, as no device is assigned."""
    process = multiprocessing.get_context("forkserver").Process(
        target=run_recording_job, args=(tmp_path,)
    )
    process.start()
    process.join()
    assert (tmp_path / "seen").read_text() == f"{multiprocessing.get_start_method()} [None, '3']"


def test_jobs_with_one_folder_are_refused(train):
    done = train("-m", *SHORT, "seed=0,1", "hydra.sweep.subdir=same")
    assert done.returncode == 1
    assert "have one folder. Expected a hydra.sweep.subdir that differs by job" in done.stderr


@pytest.mark.slow
def test_edit_of_conf_during_a_sweep_fails_later_jobs(tmp_path):
    for part in ("src", "conf"):
        shutil.copytree(
            ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
        )
    shutil.copy(ROOT / "train.py", tmp_path)
    command = [
        sys.executable,
        "train.py",
        "-m",
        "model=mlp",
        "trainer.max_epochs=40",
        "seed=0,1",
        "name=edited",
    ]
    env = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob("sweeps/edited/*/checkpoints/last.ckpt")):
        time.sleep(0.05)
    path = tmp_path / "conf" / "optimizer" / "sgd.yaml"
    path.write_text(path.read_text("utf-8").replace("lr: 0.1", "lr: 0.2"), "utf-8")
    out, _ = process.communicate()
    assert process.returncode == 1
    assert "1 of 2 jobs done" in out
    assert "conf/ was changed after this sweep had begun" in out


@pytest.mark.slow
def test_job_timeout_kills_jobs(train, tmp_path):
    done = train(
        "-m",
        "model=mlp",
        "trainer.max_epochs=3000",
        "job_timeout=3",
        "seed=0,1",
        "slots=2",
        "name=timed",
    )
    assert done.returncode == 1
    assert "0 of 2 jobs done" in done.stdout


FAULTS = {
    "wild": "optimizer: {lr: 1.0e+20, weight_decay: 0.0}",
    "raise": "data: {train_size: 1}",
    "missing": "data: {root: nowhere}\ndefaults: [{override /data: mnist}]",
    "hang": "trainer: {max_epochs: 100000}",
    "kill": "trainer: {max_epochs: 100001}",
    "full": "trainer: {max_epochs: 2}",
}


@pytest.fixture
def copy(tmp_path):
    """Copy the project with an experiment for each fault; return a function that starts a sweep."""
    for part in ("src", "conf"):
        shutil.copytree(
            ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__")
        )
    shutil.copy(ROOT / "train.py", tmp_path)
    for name, content in FAULTS.items():
        (tmp_path / "conf" / "experiment" / f"{name}.yaml").write_text(
            f"# @package _global_\n{content}\n"
        )
    for n in range(6):
        (tmp_path / "conf" / "experiment" / f"fine{n}.yaml").write_text(
            f"# @package _global_\ntrainer: {{max_epochs: {n + 1}}}\n"
        )

    def sweep(*overrides):
        env = os.environ | {
            "PYTHONPATH": str(tmp_path / "src"),
            "https_proxy": "http://127.0.0.1:9",
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            [sys.executable, "train.py", "-m", "model=mlp", *overrides],
            cwd=tmp_path,
            env=env,
            **pipes,
        )

    return sweep


def test_edit_of_an_option_changes_the_hash_of_its_jobs_only(tmp_path):
    def planned():
        with initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
            configs = [compose("train", [f"mixup={option}"]) for option in ("off", "on", "cutmix")]
        return [
            config_hash(to_plain(OmegaConf.merge(config, {"seed": seed})))
            for config in configs
            for seed in (0, 1)
        ]

    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    before = planned()
    path = tmp_path / "conf" / "mixup" / "on.yaml"
    path.write_text(re.sub("alpha: .*", "alpha: 0.7", path.read_text()))
    after = planned()
    assert [a == b for a, b in zip(before, after)] == [True, True, False, False, True, True]
    path = tmp_path / "conf" / "train.yaml"
    path.write_text(path.read_text().replace("stop_after: null", "stop_after: 1ep"))
    assert not set(planned()) & {*before, *after}


@pytest.mark.kills
def test_sweep_of_twelve_finishes_the_six_sound_jobs(copy, tmp_path):
    names = ",".join([*FAULTS, *(f"fine{n}" for n in range(6))])
    twelve = (f"experiment={names}", "name=twelve", "slots=2", "job_timeout=30")
    planned, _ = copy(*twelve, "dry_run=true").communicate()
    folders = {
        line.split("experiment=")[1].split()[0]: Path(re.search(r"hydra.run.dir=(\S+)", line)[1])
        for line in planned.splitlines()[1:]
    }
    folders["full"].mkdir(parents=True)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folders["full"]], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        process = copy(*twelve)
        while not (folders["kill"] / "checkpoints" / "last.ckpt").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        os.killpg(find_lock_holder(folders["kill"]), signal.SIGKILL)
        out, _ = process.communicate()
        assert process.returncode == 1
        assert "6 of 12 jobs done" in out
        for name, reason in {
            "wild": "failed: UserError: step 1: train/loss=",
            "raise": "failed: UserError: 1 training images, data.batch_size=128, ",
            "missing": "failed: UserError: data.root=nowhere: no MNIST there",
            "hang": "killed: longer than job_timeout=30",
            "kill": "killed: exit code -9",
            "full": "No space left on device",
        }.items():
            line = next(
                line
                for line in out.splitlines()
                if line.startswith("  ") and f"experiment={name} " in line
            )
            assert reason in line
        done = {
            name: (folder / "result.json").stat().st_mtime_ns
            for name, folder in folders.items()
            if "fine" in name
        }
        planned, _ = copy(*twelve, "dry_run=true").communicate()
        assert planned.startswith("12 jobs, 6 done")
        assert {
            line.split("experiment=")[1].split()[0] for line in planned.splitlines()[1:]
        } == FAULTS.keys()
    finally:
        subprocess.run(["umount", folders["full"]])
    assert done == {name: (folders[name] / "result.json").stat().st_mtime_ns for name in done}
