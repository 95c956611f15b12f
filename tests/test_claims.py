"""What is claimed in conf/experiment/claims, how it is judged, and a recipe that is taken apart."""

import csv
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import CONF, ROOT, configure

from tricklab.cli.config import list_options, to_plain
from tricklab.errors import UserError
from tricklab.run.identity import config_hash

NAMES = list_options(CONF / "experiment" / "claims")
COMPOSED = pytest.mark.xdist_group("claims")  # each config once


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def rows(**arms):
    """Rows as they are read from a file, of so many test accuracies by seed."""
    return {
        arm: {seed: {"test/acc": str(value)} for seed, value in of.items()}
        for arm, of in arms.items()
    }


@pytest.mark.parametrize(
    ("mean", "half", "low", "high", "expected"),
    [
        (0.02, 0.01, 0.0, math.inf, "PASS"),
        (0.02, 0.03, 0.0, math.inf, "INCONCLUSIVE"),
        (-0.02, 0.01, 0.0, math.inf, "FAIL"),
        (-0.02, 0.01, -math.inf, 0.0, "PASS"),
        (0.02, 0.01, -math.inf, 0.0, "FAIL"),
        (0.0, 0.0, 0.0, math.inf, "FAIL"),  # equal, and no spread
        (0.001, 0.001, -0.003, 0.003, "PASS"),
        (0.001, 0.004, -0.003, 0.003, "INCONCLUSIVE"),
        (0.008, 0.004, -0.003, 0.003, "FAIL"),
        (-0.008, 0.004, -0.003, 0.003, "FAIL"),
        (0.02, math.nan, 0.0, math.inf, "INCONCLUSIVE, some 2 seeds"),
    ],
)
def test_verdicts(mean, half, low, high, expected):
    from claims import verdict
    from paired import Summary

    said = verdict(Summary(1 if math.isnan(half) else 5, mean, 0.01, half), low, high)
    assert said.startswith(expected)


def test_the_seeds_that_would_decide_are_those_of_the_distance_to_the_bound():
    from claims import verdict
    from paired import Summary

    assert (
        verdict(Summary(5, 0.06, 0.05, 0.07), 0.05, math.inf)
        == "INCONCLUSIVE, some 199 seeds would decide"
    )


def test_a_claim_is_judged_seed_by_seed():
    from claims import Expectation, judge

    found = rows(
        a={0: 0.90, 1: 0.95, 2: 0.85}, b={0: 0.88, 1: 0.93, 3: 0.99}
    )  # 2 and 3 have no partner
    said = judge(Expectation("a", "test/acc", "b", above=0.01), found)
    assert said == ["a - b, test/acc: above 0.01", "+0.0200 (0.0200 to 0.0200)", "PASS"]
    assert judge(Expectation("a", "test/acc", below=0.5), found)[1:] == [
        "0.9000 (0.7758 to 1.0242)",
        "FAIL",
    ]
    assert judge(Expectation("a", "test/acc", "b", within=0.1), rows(a={}, b={}))[1:] == [
        "",
        "not run",
    ]
    alone = rows(a={0: 0.8}, b={0: 0.7})
    assert judge(Expectation("a", "test/acc", "b", above=0), alone)[1:] == [
        "+0.1000",
        "INCONCLUSIVE, some 2 seeds would decide",
    ]


def test_arms_are_added():
    from claims import Expectation, judge

    found = rows(
        **{
            arm: {0: value, 1: value + 0.1}
            for arm, value in zip("abcd", (0.5, 0.4, 0.3, 0.1), strict=True)
        }
    )
    assert judge(Expectation("a + d", "test/acc", "b + c", above=0), found)[:2] == [
        "a + d - (b + c), test/acc: above 0",
        "-0.1000 (-0.1000 to -0.1000)",
    ]


@COMPOSED
@pytest.mark.parametrize("name", NAMES)
def test_a_claim_says_what_it_compares(name):
    """Its arms compute different things, its expectations are of them, and its rows are its own."""
    from claims import read_claim

    claim = read_claim(name)
    base = f"experiment=claims/{name}"
    hashes = {
        arm: config_hash(to_plain(configure(base, *words, "seed=0")))
        for arm, words in claim.recipe.arms.items()
    }
    assert len({*hashes.values()}) == len(claim.recipe.arms) > 1
    assert {arm for expected in claim.expect for arm in expected.terms} == set(claim.recipe.arms)
    assert all(
        len([b for b in expected.bounds if math.isfinite(b)]) > 0 for expected in claim.expect
    )
    if claim.recipe.file.is_file():
        found = list(csv.DictReader(claim.recipe.file.open()))
        own = [
            config_hash(to_plain(configure(base, *row["words"].split(), f"seed={row['seed']}")))
            for row in found
        ]
        assert own == [row["config_hash"] for row in found]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            ("of: polynomial", "of: polynomal"),
            "polynomal does not exist; allowed: linear, polynomial. Did you mean",
        ),
        (("above", "over"), "unexpected keyword argument 'over'"),
        (("  seeds: 5\n", ""), "'seeds'"),
    ],
)
def test_a_claim_that_is_not_whole_is_refused(change, says, tmp_path, monkeypatch):
    import claims

    text = (claims.CLAIMS / "two_names.yaml").read_text("utf-8")
    assert change[0] in text
    (tmp_path / "two_names.yaml").write_text(text.replace(*change))
    monkeypatch.setattr(claims, "CLAIMS", tmp_path)
    with pytest.raises(UserError, match=says):
        claims.read_claim("two_names")


@COMPOSED
def test_the_table_of_all_claims_is_that_of_readme(script, monkeypatch):
    monkeypatch.setattr(
        "measure.compose", lambda name, words: configure(f"experiment={name}", *words)
    )
    done = script("claims.py")
    lines = done.stdout.splitlines()
    assert {name for line in lines[2:] for name in re.findall(r"^\| `(\w+)`", line)} == set(NAMES)
    assert done.stdout in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "says"), [(["decai"], "Did you mean 'decay'"), (["decay", "seeds=x"], "seeds=x")]
)
def test_claims_refuse(script, words, says):
    done = script("claims.py", *words)
    assert done.returncode == 1
    assert says in done.stderr


@pytest.fixture
def copy(tmp_path):
    """A copy of the project, since rows are written beside the claims."""
    for part in ("src", "conf", "scripts"):
        shutil.copytree(
            ROOT / part,
            tmp_path / part,
            ignore=shutil.ignore_patterns("*.egg-info", "__pycache__", "*.csv"),
        )
    shutil.copy(ROOT / "train.py", tmp_path)
    return tmp_path


@pytest.mark.slow
def test_a_claim_that_is_killed_goes_on_and_the_false_one_is_not_passed(copy):
    command = [sys.executable, "scripts/claims.py", "two_names", "seeds=3"]
    options = {"cwd": copy, "env": os.environ | {"PYTHONPATH": str(copy / "src")}, "text": True}
    first = subprocess.Popen(command, **options, start_new_session=True, stdout=subprocess.DEVNULL)
    runs = copy / "sweeps" / "claims" / "two_names"
    while not (done := list(runs.glob("*/result.json"))):
        assert first.poll() is None
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {path: path.stat().st_mtime_ns for path in done}
    second = subprocess.run(command, **options, capture_output=True)
    assert second.returncode == 0, second.stderr
    assert (
        "polynomial - linear, test/acc: above 0; +0.0000 (0.0000 to 0.0000); FAIL" in second.stdout
    )
    assert {path: path.stat().st_mtime_ns for path in done} == before
    assert len(list(csv.DictReader((copy / "conf/experiment/claims/two_names.csv").open()))) == 6
    shutil.rmtree(copy / "sweeps")
    third = subprocess.run(command, **options, capture_output=True)
    assert third.stdout.splitlines() == second.stdout.splitlines()[-2:]


def test_the_arms_of_a_recipe_that_is_taken_apart():
    from ablate import make_arms

    assert make_arms({"a": ["x=1"], "b": ["y=2", "z=3"], "c": ["u=4"]}) == {
        "none": [],
        "to_a": ["x=1"],
        "to_b": ["x=1", "y=2", "z=3"],
        "to_c": ["x=1", "y=2", "z=3", "u=4"],
        "no_a": ["y=2", "z=3", "u=4"],
        "no_b": ["x=1", "u=4"],
        "no_c": ["x=1", "y=2", "z=3"],
    }


def test_the_table_of_an_ablation():
    from ablate import lay_out, power

    values = {
        "none": (0.80, 0.82),
        "to_a": (0.85, 0.86),
        "to_b": (0.91, 0.89),
        "no_a": (0.84, 0.87),
        "no_b": (0.85, 0.86),
    }
    found = {
        arm: {seed: {"test/acc": value} for seed, value in enumerate(of)}
        for arm, of in values.items()
    }
    _, none, a, b = lay_out(["a", "b"], found)
    assert none[:2] == ["none", "0.8100"]
    assert [line[i] for line in (a, b) for i in (0, 1, 2, 5)] == [
        *("+ a", "0.8550", "+0.0450", "+0.0450"),
        *("+ b", "0.9000", "+0.0450", "+0.0450"),
    ]
    assert "2 seeds" in power(["a", "b"], found)


@pytest.mark.slow
def test_an_ablation_runs_each_set_of_tricks_once(copy):
    recipe = copy / "conf" / "experiment" / "small.yaml"
    text = (CONF / "experiment" / "fashion_tricks.yaml").read_text("utf-8")
    text = re.sub(r"  - override /data: .*\n", "", text).replace("max_epochs: 20", "max_epochs: 2")
    recipe.write_text(re.sub(r"    (flip|dropout|smoothing): .*\n", "", text))
    options = {"cwd": copy, "env": os.environ | {"PYTHONPATH": str(copy / "src")}, "text": True}
    done = subprocess.run(
        [sys.executable, "scripts/ablate.py", "small", "seeds=2"], **options, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert (
        "8 jobs" in done.stdout
    )  # none, cosine, both, mixup: without the last trick is with the first alone
    assert re.search(r"\| \+ mixup +\| 0\.\d{4}", done.stdout)
    assert "2 seeds: differences deviate by" in done.stdout
