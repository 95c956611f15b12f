"""Going on with a run that was stopped."""

import errno
import functools
import json
import os
import shutil
import signal
import subprocess

import pytest
import torch
from helpers.configs import ONE_BATCH, configure
from helpers.runs import Run

from tricklab.cli.start import Check
from tricklab.errors import UserError
from tricklab.files import atomic_open, write_text
from tricklab.run.folder import check_folder, lock_run, run_folder, status
from tricklab.run.record import Record
from tricklab.training import ImageClassifier

APART = ("-X", "utf8")  # a process of its own, which holds no file for longer than it is there
TRICKS = (
    "model=mlp",
    "model.dropout=0.2",
    "mixup=on",
    "augment=[light,alternating_flip]",
    "scheduler=cosine",
    "scheduler.warmup=1ep",
)
OPTIONS = (*TRICKS, "trainer.max_epochs=4", "trainer.log_every_n_steps=1")


def interrupt(run, monkeypatch, step, folder):
    """Stop a run after so many steps."""

    def stop(self, outputs, batch, batch_idx):
        if self.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tricklab.training.ImageClassifier.on_train_batch_end", stop)
        with pytest.raises(SystemExit):
            run(*OPTIONS, folder=folder)


@pytest.mark.parametrize("step", [5, 22, 30])
def test_a_run_goes_on_as_if_nothing_had_been(run, monkeypatch, tmp_path, step, capsys):
    whole = run(*OPTIONS, folder="whole")
    interrupt(run, monkeypatch, step, "parts")
    parts = run(*OPTIONS, "resume=auto", folder="parts")
    assert (parts.folder / "metrics.csv").read_text() == (whole.folder / "metrics.csv").read_text()
    assert parts.result["metrics"] == whole.result["metrics"]
    assert parts.result["config_hash"] == whole.result["config_hash"]
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("resume:")]
    assert [line.split(",")[0] for line in said] == (
        [f"resume: continues after step {(step - 1) // 11 * 11}"] if step > 11 else []
    )


WINDOWS = (
    *TRICKS,
    "trainer.max_epochs=3",
    "trainer.accumulate_grad_batches=3",
    "callbacks=ema",
    "augment=strong",
)
WINDOWS = (*WINDOWS, "trainer.log_every_n_steps=3", "resume=auto")  # 11 batches, 4 steps an epoch


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory):
    """What runs that are stopped must come to, for each schedule."""
    from tricklab.run import experiment

    def run_once(scheduler):
        folder = tmp_path_factory.mktemp(scheduler)
        experiment.run(
            configure("trainer.accelerator=cpu", *WINDOWS, f"scheduler={scheduler}"), folder
        )
        return Run(folder)

    return functools.cache(run_once)


def outcome(done):
    last = torch.load(done.folder / "checkpoints" / "last.ckpt", weights_only=True)
    return (
        (done.folder / "metrics.csv").read_text(),
        done.result["metrics"],
        last["state_dict"],
        last["global_step"],
    )


def assert_same(done, wanted):
    (*facts, weights, steps), (*wanted_facts, wanted_weights, wanted_steps) = (
        outcome(done),
        outcome(wanted),
    )
    assert (facts, steps) == (wanted_facts, wanted_steps)
    assert all(torch.equal(weights[key], wanted_weights[key]) for key in wanted_weights)


@pytest.mark.parametrize("scheduler", ["cosine", "plateau"])
@pytest.mark.parametrize(("batch", "from_step"), [(5, 0), (7, 2), (16, 4), (20, 6), (32, 10)])
def test_what_was_killed_goes_on_from_the_last_steps_bit_for_bit(
    run, unstopped, monkeypatch, capsys, scheduler, batch, from_step
):
    words, seen = (*WINDOWS, f"scheduler={scheduler}", "callbacks.last.every_n_steps=2"), []
    step = ImageClassifier.training_step

    def die(self, *arguments):
        seen.append(arguments)
        if len(seen) == batch + 1:
            raise ArithmeticError
        return step(self, *arguments)

    monkeypatch.setattr(ImageClassifier, "training_step", die)
    with pytest.raises(ArithmeticError):
        run(*words)
    done = run(*words)
    assert_same(done, unstopped(scheduler))
    assert (f"continues after step {from_step}," in capsys.readouterr().out) == (from_step > 0)


@pytest.mark.parametrize(
    ("number", "batch", "kept"),
    [
        (signal.SIGINT, 0, 1),
        (signal.SIGTERM, 3, 2),
        (signal.SIGUSR1, 10, 4),
        (signal.SIGUSR2, 32, 12),
    ],
)
def test_a_signal_ends_a_run_after_its_step(
    run, unstopped, monkeypatch, tmp_path, number, batch, kept
):
    """10 is the last batch of an epoch, 32 of the run: the validation that is due comes first."""
    seen, step = [], ImageClassifier.training_step

    def send(self, *arguments):
        seen.append(arguments)
        if len(seen) == batch + 1:
            os.kill(os.getpid(), number)
        return step(self, *arguments)

    monkeypatch.setattr(ImageClassifier, "training_step", send)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        run(*WINDOWS, "scheduler=cosine")
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) == before
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["reason"]) == ("interrupted", number.name)
    assert (
        torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        == kept
    )
    assert_same(run(*WINDOWS, "scheduler=cosine"), unstopped("cosine"))


def test_auto_finds_the_newest_that_is_not_done(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    interrupt(run, monkeypatch, 12, "runs/one")
    wanted = configure("trainer.accelerator=cpu", *OPTIONS, "resume=auto")
    assert run_folder("runs/new", _root_=wanted) == "runs/one"
    other = configure("trainer.accelerator=cpu", *OPTIONS, "resume=auto", "seed=1")
    assert run_folder("runs/new", _root_=other) == "runs/new"
    run(*OPTIONS, "resume=auto", folder="runs/one")
    assert run_folder("runs/new", _root_=wanted) == "runs/new"


def test_all_processes_of_a_run_go_on_in_one_folder(run, monkeypatch, tmp_path):
    """Lightning starts further ones with what `hydra.run.dir` is by then, when the first holds the run."""
    monkeypatch.chdir(tmp_path)
    interrupt(run, monkeypatch, 12, "runs/one")
    config = configure("trainer.accelerator=cpu", *OPTIONS, "resume=auto", hydra=True)
    monkeypatch.setattr("tricklab.cli.start.check_or_exit", lambda check, config: None)
    Check().on_run_start(config)
    held = lock_run(tmp_path / "runs" / "one")
    assert config.hydra.run.dir == "runs/one"
    held.close()


@pytest.mark.parametrize(
    "words",
    [
        ("stop_after=1ep",),
        ("stop_after=16it",),
        ("trainer.max_steps=16",),
        ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=1e-9"),
    ],
)
def test_a_run_at_its_end_is_only_tested(run, words):
    words = ("model=mlp", "trainer.max_epochs=4", *words)
    done = run(*words)
    (done.folder / "result.json").rename(done.folder / "before.json")
    last = torch.load(done.folder / "checkpoints" / "last.ckpt", weights_only=True)
    metrics = (done.folder / "metrics.csv").read_text()
    again = run(*words, "resume=auto")
    assert (
        again.result["metrics"] == json.loads((done.folder / "before.json").read_text())["metrics"]
    )
    assert (again.folder / "metrics.csv").read_text() == metrics
    assert (
        torch.load(done.folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        == last["global_step"]
    )


def test_a_done_run_without_its_last_checkpoint_is_not_begun_anew(run):
    done = run(*ONE_BATCH)
    (done.folder / "checkpoints" / "last.ckpt").unlink()
    config = configure("trainer.accelerator=cpu", *ONE_BATCH, f"resume={done.folder}", hydra=True)
    with pytest.raises(
        UserError,
        match=r"it has no last.ckpt; to start from its weights: model.weights=.../best.ckpt",
    ):
        check_folder(done.folder, config)


def test_who_holds_a_run_is_known_whatever_it_left(tmp_path, monkeypatch, capsys):
    (tmp_path / "result.json").write_text('{"status": "failed"}')
    assert status(tmp_path) == "failed"
    assert not (tmp_path / ".lock").exists()
    held = lock_run(tmp_path)
    assert status(tmp_path) == "running"
    held.close()
    (tmp_path / "result.json").write_text('{"status": "killed"}')
    assert status(tmp_path) == "unfinished"

    def flock(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("tricklab.run.folder.fcntl.flock", flock)
    assert lock_run(tmp_path)
    assert "can't be locked ([Errno 37] No locks available)" in capsys.readouterr().err


def test_who_comes_second_leaves_the_folder_of_the_first(tmp_path):
    one, other = (Record(configure(), tmp_path / "run") for _ in range(2))
    one.start()
    with pytest.raises(UserError, match="is running"):
        other.start()
    other.discard()
    assert (tmp_path / "run" / "config.yaml").exists()
    one.discard()
    assert not (tmp_path / "run").exists()


def test_a_path_is_that_of_a_run(run, tmp_path):
    done = run(*ONE_BATCH)
    for path in (done.folder, done.folder / "checkpoints" / "last.ckpt"):
        assert run_folder("runs/new", _root_=configure(f"resume={path}")) == str(done.folder)


def test_from_the_command_line(run, train, tmp_path):
    """Other options are refused, the same go on in the same folder, and a folder is never written over."""
    options = ["model=mlp", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
    run(*options, "stop_after=1ep", folder="one")
    for arguments, says in [
        (
            ["resume=one", "model.dropout=0.5"],
            "resume=one: model.dropout=0.5 (was 0.0); to resume that run: python train.py model=mlp ",
        ),
        (
            ["hydra.run.dir=one"],
            "hydra.run.dir=one holds a run already; resume it with resume=auto",
        ),
        (
            ["resume=one", "hydra.run.dir=two"],
            "hydra.run.dir=two and resume=one are different folders; leave out one of them",
        ),
        (
            ["resume=two"],
            "resume=two; allowed: none, auto, the folder of a run or a checkpoint in it",
        ),
    ]:
        done = train(*options, *arguments)
        assert done.returncode == 1
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    done = train(*options, "resume=one")
    assert done.returncode == 0, done.stderr
    assert "continues after step 11" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_what_can_not_go_on_leaves_what_there_is(run, run_script, tmp_path):
    """A body that has gone missing is not needed; an epoch cut short and a run at work are refused."""
    body = run(*ONE_BATCH, folder="body")
    done = run(
        "stop_after=1ep",
        "trainer.max_epochs=2",
        f"model.weights={body.folder}/checkpoints/best.ckpt",
    )
    (body.folder / "checkpoints" / "best.ckpt").unlink()
    options = (
        "trainer.max_epochs=2",
        f"model.weights={body.folder}/checkpoints/best.ckpt",
        "resume=auto",
    )
    held = lock_run(done.folder)
    before = (done.folder / "result.json").read_text()
    with pytest.raises(UserError, match="is running"):
        run(*options)
    held.close()
    assert (done.folder / "result.json").read_text() == before
    again = run(*options, "stop_after=16it")
    assert again.column("step")[-1] == 16
    with pytest.raises(UserError, match="was saved at step 16, inside an epoch shortened"):
        run(*options)
    assert again.result["status"] == "done"
    said = run_script("evaluate.py", f"ckpt={done.folder}/checkpoints/best.ckpt", "resamples=0")
    assert f"test/acc {again.result['metrics']['test/acc']}\n" in said.stdout


def test_a_longer_run_has_its_schedule_planned_again(run, capsys):
    words = ("model=mlp", "scheduler=linear", "trainer.log_every_n_steps=1")
    done = run(*words, "trainer.max_epochs=2")
    longer = configure(
        "trainer.accelerator=cpu",
        *words,
        "trainer.max_epochs=4",
        f"resume={done.folder}",
        hydra=True,
    )
    check_folder(done.folder, longer)
    assert capsys.readouterr().out.endswith(
        "2 epochs become 4; the schedule is planned again for all of them\n"
    )
    for shorter in ("trainer.max_epochs=1", "trainer.max_epochs=4 seed=1"):
        other = configure(
            "trainer.accelerator=cpu", *words, *shorter.split(), f"resume={done.folder}", hydra=True
        )
        with pytest.raises(UserError, match=r"trainer\.max_epochs=\d \(was 2\)"):
            check_folder(done.folder, other)
    again = run(*words, "trainer.max_epochs=4", f"resume={done.folder}")
    assert again.column("lr") == [0.1 * (1 - t / 22) for t in range(22)] + [
        0.1 * (1 - t / 44) for t in range(22, 44)
    ]


@pytest.mark.parametrize("damage", [b"", b"PK", None])
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(run, damage):
    words = ("model=mlp", "model.dropout=0.1", "trainer.max_epochs=3")
    whole = run(*words, folder="whole")
    done = run(*words, "stop_after=2ep")
    last = done.folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000] if damage is None else damage)
    best = last.with_name("best.ckpt")
    with pytest.raises(
        UserError, match=rf"last.ckpt is damaged, or not a checkpoint: .*; try resume={best}"
    ):
        run(*words, "resume=auto")
    assert_same(run(*words, f"resume={best}"), whole)


def test_other_data_are_refused(run, class_folders):
    """Wherever they are kept."""
    root = class_folders({"": 20}, size=8)
    words = (
        "data=folder",
        f"data.root='{root}'",
        "data.size=8",
        "model=mlp",
        "trainer.max_epochs=3",
    )
    run(*words, "stop_after=1ep")
    run(*words, "stop_after=2ep", "data.cache=none", "data.num_workers=0", "resume=auto")
    for image in (root / "cat").iterdir():
        shutil.copy(root / "dog" / "0.png", image)
    with pytest.raises(
        UserError, match=r"the data differ from those that .*last.ckpt was trained on"
    ):
        run(*words, "resume=auto")


def test_a_file_is_whole_or_as_it_was(tmp_path):
    write_text(tmp_path / "file", "before")

    def write_half():
        with atomic_open(tmp_path / "file") as file:
            file.write(b"half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "before")]


def test_checkpoints_do_not_pass_through_another_folder(run, monkeypatch):
    """As Lightning's do, whose move from another file system is no rename."""
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert run(*ONE_BATCH).result["status"] == "done"


def test_too_little_memory_says_what_to_lower(run, monkeypatch, tmp_path):
    def too_much(self, *batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(ImageClassifier, "training_step", too_much)
    with pytest.raises(UserError, match=r"data\.batch_size=128 \(CUDA out of memory.*; lower it"):
        run(*ONE_BATCH)
    assert "; lower it" in Run(tmp_path / "run").result["reason"]


def test_a_copied_folder_is_a_run_of_its_own(run, tmp_path):
    done = run("model=mlp", "stop_after=1ep", "trainer.max_epochs=2")
    shutil.copytree(done.folder, tmp_path / "copy")
    torch.save({}, done.folder / "checkpoints" / "best.ckpt")
    copy = run("model=mlp", "trainer.max_epochs=2", "resume=auto", folder="copy")
    assert copy.result["metrics"]["test/acc"] > 0.5


def test_another_network_is_another_option(run, tmp_path):
    done = run("model=torchvision", *ONE_BATCH)
    cfg = configure(
        "model=torchvision",
        *ONE_BATCH,
        "trainer.accelerator=cpu",
        "model.name=resnet34",
        "resume=auto",
    )
    with pytest.raises(UserError, match=r"model\.name=resnet34 \(was resnet18\)"):
        check_folder(done.folder, cfg)
    same = configure(
        "model=torchvision", *ONE_BATCH, "trainer.accelerator=cpu", "name=other", "resume=auto"
    )
    check_folder(done.folder, same)


@pytest.mark.slow
def test_a_full_disk_leaves_a_run_that_goes_on(train, tmp_path):
    """And one that can't be written to leaves the run there as it was."""
    words = (
        "trainer.accelerator=cpu",
        "model=mlp",
        "trainer.max_epochs=3",
        "callbacks.last.every_n_steps=5",
    )
    assert train(*words, "hydra.run.dir=whole").returncode == 0
    size = (tmp_path / "whole" / "checkpoints" / "last.ckpt").stat().st_size
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * size)}", "tmpfs", disk]
    ).returncode:
        pytest.skip("can't mount a small disk")
    try:
        done = train(*words, "hydra.run.dir=disk/run", python=APART)
        assert (done.returncode, done.stderr.splitlines()[-1][:41]) == (
            1,
            "error: [Errno 28] No space left on device",
        )
        for path in (disk / "run" / "checkpoints").iterdir():
            assert torch.load(path, weights_only=True)["global_step"] >= 5
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
        done = train(*words, "hydra.run.dir=disk/run", "resume=auto", python=APART)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert "can't be written" in done.stderr
        assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before
        subprocess.run(["mount", "-o", f"remount,rw,size={10 * size}", disk], check=True)
        assert train(*words, "hydra.run.dir=disk/run", "resume=auto", python=APART).returncode == 0
        assert (disk / "run" / "metrics.csv").read_text() == (
            tmp_path / "whole" / "metrics.csv"
        ).read_text()
    finally:
        subprocess.run(["umount", disk])
