"""Claims in conf/experiment/claims and how they are judged; ablations; the page of results."""

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

from helpers.configs import configure
from helpers.paths import CONF
from helpers.projects import popen_options
from tricklab.analysis import claims, results_page
from tricklab.analysis.ablation import (
    ablation_table,
    describe_power,
    make_arms,
    paper_column,
    read_ablation,
)
from tricklab.analysis.claims import Expectation, judge, read_claim, verdict
from tricklab.analysis.statistics import Summary
from tricklab.cli.config import list_options, to_plain
from tricklab.errors import UserError
from tricklab.run.identity import config_hash

NAMES = list_options(CONF / "experiment" / "claims")
COMPOSED = pytest.mark.xdist_group("claims")  # one worker composes each config once
INF = math.inf


@pytest.fixture
def cached_compose(monkeypatch):
    """Compose recipes with the tests' cache."""
    monkeypatch.setattr(
        "tricklab.analysis.recipes.compose_recipe",
        lambda name, overrides=(): configure(f"experiment={name}", *overrides),
    )


def make_results(**arms):
    """Return rows as read from a CSV file, with test accuracies by arm and seed."""
    return {
        arm: {seed: {"test/acc": str(accuracy)} for seed, accuracy in by_seed.items()}
        for arm, by_seed in arms.items()
    }


@pytest.mark.parametrize(
    ("mean", "half_width", "bounds", "expected"),
    [
        (0.02, 0.01, (0.0, INF), "PASS"),
        (0.02, 0.03, (0.0, INF), "INCONCLUSIVE"),
        (-0.02, 0.01, (0.0, INF), "FAIL"),
        (-0.02, 0.01, (-INF, 0.0), "PASS"),
        (0.02, 0.01, (-INF, 0.0), "FAIL"),
        (0.0, 0.0, (0.0, INF), "FAIL"),  # equal, and no spread
        (0.001, 0.001, (-0.003, 0.003), "PASS"),
        (0.001, 0.004, (-0.003, 0.003), "INCONCLUSIVE"),
        (0.008, 0.004, (-0.003, 0.003), "FAIL"),
        (-0.008, 0.004, (-0.003, 0.003), "FAIL"),
        (0.02, math.nan, (0.0, INF), "INCONCLUSIVE, needs about 2 seeds"),
    ],
)
def test_verdict_compares_interval_and_bounds(mean, half_width, bounds, expected):
    n = 1 if math.isnan(half_width) else 5
    assert verdict(Summary(n, mean, 0.01, half_width), bounds).startswith(expected)


def test_verdict_counts_seeds_by_the_distance_to_the_bound():
    measured = Summary(5, 0.06, 0.05, 0.07)
    assert verdict(measured, (0.05, INF)) == "INCONCLUSIVE, needs about 199 seeds"


def test_judge_pairs_arms_by_seed():
    a = {0: 0.90, 1: 0.95, 2: 0.85}
    b = {0: 0.88, 1: 0.93, 3: 0.99}  # seeds 2 and 3 have no partner
    results = make_results(a=a, b=b)
    judged = judge(Expectation("a", "test/acc", "b", above=0.01), results)
    assert judged == ["a - b, test/acc: above 0.01", "+0.0200 (0.0200 to 0.0200)", "PASS"]
    judged = judge(Expectation("a", "test/acc", below=0.5), results)
    assert judged[1:] == ["0.9000 (0.7758 to 1.0242)", "FAIL"]


def test_judge_without_enough_seeds():
    expectation = Expectation("a", "test/acc", "b", above=0)
    assert judge(expectation, make_results(a={}, b={}))[1:] == ["", "not run"]
    single = judge(expectation, make_results(a={0: 0.8}, b={0: 0.7}))
    assert single[1:] == ["+0.1000", "INCONCLUSIVE, needs about 2 seeds"]


def test_judge_adds_arms():
    first = {"a": 0.5, "b": 0.4, "c": 0.3, "d": 0.1}
    results = make_results(**{arm: {0: value, 1: value + 0.1} for arm, value in first.items()})
    judged = judge(Expectation("a + d", "test/acc", "b + c", above=0), results)
    assert judged[:2] == ["a + d - (b + c), test/acc: above 0", "-0.1000 (-0.1000 to -0.1000)"]


@COMPOSED
@pytest.mark.parametrize("name", NAMES)
def test_claim_compares_different_configs_and_its_rows_are_its_own(name):
    claim = read_claim(name)
    experiment = f"experiment=claims/{name}"
    hashes = {
        config_hash(to_plain(configure(experiment, *overrides, "seed=0")))
        for overrides in claim.recipe.arms.values()
    }
    assert len(hashes) == len(claim.recipe.arms) > 1
    named = {arm for expectation in claim.expectations for arm in expectation.signs}
    assert named == set(claim.recipe.arms)
    for expectation in claim.expectations:
        assert any(map(math.isfinite, expectation.bounds))
    if claim.recipe.csv_file.is_file():
        for row in csv.DictReader(claim.recipe.csv_file.open()):
            overrides = [*row["overrides"].split(), f"seed={row['seed']}"]
            assert config_hash(to_plain(configure(experiment, *overrides))) == row["config_hash"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("of: polynomial", "of: polynomal"),
            "polynomal does not exist; allowed: linear, polynomial. Did you mean",
        ),
        (("above", "over"), "unexpected keyword argument 'over'"),
        (("  seeds: 5\n", ""), "'seeds'. Expected the keys of the claims beside it"),
        (("claim:", "clam:"), "'claim'"),
    ],
)
def test_claim_with_wrong_or_missing_keys_is_refused(change, message, tmp_path, monkeypatch):
    text = (claims.CLAIMS / "two_names.yaml").read_text("utf-8")
    assert change[0] in text
    (tmp_path / "two_names.yaml").write_text(text.replace(*change))
    monkeypatch.setattr(claims, "CLAIMS", tmp_path)
    with pytest.raises(UserError, match=message):
        read_claim("two_names")


@COMPOSED
def test_results_page_matches_the_committed_rows(cached_compose):
    """If not: python scripts/results.py."""
    page = results_page.PAGE.read_text("utf-8")
    assert results_page.update_tables(page) == page
    assert set(re.findall(r"^\| `(\w+)` +\|", page, re.MULTILINE)) >= set(NAMES)


@COMPOSED
def test_claims_script_prints_the_table_of_the_page(run_script, cached_compose):
    done = run_script("claims.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout in results_page.PAGE.read_text("utf-8")


def test_results_page_is_rewritten_if_a_table_has_changed(run_script, tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text("Before\n<!-- begin x -->\nold\n<!-- end x -->\nAfter\n")
    monkeypatch.setattr(results_page, "PAGE", page)
    monkeypatch.setattr(results_page, "TABLES", {"x": lambda: "| new |"})
    assert run_script("results.py").stdout.endswith("README.md is updated\n")
    expected = "Before\n<!-- begin x -->\n\n| new |\n\n<!-- end x -->\nAfter\n"
    assert page.read_text() == expected
    assert run_script("results.py").stdout.endswith("README.md was up to date\n")


def test_results_page_without_markers_is_refused():
    with pytest.raises(UserError, match="no table between <!-- begin recipes -->"):
        results_page.update_tables("# Results\n")


def test_results_page_does_not_import_torch():
    code = "import sys, tricklab.analysis.results_page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["decai"], "Did you mean 'decay'"), (["decay", "seeds=x"], "seeds=x: expected")],
)
def test_claims_script_refuses_wrong_arguments(run_script, arguments, message):
    done = run_script("claims.py", *arguments)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.slow
def test_killed_claim_is_resumed_and_the_negative_control_fails(project_copy):
    command = [sys.executable, "scripts/claims.py", "two_names", "seeds=3"]
    process_options = popen_options(project_copy)
    first = subprocess.Popen(
        command, **process_options, start_new_session=True, stdout=subprocess.DEVNULL
    )
    runs = project_copy / "sweeps" / "claims" / "two_names"
    while not (finished := list(runs.glob("*/result.json"))):
        assert first.poll() is None
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {path: path.stat().st_mtime_ns for path in finished}
    second = subprocess.run(command, **process_options, capture_output=True)
    assert second.returncode == 0, second.stderr
    expected = "polynomial - linear, test/acc: above 0; +0.0000 (0.0000 to 0.0000); FAIL"
    assert expected in second.stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == before
    rows = project_copy / "conf/experiment/claims/two_names.csv"
    assert len(list(csv.DictReader(rows.open()))) == 6
    shutil.rmtree(project_copy / "sweeps")
    third = subprocess.run(command, **process_options, capture_output=True)
    assert third.stdout.splitlines() == second.stdout.splitlines()[-2:]


def test_ablation_arms_add_tricks_in_turn_and_leave_each_out():
    assert make_arms({"a": ["x=1"], "b": ["y=2", "z=3"], "c": ["u=4"]}) == {
        "none": [],
        "to_a": ["x=1"],
        "to_b": ["x=1", "y=2", "z=3"],
        "to_c": ["x=1", "y=2", "z=3", "u=4"],
        "no_a": ["y=2", "z=3", "u=4"],
        "no_b": ["x=1", "u=4"],
        "no_c": ["x=1", "y=2", "z=3"],
    }


def test_column_of_the_paper_has_the_gain_over_the_trick_before():
    paper = {"a": 75.17, "b": 75.93, "d": 76.37, "e": [76.66, 76.21]}
    cells = paper_column(["none", "a", "b", "c", "d", "e"], paper)
    assert cells == ["", "75.17", "75.93 (+0.76)", "", "76.37", "76.66 (+0.45)"]


def test_ablation_of_bag_of_tricks_has_the_paper_beside_it():
    """Tables 4 to 6 of arXiv 1812.01187."""
    ablation = read_ablation("bag_of_tricks")
    results = {arm: {} for arm in ablation.recipe.arms}
    header, none, *rows = ablation_table(ablation.tricks, results, ablation.paper)
    assert [header[-1], none[-1]] == ["paper, %", ""]
    gains = {row[0]: row[-1] for row in rows}
    assert gains["+ zero_gamma"] == "76.37 (+0.44)"
    assert gains["+ no_bias_decay"] == "76.03 (-0.34)"
    assert gains["+ resnet_b"] == "76.66 (+0.45)"
    assert gains["+ cosine"] == "77.91 (+0.75)"
    assert gains["+ mixup"] == "79.29 (+0.62)"


def test_ablation_table_by_hand():
    accuracies = {
        "none": (0.80, 0.82),
        "to_a": (0.85, 0.86),
        "to_b": (0.91, 0.89),
        "no_a": (0.84, 0.87),
        "no_b": (0.85, 0.86),
    }
    results = make_results(**{arm: dict(enumerate(pair)) for arm, pair in accuracies.items()})
    _, none, a, b = ablation_table(["a", "b"], results)
    assert none[:2] == ["none", "0.8100"]
    assert [a[i] for i in (0, 1, 2, 5)] == ["+ a", "0.8550", "+0.0450", "+0.0450"]
    assert [b[i] for i in (0, 1, 2, 5)] == ["+ b", "0.9000", "+0.0450", "+0.0450"]
    # Differences: (0.05, 0.04), (0.06, 0.03), (0.07, 0.02), (0.06, 0.03)
    std = math.sqrt((0.01**2 + 0.03**2 + 0.05**2 + 0.03**2) / 2 / 4)
    assert describe_power(["a", "b"], results).startswith(
        f"2 seeds: std of the differences {std:.4f}; detectable with power 0.8: "
    )


@pytest.mark.slow
def test_ablation_runs_each_set_of_tricks_once(project_copy):
    text = (CONF / "experiment" / "fashion_tricks.yaml").read_text("utf-8")
    text = re.sub(r"  - override /data: .*\n", "", text)
    text = text.replace("max_epochs: 20", "max_epochs: 2")
    text = re.sub(r"    (flip|dropout|smoothing): .*\n", "", text)
    (project_copy / "conf" / "experiment" / "small.yaml").write_text(text)
    command = [sys.executable, "scripts/ablate.py", "small", "seeds=2"]
    done = subprocess.run(command, **popen_options(project_copy), capture_output=True)
    assert done.returncode == 0, done.stderr
    # none, cosine, both, mixup: all but the last trick is the first alone
    assert "8 jobs" in done.stdout
    assert re.search(r"\| \+ mixup +\| 0\.\d{4}", done.stdout)
    assert "2 seeds: std of the differences" in done.stdout
