"""Resuming a run that was interrupted, killed or damaged: as if it had not been."""

import functools
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
from tricklab.metrics import evaluate
from tricklab.run.folder import check_folder, lock_run, run_folder
from tricklab.training import ImageClassifier

NEW_PROCESS = ("-X", "utf8")  # this one would keep files open on the disk that is unmounted
TRICKS = (
    "model=mlp",
    "model.dropout=0.2",
    "mixup=on",
    "augment=[light,alternating_flip]",
    "scheduler=cosine",
    "scheduler.warmup=1ep",
)
OPTIONS = (*TRICKS, "trainer.max_epochs=4", "trainer.log_every_n_steps=1")
LATER_METRICS = ("balanced_acc", "f1_macro", "oe", "oe_t")  # added after the first recorded runs
STEPS_PER_EPOCH = 11
ACCUMULATED = (  # 11 batches, 4 steps an epoch
    *TRICKS,
    "trainer.max_epochs=3",
    "trainer.accumulate_grad_batches=3",
    "trainer.log_every_n_steps=3",
    "callbacks=ema",
    "augment=strong",
    "resume=auto",
)


def configure_cpu(*overrides, **options):
    return configure("trainer.accelerator=cpu", *overrides, **options)


def interrupt(run, monkeypatch, step, folder):
    """Interrupt a run after a step."""

    def stop(self, outputs, batch, batch_idx):
        if self.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tricklab.training.ImageClassifier.on_train_batch_end", stop)
        with pytest.raises(SystemExit):
            run(*OPTIONS, folder=folder)


def call_at_batch(monkeypatch, batch, function):
    """Call a function before the training step of a batch, counted over all epochs."""
    batches = 0
    training_step = ImageClassifier.training_step

    def patched_step(self, *arguments):
        nonlocal batches
        batches += 1
        if batches == batch + 1:
            function()
        return training_step(self, *arguments)

    monkeypatch.setattr(ImageClassifier, "training_step", patched_step)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return an uninterrupted run with a scheduler, trained once."""
    from tricklab.run import experiment

    @functools.cache
    def uninterrupted(scheduler):
        folder = tmp_path_factory.mktemp(scheduler)
        experiment.run(configure_cpu(*ACCUMULATED, f"scheduler={scheduler}"), folder)
        return Run(folder)

    return uninterrupted


def assert_same_run(run, expected):
    assert run.metrics_text == expected.metrics_text
    assert run.result["metrics"] == expected.result["metrics"]
    last, expected_last = run.checkpoint(), expected.checkpoint()
    assert last["global_step"] == expected_last["global_step"]
    weights = last["state_dict"]
    for name, weight in expected_last["state_dict"].items():
        assert torch.equal(weights[name], weight), name


@pytest.mark.parametrize("step", [5, 22, 30])
def test_resume_gives_the_same_run(run, monkeypatch, step, capsys):
    whole = run(*OPTIONS, folder="whole")
    interrupt(run, monkeypatch, step, "parts")
    parts = run(*OPTIONS, "resume=auto", folder="parts")
    assert parts.metrics_text == whole.metrics_text
    assert parts.result["metrics"] == whole.result["metrics"]
    assert parts.result["config_hash"] == whole.result["config_hash"]
    lines = capsys.readouterr().out.splitlines()
    messages = [line.split(",")[0] for line in lines if line.startswith("resume:")]
    checkpoint_step = (step - 1) // STEPS_PER_EPOCH * STEPS_PER_EPOCH
    expected = [f"resume: continues after step {checkpoint_step}"] if checkpoint_step else []
    assert messages == expected


def test_resume_with_layer_decay_gives_the_same_run(run):
    """Whose optimizer has a group for each layer, and moments for each parameter."""
    options = ("model=resnet", "model.depth=8", "model.width=4", "optimizer=adamw")
    options += ("optimizer.layer_decay=0.7", "trainer.max_epochs=3", "scheduler=cosine")
    whole = run(*options, folder="whole")
    run(*options, "stop_after=1ep", folder="parts")
    assert_same_run(run(*options, "resume=auto", folder="parts"), whole)
    assert "lr_layer4" in whole.metrics_text


def test_resume_of_an_earlier_version_adds_the_columns_of_later_metrics(run, monkeypatch):
    def evaluate_as_before(*arguments):
        results = evaluate(*arguments)
        return {name: results[name] for name in results if name not in LATER_METRICS}

    whole = run(*OPTIONS, folder="whole")
    with monkeypatch.context() as patch:
        patch.setattr("tricklab.training.evaluate", evaluate_as_before)
        interrupt(run, monkeypatch, 30, "parts")
    parts = run(*OPTIONS, "resume=auto", folder="parts")
    for name in ("epoch", "step", "lr", "train/loss", "val/acc", "val/aurc_t", "train/ece_clean"):
        assert parts.column(name) == whole.column(name)
    for name in LATER_METRICS:
        assert parts.column(f"val/{name}") == whole.column(f"val/{name}")[2:]
        assert parts.result["metrics"][f"test/{name}"] == whole.result["metrics"][f"test/{name}"]


@pytest.mark.parametrize("scheduler", ["cosine", "plateau"])
@pytest.mark.parametrize(("batch", "from_step"), [(5, 0), (7, 2), (16, 4), (20, 6), (32, 10)])
def test_resume_after_a_crash_within_an_epoch_gives_the_same_bits(
    run, uninterrupted, monkeypatch, capsys, scheduler, batch, from_step
):
    overrides = (*ACCUMULATED, f"scheduler={scheduler}", "callbacks.last.every_n_steps=2")

    def crash():
        raise ArithmeticError

    call_at_batch(monkeypatch, batch, crash)
    with pytest.raises(ArithmeticError):
        run(*overrides)
    done = run(*overrides)
    assert_same_run(done, uninterrupted(scheduler))
    assert (f"continues after step {from_step}," in capsys.readouterr().out) == (from_step > 0)


@pytest.mark.parametrize(
    ("number", "batch", "steps"),
    [
        (signal.SIGINT, 0, 1),
        (signal.SIGTERM, 3, 2),
        (signal.SIGUSR1, 10, 4),  # the last batch of an epoch
        (signal.SIGUSR2, 32, 12),  # the last batch of the run
    ],
)
def test_signal_stops_a_run_after_its_step(
    run, uninterrupted, monkeypatch, tmp_path, number, batch, steps
):
    """At the end of an epoch the validation comes first."""
    call_at_batch(monkeypatch, batch, lambda: os.kill(os.getpid(), number))
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as error:
        run(*ACCUMULATED, "scheduler=cosine")
    assert error.value.code == 128 + number
    assert signal.getsignal(number) == handler
    stopped = Run(tmp_path / "run")
    assert stopped.result["status"] == "interrupted"
    assert stopped.result["reason"] == number.name
    assert stopped.checkpoint()["global_step"] == steps
    resumed = run(*ACCUMULATED, "scheduler=cosine")
    assert_same_run(resumed, uninterrupted("cosine"))


def test_resume_auto_finds_the_newest_unfinished_run(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    interrupt(run, monkeypatch, 12, "runs/one")
    same = configure_cpu(*OPTIONS, "resume=auto")
    assert run_folder("runs/new", _root_=same) == "runs/one"
    other = configure_cpu(*OPTIONS, "resume=auto", "seed=1")
    assert run_folder("runs/new", _root_=other) == "runs/new"
    run(*OPTIONS, "resume=auto", folder="runs/one")
    assert run_folder("runs/new", _root_=same) == "runs/new"


def test_resume_auto_of_ddp_keeps_one_folder_for_all_ranks(run, monkeypatch, tmp_path):
    """Lightning passes `hydra.run.dir` to further ranks once the first holds the run."""
    monkeypatch.chdir(tmp_path)
    interrupt(run, monkeypatch, 12, "runs/one")
    config = configure_cpu(*OPTIONS, "resume=auto", hydra=True)
    monkeypatch.setattr("tricklab.cli.start.check_or_exit", lambda check, config: None)
    Check().on_run_start(config)
    lock = lock_run(tmp_path / "runs" / "one")
    assert config.hydra.run.dir == "runs/one"
    lock.close()


@pytest.mark.parametrize(
    "overrides",
    [
        ("stop_after=1ep",),
        ("stop_after=16it",),
        ("trainer.max_steps=16",),
        ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer.lr=1e-9"),
    ],
)
def test_resume_of_a_finished_training_only_tests(run, overrides):
    overrides = ("model=mlp", "trainer.max_epochs=4", *overrides)
    done = run(*overrides)
    result, metrics = done.result, done.metrics_text
    step = done.checkpoint()["global_step"]
    (done.folder / "result.json").unlink()
    again = run(*overrides, "resume=auto")
    assert again.result["metrics"] == result["metrics"]
    assert again.metrics_text == metrics
    assert again.checkpoint()["global_step"] == step


def test_resume_of_a_done_run_needs_its_last_checkpoint(run):
    done = run(*ONE_BATCH)
    (done.folder / "checkpoints" / "last.ckpt").unlink()
    config = configure_cpu(*ONE_BATCH, f"resume={done.folder}", hydra=True)
    message = r"it has no last.ckpt; to start from its weights: model.weights=.../best.ckpt"
    with pytest.raises(UserError, match=message):
        check_folder(done.folder, config)


def test_resume_takes_a_folder_or_a_checkpoint(run):
    done = run(*ONE_BATCH)
    for path in (done.folder, done.folder / "checkpoints" / "last.ckpt"):
        config = configure(f"resume={path}")
        assert run_folder("runs/new", _root_=config) == str(done.folder)


RESUME_REFUSALS = [
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
]


def test_resume_from_the_command_line(run, train, tmp_path):
    """Other options are refused and never write over a folder; the same ones resume in it."""
    options = ["model=mlp", "trainer.max_epochs=2", "trainer.accelerator=cpu"]
    run(*options, "stop_after=1ep", folder="one")
    for overrides, message in RESUME_REFUSALS:
        done = train(*options, *overrides)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    done = train(*options, "resume=one")
    assert done.returncode == 0, done.stderr
    assert "continues after step 11" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_resume_needs_no_pretrained_weights(run, run_script):
    """They are in the checkpoint: their file may be gone, also for evaluation."""
    backbone = run(*ONE_BATCH, folder="backbone").folder / "checkpoints" / "best.ckpt"
    overrides = ("trainer.max_epochs=2", f"model.weights={backbone}")
    run(*overrides, "stop_after=1ep")
    backbone.unlink()
    done = run(*overrides, "resume=auto", "stop_after=16it")
    assert done.column("step")[-1] == 16
    checkpoint = f"ckpt={done.folder}/checkpoints/best.ckpt"
    output = run_script("evaluate.py", checkpoint, "resamples=0").stdout
    assert f"test/acc {done.result['metrics']['test/acc']}\n" in output


def test_resume_of_a_running_run_is_refused(run):
    overrides = ("model=mlp", "trainer.max_epochs=2")
    done = run(*overrides, "stop_after=1ep")
    lock = lock_run(done.folder)
    result = done.result
    with pytest.raises(UserError, match="is running"):
        run(*overrides, "resume=auto")
    lock.close()
    assert done.result == result


def test_resume_within_an_epoch_shortened_by_stop_after_is_refused(run):
    overrides = ("model=mlp", "trainer.max_epochs=2")
    done = run(*overrides, "stop_after=16it")
    with pytest.raises(UserError, match="was saved at step 16, inside an epoch shortened"):
        run(*overrides, "resume=auto")
    assert done.result["status"] == "done"


def test_resume_with_more_epochs_plans_the_schedule_again(run, capsys):
    overrides = ("model=mlp", "scheduler=linear", "trainer.log_every_n_steps=1")
    done = run(*overrides, "trainer.max_epochs=2")
    resume = f"resume={done.folder}"
    check_folder(done.folder, configure_cpu(*overrides, "trainer.max_epochs=4", resume, hydra=True))
    assert capsys.readouterr().out.endswith(
        "2 epochs become 4; the schedule is planned again for all of them\n"
    )
    for refused in (["trainer.max_epochs=1"], ["trainer.max_epochs=4", "seed=1"]):
        config = configure_cpu(*overrides, *refused, resume, hydra=True)
        with pytest.raises(UserError, match=r"trainer\.max_epochs=\d \(was 2\)"):
            check_folder(done.folder, config)
    again = run(*overrides, "trainer.max_epochs=4", resume)
    first = [0.1 * (1 - t / 22) for t in range(22)]
    second = [0.1 * (1 - t / 44) for t in range(22, 44)]
    assert again.column("lr") == first + second


@pytest.mark.parametrize("content", [b"", b"PK", None])
def test_resume_from_a_damaged_checkpoint_suggests_the_one_before(run, content):
    """None stands for a file that was cut."""
    overrides = ("model=mlp", "model.dropout=0.1", "trainer.max_epochs=3")
    whole = run(*overrides, folder="whole")
    done = run(*overrides, "stop_after=2ep")
    last = done.folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000] if content is None else content)
    best = last.with_name("best.ckpt")
    message = rf"last.ckpt is damaged, or not a checkpoint: .*; try resume={best}"
    with pytest.raises(UserError, match=message):
        run(*overrides, "resume=auto")
    assert_same_run(run(*overrides, f"resume={best}"), whole)


@pytest.mark.parametrize("option", ["data.sampler=balanced", "loss.class_weights=balanced"])
def test_resume_of_a_balanced_run_gives_the_same_run(run, option):
    overrides = ("model=mlp", "data.imbalance=5", option, "trainer.max_epochs=3", "resume=auto")
    whole = run(*overrides, folder="whole")
    run(*overrides, "stop_after=1ep")
    assert_same_run(run(*overrides), whole)


def test_resume_with_other_data_is_refused(run, class_folders):
    """Whatever the cache: the fingerprint is of the images."""
    root = class_folders({"": 20}, size=8)
    data = ("data=folder", f"data.root='{root}'", "data.size=8")
    overrides = (*data, "model=mlp", "trainer.max_epochs=3")
    run(*overrides, "stop_after=1ep")
    run(*overrides, "stop_after=2ep", "data.cache=none", "data.num_workers=0", "resume=auto")
    for image in (root / "cat").iterdir():
        shutil.copy(root / "dog" / "0.png", image)
    message = r"the data differ from those that .*last.ckpt was trained on"
    with pytest.raises(UserError, match=message):
        run(*overrides, "resume=auto")


def test_resume_of_a_copied_folder_is_independent_of_the_original(run, tmp_path):
    done = run("model=mlp", "stop_after=1ep", "trainer.max_epochs=2")
    shutil.copytree(done.folder, tmp_path / "copy")
    torch.save({}, done.folder / "checkpoints" / "best.ckpt")
    copy = run("model=mlp", "trainer.max_epochs=2", "resume=auto", folder="copy")
    assert copy.result["metrics"]["test/acc"] > 0.5


def test_resume_with_another_network_is_refused(run):
    overrides = ("model=torchvision", *ONE_BATCH)
    done = run(*overrides)
    config = configure_cpu(*overrides, "model.name=resnet34", "resume=auto")
    with pytest.raises(UserError, match=r"model\.name=resnet34 \(was resnet18\)"):
        check_folder(done.folder, config)
    check_folder(done.folder, configure_cpu(*overrides, "name=other", "resume=auto"))


def test_checkpoint_is_not_written_to_a_temporary_folder(run, monkeypatch):
    """Lightning's are, and moved from there: across file systems that is no atomic rename."""
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert run(*ONE_BATCH).result["status"] == "done"


def test_out_of_memory_names_the_option_to_lower(run, monkeypatch, tmp_path):
    def raise_out_of_memory(self, *batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(ImageClassifier, "training_step", raise_out_of_memory)
    with pytest.raises(UserError, match=r"data\.batch_size=128 \(CUDA out of memory.*; lower it"):
        run(*ONE_BATCH)
    assert "; lower it" in Run(tmp_path / "run").result["reason"]


@pytest.fixture
def mount_small_disk(tmp_path):
    """Return a function that mounts `tmp_path / "disk"` with so many bytes."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount_small_disk(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
        if subprocess.run(command).returncode:
            pytest.skip("can't mount a small disk")
        return disk

    yield mount_small_disk
    subprocess.run(["umount", disk])


def read_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_full_or_read_only_disk_leaves_a_run_that_resumes(train, tmp_path, mount_small_disk):
    overrides = (
        "trainer.accelerator=cpu",
        "model=mlp",
        "trainer.max_epochs=3",
        "callbacks.last.every_n_steps=5",
    )
    assert train(*overrides, "hydra.run.dir=whole").returncode == 0
    size = (tmp_path / "whole" / "checkpoints" / "last.ckpt").stat().st_size
    disk = mount_small_disk(int(2.5 * size))

    done = train(*overrides, "hydra.run.dir=disk/run", python=NEW_PROCESS)
    assert done.returncode == 1
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith("error: [Errno 28] No space left on device")
    for path in (disk / "run" / "checkpoints").iterdir():
        assert torch.load(path, weights_only=True)["global_step"] >= 5

    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    before = read_files(disk)
    done = train(*overrides, "hydra.run.dir=disk/run", "resume=auto", python=NEW_PROCESS)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "can't be written" in done.stderr
    assert read_files(disk) == before

    subprocess.run(["mount", "-o", f"remount,rw,size={10 * size}", disk], check=True)
    done = train(*overrides, "hydra.run.dir=disk/run", "resume=auto", python=NEW_PROCESS)
    assert done.returncode == 0
    assert Run(disk / "run").metrics_text == Run(tmp_path / "whole").metrics_text
