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
                name = f"{words.replace(' ', '_').replace('/', '_')}_{seed}"
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
    assert (second[2], second[5]) == ("+0.0000", "no difference")  # with a spread
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
    text = (folder / "report.md").read_text()
    assert said.stdout == f"{text}\n{folder}/report.html\n"
    with (folder / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["configuration"] for row in rows] == [r[0] for r in tables(text)["test/loss"][1:]]
    assert float(rows[0]["mean"]) == pytest.approx(0.085, abs=1e-15)
    assert (rows[0]["n"], rows[0]["of"]) == ("4", "4")
    assert float(rows[0]["low"]) < float(rows[0]["mean"]) < float(rows[0]["high"])
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
        (["/nowhere"], "is not the folder of a sweep"),
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


def test_what_rounding_leaves_is_no_difference(sweep, script):
    """+1, +2 and -3 of 360 images asked for 1e21 seeds."""
    base = [300, 310, 320]
    folder = sweep(
        {
            "mixup=off": [k / 360 for k in base],
            "mixup=on": [(k + d) / 360 for k, d in zip(base, (1, 2, -3), strict=True)],
            "mixup=cutmix": [k / 360 for k in base],
        }
    )
    said = script("report.py", str(folder))
    assert said.returncode == 0, said.stderr
    first, second = tables(said.stdout)["Differences to mixup=off"][1:]
    assert (first[2], first[5]) == ("+0.0000", "no difference")
    assert (second[2], second[5]) == ("+0.0000", "equal")


def test_any_counts_of_right_images_have_a_verdict(recwarn):
    """Differences of k / n by themselves, which leave residues in 1 of 3 cases."""
    random, needed = np.random.default_rng(0), REPORT["needed"]
    for _ in range(600):
        n, images = int(random.integers(2, 6)), int(random.choice([7, 360, 10_000]))
        ours = random.integers(0, images + 1, n)
        theirs = np.clip(ours + random.integers(-3, 4, n), 0, images)
        one, other = (dict(enumerate((k / images).tolist())) for k in (ours, theirs))
        found = REPORT["paired"](one, other)
        total = int((ours - theirs).sum())
        assert found.mean == pytest.approx(total / images / n, abs=1e-12)
        assert (found.mean == 0) == (total == 0)
        assert (found.deviation == 0) == (len(set(ours - theirs)) == 1)
        assert 0 <= needed(found) <= 10_001
        assert (needed(found) == 0) == (total == 0 or found.deviation == 0)
    assert not recwarn.list


def test_a_small_difference_needs_more_seeds_than_anyone_runs():
    tiny = REPORT["Summary"](3, 1e-6, 1.0, 0.1)
    assert REPORT["seeds_text"](REPORT["needed"](tiny)) == "more than 10,000 seeds"


def test_no_interval_of_an_accuracy_is_beyond_1(sweep, script):
    folder = sweep({"mixup=off": [0.99, 1.0], "mixup=on": [0.0, 0.01]})
    said = script("report.py", str(folder))
    found = tables(said.stdout)["test/acc"]
    assert found[1][4].endswith(" to 1.0000")
    assert found[2][4].startswith("0.0000 to ")
    with (folder / "report.csv").open() as file:
        assert float(next(iter(csv.DictReader(file)))["high"]) == 1.0


def test_the_number_of_test_images_is_told(sweep, script):
    folder = sweep({"mixup=off": [0.99, 1.0]})
    for path in folder.glob("mixup*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"images": {"test": 1360}}))
    assert "# test/acc on 1,360 test images\n" in script("report.py", str(folder)).stdout


EVIL = "\x1b[2J<img src=x onerror=a>|`x`\n# x $\\x$ =1 \u202e"


def test_texts_of_a_stranger_are_text_everywhere(sweep, script):
    folder = sweep({"mixup=off": [0.9, 0.91], "mixup=on": [0.92, EVIL]})
    listed = json.loads((folder / "sweep.json").read_text())
    for job in listed["jobs"]:
        job["overrides"] += [f"tag={EVIL}{job['folder'][:8]}", "=cmd"]
    (folder / "sweep.json").write_text(json.dumps(listed))
    said = script("report.py", str(folder))
    assert said.returncode == 0, said.stderr
    page, text, table = (
        (folder / f"report.{end}").read_text("utf-8") for end in ("html", "md", "csv")
    )
    for shown in (said.stdout, page, text):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "\n# x" not in shown
    assert "<img" not in page
    shown = [line for line in text.splitlines() if not line.startswith("    ")]  # no code
    assert not any(re.search(r"(?<!\\)<img", line) for line in shown)
    assert not re.search(r"(^|,)\"?[=+@-][^\d]", table, re.MULTILINE)


def strange(random, depth=0):
    """Any value that JSON may hold."""
    leaf = [None, True, 0, -1, 10**400, 1e308, float("nan"), float("inf"), "", "x", EVIL, "../x"]
    kind = random.integers(0, 3 if depth < 2 else 1)
    if kind == 1:
        return [strange(random, depth + 1) for _ in range(random.integers(0, 3))]
    if kind == 2:
        keys = ["status", "metrics", "test/acc", "val/acc", "seconds", "overrides", "images", "x"]
        return {key: strange(random, depth + 1) for key in random.choice(keys, 3).tolist()}
    return leaf[random.integers(len(leaf))]


def test_no_result_of_a_stranger_ends_the_report(sweep, script):
    folder, random = sweep({"mixup=off": [0.9, 0.91], "mixup=on": [0.92, 0.9]}), None
    random = np.random.default_rng(0)
    honest = {path: path.read_text() for path in folder.glob("mixup*/result.json")}
    listed = (folder / "sweep.json").read_text()
    for n in range(16):
        for path, text in honest.items():
            content = json.loads(text)
            content[str(random.choice(list(content)))] = strange(random)
            path.write_text(json.dumps(content if random.random() < 0.8 else strange(random)))
            (path.parent / "metrics.csv").write_text(
                "epoch,val/acc,step\n" + "1,nan,2\nx\n" * (n % 3)
            )
        sweep_json = json.loads(listed)
        sweep_json["jobs"][n % 4][str(random.choice(["folder", "overrides"]))] = strange(random)
        (folder / "sweep.json").write_text(json.dumps(sweep_json if n % 2 else json.loads(listed)))
        said = script("report.py", str(folder))
        assert said.returncode == 0 or len(said.stderr.splitlines()) == 1, said.stderr


@pytest.mark.parametrize("name", ["../outside", "/etc", ".", "..", "", "a/b", "link", None, 3])
def test_only_folders_of_the_sweep_are_read(sweep, script, name):
    folder = sweep({"mixup=off": [0.9, 0.91]})
    (folder.parent / "outside").mkdir()
    secret = {"status": "failed", "reason": "secret text"}
    (folder.parent / "outside" / "result.json").write_text(json.dumps(secret))
    (folder / "link").symlink_to(folder.parent / "outside")
    listed = json.loads((folder / "sweep.json").read_text())
    listed["jobs"][0]["folder"] = name
    (folder / "sweep.json").write_text(json.dumps(listed))
    said = script("report.py", str(folder))
    assert said.returncode == 0, said.stderr
    assert "not a folder of this sweep" in said.stdout
    assert "secret text" not in said.stdout
