"""The report of a sweep, from folders in any state, and its statistics."""

import csv
import html.parser
import json
import math
import re
import runpy
import sys

import numpy as np
import pytest
from conftest import ROOT
from matplotlib import pyplot
from scipy import stats

sys.path.insert(0, str(ROOT / "scripts"))  # as Python does for a script
REPORT = runpy.run_path(str(ROOT / "scripts" / "report.py"))


@pytest.fixture
def sweep(tmp_path):
    """Write a sweep of these results: test accuracies by configuration and seed; a text is a reason of failure."""

    def sweep(results):
        jobs = []
        for words, cell in results.items():
            for seed, value in enumerate(cell):
                name = f"{words.replace(' ', '_')}_{seed}"
                jobs.append(
                    {
                        "folder": name,
                        "overrides": ["model=mlp", *words.split(), f"seed={seed}", "slots=2"],
                    }
                )
                (tmp_path / "s" / name).mkdir(parents=True)
                result = {"status": "failed", "reason": value, "metrics": {}, "seconds": 1.0}
                if isinstance(value, float):
                    metrics = {"test/acc": value, "val/acc": value, "test/loss": 1 - value}
                    result = {
                        "status": "done",
                        "reason": None,
                        "metrics": metrics,
                        "seconds": 2.0 + seed,
                    }
                if value is not None:
                    (tmp_path / "s" / name / "result.json").write_text(json.dumps(result))
        (tmp_path / "s" / "stale_9").mkdir()
        (tmp_path / "s" / "stale_9" / "result.json").write_text(json.dumps(result))
        (tmp_path / "s" / "sweep.json").write_text(json.dumps({"command": [], "jobs": jobs}))
        return tmp_path / "s"

    return sweep


def tables(text):
    """The tables of a report by the heading in front, as lists of rows."""
    found = {}
    for part in text.split("\n#"):
        rows = [line for line in part.splitlines() if line.startswith("|")]
        cells = [
            [cell.strip() for cell in row.strip("|").split("|")] for row in rows if "---" not in row
        ]
        found[part.strip("# ").splitlines()[0]] = cells
    return found


FULL = {
    "mixup=off scheduler=step": [0.90, 0.91, 0.92, 0.93],
    "mixup=on scheduler=step": [0.92, 0.935, 0.94, 0.955],
    "mixup=off scheduler=cosine": [0.905, 0.905, 0.925, 0.925],
    "mixup=on scheduler=cosine": [0.90, 0.91, 0.92, 0.93],
}


def test_a_table_checked_by_hand(sweep, script):
    said = script("report.py", str(sweep(FULL)))
    assert said.returncode == 0, said.stderr
    found = tables(said.stdout)
    assert found["test/acc"][1] == [
        *("mixup=off scheduler=step", "4 of 4", "0.9150", "0.0129", "0.8945 to 0.9355", "3.5")
    ]
    first, second, third = found["Differences to mixup=off scheduler=step"][1:]
    assert first[:3] == ["mixup=on scheduler=step", "4", "+0.0225"]
    assert first[5] == "higher"
    assert (second[2], second[5]) == ("+0.0000", "can't tell")  # with a spread
    assert third[2:] == ["+0.0000", "0.0000 to 0.0000", "1", "equal"]
    assert [row[:3] for row in found["Effect of mixup"][1:]] == [
        ["off", "8", "0.9150"],
        ["on", "8", "0.9263"],
    ]
    assert [row[:3] for row in found["Effect of scheduler"][1:]] == [
        ["step", "8", "0.9263"],
        ["cosine", "8", "0.9150"],
    ]
    assert "Best on validation: mixup=on scheduler=step" in said.stdout
    assert "python train.py -m model=mlp mixup=on scheduler=step seed=0,1,2,3" in said.stdout
    assert found["Left out"][1:] == [["stale", "not of the last command or config", "stale_9"]]


def test_files_and_other_metrics_and_baselines(sweep, script):
    folder = sweep(FULL)
    said = script("report.py", str(folder), "metric=test/loss", "baseline=mixup=on scheduler=step")
    assert (folder / "report.md").read_text() == said.stdout
    with (folder / "report.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == tables(said.stdout)["test/loss"]
    assert rows[1][2] == "0.0850"
    assert len(tables(said.stdout)["Differences to mixup=on scheduler=step"]) == 4


def test_what_is_missing_is_said_and_not_judged(sweep, script):
    folder = sweep(
        {
            "mixup=off": [0.90, 0.91, 0.92],
            "mixup=on": [0.95, None, 0.98],
            "mixup=cutmix": ["boom", "boom", 0.9],
        }
    )
    found = tables(script("report.py", str(folder)).stdout)
    assert [row[1] for row in found["test/acc"][1:]] == ["3 of 3", "2 of 3", "1 of 3"]
    assert {row[5] for row in found["Differences to mixup=off"][1:]} == {
        "seeds are missing: incomplete=true compares the others"
    }
    said = script("report.py", str(folder), "incomplete=true").stdout
    verdicts = [row[5] for row in tables(said)["Differences to mixup=off"][1:]]
    assert verdicts[0].startswith("can't tell; some")
    assert verdicts[1] == "too few seeds, or no spread"
    assert tables(said)["Left out"][1:] == [
        ["missing", "no result", "mixup=on_1"],
        ["failed", "boom", "mixup=cutmix_0"],
        ["failed", "boom", "mixup=cutmix_1"],
        ["stale", "not of the last command or config", "stale_9"],
    ]


def test_what_halving_has_stopped_is_not_compared(sweep, script):
    folder = sweep({"mixup=off": [0.90, 0.91], "mixup=on": [0.95, 0.96]})
    for path in folder.glob("mixup=on_*/result.json"):
        path.write_text(
            json.dumps(json.loads(path.read_text()) | {"overrides": ["mixup=on", "stop_after=2ep"]})
        )
    found = tables(script("report.py", str(folder)).stdout)
    assert [row[1] for row in found["test/acc"][1:]] == ["2 of 2", "0 of 2"]
    assert found["Left out"][1:3] == [
        [*("stopped", "stop_after=2ep"), f"mixup=on_{n}"] for n in (0, 1)
    ]


def test_the_page_holds_all_and_needs_nothing(sweep, script):
    """Tables, five pictures, no link to anywhere; names from a config are text."""
    bad = "<script>alert(1)</script>"
    folder = sweep({f"tag={bad}": [0.90, 0.91], "tag=b": [0.92, 0.94]})
    for n, path in enumerate(sorted(folder.glob("tag*"))):
        for file in path.glob("**/result.json"):
            result = json.loads(file.read_text())
            file.write_text(
                json.dumps(result | {"metrics": result["metrics"] | {"test/ece": 0.01 * n}})
            )
            (file.parent / "metrics.csv").write_text(
                f"epoch,step,lr,val/acc\n0,5,0.1,\n0,9,,0.{5 + n}\n1,19,,0.{6 + n}\n"
            )
    assert script("report.py", str(folder)).returncode == 0
    text = (folder / "report.html").read_text("utf-8")
    assert bad not in text
    assert "&lt;script&gt;alert(1)" in text
    assert text.count("<svg") == 5
    assert 'name="viewport"' in text
    assert "0.9050" in text
    assert "python train.py -m model=mlp tag=b seed=0,1" in text
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert all(
        a.startswith(
            (
                "http://www.w3.org/",
                "http://purl.org",
                "http://creativecommons.org",
                "https://matplotlib.org",
            )
        )
        for a in addresses
    )
    html.parser.HTMLParser().feed(text)


def test_reliability_is_that_of_all_seeds_together():
    page, axes = sys.modules["page"], pyplot.figure().subplots()
    bins = [[(0, 0, 0), (4, 1, 2.0)], [(2, 1, 0.2), (4, 3, 2.4)]]
    columns = [
        [dict(zip(("images", "right", "confidence"), row, strict=True)) for row in of_seed]
        for of_seed in bins
    ]
    page.draw_reliability(
        axes, {"a": [page.Run({}, [], of_seed) for of_seed in columns], "b": [page.Run({}, [], [])]}
    )
    diagonal, a, b = (line.get_xydata().tolist() for line in axes.lines)
    assert a == [pytest.approx([0.1, 0.5]), pytest.approx([0.55, 0.5])]
    assert (diagonal, b) == ([[0, 0], [1, 1]], [])
    assert [patch.get_data().values.tolist() for patch in axes.patches] == [[0.2, 0.8], []]


def test_one_configuration_with_nothing_done(sweep, script):
    folder = sweep({"mixup=off": ["boom", None]})
    said = script("report.py", str(folder))
    assert said.returncode == 0
    assert tables(said.stdout)["test/acc"][1][1] == "0 of 2"
    assert "<svg" not in (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["{s}", "metric=test/ac"],
            "metric=test/ac does not exist; allowed: test/acc, test/loss, val/acc. Did you mean 'test/acc'",
        ),
        (["{s}", "baseline=mixup=onn"], "baseline=mixup=onn; allowed: mixup=off scheduler=step"),
        (["{s}", "metrik=x"], "metrik does not exist; allowed: baseline, incomplete, metric"),
        (["/nowhere"], "no sweep.json there"),
        ([], "no folder; allowed"),
    ],
)
def test_mistakes_are_one_line(sweep, script, arguments, says):
    folder = sweep(FULL)
    said = script("report.py", *(word.format(s=folder) for word in arguments))
    assert said.returncode == 1
    assert says in said.stderr
    assert len(said.stderr.strip().splitlines()) == 1


def test_statistics_are_scipys():
    random = np.random.default_rng(0)
    for n in (2, 3, 8, 40):
        a, b = random.normal(size=n), random.normal(0.3, 1, size=n)
        mean = REPORT["summarise"](a.tolist())
        low, high = stats.t.interval(0.95, n - 1, a.mean(), stats.sem(a))
        assert mean[:3] == pytest.approx((n, a.mean(), a.std(ddof=1)))
        assert (mean.mean - mean.half, mean.mean + mean.half) == pytest.approx((low, high))
        found = REPORT["paired"](dict(enumerate(a)), dict(enumerate(b)))
        theirs = stats.ttest_rel(a, b)
        assert found.p == pytest.approx(theirs.pvalue)
        interval = theirs.confidence_interval(0.95)
        assert found.mean + found.half == pytest.approx(interval.high)


def test_holm_by_hand():
    assert REPORT["holm"]([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert REPORT["holm"]([0.5, 0.9]) == [1.0, 1.0]


def test_the_same_option_twice_is_rarely_called_different():
    random, calls = np.random.default_rng(0), 0
    for _ in range(2000):
        a, b = random.normal(size=(2, 20))
        calls += REPORT["paired"](dict(enumerate(a)), dict(enumerate(b))).p < 0.05
    assert 0.035 < calls / 2000 <= 0.065


def test_the_seeds_that_would_be_needed_are_about_enough():
    """Of experiments of so many seeds, four in five find the difference."""
    random = np.random.default_rng(0)
    for effect, alpha in ((0.5, 0.05), (2.0, 0.05), (1.0, 0.005)):
        n = REPORT["needed"](REPORT["Summary"](2, -effect, 1.0, 0.1), alpha)
        found = (
            stats.ttest_1samp(random.normal(effect, 1.0, size=(4000, n)), 0, axis=1).pvalue < alpha
        )
        fewer = (
            stats.ttest_1samp(random.normal(effect, 1.0, size=(4000, n - 1)), 0, axis=1).pvalue
            < alpha
        )
        assert np.mean(found) > 0.78
        assert np.mean(fewer) < 0.82
    assert REPORT["needed"](REPORT["Summary"](7, 9.0, 1.0, 0.1)) == 8  # more than there are
    assert REPORT["needed"](REPORT["Summary"](7, 0.0, 1.0, 0.1)) == 0


@pytest.mark.parametrize(("n", "alpha"), [(2, 0.005), (3, 0.05), (10, 0.01)])
def test_what_so_many_seeds_would_show(n, alpha):
    from paired import detectable

    random, effect = np.random.default_rng(0), detectable(n, alpha)
    found = stats.ttest_1samp(random.normal(effect, 1.0, size=(4000, n)), 0, axis=1).pvalue < alpha
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_one_difference_in_all_seeds_is_no_spread():
    """Though numbers of the computer differ in their last digits."""
    for right in range(100, 300):
        ours = {0: (right + 5) / 359, 1: (right + 17) / 359, 2: (right + 40) / 359}
        found = REPORT["paired"](ours, {seed: value - 5 / 359 for seed, value in ours.items()})
        assert math.isnan(found.p)
        assert found.deviation == 0


def test_what_is_broken_or_odd_is_no_obstacle(sweep, script):
    """Labels with marks of Markdown and formulas; results without a metric or a dict; a garbled metrics.csv."""
    folder = sweep({r"tag=a|b": [0.9, 0.91], r"tag=$\x$": [0.92, 0.93], "tag=c": [0.94, 0.95]})
    paths = sorted(folder.glob("tag=*/result.json"))
    paths[0].write_text("[1]")
    (paths[1].parent / "metrics.csv").write_text("epoch,val/acc\n0,1,2,3\n")
    (paths[1].parent / "calibration.csv").write_text("images,right,confidence\n0,1,2,3\n")
    (paths[3].parent / "calibration.csv").write_text("images,right,confidence\n5,\nx\n")
    broken = json.loads(paths[2].read_text())
    paths[2].write_text(json.dumps(broken | {"metrics": {"test/acc": 0.9, "val/acc": None}}))
    said = script("report.py", str(folder))
    assert said.returncode == 0, said.stderr
    assert r"tag=a\|b" in said.stdout
    assert (
        "metric=test/x does not exist" in script("report.py", str(folder), "metric=test/x").stderr
    )
    for text in ("[]", '{"jobs": []}', '{"jobs": [{}]}'):
        (folder / "sweep.json").write_text(text)
        said = script("report.py", str(folder))
        assert (said.returncode, len(said.stderr.splitlines())) == (1, 1)


def test_effects_need_every_job(sweep, script):
    """Or a value that lacks its hard half would look better than it is."""
    cells = {
        f"a={a} b={b}": [0.9 - 0.3 * (b == 2), None if (a, b) == (2, 2) else 0.5]
        for a in (1, 2)
        for b in (1, 2)
    }
    said = script("report.py", str(sweep(cells))).stdout
    assert "Effect of" not in said


def test_folds_are_replicates_and_the_command_is_that_of_the_sweep(sweep, script):
    folder = sweep(
        {"+note=a data.fold=0": [0.9], "+note=a data.fold=1": [0.8], "+note=c data.fold=0": [0.7]}
    )
    said = script("report.py", str(folder)).stdout
    assert [row[:2] for row in tables(said)["test/acc"][1:]] == [
        ["note=a", "2 of 2"],
        ["note=c", "1 of 1"],
    ]
    assert "python train.py -m model=mlp +note=a seed=0 data.fold=0,1\n" in said
