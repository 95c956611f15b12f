"""The command line, as a user meets it."""

import json

import pytest
from conftest import CONF, ONE_BATCH, configure
from hydra import compose, initialize_config_dir

from tricklab.check import RANGES, check, check_value
from tricklab.cli import list_words, options, run_name
from tricklab.errors import UserError


def imported(trace: str, module: str) -> bool:
    return any(line.split("|")[-1].strip() == module for line in trace.splitlines() if line.startswith("import time"))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--help"], 0, "scheduler=cosine"),
        (["--cfg", "job"], 0, "label_smoothing: 0.0"),
        (
            ["scheduler=cosin"],
            1,
            f"scheduler=cosin does not exist; allowed: {', '.join(options(CONF / 'scheduler'))}. Did you mean 'cosine'?",
        ),
        (["schedulr=cosine"], 1, "Did you mean 'scheduler'?"),
        (
            ["model.dropuot=0.1"],
            1,
            "model.dropuot does not exist; allowed: body_lr, depth, dropout, freeze, input_dropout, pool_early, spatial_dropout, weights, widths. Did you mean 'dropout'?",
        ),
        (["experiment=fashion-92"], 1, "Did you mean 'fashion_92'?"),
        (
            ["penalty=[l1,l3]"],
            1,
            f"penalty=l3 does not exist; allowed: {', '.join(options(CONF / 'penalty'))}. Did you mean",
        ),
        (
            ["scheduler.warmup=5", "scheduler=cosine"],
            1,
            "scheduler.warmup=5 is not a duration; allowed: 0, or a number with a unit: 5ep",
        ),
        (["data.batch_size=big"], 1, "data.batch_size='big' is a str; allowed: int"),
        (["mixup=on", "mixup.per=images"], 1, "mixup.per=images; allowed: batch, image. Did you mean 'image'?"),
        (["mixup=cutmix", "mixup.end=80"], 1, "mixup.end=80 is not a duration"),
        (["augment=light", "augment.flip.vertical=2"], 1, "augment.flip.vertical=2; allowed: 0 to 1"),
        (["augment=randaugment", "augment.randaugment.magnitude=31"], 1, "magnitude=31; allowed: 0 to 30"),
        (["loss.weight=[1,2]", "mixup=on"], 1, "loss.weight=[1, 2] with mixing: an image of two classes"),
        (["loss.weight=3"], 1, "loss.weight=3 is a int; allowed: null, list"),
        (["mixup=on", "mixup.alpha=inf"], 1, "mixup.alpha=inf; allowed: 0 or more"),
        (["scheduler=multistep", "scheduler.milestones=50%"], 1, "milestones=50%; allowed: a list of durations"),
        (["scheduler=step", "scheduler.every=[10%]"], 1, "scheduler.every=['10%']; allowed: one duration"),
        (["scheduler=step", "scheduler.gamma=0"], 1, "scheduler.gamma=0; allowed: 1e-06 to 1"),
        (["penalty=l1_prox", "callbacks=ema"], 1, "an average of weights is hardly ever 0"),
        (["augment=null"], 1, "Config group override must be a string or a list"),
        (["model.dropout=1.5"], 1, "model.dropout=1.5; allowed: 0 to 1"),
        (["data.batch_size=0"], 1, "data.batch_size=0; allowed: 1 or more"),
        (["mixup=[on,off]"], 1, "mixup=[on,off]; allowed: one option of mixup"),
        (["scheduler=cosine", "scheduler.warmup=null"], 1, "scheduler.warmup=None is not a duration"),
        (["trainer.compile=off"], 1, "trainer.compile='off' is a str; allowed: bool"),
        (["a=b=c"], 1, "error: "),
        (["optimizer.lr_per=true"], 1, "optimizer.lr_per=True is a bool; allowed: null, int"),
        (["scheduler=cosine_restarts", "scheduler.mult=0"], 1, "scheduler.mult=0; allowed: 1 or more"),
        (["data=folder", "data.num_workers=-1"], 1, "data.num_workers=-1; allowed: 0 or more"),
        (["data=folder", "data.cache=null"], 1, "data.cache=None is a NoneType; allowed: str"),
        (
            ["trainer.precision=16-mixed", "trainer.gradient_clip_val=1", "optimizer.fused=true"],
            1,
            "allowed: with optimizer.fused=false",
        ),
        (["model.freeze=1ep"], 1, "model.freeze=1ep would keep random weights; allowed: with model.weights"),
        (["resume=1"], 1, "resume=1; allowed: none, auto"),
    ],
)
def test_answers_without_torch_and_without_a_folder(train, tmp_path, arguments, code, says):
    done = train(*arguments, python=("-X", "importtime"))
    trace = done.stderr
    said = done.stdout + "\n".join(line for line in trace.splitlines() if not line.startswith("import time"))
    assert done.returncode == code
    assert says in said
    assert code == 0 or len(said.splitlines()) == 1
    assert imported(trace, "hydra")
    assert not imported(trace, "torch")
    assert not imported(trace, "pytorch_lightning")
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_option_with_a_word_about_it(tmp_path):
    text = list_words()
    for group in (p for p in CONF.iterdir() if p.is_dir()):
        for option in options(group):
            (line,) = (line for line in text.splitlines() if line.lstrip(" *").startswith(f"{group.name}={option} "))
            assert len(line.split(maxsplit=1)[1]) >= 5
    assert " *scheduler=constant" in text
    for path in CONF.rglob("*.yaml"):
        copy = tmp_path / path.relative_to(CONF)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "scheduler" / "zigzag.yaml").write_text("# Up and down\n")
    assert "scheduler=zigzag" in list_words(tmp_path)


def test_a_key_that_an_experiment_misspells(train, tmp_path):
    conf = tmp_path / "mine"
    (conf / "experiment").mkdir(parents=True)
    (conf / "experiment" / "bad.yaml").write_text("# @package _global_\noptimizer:\n  lrr: 0.1\nsead: 7\n")
    done = train("experiment=bad", f"hydra.searchpath=[file://{conf}]")
    assert done.returncode == 1
    assert "optimizer.lrr does not exist" in done.stderr
    assert "Did you mean 'lr'?" in done.stderr


def test_a_key_added_on_purpose_is_let_through(run, train):
    done = train("+trainer.overfit_batches=0.0", "--cfg", "job")
    assert "overfit_batches: 0.0" in done.stdout


def test_first_run_from_another_folder_with_odd_letters(train, tmp_path):
    """The main job: a folder by its choices, the contract's files, the last lines on the screen."""
    home = tmp_path / "Übungen für morgen"
    done = train("scheduler=cosine", "mixup=on", *ONE_BATCH, f"hydra.run.dir='{home}/${{run_name:}}'")
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-2:]
    (folder,) = home.iterdir()
    assert last[0].startswith("test accuracy 0.")
    assert last[1] == f"run folder    {folder.relative_to(tmp_path)}"
    assert folder.name.startswith("digits_convnet_mixup-on_scheduler-cosine")
    assert {p.name for p in folder.iterdir()} >= {".hydra", "config.yaml", "metrics.csv", "checkpoints", "result.json"}
    assert json.loads((folder / "result.json").read_text("utf-8"))["overrides"][:2] == ["scheduler=cosine", "mixup=on"]
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    again = train("seed=3", *ONE_BATCH, f"hydra.run.dir='{folder}'")
    assert again.returncode == 1
    assert "holds a run already" in again.stderr
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_folder_names_can_be_typed_back():
    cfg = configure(
        "penalty=[l1,l2]", "+trainer.plugins=null", "model.widths=[1,2]", "seed=7", "data=digits", hydra=True
    )
    name = run_name(_root_=cfg)
    assert name == "digits_convnet_trainer.plugins-null_model.widths-1-2_penalty-l1-l2_seed-7"
    assert run_name(_root_=configure("name='Mine, für α=1'", hydra=True)) == "Mine-f-r-1_seed-0"


def test_two_runs_never_share_a_folder(train, tmp_path):
    for _ in range(2):
        assert train(*ONE_BATCH).returncode == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize("word", RANGES)
def test_every_range_is_held(word):
    low, high = RANGES[word]
    for value in (low, high):
        if abs(value) != float("inf"):
            check_value(f"group.{word}", value, value)
    for value in (low - 1, high + 1):
        if abs(value) != float("inf"):
            with pytest.raises(UserError, match=f"group.{word}={value}; allowed: {low} "):
                check_value(f"group.{word}", value, value)


@pytest.mark.parametrize(
    "right",
    [
        "trainer.max_epochs=${data.batch_size}",
        "optimizer.lr=1",
        "trainer.devices=auto",
        "data.train_size=0.5",
    ],
)
def test_what_is_right_is_let_through(right):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        check(compose("train", [right, "experiment=fashion_94"], return_hydra_config=True))


def test_a_folder_that_can_not_be_written(train, tmp_path, monkeypatch):
    from tricklab import check

    monkeypatch.setattr(check.os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(UserError, match=f"{tmp_path} can't be written"):
        check.check_folder(tmp_path / "a" / "b", configure())
    check.check_folder(tmp_path.parent / "c", configure())
