"""The command line, as a user meets it."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.configs import ONE_BATCH, compose_and_check, configure
from helpers.paths import CONF, ROOT
from tricklab.cli.config import list_groups, list_options
from tricklab.cli.help import format_help
from tricklab.cli.launch import check_flags
from tricklab.cli.names import run_name
from tricklab.cli.overrides import expand_home, read_arguments
from tricklab.cli.start import check_or_exit, check_run
from tricklab.errors import UserError
from tricklab.run.folder import check_folder

SCHEDULERS = ", ".join(list_options(CONF / "scheduler"))
PENALTIES = ", ".join(list_options(CONF / "penalty"))


def list_imported(trace: str) -> list[str]:
    """Return the modules in the output of `python -X importtime`."""
    lines = [line for line in trace.splitlines() if line.startswith("import time")]
    return [line.split("|")[-1].strip() for line in lines]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--help"], 0, "scheduler=cosine"),
        (["--cfg", "job"], 0, "label_smoothing: 0.0"),
        (
            ["scheduler=cosin"],
            1,
            f"scheduler=cosin does not exist; allowed: {SCHEDULERS}. "
            "Did you mean scheduler=cosine?",
        ),
        (["schedulr=cosine"], 1, "schedulr=cosine: no such option. Did you mean scheduler=cosine?"),
        (
            ["model.dropuot=0.1"],
            1,
            "model.dropuot=0.1: no such option; allowed: backbone_lr_mult, depth, dropout, "
            "dropout_kind, freeze, input_dropout, pool_early, spatial_dropout, weights, widths. "
            "Did you mean model.dropout=0.1?",
        ),
        (["experiment=fashion-92"], 1, "Did you mean experiment=fashion_92?"),
        (
            ["penalty=[l1,l3]"],
            1,
            f"penalty=l3 does not exist; allowed: {PENALTIES}. Did you mean",
        ),
        (["data.batch_size=big"], 1, "data.batch_size=big: expected int, got str"),
        (
            ["augment=null"],
            1,
            "augment=null does not exist; allowed: affine, alternating_flip, color, crop, ",
        ),
        (
            ["mixup=1"],
            1,
            "mixup=1 does not exist; allowed: alternate, cutmix, images_only, off, on.",
        ),
        (["a=b=c"], 1, "error: "),
        (["resume=1"], 1, "resume=1; allowed: none, auto"),
        (["~seed"], 1, "~seed would remove a required key; give it another value"),
        (["optimizer.lr=${nothing}"], 1, "Interpolation key 'nothing' not found"),
        (["callbacks=emma"], 1, "Did you mean callbacks=ema?"),
        (["model=[mlp,convnet]"], 1, "model=[mlp,convnet]: expected one option of model"),
        (["+model=mlp"], 1, "Multiple values for model"),
        (
            ["seed=1,2"],
            1,
            "seed=1,2: for a run each -m seed=1,2, for a list 'seed=[1,2]', "
            "for a text 'seed=\"1,2\"'",
        ),
        (
            ["resume=nowhere"],
            1,
            "resume=nowhere; allowed: none, auto, the folder of a run or a checkpoint in it",
        ),
        (["hydra.run.dir=/proc/x"], 1, "error: "),
        (["debug=bach"], 1, "Did you mean debug=batch?"),
        (
            ["sweep=gird"],
            1,
            "sweep=gird does not exist; allowed: arms, grid, halving, optuna. "
            "Did you mean sweep=grid?",
        ),
        (["foo=1"], 1, "foo=1: no such option; allowed: augment, callbacks, claim, data, "),
    ],
)
def test_command_answers_without_torch_or_a_folder(
    train_without_torch, tmp_path, arguments, code, message
):
    done = train_without_torch(*arguments)
    output = done.stdout + done.stderr
    assert done.returncode == code
    assert message in output
    assert code == 0 or len(output.splitlines()) == 1
    assert "hydra" in done.modules
    assert not {"torch", "pytorch_lightning"} & done.modules
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["scheduler.warmup=5", "scheduler=cosine"],
            "scheduler.warmup=5 is not a duration; allowed: 0, or a number with a unit: 5ep",
        ),
        (
            ["mixup=on", "mixup.per=images"],
            "mixup.per=images; allowed: batch, image. Did you mean 'image'?",
        ),
        (["mixup=cutmix", "mixup.stop=80"], "mixup.stop=80 is not a duration"),
        (["augment=light", "augment.flip.vertical=2"], "augment.flip.vertical=2; allowed: 0 to 1"),
        (
            ["augment=randaugment", "augment.randaugment.magnitude=31"],
            "magnitude=31; allowed: 0 to 30",
        ),
        (
            ["loss.class_weights=[1,2]", "mixup=on"],
            "loss.class_weights=[1, 2] with mixing: a mixed image has two classes",
        ),
        (
            ["loss.class_weights=balanced", "mixup=on"],
            "loss.class_weights=balanced with mixing: a mixed image has two classes",
        ),
        (
            ["loss.class_weights=balanced", "data.sampler=balanced"],
            "data.sampler=balanced loss.class_weights=balanced: rare classes would count twice",
        ),
        (
            ["loss.class_weights=3"],
            "loss.class_weights=3; allowed: balanced, or a list of numbers, each 0 or more, or nu",
        ),
        (["mixup=on", "mixup.alpha=inf"], "mixup.alpha=inf: expected a finite number"),
        (
            ["scheduler=multistep", "scheduler.milestones=50%"],
            "milestones=50%: expected a list of durations",
        ),
        (
            ["scheduler=step", "scheduler.every=[10%]"],
            "scheduler.every=['10%']: expected one duration",
        ),
        (["scheduler=step", "scheduler.gamma=0"], "scheduler.gamma=0; allowed: 1e-06 to 1"),
        (["penalty=l1_prox", "callbacks=ema"], "averaged weights are hardly ever exactly 0"),
        (["model.dropout=1.5"], "model.dropout=1.5; allowed: 0 or more, less than 1"),
        (["data.batch_size=0"], "data.batch_size=0; allowed: 1 or more"),
        (["mixup=[on,off]"], "mixup=[on,off]: expected one option of mixup"),
        (["scheduler=cosine", "scheduler.warmup=null"], "scheduler.warmup=None is not a duration"),
        (["trainer.compile=off"], "trainer.compile=off: expected bool, got str"),
        (
            ["optimizer.lr_base_batch_size=true"],
            "optimizer.lr_base_batch_size=true: expected int or null, got bool",
        ),
        (
            ["scheduler=cosine_restarts", "scheduler.period_mult=0"],
            "scheduler.period_mult=0; allowed: 1 or more",
        ),
        (["data=folder", "data.num_workers=-1"], "data.num_workers=-1; allowed: 0 or more"),
        (["data=folder", "data.cache=null"], "data.cache=null: expected str, got null"),
        (
            ["trainer.precision=16-mixed", "trainer.gradient_clip_val=1", "optimizer.fused=true"],
            "Expected optimizer.fused=false",
        ),
        (
            ["model.freeze=1ep"],
            "model.freeze=1ep needs model.weights (it would freeze random weights)",
        ),
        (
            ["logger=wandb", "+logger.wandb.settings={a: {api_key: x}}"],
            "logger.wandb.settings: api_key=*** would be written",
        ),
        (["stop_after=xep"], "stop_after='xep' is not a duration"),
        (
            ["trainer.check_val_every_n_epoch=0"],
            "trainer.check_val_every_n_epoch=0; allowed: 1 or more",
        ),
        (
            ["stop_after=3ep", "trainer.check_val_every_n_epoch=2"],
            "stop_after=3ep must be a multiple of trainer.check_val_every_n_epoch=2, or ",
        ),
        (["~optimizer.lr"], "~optimizer.lr would remove a required key; give it another value"),
        (["model=mlp", "model.widths=[a]"], "model.widths=['a']: expected a list of int"),
        (["model.widths=[16,0]"], "model.widths=[16, 0]; allowed: 1 or more"),
        (["model.widths=64"], "model.widths=64: expected list, got int"),
        (
            ["optimizer=adamw", "optimizer.betas=[0.9]"],
            "optimizer.betas=[0.9]: expected two numbers",
        ),
        (
            ["optimizer=adamw", "optimizer.betas=[0.9,1.0]"],
            "betas=[0.9, 1.0]; allowed: 0 or more, less than 1",
        ),
        (["optimizer.lr=nan"], "optimizer.lr=nan: expected a finite number"),
        (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1; allowed: 0 or more"),
        (["trainer.precision=17"], "trainer.precision=17; allowed: 32-true, "),
        (["trainer.accelerator=gqu"], "trainer.accelerator=gqu; allowed: auto, cpu, gpu, "),
        (["trainer.max_epochs=1.5"], "trainer.max_epochs=1.5: expected int, got float"),
        (["stop_after=0ep"], "stop_after=0ep; allowed: more than 0"),
        (["stop_after=5"], "stop_after=5 is not a duration; allowed: 0, or a number with a unit"),
        (
            ["scheduler=cosine", "scheduler.warmup=-5ep"],
            "scheduler.warmup='-5ep' is not a duration",
        ),
        (["callbacks.last.every_n_steps=0"], "callbacks.last.every_n_steps=0; allowed: 1 or more"),
        (["experiment=[fashion_91,fashion_92]"], ": expected one option of experiment"),
        (
            ["experiment=fashion_92", "model=mlp"],
            "experiment=fashion_92 with these options: model.pool_early: no such option; "
            "allowed: backbone_lr_mult, ",
        ),
        (["seed=-1"], "seed=-1; allowed: 0 or more"),
        (["seed=a"], "seed=a: expected int, got str"),
        (["tags=x"], "tags=x: expected list, got str"),
        (["slots=0"], "slots=0; allowed: 1 or more"),
        (["data=fake", "data.num_classes=1"], "data.num_classes=1; allowed: 2 or more"),
        (["+data.colours=x"], "+data.colours: tricklab.data.datasets.digits takes no colours; "),
        (["+scheduler.total=3"], "+scheduler.total: tricklab.scheduler.constant takes no total; "),
        (
            ["+callbacks.best.save_top_k=3"],
            "+callbacks.best.save_top_k: tricklab.callbacks.BestCheckpoint ",
        ),
        (
            ["+optimizer.maximise=true"],
            "+optimizer.maximise: torch.optim.SGD takes no maximise; allowed: dampening, "
            "differentiable, foreach, fused, lr, maximize, momentum, nesterov, weight_decay. "
            "Did you mean optimizer.maximize?",
        ),
        (["+optimizer.maximize=off"], "optimizer.maximize=off: expected bool, got str"),
        (["+trainer.benchmark=7"], "trainer.benchmark=7: expected bool, got int"),
        (
            ["+trainer.val_check_interval=0"],
            "trainer.val_check_interval is not supported here; use trainer.check_val",
        ),
        (
            ["+trainer.enable_progress_bar=false"],
            "trainer.enable_progress_bar is not supported here; "
            "use callbacks.progress.refresh_rate=0",
        ),
        (["+trainer.min_epochs=3"], "trainer.min_epochs is not supported here; "),
        (["trainer.strategy=fsdp"], "trainer.strategy=fsdp; allowed: auto, ddp, "),
        (
            [
                "+callbacks.x._target_=pytorch_lightning.callbacks.StochasticWeightAveraging",
                "+callbacks.x.swa_lrs=1",
            ],
            "callbacks.x: StochasticWeightAveraging can't be used here; use callbacks=ema",
        ),
        (["~callbacks.best"], "~callbacks.best would remove a required key; "),
        (["~callbacks"], "~callbacks would remove a required key; "),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/foo"],
            "callbacks.early_stopping.monitor=val/foo; allowed: val/loss, val/acc, val/ece.",
        ),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/acc"],
            "callbacks.early_stopping.monitor=val/acc needs callbacks.early_stopping.mode=max: "
            "higher is better",
        ),
        (
            ["callbacks.best.filename=../../x"],
            "callbacks.best.filename=../../x is outside of the run folder. Expected a name",
        ),
        (
            ["callbacks.best.filename=x"],
            "callbacks.best.filename=x: the run's results depend on best, keep it",
        ),
        (
            ["logger=tensorboard", "logger.tensorboard.name=../x"],
            "logger.tensorboard.name=../x is outside of the run folder. ",
        ),
        (
            ["logger=wandb", "logger.wandb.project=a/b:c"],
            "logger.wandb.project=a/b:c: W&B takes no / in it",
        ),
        (["model.widths=[.inf]"], "model.widths=['.inf']: expected a non-empty list of int"),
        (["model.widths=[inf]"], "model.widths=inf: expected a finite number"),
        (
            ["penalty=max_norm", "penalty.max_norm.norm=0"],
            "penalty.max_norm.norm=0; allowed: more than 0",
        ),
        (["model.depth=0"], "model.depth=0; allowed: 1 or more"),
        (["model.dropout=1"], "model.dropout=1; allowed: 0 or more, less than 1"),
        (["loss.label_smoothing=1"], "loss.label_smoothing=1; allowed: 0 or more, less than 1"),
        (
            ["data.batch_size=100000000000000000000"],
            "data.batch_size=100000000000000000000; allowed: integers up to 2147483647",
        ),
        (
            ["trainer.gradient_clip_val=abc"],
            "trainer.gradient_clip_val=abc: expected float or null, got str",
        ),
        (
            ["trainer.limit_train_batches=1.5"],
            "trainer.limit_train_batches=1.5; allowed: 0.001 to 1, or an int of 1 or more",
        ),
        (
            ["augment=erase", "augment.erase.scale=[0.5,0.33]"],
            "augment.erase.scale=[0.5, 0.33]: low is above high",
        ),
        (
            ["scheduler=multistep", "scheduler.milestones=[]"],
            "scheduler.milestones=[]: expected a list of durations, ",
        ),
        (
            ["stop_after=1000ep"],
            "stop_after=1000ep is after the end of the run: trainer.max_epochs=15",
        ),
        (["mixup=on", "mixup.stop=150%"], "mixup.stop=150%; allowed: 0% to 100%"),
        (
            ["trainer.devices=abc"],
            "trainer.devices=abc: expected a number, auto for all, or a list",
        ),
        (["trainer.devices=[]"], "trainer.devices=[]: expected a number, auto for all, or a list"),
        (["trainer.devices=null"], "trainer.devices=null: expected a number, auto for all, or a"),
        (["data=folder", "data.root=''"], "data.root= is empty; expected a value"),
        (
            ["+loss.reduction=sum"],
            "+loss.reduction: tricklab.loss.cross_entropy takes no reduction",
        ),
        (
            [
                "penalty=l1_prox",
                "+callbacks.x._target_=pytorch_lightning.callbacks.WeightAveraging",
            ],
            "penalty=l1_prox with callbacks=x: averaged weights are hardly ever exactly 0",
        ),
        (
            ["+callbacks.x._target_=pytorch_lightning.callbacks.TQDMProgressBar"],
            "callbacks.x: there is a progress bar already; use callbacks.progress._target_=",
        ),
        (
            ["trainer.max_steps=0"],
            "trainer.max_epochs=15 trainer.max_steps=0: the run would take no",
        ),
        (["data.batch_size=${oc.env:HOME}"], ": expected int, got str"),
    ],
)
def test_check_refuses_wrong_overrides(overrides, message):
    with pytest.raises(UserError) as refused:
        compose_and_check(*overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_start_imports_no_torch(train):
    """Nor does what the server of the test above has imported before."""
    imported = list_imported(train("scheduler=cosin", python=("-X", "importtime")).stderr)
    assert "hydra" in imported
    assert not {"torch", "pytorch_lightning"} & set(imported)


def test_help_lists_every_option_with_a_description(tmp_path):
    lines = format_help().splitlines()
    for group in list_groups(CONF):
        for option in list_options(CONF / group):
            (line,) = (x for x in lines if x.lstrip(" *").startswith(f"{group}={option} "))
            assert len(line.split(maxsplit=1)[1]) >= 5
    assert any(line.startswith(" *scheduler=constant ") for line in lines)
    conf = shutil.copytree(CONF, tmp_path / "conf")
    (conf / "scheduler" / "zigzag.yaml").write_text("# Up and down\n")
    assert re.search("^  scheduler=zigzag +Up and down$", format_help(conf), re.MULTILINE)


def test_experiment_with_a_misspelt_key_is_refused(train, tmp_path):
    conf = tmp_path / "mine"
    (conf / "experiment").mkdir(parents=True)
    (conf / "experiment" / "bad.yaml").write_text(
        "# @package _global_\noptimizer:\n  lrr: 0.1\nsead: 7\n"
    )
    done = train("experiment=bad", f"hydra.searchpath=[file://{conf}]")
    assert done.returncode == 1
    assert "optimizer.lrr: no such option" in done.stderr
    assert "Did you mean optimizer.lr?" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("penalty:\n", "error: penalty is empty. Expected an option of it, or keys below it\n"),
        ("model:\n", "error: model is empty. Expected an option of it, or keys below it\n"),
        ("trainer: {max_epochs: 1", "error: while parsing a flow mapping "),
        ("seed: 1\nseed: 2", "error: while constructing a mapping "),
        (
            "defaults: [{override /mixup: off}]",
            'error: an option in a defaults list is no text; "on" and "off" need quotes',
        ),
    ],
)
def test_experiment_that_is_no_config_is_refused_in_one_line(train, tmp_path, text, message):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "bad.yaml").write_text(f"# @package _global_\n{text}")
    done = train("experiment=bad", f"hydra.searchpath=[file://{tmp_path}]")
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_check_with_a_bug_ends_the_run(monkeypatch):
    monkeypatch.setattr("tricklab.cli.start.check", lambda config: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        check_or_exit(check_run, configure(hydra=True))
    assert ended.value.code == 1


@pytest.mark.parametrize(
    "override",
    [
        "+optimizer.maximize=true",
        "+trainer.inference_mode=false",
        "+callbacks.lr._target_=pytorch_lightning.callbacks.LearningRateMonitor",
        "+callbacks.early_stopping={_target_: pytorch_lightning.callbacks.EarlyStopping, "
        "monitor: val/loss}",
        "+claim.of.mine=1",
    ],
)
def test_check_accepts_keys_added_with_plus(override):
    compose_and_check(override)


@pytest.mark.parametrize(
    ("typed", "override"),
    [
        ("data.root=~/pics", "data.root=/home/me/pics"),
        ("data.root=~", "data.root=/home/me"),
        ("data.root=~/a,~/b", "data.root=/home/me/a,/home/me/b"),
        ("data.root=~/a b", "data.root='/home/me/a b'"),
        ("data.root=x~/a", "data.root=x~/a"),
        ("data.root=~other/a", "data.root=~other/a"),
        ("~callbacks.progress", "~callbacks.progress"),
        ("seed=1", "seed=1"),
    ],
)
def test_home_is_expanded_where_the_shell_leaves_it(monkeypatch, typed, override):
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_home(typed) == override


def test_home_is_expanded_before_hydra_parses(train_without_torch):
    done = train_without_torch("data=folder", "data.root=~/pics", "--cfg", "job")
    assert f"root: {Path.home()}/pics\n" in done.stdout


def test_flags_of_hydra_are_accepted():
    for overrides in (
        ["-m", "seed=1"],
        ["--cfg", "job", "-p", "data"],
        ["--info", "all"],
        ["-c=job"],
    ):
        check_flags(overrides)


def test_help_into_a_closed_pipe_is_silent():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "train.py"), "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_output_to_an_ascii_terminal_is_escaped():
    command = [sys.executable, str(ROOT / "train.py"), "name='ü'", "--cfg", "job"]
    done = subprocess.run(
        command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"name: \\xfc\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "values"),
    [
        (["ckpt=a.ckpt", "mc=2"], {"ckpt": "a.ckpt", "mc": "2"}),
        (["a.ckpt", "mc=2"], {"ckpt": "a.ckpt", "mc": "2"}),
        (["run"], {"ckpt": "run"}),
        (["a=b/x.ckpt"], {"ckpt": "a=b/x.ckpt"}),
        (['input="/my photos, 2026"'], {"input": "/my photos, 2026"}),
        (["input='it\\'s'"], {"input": "it's"}),
        (['data.root="/my pics"'], {"data.root": '"/my pics"'}),
    ],
)
def test_read_arguments_takes_paths_and_unquotes_values(tmp_path, monkeypatch, arguments, values):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    (tmp_path / "a=b" / "x.ckpt").touch()
    assert read_arguments(arguments) == values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a.ckpt", "b.png"],
            "b.png: ckpt=a.ckpt is given already. Expected KEY=VALUE or input=b.png",
        ),
        (["mc=2", "mc=3"], "mc is given twice"),
    ],
)
def test_read_arguments_refuses_a_second_value(arguments, message):
    with pytest.raises(UserError, match=message):
        read_arguments(arguments)


def test_resume_refusal_shows_a_command_that_resumes(train_without_torch, train, cached_run):
    overrides = ("model=mlp", "trainer.max_epochs=1", "data.val_size=300", "tags=[a b]")
    cached_run(*overrides, "callbacks.progress.refresh_rate=0", folder="my run")
    (line,) = train_without_torch("resume=my run").stderr.splitlines()
    assert line.startswith("error: resume=my run: ")
    assert "model._target_=tricklab.model.convnet (was tricklab.model.mlp)" in line
    command = shlex.split(line.split("; to resume that run: ")[1])
    assert command[:2] == ["python", "train.py"]
    assert command[-1] == "resume=my run"
    assert train("trainer.accelerator=cpu", *command[2:]).returncode == 0


def test_resume_command_of_an_untrusted_run_is_escaped(train_without_torch, cached_run):
    folder = cached_run("model=mlp", *ONE_BATCH).folder
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text(
        r'- "a=\x1b[31m\nb"' + "\n- resume=x\n- stop_after=1it\n"
    )
    done = train_without_torch("resume=run")
    assert "\x1b" not in done.stderr
    assert done.stderr.endswith(r"python train.py 'a=\x1b[31m\nb' resume=run" + "\n")


def test_sweep_leaves_keys_of_a_swept_group_to_the_jobs(train_without_torch):
    """Hydra applies them to the option of the default first, which does not have them."""
    done = train_without_torch(
        "-m", "scheduler=step,multistep", "scheduler.gamma=0.5", "dry_run=true"
    )
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].endswith("sweeps/digits_convnet_scheduler.gamma-0.5_by_scheduler")
    assert ["scheduler.gamma=0.5 hydra.run.dir=" in line for line in lines] == [False, True, True]


def test_sweep_over_a_glob_takes_options_only(train_without_torch):
    done = train_without_torch("-m", "scheduler=glob(c*)", "dry_run=true")
    found = [line.split()[2] for line in done.stdout.splitlines()[1:]]
    assert found == [f"scheduler={name}" for name in ("constant", "cosine", "cosine_restarts")]


def test_run_from_another_folder_leaves_the_documented_files(train, tmp_path):
    """The main job: a folder by its choices, the contract's files, the last lines on the screen."""
    home = tmp_path / "Übungen für morgen"
    done = train(
        "scheduler=cosine", "mixup=on", *ONE_BATCH, f"hydra.run.dir='{home}/${{run_name:}}'"
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-2:]
    (folder,) = home.iterdir()
    assert last[0].startswith("test accuracy 0.")
    assert last[1] == f"run folder    {folder.relative_to(tmp_path)}"
    assert folder.name.startswith("digits_convnet_mixup-on_scheduler-cosine")
    assert {p.name for p in folder.iterdir()} >= {
        ".hydra",
        "config.yaml",
        "metrics.csv",
        "checkpoints",
        "result.json",
    }
    assert json.loads((folder / "result.json").read_text("utf-8"))["overrides"][:2] == [
        "scheduler=cosine",
        "mixup=on",
    ]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    again = train("seed=3", *ONE_BATCH, f"hydra.run.dir='{folder}'")
    assert again.returncode == 1
    assert "holds a run already" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_run_name_has_plain_characters_only():
    cfg = configure(
        "penalty=[l1,l2]",
        "+trainer.plugins=null",
        "model.widths=[1,2]",
        "seed=7",
        "data=digits",
        hydra=True,
    )
    name = run_name(_root_=cfg)
    assert name == "digits_convnet_trainer.plugins-null_model.widths-1-2_penalty-l1-l2_seed-7"
    assert run_name(_root_=configure("name='Mine, für α=1'", hydra=True)) == "Mine-f-r-1_seed-0"


def test_runs_of_the_same_command_have_their_own_folders(train, tmp_path):
    for _ in range(2):
        assert train(*ONE_BATCH).returncode == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    "right",
    [
        "trainer.max_epochs=${data.batch_size}",
        "optimizer.lr=1",
        "trainer.devices=auto",
        "trainer.devices=[0]",
        "trainer.devices='0,1'",
        "trainer.devices=-1",
        "trainer.precision=16",
        "data.train_size=0.5",
    ],
)
def test_check_accepts_right_overrides(right):
    compose_and_check(right, "experiment=fashion_94")


def test_folder_that_is_not_writable_is_refused(train, tmp_path, monkeypatch):
    from tricklab.run import folder

    monkeypatch.setattr(
        folder.os, "access", lambda path, mode: path != tmp_path
    )  # root may write anywhere
    with pytest.raises(UserError, match=f"{tmp_path} can't be written"):
        check_folder(tmp_path / "a" / "b", configure())
    check_folder(tmp_path.parent / "c", configure())


@pytest.mark.parametrize(
    ("epoch", "total", "text"), [(0, 15, "Epoch 1/15"), (14, 15, "Epoch 15/15"), (2, -1, "Epoch 3")]
)
def test_progress_bar_counts_epochs_from_one(epoch, total, text):
    from tricklab.callbacks import ProgressBar

    bar = ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=total)
    assert bar._get_train_description(epoch).strip() == text


def test_progress_in_a_pipe_is_a_line_an_epoch(run, capsys):
    overrides = ("model=mlp", "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2")
    run(*overrides, "callbacks.progress.refresh_rate=10")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    validated = r", val/loss \d\.\d{4}, val/acc \d\.\d{4}"
    for number, line in enumerate(lines, 1):
        result = validated if number % 2 == 0 else ""
        assert re.fullmatch(rf"epoch {number}/4{result}, \d:\d\d:\d\d left", line)
    assert len(lines) == 4
    assert lines[-1].endswith(", 0:00:00 left")
    run(*overrides, folder="quiet")
    assert "epoch" not in capsys.readouterr().out


@pytest.mark.parametrize("patience", [0, 1])
def test_early_stopping_ends_after_its_patience(run, patience):
    """With a learning rate of 0 the second evaluation is the first without improvement."""
    still = ("optimizer.lr=0", "model.batch_norm=false", "trainer.max_epochs=5", "model=mlp")
    stop = ("callbacks=early_stopping", f"callbacks.early_stopping.patience={patience}")
    done = run(*still, *stop)
    assert len(done.column("val/loss")) == 2
    again = run(*still, *stop, "resume=auto")
    assert again.result["status"] == "done"
    assert again.column("val/loss") == done.column("val/loss")


def test_refused_run_leaves_no_empty_parents(tmp_path, monkeypatch):
    from tricklab.run.record import remove_empty

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "kept").touch()
    remove_empty(Path("a/b/c").absolute())
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "kept"]
    (tmp_path / "a" / "kept").unlink()
    remove_empty(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    remove_empty(tmp_path)
    assert tmp_path.is_dir()


def test_version_of_a_missing_package_is_not_installed():
    from tricklab.run.record import find_version

    assert find_version("no-such-package") == "not installed"
    assert find_version("omegaconf")[0].isdigit()
