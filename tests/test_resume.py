"""Going on with a run that was stopped."""

import shutil

import pytest
import torch
from conftest import ONE_BATCH, configure

from tricklab.check import check_folder
from tricklab.errors import UserError
from tricklab.resume import lock_run, run_folder

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
        patch.setattr("tricklab.module.ImageClassifier.on_train_batch_end", stop)
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
        [f"resume: goes on after step {(step - 1) // 11 * 11}"] if step > 11 else []
    )


def test_auto_finds_the_newest_that_is_not_done(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    interrupt(run, monkeypatch, 12, "runs/one")
    wanted = configure("trainer.accelerator=cpu", *OPTIONS, "resume=auto")
    assert run_folder("runs/new", _root_=wanted) == "runs/one"
    other = configure("trainer.accelerator=cpu", *OPTIONS, "resume=auto", "seed=1")
    assert run_folder("runs/new", _root_=other) == "runs/new"
    run(*OPTIONS, "resume=auto", folder="runs/one")
    assert run_folder("runs/new", _root_=wanted) == "runs/new"


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
            "resume=one: model.dropout=0.5 (was 0.0); allowed: the options of the run",
        ),
        (["hydra.run.dir=one"], "hydra.run.dir=one holds a run already; resume=auto goes on with it"),
        (["resume=one", "hydra.run.dir=two"], "hydra.run.dir=two and resume=one differ; allowed: one of the two"),
        (["resume=two"], "resume=two; allowed: none, auto, the folder of a run or a checkpoint in it"),
    ]:
        done = train(*options, *arguments)
        assert done.returncode == 1
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
    done = train(*options, "resume=one")
    assert done.returncode == 0, done.stderr
    assert "goes on after step 11" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_what_can_not_go_on_leaves_what_there_is(run, script, tmp_path):
    """A body that has gone missing is not needed; a stop inside an epoch and a run at work are refused."""
    body = run(*ONE_BATCH, folder="body")
    done = run("stop_after=1ep", "trainer.max_epochs=2", f"model.weights={body.folder}/checkpoints/best.ckpt")
    (body.folder / "checkpoints" / "best.ckpt").unlink()
    options = ("trainer.max_epochs=2", f"model.weights={body.folder}/checkpoints/best.ckpt", "resume=auto")
    held = lock_run(done.folder)
    before = (done.folder / "result.json").read_text()
    with pytest.raises(UserError, match="is running"):
        run(*options)
    held.close()
    assert (done.folder / "result.json").read_text() == before
    again = run(*options, "stop_after=16it")
    assert again.column("step")[-1] == 16
    with pytest.raises(UserError, match="is of step 16, inside an epoch"):
        run(*options)
    assert again.result["status"] == "done"
    said = script("evaluate.py", f"ckpt={done.folder}/checkpoints/best.ckpt")
    assert f"test/acc {again.result['metrics']['test/acc']}\n" in said.stdout


def test_a_copied_folder_is_a_run_of_its_own(run, tmp_path):
    done = run("model=mlp", "stop_after=1ep", "trainer.max_epochs=2")
    shutil.copytree(done.folder, tmp_path / "copy")
    torch.save({}, done.folder / "checkpoints" / "best.ckpt")
    copy = run("model=mlp", "trainer.max_epochs=2", "resume=auto", folder="copy")
    assert copy.result["metrics"]["test/acc"] > 0.5


def test_another_network_is_another_option(run, tmp_path):
    done = run("model=torchvision", *ONE_BATCH)
    cfg = configure("model=torchvision", *ONE_BATCH, "trainer.accelerator=cpu", "model.name=resnet34", "resume=auto")
    with pytest.raises(UserError, match=r"model\.name=resnet34 \(was resnet18\)"):
        check_folder(done.folder, cfg)
    same = configure("model=torchvision", *ONE_BATCH, "trainer.accelerator=cpu", "name=other", "resume=auto")
    check_folder(done.folder, same)
