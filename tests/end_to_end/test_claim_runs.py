"""Each arm of each claim and ablation trains and has its metrics; expectations precede the rows."""

import csv
import math
import re
import subprocess
import sys

import pytest
import yaml

from helpers.configs import ONE_BATCH, compose_and_check
from helpers.datasets import write_mnist, write_photographs
from helpers.paths import CONF, ROOT
from helpers.projects import popen_options
from tricklab.analysis import run_metrics
from tricklab.analysis.ablation import find_tricks, read_ablation
from tricklab.analysis.claims import read_claim
from tricklab.analysis.results import read_run
from tricklab.analysis.run_metrics import read_metric
from tricklab.cli.config import list_options
from tricklab.errors import UserError
from tricklab.files import read_table

CLAIMS = CONF / "experiment" / "claims"
EXPERIMENTS = list_options(CONF / "experiment")
RECIPES = [f"claims/{name}" for name in list_options(CLAIMS)]
RECIPES += [name for name in EXPERIMENTS if find_tricks(name)]
WITH_ROWS = [path.stem for path in sorted(CLAIMS.glob("*.csv"))]
BEGINNING = "582a9f11"  # the commit with the first claims
LATER = {("zeros", "val/acc@last")}  # expectations that were added to rows, by claim and metric


def read_recipe(name):
    if name.startswith("claims/"):
        return read_claim(name.removeprefix("claims/")).recipe
    return read_ablation(name).recipe


@pytest.fixture
def small_data(tmp_path):
    """Return a function: overrides that replace the data of a recipe by a few random images."""
    write_mnist(tmp_path / "mnist")
    write_photographs(tmp_path / "photographs" / "train", images=4)
    write_photographs(tmp_path / "photographs" / "val", images=2)

    def small_data(name):
        kind = compose_and_check(f"experiment={name}").data._target_.rpartition(".")[2]
        small = ["data.train_size=null", "trainer.limit_val_batches=1", "trainer.max_epochs=1"]
        roots = {
            "folder": [f"data.root='{tmp_path / 'photographs'}'", "data.size=32"],
            "fashion_mnist": [f"data.root='{tmp_path / 'mnist'}'"],
            "digits": [],
        }
        return small + roots[kind]

    return small_data


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_arm_trains_one_batch_and_has_its_metrics(
    name, run, run_script, small_data, monkeypatch
):
    def run_command(arguments):
        script, *options = arguments
        done = run_script(script.removeprefix("scripts/"), *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    monkeypatch.setattr(run_metrics, "run_command", run_command)
    recipe = read_recipe(name)
    options = [f"experiment={name}", *ONE_BATCH]
    small = small_data(name)
    teacher = ""
    if recipe.teacher:
        arguments = [*options, *recipe.teacher, *small]
        teacher = run(*arguments, folder="teacher", compose=compose_and_check).folder
    for arm, overrides in recipe.arms.items():
        arm_overrides = [re.sub(r"sweeps/teachers/\w+", str(teacher), text) for text in overrides]
        arguments = [*options, *arm_overrides, *small]
        folder = run(*arguments, folder=arm, compose=compose_and_check).folder
        for metric in recipe.metrics:
            assert math.isfinite(read_metric(read_run(folder), metric)), (arm, metric)


def test_metrics_of_a_run_by_name(cached_run, run_script, monkeypatch):
    options = ("model=mlp", "model.dropout=0.3", "callbacks=ema", "trainer.max_epochs=3")
    run = cached_run(*options)
    scripts = []

    def run_command(arguments):
        scripts.append(" ".join(arguments).replace(str(run.folder), "RUN"))
        return run_script(arguments[0].removeprefix("scripts/"), *arguments[1:]).stdout

    monkeypatch.setattr(run_metrics, "run_command", run_command)
    finished = read_run(run.folder)
    accuracy = run.result["metrics"]["test/acc"]
    assert read_metric(finished, "test/acc") == accuracy
    assert read_metric(finished, "val/acc@last") == run.column("val/acc")[-1]
    assert scripts == []
    averaged = read_metric(finished, "mc=4/test/acc")
    lines = run_script("evaluate.py", str(run.folder), "mc=4", "resamples=0").stdout.splitlines()
    assert f"test/acc {averaged}" in lines
    assert read_metric(finished, "mc=4/test/acc - test/acc") == averaged - accuracy
    auroc = read_metric(finished, "ood/gaussian/auroc")
    averaged_net, raw = (
        row for row in read_table(run.folder / "ood.csv") if row["images"] == "gaussian"
    )
    assert (averaged_net["view"], raw["view"]) == ("average", "last weights")
    assert auroc == float(averaged_net["auroc"]) != float(raw["auroc"])  # as test/acc has it
    assert scripts.count("scripts/evaluate.py RUN suite=ood") == 1  # ood.csv is made once


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test/recall", "no metric test/recall; allowed: val/loss, "),
        ("val/recall@last", r"metrics\.csv has no val/recall"),
        ("ood/mnist/auroc", "no metric ood/mnist/auroc; allowed: ood/noise/auroc, "),
        ("ood/noise/foo", "no metric ood/noise/foo"),
        ("ood/noise", "no metric ood/noise; allowed"),
        ("mc=4/test/foo", "no metric test/foo; allowed: test/acc"),
        ("a - b - c", "no metric a - b - c"),
    ],
)
def test_unknown_metrics_are_refused_in_one_line(name, message, cached_run, monkeypatch):
    run = cached_run(*ONE_BATCH, "model=mlp")
    (run.folder / "ood.csv").write_text("view,images,confidence\nnetwork,noise,0.5\n")
    monkeypatch.setattr(run_metrics, "run_command", lambda arguments: "test/acc 0.5\n")
    with pytest.raises(UserError, match=message):
        read_metric(read_run(run.folder), name)


def test_a_table_of_ood_without_the_images_is_made_again(cached_run, monkeypatch):
    run = cached_run("model=mlp", "model.dropout=0.3", "callbacks=ema", "trainer.max_epochs=3")
    header = "view,images,confidence,auroc,fpr95,n\n"
    table = run.folder / "ood.csv"
    table.write_text(f"{header}network,noise,0.5,0.9,0.1,10\n")

    def run_command(arguments):
        table.write_text(f"{header}network,gaussian,0.5,0.7,0.1,10\n")
        return ""

    monkeypatch.setattr(run_metrics, "run_command", run_command)
    assert read_metric(read_run(run.folder), "ood/noise/auroc") == 0.9
    assert read_metric(read_run(run.folder), "ood/gaussian/auroc") == 0.7


DISTILLED = """# @package _global_
# A claim of the tests
defaults:
  - override /model: mlp

trainer: { max_epochs: 1 }
claim:
  teacher: ["model.widths=[32]"]
  arms:
    plain: []
    distilled: [loss=distill, loss.teacher=TEACHER]
  seeds: 1
  minutes: 1
  expect:
    - { of: distilled, than: plain, metric: test/acc, above: 0 }
"""


@pytest.mark.slow
def test_a_teacher_is_trained_once_and_belongs_to_the_config(project_copy):
    file = project_copy / "conf/experiment/claims/distilled.yaml"
    file.write_text(DISTILLED)
    command = [sys.executable, "scripts/claims.py", "distilled"]
    options = popen_options(project_copy)
    done = subprocess.run(command, **options, capture_output=True)
    assert done.returncode == 0, done.stderr
    (teacher,) = (project_copy / "sweeps" / "teachers").iterdir()
    started = (teacher / "result.json").stat().st_mtime_ns
    (row,) = [row for row in read_csv(file) if "distill" in row["overrides"]]
    assert f"loss.teacher=sweeps/teachers/{teacher.name}" in row["overrides"]
    more = subprocess.run([*command, "seeds=2"], **options, capture_output=True)
    assert more.returncode == 0, more.stderr
    assert (teacher / "result.json").stat().st_mtime_ns == started
    file.write_text(DISTILLED.replace("[32]", "[64]"))  # another teacher: the rows do not count
    other = subprocess.run([*command, "dry_run=true"], **options, capture_output=True)
    assert "error: 1 runs are not done" in other.stderr
    assert list((project_copy / "sweeps" / "teachers").iterdir()) == [teacher]


@pytest.mark.slow
def test_a_teacher_that_fails_is_answered_in_one_line(project_copy):
    file = project_copy / "conf/experiment/claims/distilled.yaml"
    file.write_text(
        DISTILLED.replace('"model.widths=[32]"', '"model.widths=[]", model.dropout=0.5')
    )
    command = [sys.executable, "scripts/claims.py", "distilled"]
    done = subprocess.run(command, **popen_options(project_copy), capture_output=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: model.dropout=0.5 with model.widths=[]: there are no hidden units",
        "error: the teacher of claims/distilled is not trained",
    ]


@pytest.mark.slow
def test_a_run_without_a_metric_is_named_and_the_others_have_their_rows(project_copy):
    file = project_copy / "conf/experiment/claims/distilled.yaml"
    arms = DISTILLED.replace('  teacher: ["model.widths=[32]"]\n', "")
    arms = arms.replace("[loss=distill, loss.teacher=TEACHER]", "[model.dropout=0.5]")
    file.write_text(arms.replace("metric: test/acc", "metric: mc=2/test/acc"))
    options = popen_options(project_copy)
    done = subprocess.run(
        [sys.executable, "scripts/claims.py", "distilled"], **options, capture_output=True
    )
    assert "warning: no row, scripts/evaluate.py" in done.stderr
    assert "mc=2: the network has no dropout" in done.stderr
    assert [row["overrides"] for row in read_csv(file)] == ["model.dropout=0.5"]


def read_csv(claim):
    return list(csv.DictReader(claim.with_suffix(".csv").open()))


def read_expectations(content):
    """Return the expectations in the file of a claim, also in the form of before commit 1b331c7."""
    claim = content.get("claim") or content["sweep"]["claim"]
    return claim["expect"]


@pytest.mark.parametrize("name", WITH_ROWS)
def test_expectations_are_older_than_the_rows(name):
    """A row names the commit that it ran at: what is expected of it stands there."""
    path = CLAIMS / f"{name}.yaml"
    expected = read_expectations(yaml.safe_load(path.read_text("utf-8")))
    rows = csv.DictReader(path.with_suffix(".csv").open())
    for commit in {row["commit"] for row in rows}:
        command = ["git", "show", f"{commit}:conf/experiment/claims/{name}.yaml"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            began = subprocess.run(["git", "cat-file", "-e", BEGINNING], cwd=ROOT)
            assert began.returncode, f"{commit} is not in the history"
            pytest.skip("the history is not here: a shallow clone, or another project's")
        then = read_expectations(yaml.safe_load(done.stdout))
        for expectation in expected:
            is_later = (name, expectation["metric"]) in LATER
            assert is_later or expectation in then, (commit, expectation)
