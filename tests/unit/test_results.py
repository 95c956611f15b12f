"""Runs as a table, and scripts/runs.py: lists, searches and deletes them."""

import contextlib
import json
import math

import pytest

from helpers.configs import ONE_BATCH
from tricklab.analysis import load_runs, read_runs
from tricklab.analysis.results import Run, read_sweep, to_row
from tricklab.cli.overrides import split_arguments, to_bool
from tricklab.errors import UserError
from tricklab.run.folder import lock_run

RESULT = {
    "status": "done",
    "reason": None,
    "metrics": {"test/acc": 0.9, "val/acc": 0.8},
    "seconds": 2.5,
    "images": {"test": 359},
    "config_hash": "0123456789ab",
    "overrides": ["scheduler=cosine", "optimizer.lr=1e-1", "mixup=on", "seed=1", "slots=2"],
    "started": "2026-11-25T10:00:00+00:00",
    "versions": {"torch": "2.14.1"},
    "git": {"commit": "abcdef"},
}


def write_run(folder, config="choices: {}\nseed: 0\n", result='{"status": "done"}'):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"a: 1\n{config}")
    (folder / "result.json").write_text(result)


def test_read_runs_returns_plain_values(tmp_path):
    write_run(tmp_path / "runs" / "a", result=json.dumps(RESULT))
    (run,) = read_runs(tmp_path / "runs")
    assert run == Run(
        folder=tmp_path / "runs" / "a",
        overrides=RESULT["overrides"],
        options={"scheduler": "cosine", "optimizer.lr": "1e-1", "mixup": "on", "seed": "1"},
        status="done",
        metrics={"test/acc": 0.9, "val/acc": 0.8},
        seconds=2.5,
        test_images=359,
        config_hash="0123456789ab",
        started="2026-11-25T10:00:00+00:00",
        commit="abcdef",
        torch="2.14.1",
    )
    assert run.done


def test_row_of_a_run_has_a_column_for_each_option_and_metric(tmp_path):
    write_run(tmp_path / "runs" / "a", result=json.dumps(RESULT))
    row = to_row(*read_runs(tmp_path / "runs"))
    assert row["scheduler"] == "cosine"
    assert (row["optimizer.lr"], row["seed"]) == (0.1, 1)
    assert (row["mixup"], row["test/acc"]) == ("on", 0.9)
    assert (row["status"], row["seconds"]) == ("done", 2.5)
    assert row["folder"] == str(tmp_path / "runs" / "a")
    assert "slots" not in row


def test_row_of_a_run_keeps_its_fields_from_options_of_the_same_name(tmp_path):
    overrides = ["+status=fine", "+folder=/etc", "seed=0"]
    write_run(tmp_path / "runs" / "a", result=json.dumps(RESULT | {"overrides": overrides}))
    row = to_row(*read_runs(tmp_path / "runs"))
    assert (row["status"], row["folder"]) == ("done", str(tmp_path / "runs" / "a"))


def test_read_runs_follows_the_order_of_a_sweep(tmp_path):
    jobs = [{"folder": name, "overrides": [f"seed={name}"]} for name in ("2", "0", "1")]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    write_run(tmp_path / "0", result=json.dumps(RESULT))
    runs = read_runs(tmp_path)
    assert [(run.folder.name, run.status) for run in runs] == [
        ("2", "missing"),
        ("0", "done"),
        ("1", "missing"),
    ]
    assert runs[1].options == {"seed": "0"}  # as the sweep lists it


@pytest.mark.parametrize(
    "strange",
    [
        {"metrics": [1], "seconds": "x", "images": 3, "git": "x", "versions": None},
        {"metrics": {"test/acc": math.nan, "val/acc": True}, "overrides": {"a": 1}},
        {"config_hash": 5, "started": [], "reason": {"a": "b"}},
    ],
)
def test_read_runs_survives_any_result(tmp_path, strange):
    write_run(tmp_path / "runs" / "a", result=json.dumps(RESULT | strange))
    (run,) = read_runs(tmp_path / "runs")
    assert run.status == "done"
    assert all(math.isfinite(value) for value in run.metrics.values())
    assert isinstance(run.config_hash, str)


def test_read_sweep_refuses_what_is_none(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a sweep"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text('{"jobs": [{"folder": ".."}]}')
    with pytest.raises(UserError, match=r"no jobs in sweep.json"):
        read_sweep(tmp_path)


def test_load_runs_returns_a_data_frame(tmp_path):
    pandas = pytest.importorskip("pandas")
    write_run(tmp_path / "runs" / "a", result=json.dumps(RESULT))
    other = {"overrides": ["scheduler=step", "seed=0"], "metrics": {"test/acc": 0.7}}
    write_run(tmp_path / "runs" / "b", result=json.dumps(RESULT | other))
    runs = load_runs(tmp_path / "runs")
    assert isinstance(runs, pandas.DataFrame)
    assert len(runs) == 2
    by_scheduler = runs.set_index("scheduler")
    assert by_scheduler["test/acc"].to_dict() == {"cosine": 0.9, "step": 0.7}
    assert math.isnan(by_scheduler.loc["step", "val/acc"])
    assert set(runs["seed"]) == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "names", "options"),
    [
        (["sweeps/a", "metric=val/acc"], ["sweeps/a"], {"metric": "val/acc"}),
        (["a=b", "a=c"], ["a=b"], {"a": "c"}),  # a=b exists
        (["baseline='mixup=on'"], [], {"baseline": "mixup=on"}),
        (["data.root='x y'"], [], {"data.root": "'x y'"}),  # an override is left to Hydra
    ],
)
def test_arguments_are_split_into_names_and_options(
    tmp_path, monkeypatch, arguments, names, options
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert split_arguments(arguments) == (names, options)


def test_booleans_are_true_or_false():
    assert to_bool("delete", "true")
    assert not to_bool("delete", "false")
    with pytest.raises(UserError, match="delete=yes; allowed: true, false"):
        to_bool("delete", "yes")


@pytest.fixture
def three_runs(run):
    """Three runs: a is done, b failed, c was killed."""
    for folder, overrides, choices in [
        ("runs/a", ("seed=1",), {"scheduler": "cosine"}),
        ("runs/b", ("trainer.limit_val_batches=0.01",), {"scheduler": "step"}),
        ("runs/c", ("seed=2",), {"scheduler": "step"}),
    ]:
        with contextlib.suppress(UserError):
            done = run(*ONE_BATCH[:1], "model=mlp", *overrides, folder=folder, choices=choices)
    (done.folder.parent / "c" / "result.json").unlink()


def test_runs_are_found_by_options_and_status(three_runs, run_script):
    for filters, found in [
        ([], "abc"),
        (["status=failed"], "b"),
        (["scheduler=step"], "bc"),
        (["scheduler=step", "status=unfinished"], "c"),
        (["seed=1"], "a"),
        (["optimizer.lr=0.1", "stop_after=1it"], "abc"),
        (["optimizer.lr=0.2"], ""),
        (["optimizer.lr=1e-1", "data.train_size=null", "model.widths=[256,128]"], "abc"),
    ]:
        lines = run_script("runs.py", *filters).stdout.splitlines()
        assert sorted(line[-1] for line in lines[:-1]) == list(found), filters
        assert lines[-1] == f"{len(found)} runs below runs"


def test_runs_are_deleted_unless_they_may_run(three_runs, run_script, tmp_path):
    def delete(*filters):
        run_script("runs.py", *filters, "delete=true")
        return sorted(path.name for path in (tmp_path / "runs").iterdir())

    (tmp_path / "runs" / "mine").mkdir()
    (tmp_path / "runs" / "mine" / "config.yaml").write_text("something: else")
    done = run_script("runs.py", "scheduler=step", "delete=true")
    assert "2 runs below runs, 1 deleted" in done.stdout  # c is unfinished
    assert delete("seed=0") == ["a", "c", "mine"]
    lock = lock_run(tmp_path / "runs" / "c")
    assert run_script("runs.py", "status=running").stdout.splitlines()[-1] == "1 runs below runs"
    assert delete("status=running") == ["a", "c", "mine"]
    lock.close()
    assert delete("status=unfinished") == ["a", "mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["delete=true"], "delete=true: needs a filter"),
        (["status=fail"], "status=fail; allowed: done, failed, "),
        (["status=fail"], "Did you mean 'failed'?"),
        (["delete=yes", "seed=1"], "delete=yes; allowed: true, false"),
        (["root=nowhere"], "root=nowhere: not a folder"),
        (["failed"], "failed: expected OPTION=VALUE"),
        (["sed=1", "delete=true"], "no run below runs has this option. Did you mean 'seed'?"),
    ],
)
def test_runs_refuses_wrong_arguments_in_one_line(run_script, tmp_path, arguments, message):
    write_run(tmp_path / "runs" / "a")
    done = run_script("runs.py", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "runs" / "a").is_dir()


def test_runs_lists_damaged_runs_beside_the_others(run_script, tmp_path):
    write_run(tmp_path / "runs" / "fine")
    write_run(tmp_path / "runs" / "broken", "choices: [")
    write_run(tmp_path / "runs" / "odd", result='{"status": "\\u001b[2J", "metrics": [1]}')
    done = run_script("runs.py")
    assert done.returncode == 0, done.stderr
    status = {line.split()[-1]: line.split()[0] for line in done.stdout.splitlines()[:-1]}
    assert status == {"runs/fine": "done", "runs/broken": "unreadable", "runs/odd": "\\x1b[2J"}
    assert run_script("runs.py", "status=done", "delete=true").stdout.endswith(", 1 deleted\n")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["broken", "odd"]
    assert run_script("runs.py", "status=unreadable", "delete=true").stdout.endswith(
        ", 1 deleted\n"
    )


def test_runs_deletes_nothing_outside_of_the_root(run_script, tmp_path):
    write_run(tmp_path / "elsewhere" / "run")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    done = run_script("runs.py", "status=done", "delete=true")
    assert done.returncode == 1
    assert "is a link that leads out of runs" in done.stderr
    assert (tmp_path / "elsewhere" / "run" / "result.json").is_file()
