"""What is measured by scripts/measure.py and scripts/benchmark.py."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from conftest import CONF, ROOT, configure
from torch import nn

from tricklab.cli.config import to_plain
from tricklab.data.published import find_mnist
from tricklab.run.identity import config_hash


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def write_result(folder, seed, status="done", accuracy=0.9, words=()):
    folder.mkdir(parents=True)
    result = {
        "status": status,
        "config_hash": f"hash{seed}",
        "overrides": ["experiment=x", *words, f"seed={seed}"],
    }
    result |= {
        "seconds": 10.0 + seed,
        "git": {"commit": "0123456789ab"},
        "versions": {"torch": "2"},
    }
    result |= {"started": "2026-11-25T10:00:00+00:00"}
    metrics = {"val/acc": accuracy + 0.01, "test/acc": accuracy, "test/loss": 0.5, "test/ece": 0.02}
    (folder / "result.json").write_text(json.dumps(result | {"metrics": metrics}))


@pytest.fixture
def recipe(scripts, monkeypatch, tmp_path):
    """A recipe whose file and folder lie elsewhere."""
    from measure import Recipe

    monkeypatch.setattr(Recipe, "file", tmp_path / "x.csv")
    monkeypatch.setattr(Recipe, "folder", tmp_path / "sweep")
    return Recipe("x")


def test_rows_of_done_runs_are_kept_and_added_to(recipe, tmp_path, monkeypatch):
    from measure import Recipe, gather, summary

    wanted = {"hash0", "hash1", "hash2"}
    assert gather(recipe, wanted) == {}
    assert not recipe.file.exists()
    write_result(recipe.folder / "a", seed=0, accuracy=0.90)
    write_result(recipe.folder / "b", seed=1, status="failed")
    write_result(recipe.folder / "other", seed=3)
    assert set(gather(recipe, wanted)) == {"hash0"}
    written = recipe.file.stat().st_mtime_ns
    gather(recipe, wanted)
    assert recipe.file.stat().st_mtime_ns == written  # other processes may be reading it
    monkeypatch.setattr(Recipe, "folder", tmp_path / "later")
    write_result(recipe.folder / "c", seed=2, accuracy=0.92)
    rows = gather(recipe, wanted)
    assert [
        (row["seed"], row["test/acc"], row["seconds"]) for row in csv.DictReader(recipe.file.open())
    ] == [
        ("0", "0.9", "10.0"),
        ("2", "0.92", "12.0"),
    ]
    said = summary(list(rows.values()), 1.5e12)
    assert (
        "2 seeds: test/acc 0.9100 ± 0.0141, val/acc 0.9200 ± 0.0141, 11 s a run (10 to 12), 1.5e+12 FLOPs"
        in said
    )


def test_a_row_has_the_words_of_its_arm_and_the_last_value_of_a_metric(recipe):
    from measure import gather

    several = recipe._replace(
        arms={"a": ["mixup=off"], "b": ["mixup=on"]}, metrics=("test/acc", "val/acc@last")
    )
    write_result(
        recipe.folder / "a",
        seed=0,
        words=["mixup=on", "mixup.alpha=2", "~penalty.x", "resume=auto"],
    )
    (recipe.folder / "a" / "metrics.csv").write_text("step,val/acc,lr\n1,0.5,\n2,0.75,\n3,,0.1\n")
    (row,) = gather(several, {"hash0"}).values()
    assert (row["words"], row["test/acc"], row["val/acc@last"]) == (
        "mixup=on mixup.alpha=2 ~penalty.x",
        "0.9",
        "0.75",
    )
    assert "test/loss" not in row


def test_only_the_arms_that_lack_a_seed_are_run(recipe, monkeypatch):
    import measure

    several = recipe._replace(arms={"a": ["x=1"], "b": ["y=[1,2]"], "c": []})
    found, commands = {"a": {0: {}, 1: {}}, "b": {0: {}}, "c": {}}, []
    monkeypatch.setattr(measure, "known", lambda recipe, seeds: found)
    monkeypatch.setattr(measure.subprocess, "run", lambda command, cwd: commands.append(command))
    measure.measure(several, 2, ["slots=2"])
    assert [word for word in commands[0] if word.startswith(("seed=", "sweep"))] == [
        *("seed=0,1", "sweep=arms", "sweep.of={b:['y=[1,2]'],c:[]}")
    ]
    measure.measure(several._replace(arms={"b": []}), 1, [])
    assert "sweep=arms" not in commands[1]


def test_a_row_without_a_metric_that_is_asked_for_is_read_anew(recipe):
    from measure import gather, whole

    write_result(recipe.folder / "a", seed=0)
    gather(recipe._replace(metrics=("test/acc",)), {"hash0"})
    assert [row["test/ece"] for row in gather(recipe, {"hash0"}).values()] == ["0.02"]
    (recipe.folder / "a" / "result.json").unlink()
    asked = recipe._replace(metrics=("test/acc", "val/nll"))
    assert not whole(gather(asked, {"hash0"})["hash0"], asked)  # but it stays in the file


def test_rows_of_different_columns_stand_in_one_file(scripts):
    from measure import to_text

    assert to_text([{"a": "1"}, {"b": "2", "a": "3"}]) == "a,b\n1,\n3,2\n"


def test_flops_are_those_of_all_steps(scripts):
    from measure import flops

    forwards = 2 * (64 * 8 + 8 * 10)
    backwards = 2 * (64 * 8 + 2 * 8 * 10)  # no gradient of the pixels
    config = configure(
        "model=mlp", "model.widths=[8]", "data.batch_size=100", "trainer.max_epochs=3"
    )
    assert flops(config) == (forwards + backwards) * 3 * 13 * 100


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["fashion_29"], "experiment=fashion_29 does not exist; allowed: fashion_91, "),
        ([], "experiment= does not exist"),
        (["fashion_92", "seeds=0"], "seeds=0; allowed: 1 or more"),
        (
            ["fashion_92", "trainer.precision=bf16-mixed"],
            "precision=bf16-mixed would change what is measured; allowed: ",
        ),
    ],
)
def test_measure_refuses(script, words, says):
    done = script("measure.py", *words)
    assert done.returncode == 1
    assert says in done.stderr


@pytest.mark.parametrize(
    "file", sorted((CONF / "experiment").glob("*.csv")), ids=lambda file: file.stem
)
def test_the_rows_beside_a_recipe_are_its_own(file):
    """Or it computes something else since they were written: then they no longer count, and README's table neither."""
    rows = list(csv.DictReader(file.open()))
    seeds = [int(row["seed"]) for row in rows]
    words = [[*row.get("words", "").split(), f"seed={row['seed']}"] for row in rows]
    hashes = [
        config_hash(to_plain(configure(f"experiment={file.stem}", *of_row))) for of_row in words
    ]
    assert hashes == [row["config_hash"] for row in rows]
    assert set(seeds) == set(range(max(seeds) + 1))


@pytest.mark.slow
@pytest.mark.skipif(
    not find_mnist(ROOT / "data", "FashionMNIST"), reason="needs a copy of Fashion-MNIST"
)
def test_what_has_a_row_is_not_run_again(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "measure.py"), "fashion_91", "seeds=3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 seeds: test/acc 0.91")
    assert len(done.stdout.splitlines()) == 1


def test_shares_are_of_the_same_round_and_of_the_fastest_turns(scripts, monkeypatch, capsys):
    import benchmark

    rounds = [
        {"plain loop": plain, "ours": ours}
        for plain, ours in ((100.0, 50.0), (200.0, 180.0), (50.0, 40.0))
    ]
    monkeypatch.setattr(
        benchmark, "take_turns", lambda net, batch, threads, repeats: rounds * repeats
    )
    ours = benchmark.steps(threads=1, repeats=1)["mlp, batches of 128"]["ours"]
    assert ours == {"images/s": 50, "of the plain loop": 0.8, "at their fastest": 0.9}
    assert "200 images/s of the plain loop at best" in capsys.readouterr().out


def test_each_repeat_has_processes_of_its_own(scripts, monkeypatch):
    import benchmark

    groups = []
    monkeypatch.setattr(
        benchmark,
        "in_processes",
        lambda ways, *_: groups.append({*ways}) or [{"group": len(groups)}],
    )
    assert benchmark.take_turns("mlp", 128, threads=1, repeats=2) == [{"group": 1}, {"group": 2}]
    assert groups[0] == groups[1] >= {"plain loop", *benchmark.OURS}


@pytest.mark.slow
def test_all_take_their_turn(scripts, monkeypatch):
    """In processes that are forked, as new ones take ten seconds each."""
    import benchmark

    context = benchmark.multiprocessing.get_context
    monkeypatch.setattr(benchmark.multiprocessing, "get_context", lambda method: context("fork"))
    monkeypatch.setitem(benchmark.CASES, ("mlp", 128), 16)
    monkeypatch.setitem(benchmark.NETS, "mlp", ["model=mlp", "data.images=4000"])
    monkeypatch.setattr(benchmark, "OURS", {"defaults": [], "everything on": benchmark.EVERYTHING})
    rounds = benchmark.take_turns("mlp", 128, threads=torch.get_num_threads(), repeats=1)
    assert len(rounds) == benchmark.TURNS
    for speeds in rounds:
        assert list(speeds)[:3] == [
            f"plain loop{way}" for way in ("", ", DataLoader, 0 workers", ", DataLoader, 2 workers")
        ]
        assert set(benchmark.OURS) <= set(speeds)
        assert min(speeds.values()) > 0
    assert benchmark.prepared.cache_info().currsize == 0  # each has a process of its own


@pytest.mark.slow
def test_files_are_read_by_both(scripts, monkeypatch, tmp_path):
    import benchmark

    monkeypatch.setattr(benchmark, "JPEGS", 3000)
    benchmark.write_files(tmp_path)
    assert len(list(tmp_path.glob("train/*/*.jpg"))) == 3000
    speeds = benchmark.from_files(tmp_path, threads=torch.get_num_threads())
    assert speeds["ours, first epoch"] < speeds["ours, later epochs"]
    assert min(speeds.values()) > 0


def test_what_is_measured_apart_starts_processes_as_this_one_does(scripts):
    import benchmark

    told = "__import__('multiprocessing').get_start_method()"
    assert benchmark.apart(eval, told) == eval(told)


def test_a_table_has_the_medians(scripts, capsys):
    import benchmark

    rounds = [{"a": 1200.0, "b": 0.5}, {"a": 1100.0, "b": 0.25}, {"a": 9000.0, "b": 0.75}]
    benchmark.show("speed", benchmark.columns({"images/s": rounds, "share": rounds}))
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["speed", "images/s", "share"],
        ["a", "1,200", "1,200"],
        ["b", "0.500", "0.500"],
    ]


def test_the_plain_loop_trains_the_same_network(scripts, monkeypatch):
    """It is a floor only if it does the same work: its net, its batches, normalised."""
    import benchmark

    seen = []
    monkeypatch.setattr(nn.Flatten, "forward", lambda self, x: seen.append(x) or x.flatten(1))
    words = (*benchmark.GREY, "data.images=600", "data.val_size=100", *benchmark.NETS["mlp"])
    ways = [
        lambda: benchmark.plain_loop(words, 5),
        lambda: benchmark.plain_loop(words, 5, workers=0),
    ]
    for train in [*ways, lambda: benchmark.ours(words, 5)]:
        seen.clear()
        train()
        batch = (
            seen[-1] if train in ways else seen[2]
        )  # after those that count the inputs and are evaluated
        assert batch.shape == (128, 1, 28, 28)
        assert batch.mean().abs() < 0.1
        assert (batch.std() - 1).abs() < 0.1
