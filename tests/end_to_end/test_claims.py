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
from helpers.projects import commit_all, popen_options
from tricklab.analysis import claims, evidence, results_page
from tricklab.analysis.ablation import (
    ablation_table,
    describe_power,
    make_arms,
    paper_column,
    read_ablation,
)
from tricklab.analysis.claims import read_claim
from tricklab.analysis.evidence import find_problems, has_history
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


@COMPOSED
@pytest.mark.parametrize("name", NAMES)
def test_claim_compares_different_configs(name):
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("of: polynomial", "of: polynomal"),
            "polynomal does not exist; allowed: linear, polynomial. Did you mean",
        ),
        (("above", "over"), "unexpected keyword argument 'over'"),
        (("  seeds: 10\n", ""), "'seeds'. Expected the keys of the claims beside it"),
        (("delta: { test/acc:", "delta: { test/ac:"), "claim.delta lacks test/acc"),
        (("spread: { test/acc:", "spread: { test/ac:"), "claim.spread lacks test/acc"),
        (("claim:", "clam:"), "'claim'"),
        ((", above: 0", ""), "polynomial - linear: expected above, below or within"),
        (("than: linear", "than: polynomial"), "polynomial - polynomial: an arm is named twice"),
        (("delta: { test/acc: 0.003", "delta: { test/acc: 0"), "has to be above 0"),
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
    for path, content in results_page.make_files().items():
        assert path.read_text("utf-8") == content, path
    assert set(re.findall(r"^\| `(\w+)` +\|", page, re.MULTILINE)) >= set(NAMES)


@COMPOSED
def test_claims_script_prints_the_table_of_the_page(run_script, cached_compose):
    done = run_script("claims.py")
    assert done.returncode == 0, done.stderr
    page = results_page.PAGE.read_text("utf-8")
    summary, table = done.stdout.split("\n\n")
    assert summary in page
    assert table in page


def test_results_page_is_rewritten_if_a_table_has_changed(run_script, tmp_path, monkeypatch):
    page = tmp_path / "README.md"
    page.write_text("Before\n<!-- begin x -->\nold\n<!-- end x -->\nAfter\n")
    monkeypatch.setattr(results_page, "PAGE", page)
    monkeypatch.setattr(results_page, "TABLES", {"x": lambda: "| new |"})
    monkeypatch.setattr(results_page, "draw_pictures", dict)
    monkeypatch.setattr(evidence, "has_history", lambda: False)
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
    [
        (["decai"], "Did you mean 'decay'"),
        (["decay", "pilot=x"], "pilot=x: expected"),
        (["decay", "pilot=1001"], "pilot=1001: expected a number of seeds, 1 to 1000"),
        (["decay", "seeds=3"], "seeds=3 would change the measured config. Expected pilot=N, or"),
    ],
)
def test_claims_script_refuses_wrong_arguments(run_script, arguments, message):
    done = run_script("claims.py", *arguments)
    assert done.returncode == 1
    assert message in done.stderr


SMALL = """# @package _global_
# Of two names for one schedule the second is more accurate
defaults:
  - override /model: mlp

trainer: { max_epochs: 5 }
claim:
  arms:
    linear: [scheduler=linear]
    polynomial: [scheduler=polynomial, scheduler.power=1.0]
  delta: { test/acc: 0.003 }
  spread: { test/acc: 0.001 }
  seeds: 3
  minutes: 1
  expect:
    - { of: polynomial, than: linear, metric: test/acc, above: 0 }
"""


@pytest.mark.slow
def test_killed_claim_is_resumed_and_the_negative_control_does_not_pass(project_copy):
    (project_copy / "conf/experiment/claims/names.yaml").write_text(SMALL)
    commit_all(project_copy)
    command = [sys.executable, "scripts/claims.py", "names"]
    process_options = popen_options(project_copy)
    first = subprocess.Popen(
        command, **process_options, start_new_session=True, stdout=subprocess.DEVNULL
    )
    runs = project_copy / "sweeps" / "claims" / "names"
    while not (finished := list(runs.glob("*/result.json"))):
        assert first.poll() is None
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {path: path.stat().st_mtime_ns for path in finished}
    second = subprocess.run(command, **process_options, capture_output=True)
    assert second.returncode == 0, second.stderr
    verdict = "no difference larger than 0"
    expected = f"polynomial - linear, test/acc: above 0; +0.0000 (0.0000 to 0.0000); {verdict}"
    assert expected in second.stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == before
    rows = list(csv.DictReader((project_copy / "conf/experiment/claims/names.csv").open()))
    assert [row["seed"] for row in rows] == ["1000", "1001", "1002"] * 2
    assert all(row["data"] and row["processor"] and row["python"] for row in rows)
    shutil.rmtree(project_copy / "sweeps")
    third = subprocess.run(command, **process_options, capture_output=True)
    assert third.stdout.splitlines() == second.stdout.splitlines()[-2:]
    assert_forgeries_are_refused(project_copy, rows)
    pilot = subprocess.run([*command, "pilot=2"], **process_options, capture_output=True)
    assert "std 0 of 2; 0.003 needs about 2 seeds, planned 3" in pilot.stdout


def assert_forgeries_are_refused(project, rows):
    """Each change of a row or of the claim is named by scripts/results.py, which writes nothing."""
    claims_folder = project / "conf" / "experiment" / "claims"
    honest = (claims_folder / "names.csv").read_text()
    forgeries = {
        "no config of this recipe with seed 1000 has": (rows[0]["config_hash"], "0" * 12, 1),
        "commit 0123456789 is not in the history": (rows[0]["commit"], "0123456789", 1),
        "no config of this recipe with seed 1009 has": (",1000,", ",1009,", 1),
        "the hash is that of the arm linear": ("scheduler=linear", "scheduler=cosine", 1),
        "no number: test/acc": (f",{rows[0]['test/acc']},", ",nan,", 1),
        "commit HEAD is not in the history": (rows[0]["commit"], "HEAD", 1),
    }
    for message, change in forgeries.items():
        (claims_folder / "names.csv").write_text(honest.replace(*change))
        assert message in refuse_rows(project)
    with (claims_folder / "names.csv").open("a") as file:
        file.write(honest.splitlines()[-1] + "\n")
    assert f"{rows[-1]['config_hash']}: 2 rows" in refuse_rows(project)
    kept = [line for line in honest.splitlines(True) if ",1001," not in line]
    (claims_folder / "names.csv").write_text("".join(kept))
    assert "seeds 1001 are missing" in refuse_rows(project)
    (claims_folder / "names.csv").write_text(honest)
    (claims_folder / "names.yaml").write_text(SMALL.replace("above: 0", "below: 0"))
    assert "what was expected has changed since commit" in refuse_rows(project)
    (claims_folder / "names.yaml").write_text(SMALL.replace("minutes: 1", "minutes: 2"))
    command = [sys.executable, "scripts/results.py"]
    done = subprocess.run(command, **popen_options(project), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert ".svg" in (claims_folder.parent / "README.md").read_text("utf-8")
    (claims_folder / "names.yaml").write_text(SMALL)


def refuse_rows(project):
    """Return what scripts/results.py says of the rows that it refuses."""
    page = project / "conf" / "experiment" / "README.md"
    before = page.read_text("utf-8")
    command = [sys.executable, "scripts/results.py"]
    done = subprocess.run(command, **popen_options(project), capture_output=True)
    assert done.returncode == 1
    assert page.read_text("utf-8") == before
    return done.stderr


@pytest.mark.slow
def test_runs_of_changed_code_give_no_row(project_copy):
    (project_copy / "conf/experiment/claims/names.yaml").write_text(SMALL)
    commit_all(project_copy)
    with (project_copy / "train.py").open("a") as file:
        file.write("# changed\n")
    command = [sys.executable, "scripts/claims.py", "names"]
    done = subprocess.run(command, **popen_options(project_copy), capture_output=True)
    assert done.returncode == 1
    assert "the code was not that of a commit; commit, and run it again" in done.stderr
    assert not (project_copy / "conf/experiment/claims/names.csv").exists()


@pytest.mark.parametrize(
    "recipe", results_page.all_recipes(), ids=lambda recipe: recipe.name.replace("/", "-")
)
@COMPOSED
def test_rows_are_evidence(recipe, cached_compose):
    if not has_history():
        pytest.skip("a shallow clone has no history to compare with")
    assert find_problems(recipe) == []


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
    commit_all(project_copy)
    command = [sys.executable, "scripts/ablate.py", "small", "seeds=2"]
    done = subprocess.run(command, **popen_options(project_copy), capture_output=True)
    assert done.returncode == 0, done.stderr
    # none, cosine, both, mixup: all but the last trick is the first alone
    assert "8 jobs" in done.stdout
    assert re.search(r"\| \+ mixup +\| 0\.\d{4}", done.stdout)
    assert "2 seeds: std of the differences" in done.stdout
