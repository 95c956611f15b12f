"""scripts/reproduce.py: a run comes out the same, or what differs is named."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from helpers.datasets import write_photographs
from helpers.paths import CONF, ROOT
from tricklab.analysis.original import Original, check_override, read_original, read_row
from tricklab.analysis.reproduction import (
    checked_out,
    compare,
    compare_circumstances,
    explain_failure,
)
from tricklab.errors import UserError
from tricklab.files import read_table

SHORT = ("model=mlp", "trainer.max_epochs=2", "trainer.log_every_n_steps=1")
SAME = "THE SAME in every digit: "


def edit_result(folder, **changes):
    path = folder / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes))


@pytest.fixture
def reproduce(tmp_path):
    """Run the script as a process of its own, as it starts one that imports torch anew."""

    def reproduce(*arguments):
        command = [sys.executable, str(ROOT / "scripts" / "reproduce.py"), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return reproduce


# Whole commands


@pytest.mark.slow
def test_run_comes_out_the_same_and_what_differs_is_named(cached_run, reproduce, tmp_path):
    options = ("model=mlp", "mixup=on", "model.dropout=0.2", "trainer.max_epochs=2")
    run = cached_run(*options)
    again = reproduce(run.folder, "output=again")
    assert again.returncode == 0, again.stdout + again.stderr
    rows = run.metrics_text.count("\n") - 1
    metrics = len(run.result["metrics"])
    both = "the weights of best.ckpt, the weights of last.ckpt"
    assert f"{SAME}{metrics} metrics, {rows} rows of metrics.csv, {both}\n" in again.stdout
    threads = run.result["machine"]["threads"]
    edit_result(run.folder, overrides=[*run.result["overrides"], "model.dropout=0.3"])
    changed = reproduce(run.folder, f"threads={threads + 1}", "output=changed")
    assert changed.returncode == 1
    assert "NOT THE SAME (before -> now):\n  val/loss: " in changed.stdout
    assert f"  threads: {threads} -> {threads + 1}\n" in changed.stdout
    assert "  model.dropout: 0.2 -> 0.3\n" in changed.stdout


@pytest.mark.slow
def test_other_data_are_named(run, reproduce, tmp_path):
    root = tmp_path / "pictures"
    write_photographs(root, images=12)
    options = ("data=folder", f"data.root='{root}'", "data.size=16", "model=mlp")
    done = run(*options, "augment=resized_crop", "data.num_workers=2", "trainer.max_epochs=1")
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    shutil.copy(moved / "cat" / "2.jpg", moved / "cat" / "0.jpg")
    other = reproduce(done.folder, f"data.root={moved}", "output=other")
    assert other.returncode == 1
    assert f"  data.root: {root} -> {moved}\n" in other.stdout
    assert re.search(r"^  data: [0-9a-f]{16} -> [0-9a-f]{16}$", other.stdout, re.MULTILINE)
    shutil.rmtree(root)
    lost = reproduce(done.folder, "output=lost")
    assert "does not exist here. Expected data.root=PATH" in lost.stderr


@pytest.mark.slow
def test_commit_is_trained_in_a_worktree(cached_run, reproduce):
    run = cached_run(*SHORT)
    done = reproduce(run.folder, "commit=HEAD", "output=at_head")
    assert done.returncode in (0, 1), done.stderr  # 1: the uncommitted code gives other digits
    assert "metrics" in done.stdout
    worktrees = subprocess.run(
        ["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True
    )
    assert "/code " not in worktrees.stdout
    unknown = reproduce(run.folder, "commit=0123456789", "output=unknown")
    expected = "error: commit=0123456789: this repository does not have it. Try git fetch\n"
    assert unknown.stderr == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected the folder of a run, or claim=NAME, or recipe=NAME"),
        (["claim=decay", "recipe=fashion_92"], "expected the folder of a run, or claim=NAME"),
        (["claim=dekay"], "claim=dekay does not exist; allowed: adam, .* Did you mean 'decay'"),
        (["recipe=fashion_9"], "recipe=fashion_9 does not exist; allowed: bag_of_tricks, "),
        (["claim=decay", "arm=cos"], "arm=cos does not exist; allowed: constant, cosine"),
        (["claim=decay", "arm=cosine"], r"seed=; allowed for claims/decay: 1000, 1001,"),
        (["claim=decay", "arm=cosine", "seed=99"], "seed=99; allowed for claims/decay: 1000,"),
        (["nowhere"], "nowhere: no result.json. Expected the folder of a run that is done"),
        (["nowhere", "thread=1"], "thread: no such option; allowed: claim, recipe, arm, seed,"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, run_script):
    done = run_script("reproduce.py", *arguments)
    assert done.returncode == 1
    assert re.search(message, done.stderr)
    assert done.stderr.count("\n") == 1


# What is taken from a folder


@pytest.mark.parametrize(
    "override",
    [
        "data.root=${oc.env:HOME}",
        "+callbacks.x._target_=pytorch_lightning.callbacks.ModelCheckpoint",
        "optimizer={_target_: os.system}",
        "optimizer._target_=os.system",
        "optimizer._target_=torch.optim.lr_scheduler.LambdaLR",
        "+trainer.default_root_dir=/tmp/x",
        "+logger.x=1",
        "~penalty",
        "--config-path=/tmp/evil",
        "--multirun",
        "-m",
        "experiment=../../../tmp/evil",
        "+experiment@callbacks=fashion_91",
        "hydra/launcher@x=ray",
        "model=mlp\n--multirun",
        "data.root=/does/not/exist",
    ],
)
def test_unsafe_overrides_of_a_folder_are_refused(override, tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        check_override(override, tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "model=mlp",
        "+optimizer.maximize=false",
        "optimizer._target_=torch.optim.RMSprop",
        "model.widths=[8,8]",
    ],
)
def test_options_of_a_folder_are_taken(override, tmp_path):
    check_override(override, tmp_path)


def test_places_and_names_of_a_folder_are_left_out(cached_run):
    """A stranger does not choose where to write, what to log, or how many jobs run."""
    run = cached_run(*SHORT)
    unused = ["hydra.run.dir=/etc", "logger=wandb", "data.cache=/etc", "slots=9", "name=x"]
    edit_result(run.folder, overrides=[*run.result["overrides"], *unused, "hydra/launcher=ray"])
    assert read_original(run.folder).overrides == [*SHORT, "trainer.channels_last=false"]


def test_run_that_is_not_done_is_refused(cached_run):
    run = cached_run(*SHORT)
    edit_result(run.folder, status="interrupted")
    with pytest.raises(UserError, match=r"interrupted\. Expected the folder of a run that is done"):
        read_original(run.folder)


# What is compared


@pytest.fixture
def two(cached_run):
    return [read_original(cached_run(*SHORT, folder=name).folder) for name in ("one", "two")]


def test_the_same_run_is_the_same(two):
    comparison = compare(*two)
    assert comparison.different == comparison.circumstances == []
    assert len(comparison.same) == 4


def test_each_circumstance_is_named(two):
    before, now = two
    for name in before.circumstances:
        other = "other678" * 2  # as long as a fingerprint
        changed = before._replace(circumstances={**before.circumstances, name: other})
        line = f"{name}: {other} -> {now.circumstances[name]}"
        assert compare_circumstances(changed, now) == [line]
        unknown = before._replace(circumstances={**before.circumstances, name: ""})
        line = f"{name}: not recorded -> {now.circumstances[name]}"
        assert compare_circumstances(unknown, now) == [line]
    assert {"commit", "torch", "threads", "data", "processor", "devices"} <= set(
        before.circumstances
    )
    changed = before._replace(config={**before.config, "seed": 7}, changes="+x")
    assert compare_circumstances(changed, now) == [
        "code: other uncommitted changes, see git.diff in the folders",
        "seed: 7 -> 0",
    ]


def test_threads_that_begin_alike_are_not_the_same(two):
    before, now = (
        run._replace(circumstances={"threads": threads, "commit": commit})
        for run, threads, commit in zip(two, ("1", "16"), ("abcdef", "abcdef123"))
    )
    assert compare_circumstances(before, now) == ["threads: 1 -> 16"]


def test_the_last_digit_of_a_metric_is_compared(two):
    before, now = two
    value = before.metrics["test/loss"]
    metrics = {**before.metrics, "test/loss": value + 1e-16 * value}
    changed = before._replace(metrics={**metrics, "test/loss": value * (1 + 3e-16)})
    assert changed.metrics["test/loss"] != value
    different = compare(changed, now).different
    assert different == [f"test/loss: {changed.metrics['test/loss']} -> {value}"]


def test_rows_of_metrics_and_weights_are_compared(two, cached_run):
    before, now = two
    table = now.folder / "metrics.csv"
    lines = table.read_text().splitlines()
    cells = lines[3].split(",")
    step = cells[lines[0].split(",").index("step")]
    cells[lines[0].split(",").index("train/loss")] = "0.5"
    table.write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:]]) + "\n")
    (line,) = compare(before, now).different
    assert line.startswith(f"metrics.csv, first in step {step}: train/loss ")
    assert line.endswith(" -> 0.5")
    other = cached_run(*SHORT, "seed=1", folder="other").folder
    shutil.copy(other / "checkpoints" / "last.ckpt", now.folder / "checkpoints" / "last.ckpt")
    lines_of_both = compare(before, now).different
    assert any(re.match(r"last\.ckpt: weights by at most \d", line) for line in lines_of_both)
    table.write_text("\n".join(lines[:-1]) + "\n")
    assert any("metrics.csv, first in step" in x for x in compare(before, now).different)


def test_a_metric_that_is_new_is_no_difference(two):
    """A run may be older than a metric."""
    before, now = two
    table = before.folder / "metrics.csv"
    header, *lines = table.read_text().splitlines()
    column = header.split(",").index("val/oe")
    rows = [[cell for i, cell in enumerate(line.split(",")) if i != column] for line in lines]
    names = [name for name in header.split(",") if name != "val/oe"]
    table.write_text("\n".join(",".join(row) for row in [names, *rows]) + "\n")
    assert compare(before, now).different == []
    assert compare(now, before).different[0].startswith("metrics.csv, first in step")


def test_fingerprints_of_other_lengths_are_not_compared(two):
    before, now = two
    older = before._replace(circumstances={"data": "a8e602ef"})
    line = "data: the fingerprint is of an older kind, and can't be compared"
    assert compare_circumstances(older, now) == [line]


def test_failure_names_the_commit_that_made_the_run():
    original = Original("old", None, [], {}, {"commit": "dc1c1580000"}, {})
    message = explain_failure(original, "warning\nerror: mixup.alfa=1: no such option\n", "")
    assert message.startswith("old: mixup.alfa=1: no such option (it was made by commit dc1c158000")
    assert "commit=recorded" in message
    assert "commit" not in explain_failure(original, "error: x\n", "dc1c158")


def test_checkout_of_an_unknown_commit_is_refused():
    message = "commit=abc: this repository does not have it"
    with pytest.raises(UserError, match=message), checked_out("abc"):
        pass


def test_row_is_the_run_of_its_arm_and_seed():
    options = {"claim": "decay", "recipe": "", "arm": "cosine", "seed": "1003"}
    original = read_row(options)
    assert original.overrides == ["experiment=claims/decay", "scheduler=cosine", "seed=1003"]
    (row,) = (
        row
        for row in read_table(CONF / "experiment" / "claims" / "decay.csv")
        if row["overrides"] == "scheduler=cosine" and row["seed"] == "1003"
    )
    assert original.metrics == {"test/acc": float(row["test/acc"])}
    for name in ("commit", "torch", "processor", "threads", "data"):
        assert original.circumstances[name] == row[name] != ""
    recipe = read_row({"claim": "", "recipe": "fashion_91", "arm": "", "seed": "1000"})
    assert recipe.overrides == ["experiment=fashion_91", "seed=1000"]
    assert recipe.name == "fashion_91_seed-1000"


def test_row_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("tricklab.analysis.original.load_results", lambda recipe: {"cosine": {}})
    options = {"claim": "decay", "recipe": "", "arm": "cosine", "seed": "1000"}
    with pytest.raises(UserError, match=r"seed=1000; allowed for .*: none, as no seed has"):
        read_row(options)
