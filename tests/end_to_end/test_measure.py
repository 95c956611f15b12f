"""Measured recipes: rows beside them, runs that are missing, and summaries."""

import csv
import json
import subprocess
import sys
from datetime import datetime
from types import SimpleNamespace

import pytest

from helpers.configs import configure
from helpers.paths import CONF, ROOT
from helpers.projects import commit_all
from tricklab.analysis import control, recipes, run_metrics
from tricklab.analysis.flops import training_flops
from tricklab.analysis.recipes import Recipe, collect_runs, format_summary, run_missing
from tricklab.analysis.rows import format_rows, is_complete, published_seeds
from tricklab.cli.config import to_plain
from tricklab.data.published import find_mnist
from tricklab.run.identity import config_hash
from tricklab.run.record import git_state


def write_result(folder, seed, status="done", accuracy=0.9, overrides=(), dirty=False):
    """Write the result of a run whose config hash is hash0 for seed 0."""
    result = {
        "status": status,
        "config_hash": f"hash{seed}",
        "overrides": ["experiment=x", *overrides, f"seed={seed}"],
        "seconds": 10.0 + seed,
        "git": {"commit": "0123456789ab", "dirty": dirty},
        "versions": {"python": "3.11", "torch": "2", "pytorch-lightning": "2.6"},
        "machine": {"processor": "A", "cores": 4, "threads": 2},
        "started": "2026-11-25T10:00:00+00:00",
        "metrics": {
            "val/acc": accuracy + 0.01,
            "test/acc": accuracy,
            "test/loss": 0.5,
            "test/ece": 0.02,
        },
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text("dataset: { fingerprint: abc }\n")


@pytest.fixture
def recipe(monkeypatch, tmp_path):
    """A recipe whose file and folder are elsewhere."""
    monkeypatch.setattr(Recipe, "csv_file", tmp_path / "x.csv")
    monkeypatch.setattr(Recipe, "folder", tmp_path / "sweep")
    return Recipe("x")


def read_csv(recipe):
    return list(csv.DictReader(recipe.csv_file.open()))


def test_collect_runs_adds_rows_of_finished_runs(recipe, tmp_path, monkeypatch):
    wanted = {"hash0", "hash1", "hash2"}
    assert collect_runs(recipe, wanted) == {}
    assert not recipe.csv_file.exists()
    write_result(recipe.folder / "a", seed=0, accuracy=0.90)
    write_result(recipe.folder / "b", seed=1, status="failed")
    write_result(recipe.folder / "other", seed=3)
    assert set(collect_runs(recipe, wanted)) == {"hash0"}
    written = recipe.csv_file.stat().st_mtime_ns
    collect_runs(recipe, wanted)
    assert recipe.csv_file.stat().st_mtime_ns == written  # other processes may be reading it
    monkeypatch.setattr(Recipe, "folder", tmp_path / "later")
    write_result(recipe.folder / "c", seed=2, accuracy=0.92)
    rows = collect_runs(recipe, wanted)
    found = [(row["seed"], row["test/acc"], row["seconds"]) for row in read_csv(recipe)]
    assert found == [("0", "0.9", "10.0"), ("2", "0.92", "12.0")]
    assert (
        format_summary(list(rows.values()), 1.5e12)
        == "2 seeds: test/acc 0.9100 ± 0.0141, val/acc 0.9200 ± 0.0141, "
        "11 s a run (10 to 12), 1.5e+12 FLOPs"
    )


def test_collect_runs_keeps_the_overrides_of_an_arm_and_last_values(recipe):
    several = recipe._replace(
        arms={"a": ["mixup=off"], "b": ["mixup=on"]}, metrics=("test/acc", "val/acc@last")
    )
    overrides = ["mixup=on", "mixup.alpha=2", "~penalty.x", "resume=auto"]
    write_result(recipe.folder / "a", seed=0, overrides=overrides)
    (recipe.folder / "a" / "metrics.csv").write_text("step,val/acc,lr\n1,0.5,\n2,0.75,\n3,,0.1\n")
    (row,) = collect_runs(several, {"hash0"}).values()
    assert list(row)[:4] == ["config_hash", "overrides", "seed", "seconds"]
    assert row["overrides"] == "mixup=on mixup.alpha=2 ~penalty.x"
    assert (row["test/acc"], row["val/acc@last"]) == ("0.9", "0.75")
    assert "test/loss" not in row
    assert row["commit"] == "0123456789"
    assert (row["python"], row["torch"], row["pytorch-lightning"]) == ("3.11", "2", "2.6")
    assert (row["processor"], row["cores"], row["threads"]) == ("A", "4", "2")
    assert (row["data"], row["date"]) == ("abc", "2026-11-25")


@pytest.mark.parametrize("dirty", [True, None])
def test_run_of_unknown_code_has_no_row(recipe, dirty, capsys):
    write_result(recipe.folder / "a", seed=0, dirty=dirty)
    assert collect_runs(recipe, {"hash0"}) == {}
    assert "the code was not that of a commit" in capsys.readouterr().err


def test_row_has_the_control_nearest_to_its_start(recipe):
    write_result(recipe.folder / "a", seed=0)
    started = datetime.fromisoformat("2026-11-25T10:00:00+00:00").timestamp()
    controls = {-3000: 100, -5: 200, 4000: 300}
    lines = [f"{started + seconds},{speed}" for seconds, speed in controls.items()]
    file = recipe.folder / "control.csv"
    file.write_text("\n".join(["time,images_per_second", *lines]))
    assert collect_runs(recipe, {"hash0"})["hash0"]["control"] == "200.0"
    recipe.csv_file.unlink()
    file.write_text(f"time,images_per_second\n{started - 3601},100\n")
    assert "control" not in collect_runs(recipe, {"hash0"})["hash0"]


def test_control_is_recorded_in_the_folder_of_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(control, "run_in_new_process", lambda function, threads: 123.4)
    folder = tmp_path / "runs"
    assert control.record_control(folder) == 123.4
    control.record_control(folder)
    header, *rows = (folder / "control.csv").read_text().splitlines()
    assert header == "time,images_per_second"
    assert [row.partition(",")[2] for row in rows] == ["123", "123"]


def test_control_is_the_speed_of_a_plain_loop(monkeypatch):
    monkeypatch.setitem(control.CASES, (control.NET, control.BATCH_SIZE), 1)
    assert control.time_control(1) > 0


def test_collect_runs_evaluates_runs_for_metrics_that_they_lack(recipe, monkeypatch):
    of_noise = recipe._replace(metrics=("ood/noise/confidence",))
    write_result(recipe.folder / "a", seed=0)
    commands = []

    def evaluate(command):
        commands.append(command)
        table = "images,confidence\nrotated,0.5\nnoise,0.25\n"
        (recipe.folder / "a" / "ood.csv").write_text(table)

    monkeypatch.setattr(run_metrics, "run_command", evaluate)
    (row,) = collect_runs(of_noise, {"hash0"}).values()
    assert row["ood/noise/confidence"] == "0.25"
    assert [command[-1] for command in commands] == ["suite=ood"]


def test_run_missing_runs_only_arms_and_seeds_without_a_row(recipe, monkeypatch):
    several = recipe._replace(arms={"a": ["x=1"], "b": ["y=[1,2]"], "c": []})
    results, commands = {"a": {0: {}, 1: {}}, "b": {0: {}}, "c": {}}, []
    monkeypatch.setattr(recipes, "update_results", lambda recipe, seeds: results)
    fake = SimpleNamespace(run=lambda command, **options: commands.append(command))
    monkeypatch.setattr(recipes, "subprocess", fake)
    run_missing(several, range(2), ["slots=2"])
    assert [word for word in commands[0] if word.startswith(("seed=", "sweep", "slots"))] == [
        *("seed=0,1", "sweep=arms", "sweep.arms={b:['y=[1,2]'],c:[]}", "slots=2")
    ]
    run_missing(several._replace(arms={"b": []}), range(1), [])
    assert "sweep=arms" not in commands[1]
    results |= {"b": {0: {}, 1: {}}, "c": {0: {}, 1: {}}}
    run_missing(several, range(2), [])
    assert len(commands) == 2


def test_row_without_a_wanted_metric_is_incomplete_and_stays(recipe):
    write_result(recipe.folder / "a", seed=0)
    collect_runs(recipe._replace(metrics=("test/acc",)), {"hash0"})
    assert [row["test/ece"] for row in collect_runs(recipe, {"hash0"}).values()] == ["0.02"]
    (recipe.folder / "a" / "result.json").unlink()
    with_nll = recipe._replace(metrics=("test/acc", "val/nll"))
    row = collect_runs(with_nll, {"hash0"})["hash0"]
    assert not is_complete(row, with_nll.metrics)
    assert is_complete(row, recipe.metrics)


def test_rows_with_different_columns_share_a_file():
    assert format_rows([{"a": "1"}, {"b": "2", "a": "3"}]) == "a,b\n1,\n3,2\n"


def test_training_flops_are_those_of_all_steps():
    forward = 2 * (64 * 8 + 8 * 10)
    backward = 2 * (64 * 8 + 2 * 8 * 10)  # no gradient of the pixels
    config = configure(
        "model=mlp", "model.widths=[8]", "data.batch_size=100", "trainer.max_epochs=3"
    )
    assert training_flops(config) == (forward + backward) * 3 * 13 * 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fashion_29"], "experiment=fashion_29 does not exist; allowed: bag_of_tricks, "),
        ([], "experiment= does not exist"),
        (["fashion_92", "seeds=0"], "seeds=0: expected a number of seeds, 1 to 1000"),
        (["fashion_92", "seeds=1", "seeds=2"], "seeds is given twice"),
        (
            ["fashion_92", "trainer.precision=bf16-mixed"],
            "precision=bf16-mixed would change the measured config. Expected seeds=N",
        ),
        (["fashion_92", "fashion_93"], "fashion_93 would change the measured config"),
    ],
)
def test_measure_refuses_wrong_arguments(run_script, arguments, message):
    done = run_script("measure.py", *arguments)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize(
    "file", sorted((CONF / "experiment").glob("*.csv")), ids=lambda file: file.stem
)
def test_rows_beside_a_recipe_have_its_hashes(file):
    """If not, the recipe has changed since: its rows no longer count."""
    for seed, row in enumerate(csv.DictReader(file.open())):
        overrides = [*row.get("overrides", "").split(), f"seed={row['seed']}"]
        config = configure(f"experiment={file.stem}", *overrides)
        assert config_hash(to_plain(config)) == row["config_hash"], (seed, overrides)


@pytest.mark.parametrize(
    "file", sorted((CONF / "experiment").glob("*.csv")), ids=lambda file: file.stem
)
def test_rows_beside_a_recipe_have_all_seeds(file):
    seeds = {int(row["seed"]) for row in csv.DictReader(file.open())}
    assert seeds == set(published_seeds(len(seeds)))


@pytest.mark.slow
@pytest.mark.skipif(
    not find_mnist(ROOT / "data", "FashionMNIST"), reason="needs a copy of Fashion-MNIST"
)
def test_measure_does_not_run_what_has_a_row(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "measure.py"), "fashion_91", "seeds=10"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("10 seeds: test/acc 0.9107 ± 0.0022")
    assert len(done.stdout.splitlines()) == 1


def test_rows_and_text_are_no_changes_of_code(tmp_path):
    (tmp_path / "code.py").write_text("1\n")
    commit_all(tmp_path)
    assert git_state(tmp_path)["dirty"] is False
    (tmp_path / "conf" / "experiment" / "claims").mkdir(parents=True)
    for name in ("x.csv", "claims/x.csv", "README.md", "claims.svg"):
        (tmp_path / "conf" / "experiment" / name).write_text("1\n")
    assert git_state(tmp_path)["dirty"] is False
    (tmp_path / "conf" / "x.yaml").write_text("1\n")
    assert git_state(tmp_path)["dirty"] is True
    (tmp_path / ".git" / "index").write_text("damaged")
    assert git_state(tmp_path)["dirty"] is None
