"""The report of a sweep, from folders in any state."""

import csv
import html.parser
import json
import math
import re
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib import pyplot

from tricklab.analysis import plots
from tricklab.analysis.page import Section, to_html
from tricklab.analysis.statistics import Summary

FULL = {
    "mixup=off scheduler=step": [0.90, 0.91, 0.92, 0.93],
    "mixup=on scheduler=step": [0.92, 0.935, 0.94, 0.955],
    "mixup=off scheduler=cosine": [0.905, 0.905, 0.925, 0.925],
    "mixup=on scheduler=cosine": [0.90, 0.91, 0.92, 0.93],
}
STALE = ["stale", "not of the last command or config", "stale_9"]


def make_result(value, seed):
    """Return the result of a run with this test accuracy, or with this reason of failure."""
    if not isinstance(value, float):
        return {"status": "failed", "reason": value, "metrics": {}, "seconds": 1.0}
    metrics = {"test/acc": value, "val/acc": value, "test/loss": 1 - value}
    return {"status": "done", "reason": None, "metrics": metrics, "seconds": 2.0 + seed}


@pytest.fixture
def sweep(tmp_path):
    """Write a sweep of test accuracies, a list over seeds by overrides, and a stale run.

    A text is a reason of failure, None a run without a result.
    """

    def write_sweep(results):
        jobs = []
        for overrides, values in results.items():
            for seed, value in enumerate(values):
                folder = tmp_path / "s" / f"{overrides.replace(' ', '_').replace('/', '_')}_{seed}"
                folder.mkdir(parents=True)
                listed = ["model=mlp", *overrides.split(), f"seed={seed}", "slots=2"]
                jobs.append({"folder": folder.name, "overrides": listed})
                if value is not None:
                    write_json(folder / "result.json", make_result(value, seed))
        (tmp_path / "s" / "stale_9").mkdir()
        write_json(tmp_path / "s" / "stale_9" / "result.json", make_result(0.5, 9))
        write_json(tmp_path / "s" / "sweep.json", {"command": [], "jobs": jobs})
        return tmp_path / "s"

    return write_sweep


def write_json(path, content):
    path.write_text(json.dumps(content))


def change_json(path, change):
    """Rewrite a JSON file with the entries that `change` returns for its content."""
    content = json.loads(path.read_text())
    write_json(path, content | change(content))


@pytest.fixture
def report(run_script):
    """Report on a sweep; return the Markdown that is printed."""

    def run_report(folder, *options):
        done = run_script("report.py", str(folder), *options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_report


def parse_tables(text):
    """Return the tables of a report as lists of rows, by the heading above."""
    tables = {}
    for part in text.split("\n#"):
        rows = [line for line in part.splitlines() if line.startswith("|") and "---" not in line]
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
        tables[part.strip("# ").splitlines()[0]] = cells
    return tables


def column(table, number):
    return [row[number] for row in table[1:]]


def test_report_matches_a_calculation_by_hand(sweep, report):
    output = report(sweep(FULL))
    tables = parse_tables(output)
    assert tables["test/acc"][1] == [
        *("mixup=off scheduler=step", "4 of 4", "0.9150", "0.0129", "0.8945 to 0.9355", "3.5")
    ]
    first, second, third = tables["Differences to mixup=off scheduler=step"][1:]
    assert first[:3] == ["mixup=on scheduler=step", "4", "+0.0225"]
    assert first[5] == "higher"
    assert (second[2], second[5]) == ("+0.0000", "no difference")  # with a spread
    assert third[2:] == ["+0.0000", "0.0000 to 0.0000", "1", "equal"]
    mixup, scheduler = tables["Effect of mixup"], tables["Effect of scheduler"]
    assert [row[:3] for row in mixup[1:]] == [["off", "8", "0.9150"], ["on", "8", "0.9263"]]
    assert [row[:3] for row in scheduler[1:]] == [
        ["step", "8", "0.9263"],
        ["cosine", "8", "0.9150"],
    ]
    assert "Best on validation: mixup=on scheduler=step" in output
    assert "python train.py -m model=mlp mixup=on scheduler=step seed=0,1,2,3" in output
    assert tables["Left out"][1:] == [STALE]


def test_report_shows_per_class_means_that_differ_from_the_accuracy(sweep, report):
    folder = sweep({"mixup=off": [0.90, 0.92], "mixup=on": [0.94, 0.96]})

    def add_class_metrics(content):
        acc = content["metrics"]["test/acc"]
        means = {"test/balanced_acc": acc - 0.3, "test/f1_macro": acc - 0.001}
        return {"metrics": content["metrics"] | means}

    assert "balanced" not in report(folder)
    for path in folder.glob("mixup=on_*/result.json"):  # the others are of an earlier version
        change_json(path, add_class_metrics)
    header, *rows = parse_tables(report(folder))["test/acc"]
    assert header[6:] == ["test/balanced_acc"]
    assert [row[6:] for row in rows] == [[""], ["0.6500"]]
    assert "<th>test/<wbr>balanced_<wbr>acc</th>" in (folder / "report.html").read_text("utf-8")
    with (folder / "report.csv").open() as file:
        off, on = csv.DictReader(file)
    assert (off["test/balanced_acc"], off["test/f1_macro"]) == ("", "")
    assert float(on["test/balanced_acc"]) == pytest.approx(0.65, abs=1e-12)
    assert float(on["test/f1_macro"]) == pytest.approx(0.949, abs=1e-12)
    table = parse_tables(report(folder, "metric=test/balanced_acc"))["test/balanced_acc"]
    assert table[0][6:] == []
    assert table[2][4] == "0.5229 to 0.7771"


def test_report_compares_the_recall_of_each_class(sweep, report):
    folder = sweep({"mixup=off": [0.90, 0.92], "mixup=on": [0.94, 0.96]})
    assert "Recall" not in report(folder)
    for path in folder.glob("mixup=*/result.json"):
        recall = json.loads(path.read_text())["metrics"]["test/acc"]
        rows = f"class,n,precision,recall,f1\n<b>|,5,0.5,{recall},0.5\nx,5,0.5,0.5,0.5\n"
        (path.parent / "classes.csv").write_text(rows)
    table = parse_tables(report(folder))["Recall of each class: mixup=on against mixup=off"]
    assert table[2] == ["x", "2", "+0.0000", "0.0000 to 0.0000", "1"]
    assert (
        r"| \<b\>\| | 2     | +0.0400    | 0.0400 to 0.0400" in (folder / "report.md").read_text()
    )
    page = (folder / "report.html").read_text("utf-8")
    assert "<td>&lt;b&gt;|</td><td>2</td><td>+0.0400</td>" in page


def test_report_has_the_main_table_for_latex(sweep, report):
    folder = sweep({"mixup=off": [0.90, 0.92], "tag=a_b&c%": [0.94, 0.96]})
    rows = parse_tables(report(folder))["test/acc"]
    rows[2][0] = r"tag=a\_b\&c\%"
    rows[0][4] = r"95 \% interval"
    text = (folder / "report.tex").read_text("utf-8")
    assert [line.strip() for line in text.splitlines() if " & " in line] == [
        rf"{' & '.join(row)} \\" for row in rows
    ]


def test_report_of_another_metric_and_baseline(sweep, report):
    folder = sweep(FULL)
    output = report(folder, "metric=test/loss", "baseline=mixup=on scheduler=step")
    text = (folder / "report.md").read_text()
    assert output == f"{text}\n{folder}/report.html\n"
    assert len(parse_tables(output)["Differences to mixup=on scheduler=step"]) == 4
    with (folder / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = [row["configuration"] for row in rows]
    assert labels == column(parse_tables(text)["test/loss"], 0)
    assert float(rows[0]["mean"]) == pytest.approx(0.085, abs=1e-15)
    assert (rows[0]["n"], rows[0]["of"]) == ("4", "4")
    assert float(rows[0]["low"]) < float(rows[0]["mean"]) < float(rows[0]["high"])


def test_report_gives_no_verdict_where_seeds_are_missing(sweep, report):
    folder = sweep(
        {
            "mixup=off": [0.90, 0.91, 0.92],
            "mixup=on": [0.95, None, 0.98],
            "mixup=cutmix": ["boom", "boom", 0.9],
        }
    )
    tables = parse_tables(report(folder))
    assert column(tables["test/acc"], 1) == ["3 of 3", "2 of 3", "1 of 3"]
    verdicts = column(tables["Differences to mixup=off"], 5)
    assert verdicts == ["seeds are missing: incomplete=true compares the others"] * 2
    tables = parse_tables(report(folder, "incomplete=true"))
    verdicts = column(tables["Differences to mixup=off"], 5)
    assert re.fullmatch(r"inconclusive; needs about \d+ seeds", verdicts[0])
    assert verdicts[1] == "too few seeds, or no spread"
    assert tables["Left out"][1:] == [
        ["missing", "no result", "mixup=on_1"],
        ["failed", "boom", "mixup=cutmix_0"],
        ["failed", "boom", "mixup=cutmix_1"],
        STALE,
    ]


def test_report_leaves_out_runs_stopped_by_halving(sweep, report):
    folder = sweep({"mixup=off": [0.90, 0.91], "mixup=on": [0.95, 0.96]})
    for path in folder.glob("mixup=on_*/result.json"):
        change_json(path, lambda content: {"overrides": ["mixup=on", "stop_after=2ep"]})
    tables = parse_tables(report(folder))
    assert column(tables["test/acc"], 1) == ["2 of 2", "0 of 2"]
    assert tables["Left out"][1:] == [
        ["stopped", "stop_after=2ep", "mixup=on_0"],
        ["stopped", "stop_after=2ep", "mixup=on_1"],
        STALE,
    ]


def test_report_without_a_finished_run(sweep, report):
    folder = sweep({"mixup=off": ["boom", None]})
    assert column(parse_tables(report(folder))["test/acc"], 1) == ["0 of 2"]
    assert "<svg" not in (folder / "report.html").read_text("utf-8")


def test_report_shows_no_effects_unless_every_run_is_done(sweep, report):
    """A value whose hard half is missing would look better than it is."""
    results = {
        f"a={a} b={b}": [0.9 - 0.3 * (b == 2), None if (a, b) == (2, 2) else 0.5]
        for a in (1, 2)
        for b in (1, 2)
    }
    assert "Effect of" not in report(sweep(results))


def test_report_treats_folds_as_replicates_and_repeats_the_command(sweep, report):
    folder = sweep(
        {"+note=a data.fold=0": [0.9], "+note=a data.fold=1": [0.8], "+note=c data.fold=0": [0.7]}
    )
    output = report(folder)
    rows = parse_tables(output)["test/acc"][1:]
    assert [row[:2] for row in rows] == [["note=a", "2 of 2"], ["note=c", "1 of 1"]]
    assert "python train.py -m model=mlp +note=a seed=0 data.fold=0,1\n" in output


def test_report_takes_rounding_for_no_difference(sweep, report):
    """+1, +2 and -3 of 360 images once required 1e21 seeds."""
    base = [300, 310, 320]
    shifted = [k + d for k, d in zip(base, (1, 2, -3), strict=True)]
    counts = {"mixup=off": base, "mixup=on": shifted, "mixup=cutmix": base}
    accuracies = {name: [k / 360 for k in right] for name, right in counts.items()}
    first, second = parse_tables(report(sweep(accuracies)))["Differences to mixup=off"][1:]
    assert (first[2], first[5]) == ("+0.0000", "no difference")
    assert (second[2], second[5]) == ("+0.0000", "equal")


def test_report_clips_intervals_of_accuracies(sweep, report):
    folder = sweep({"mixup=off": [0.99, 1.0], "mixup=on": [0.0, 0.01]})
    intervals = column(parse_tables(report(folder))["test/acc"], 4)
    assert intervals[0].endswith(" to 1.0000")
    assert intervals[1].startswith("0.0000 to ")
    with (folder / "report.csv").open() as file:
        assert float(next(iter(csv.DictReader(file)))["high"]) == 1.0


def test_report_names_the_number_of_test_images(sweep, report):
    folder = sweep({"mixup=off": [0.99, 1.0]})
    for path in folder.glob("mixup*/result.json"):
        change_json(path, lambda content: {"images": {"test": 1360}})
    assert "# test/acc on 1,360 test images\n" in report(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["{s}", "metric=test/ac"],
            "metric=test/ac does not exist; allowed: test/acc, test/loss, val/acc. "
            "Did you mean 'test/acc'",
        ),
        (["{s}", "baseline=mixup=onn"], "baseline=mixup=onn; allowed: mixup=off scheduler=step"),
        (["{s}", "metrik=x"], "metrik does not exist; allowed: baseline, incomplete, metric"),
        (["{s}", "incomplete=yes"], "incomplete=yes; allowed: true, false"),
        (["{s}", "metric=a", "metric=b"], "metric is given twice"),
        (["/nowhere"], "is not the folder of a sweep"),
        ([], "no folder. Expected"),
    ],
)
def test_report_refuses_wrong_options_in_one_line(sweep, run_script, arguments, message):
    folder = sweep(FULL)
    done = run_script("report.py", *(argument.format(s=folder) for argument in arguments))
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_page_is_self_contained_and_escaped(sweep, report):
    script_tag = "<script>alert(1)</script>"
    folder = sweep({f"tag={script_tag}": [0.90, 0.91], "tag=b": [0.92, 0.94]})
    paths = [path for run in sorted(folder.glob("tag*")) for path in run.glob("**/result.json")]
    for n, path in enumerate(paths):
        change_json(path, lambda content, n=n: {"metrics": content["metrics"] | {"test/ece": n}})
        rows = f"epoch,step,lr,val/acc\n0,5,0.1,\n0,9,,0.{5 + n}\n1,19,,0.{6 + n}\n"
        (path.parent / "metrics.csv").write_text(rows)
    report(folder)
    page = (folder / "report.html").read_text("utf-8")
    assert script_tag not in page
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<svg") == 5
    assert 'name="viewport"' in page
    assert "<th>configuration</th>" in page
    assert "<td>0.9050</td>" in page
    assert "<pre>python train.py -m model=mlp tag=b seed=0,1</pre>" in page
    assert "<figcaption>Accuracy on validation, mean ± sd over seeds</figcaption>" in page
    hosts = set(re.findall(r"https?://([^\s\"'<)/]+)", page))  # names in SVG's metadata
    assert hosts <= {"www.w3.org", "purl.org", "creativecommons.org", "matplotlib.org"}
    ids = re.findall(r"<[^>]* id=\"([^\"]*)\"", page)
    assert len(ids) == len(set(ids)) > 0
    html.parser.HTMLParser().feed(page)


def test_page_has_styles_for_print_and_dark_screens():
    page = to_html("title", [Section("", [["a"], ["b"]])], [])
    assert "@media print {" in page
    assert "@media screen and (prefers-color-scheme: dark) {" in page


def test_every_figure_names_both_axes():
    """Also those without data, and the labels of options that look like mathematics."""
    effects = {"tag": {"$a$": Summary(2, 0.9, 0.1, 0.1, 0.5), "b": Summary(0, math.nan)}}
    figures = plots.draw_figures({"tag=$a$": [plots.RunLogs({}, [], [])]}, effects, "test/acc")
    labels = [
        ("epoch", "accuracy"),
        ("test/acc", "option", "tag=$a$"),
        ("expected calibration error (lower is better)", "accuracy"),
        ("confidence", "accuracy; fraction of images"),
        ("optimizer step", "learning rate"),
    ]
    assert len(figures) == len(labels)
    for figure, texts in zip(figures, labels):
        for text in texts:
            assert f">{text}</text>" in figure.svg


def test_figure_grows_with_its_legend():
    """Eight long labels once left no room for the curves."""

    def height(label):
        runs = [plots.RunLogs({"val/acc": n}, [], []) for n in range(8)]
        figure = plots.draw_figures({f"{label}{n}": [run] for n, run in enumerate(runs)}, {}, "a")[
            0
        ]
        return float(re.search(r'height="([\d.]+)pt"', figure.svg)[1])

    assert height("long " * 30) - height("b") == pytest.approx(8 * 2 * 72 * plots.LINE_HEIGHT)


def test_page_links_each_configuration_to_its_runs(sweep, report):
    folder = sweep({"mixup=off": [0.9, None], "tag=\"#?&'>%41": [0.92, "boom"]})
    (folder / "mixup=off_1").rmdir()
    report(folder)
    page = (folder / "report.html").read_text("utf-8")
    links = re.findall('<a href="([^"]*)">(.*?)</a>', page)
    odd = "tag%3D%22%23%3F%26%27%3E%2541"
    assert links == [("./mixup%3Doff_0/", "0"), (f"./{odd}_0/", "0"), (f"./{odd}_1/", "1")]
    for target, _ in links:
        assert (folder / unquote(target) / "result.json").is_file()


def test_reliability_diagram_sums_the_bins_of_all_seeds():
    bins = [[(0, 0, 0), (4, 1, 2.0)], [(2, 1, 0.2), (4, 3, 2.4)]]
    runs = []
    for of_seed in bins:
        rows = [dict(zip(plots.CALIBRATION_COLUMNS, row, strict=True)) for row in of_seed]
        runs.append(plots.RunLogs({}, [], rows))
    axes = pyplot.figure().subplots()
    plots.draw_reliability(axes, {"a": runs, "b": [plots.RunLogs({}, [], [])]})
    diagonal, a, b = (line.get_xydata().tolist() for line in axes.lines)
    assert a == [pytest.approx([0.1, 0.5]), pytest.approx([0.55, 0.5])]
    assert (diagonal, b) == ([[0, 0], [1, 1]], [])
    assert [patch.get_data().values.tolist() for patch in axes.patches] == [[0.2, 0.8], []]


def test_report_survives_damaged_files_and_odd_labels(sweep, report, run_script):
    """Labels with marks of Markdown and formulas, results that are none, garbled tables."""
    folder = sweep({r"tag=a|b": [0.9, 0.91], r"tag=$\x$": [0.92, 0.93], "tag=c": [0.94, 0.95]})
    paths = sorted(folder.glob("tag=*/result.json"))
    paths[0].write_text("[1]")
    (paths[1].parent / "metrics.csv").write_text("epoch,val/acc\n0,1,2,3\n")
    (paths[1].parent / "calibration.csv").write_text("images,right,confidence\n0,1,2,3\n")
    (paths[3].parent / "calibration.csv").write_text("images,right,confidence\n5,\nx\n")
    change_json(paths[2], lambda content: {"metrics": {"test/acc": 0.9, "val/acc": None}})
    assert r"tag=a\|b" in report(folder)
    refused = run_script("report.py", str(folder), "metric=test/x")
    assert "metric=test/x does not exist" in refused.stderr
    for text in ("[]", '{"jobs": []}', '{"jobs": [{}]}'):
        (folder / "sweep.json").write_text(text)
        refused = run_script("report.py", str(folder))
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)


EVIL = "\x1b[2J<img src=x onerror=a>|`x`\n# x $\\x$ =1 \u202e"


def test_report_escapes_text_of_strangers(sweep, report):
    folder = sweep({"mixup=off": [0.9, 0.91], "mixup=on": [0.92, EVIL]})

    def add_overrides(content):
        for job in content["jobs"]:
            job["overrides"] += [f"tag={EVIL}{job['folder'][:8]}", "=cmd"]
        return content

    change_json(folder / "sweep.json", add_overrides)
    output = report(folder)
    page = (folder / "report.html").read_text("utf-8")
    text = (folder / "report.md").read_text("utf-8")
    table = (folder / "report.csv").read_text("utf-8")
    latex = (folder / "report.tex").read_text("utf-8")
    for shown in (output, page, text, latex):
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "\n# x" not in shown
    assert "<img" not in page
    prose = [line for line in text.splitlines() if not line.startswith("    ")]  # no code
    assert not any(re.search(r"(?<!\\)<img", line) for line in prose)
    assert not re.search(r"(^|,)\"?[=+@-][^\d]", table, re.MULTILINE)
    assert r"\$\textbackslash{}x\$" in latex


def make_json_value(random, depth=0):
    """Return any value that JSON may hold."""
    leaves = [None, True, 0, -1, 10**400, 1e308, float("nan"), float("inf"), "", "x", EVIL, "../x"]
    kind = random.integers(0, 3 if depth < 2 else 1)
    if kind == 1:
        return [make_json_value(random, depth + 1) for _ in range(random.integers(0, 3))]
    if kind == 2:
        keys = ["status", "metrics", "test/acc", "val/acc", "seconds", "overrides", "images", "x"]
        chosen = random.choice(keys, 3).tolist()
        return {key: make_json_value(random, depth + 1) for key in chosen}
    return leaves[random.integers(len(leaves))]


@pytest.mark.slow
def test_report_survives_any_result_of_a_stranger(sweep, run_script):
    random = np.random.default_rng(0)
    folder = sweep({"mixup=off": [0.9, 0.91], "mixup=on": [0.92, 0.9]})
    honest = {path: path.read_text() for path in folder.glob("mixup*/result.json")}
    listed = (folder / "sweep.json").read_text()
    for n in range(8):
        for path, text in honest.items():
            content = json.loads(text)
            content[str(random.choice(list(content)))] = make_json_value(random)
            write_json(path, content if random.random() < 0.8 else make_json_value(random))
            rows = "epoch,val/acc,step\n" + "1,nan,2\nx\n" * (n % 3)
            (path.parent / "metrics.csv").write_text(rows)
        sweep_json = json.loads(listed)
        if n % 2:
            key = str(random.choice(["folder", "overrides"]))
            sweep_json["jobs"][n % 4][key] = make_json_value(random)
        write_json(folder / "sweep.json", sweep_json)
        done = run_script("report.py", str(folder))
        assert done.returncode == 0 or len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("name", ["../outside", "/etc", ".", "..", "", "a/b", "link", None, 3])
def test_report_reads_only_folders_of_the_sweep(sweep, report, name):
    folder = sweep({"mixup=off": [0.9, 0.91]})
    outside = folder.parent / "outside"
    outside.mkdir()
    write_json(outside / "result.json", {"status": "failed", "reason": "secret text"})
    (folder / "link").symlink_to(outside)
    listed = json.loads((folder / "sweep.json").read_text())
    listed["jobs"][0]["folder"] = name
    write_json(folder / "sweep.json", listed)
    output = report(folder)
    assert "not a folder of this sweep" in output
    assert "secret text" not in output
    links = re.findall('<a href="([^"]*)"', (folder / "report.html").read_text("utf-8"))
    assert links == ["./mixup%3Doff_1/"]
