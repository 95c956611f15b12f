"""Arms without rows train and have their metrics."""

import csv
import json
import math
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from helpers.configs import ONE_BATCH, compose_and_check
from helpers.datasets import write_mnist, write_photographs
from helpers.paths import CONF
from helpers.projects import commit_all, popen_options
from tricklab.analysis import recipes, run_metrics
from tricklab.analysis.ablation import find_tricks, read_ablation
from tricklab.analysis.claims import read_claim
from tricklab.analysis.recipes import Recipe, find_teacher, run_missing, train_teacher
from tricklab.analysis.results import read_run
from tricklab.analysis.run_metrics import read_metric
from tricklab.cli.config import list_options
from tricklab.errors import UserError
from tricklab.files import read_table

CLAIMS = CONF / "experiment" / "claims"
EXPERIMENTS = list_options(CONF / "experiment")
RECIPES = [f"claims/{name}" for name in list_options(CLAIMS)]
RECIPES += [name for name in EXPERIMENTS if find_tricks(name)]
NOT_RUN = [name for name in RECIPES if not (CONF / "experiment" / f"{name}.csv").exists()]


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
        config = compose_and_check(f"experiment={name}")
        kind = config.data._target_.rpartition(".")[2]
        small = ["data.train_size=null", "trainer.limit_val_batches=1", "trainer.max_epochs=1"]
        roots = {
            "folder": [f"data.root='{tmp_path / 'photographs'}'", "data.size=32"],
            "fashion_mnist": [f"data.root='{tmp_path / 'mnist'}'"],
            "digits": [],
        }
        return small + roots[kind] + random_weights(config.model, tmp_path)

    return small_data


def random_weights(model, folder):
    """Return overrides that replace the published weights of a recipe by random ones."""
    if not model.weights:
        return []
    timm = pytest.importorskip("timm", reason="needs the extra [timm]")
    path = folder / "random.pth"
    torch.save(timm.create_model(model.name).state_dict(), path)
    return [f"model.weights='{path}'"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_RUN)
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
  delta: { test/acc: 0.003 }
  spread: { test/acc: 0.0 }
  seeds: 2
  minutes: 1
  expect:
    - { of: distilled, than: plain, metric: test/acc, above: 0 }
"""


@pytest.mark.slow
def test_claim_trains_its_teacher_and_distills_it(project_copy):
    file = project_copy / "conf/experiment/claims/distilled.yaml"
    file.write_text(DISTILLED)
    commit_all(project_copy)
    command = [sys.executable, "scripts/claims.py", "distilled", "pilot=1"]
    done = subprocess.run(command, **popen_options(project_copy), capture_output=True)
    assert done.returncode == 0, done.stderr
    (teacher,) = (project_copy / "sweeps" / "teachers").iterdir()
    (row,) = [row for row in read_csv(file) if "distill" in row["overrides"]]
    assert f"loss.teacher=sweeps/teachers/{teacher.name}" in row["overrides"]


@pytest.fixture
def commands(monkeypatch):
    """Commands that recipes would start, which all fail."""
    commands = []

    def run(command, **options):
        commands.append(command[1:])
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(recipes, "subprocess", SimpleNamespace(run=run))
    return commands


def test_teacher_is_trained_once_and_never_in_a_dry_run(commands, monkeypatch):
    recipe = read_claim("distillation").recipe
    folder = find_teacher(recipe.name, recipe.teacher)
    with pytest.raises(UserError, match="the teacher of claims/distillation is not trained"):
        train_teacher(recipe)
    (command,) = commands
    assert command[:2] == ["train.py", "experiment=claims/distillation"]
    assert command[-2:] == [f"hydra.run.dir={folder}", "resume=auto"]
    assert folder in " ".join(recipe.arms["distilled"])
    monkeypatch.setattr(recipes, "read_run", lambda path: SimpleNamespace(done=True))
    train_teacher(recipe)
    assert len(commands) == 1
    monkeypatch.setattr(recipes, "update_results", lambda recipe, seeds: {"distilled": {}})
    monkeypatch.setattr(recipes, "train_teacher", lambda recipe: commands.append("teacher"))
    run_missing(recipe, [0], ["dry_run=true"])
    assert "teacher" not in commands
    run_missing(recipe, [0], [])
    assert commands[-2] == "teacher"


def test_another_teacher_is_another_folder():
    """So the rows of those that distilled the first one do not count."""
    recipe = read_claim("distillation").recipe
    other = [*recipe.teacher, "trainer.max_epochs=31"]
    assert find_teacher(recipe.name, other) != find_teacher(recipe.name, recipe.teacher)


def test_a_run_without_a_metric_is_named_and_the_others_have_their_rows(
    tmp_path, monkeypatch, capsys
):
    recipe = Recipe("x", {"a": ["seed=0"], "b": ["seed=1"]}, ("mc=2/test/acc",))
    monkeypatch.setattr(Recipe, "csv_file", tmp_path / "x.csv")
    monkeypatch.setattr(Recipe, "folder", tmp_path / "sweeps")
    for seed in (0, 1):
        (recipe.folder / str(seed)).mkdir(parents=True)
        result = {"status": "done", "config_hash": f"hash{seed}", "overrides": [f"seed={seed}"]}
        result |= {"seconds": 1.0, "started": "2026-11-28", "metrics": {}}
        result |= {"git": {"commit": "0123456789ab", "dirty": False}}
        (recipe.folder / str(seed) / "result.json").write_text(json.dumps(result))

    def run_command(arguments):
        if arguments[1].endswith("0"):
            raise UserError("mc=2: the network has no dropout")
        return "test/acc 0.75 (0.7 to 0.8)\n"

    monkeypatch.setattr(run_metrics, "run_command", run_command)
    rows = recipes.collect_runs(recipe, {"hash0", "hash1"})
    assert {key: row["mc=2/test/acc"] for key, row in rows.items()} == {"hash1": "0.75"}
    assert capsys.readouterr().err == "warning: no row, mc=2: the network has no dropout\n"


def read_csv(claim):
    return list(csv.DictReader(claim.with_suffix(".csv").open()))
