"""The section of a report that compares the recall of each class."""

import csv

import pytest
from scipy import stats

from tricklab.analysis.classes import class_section
from tricklab.analysis.results import Run


@pytest.fixture
def configurations(tmp_path):
    """Make configurations of runs from their recall, a mapping of classes for each seed, or None.

    Accuracy on validation is in the order of the configurations, the first is the best.
    """

    def make(recalls):
        made = {}
        for n, (label, by_seed) in enumerate(recalls.items()):
            made[label] = {}
            for seed, recall in enumerate(by_seed):
                folder = tmp_path / f"{label}_{seed}"
                folder.mkdir()
                status = "failed"
                if recall is not None:
                    status = "done"
                    write_classes(folder / "classes.csv", recall)
                metrics = {"test/acc": 0.9, "val/acc": 0.9 - n / 10}
                made[label][str(seed)] = Run(folder, [], {}, status, metrics=metrics)
        return made

    return make


def write_classes(path, recall):
    with path.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "n", "precision", "recall", "f1"])
        writer.writerows([name, 10, 0.1, value, 0.1] for name, value in recall.items())


def compare(configurations, baseline="b", incomplete=False):
    return class_section(configurations, "test/acc", baseline, incomplete)


def test_class_section_matches_a_calculation_by_hand(configurations):
    ours = {"cat": [0.9, 0.8, 0.9], "dog": [0.5, 0.6, 0.8], "3": [1.0, 1.0, 1.0]}
    theirs = {"cat": [0.7, 0.7, 0.6], "dog": [0.5, 0.8, 0.8], "3": [1.0, 1.0, 1.0]}

    def by_seed(recall):
        return [{name: values[seed] for name, values in recall.items()} for seed in range(3)]

    made = configurations({"a": by_seed(ours), "b": by_seed(theirs)})
    [section] = compare(made)
    assert section.heading == "Recall of each class: a against b"
    header, cat, dog, three = section.table
    assert header == ["class", "pairs", "difference", "95 % interval", "p (Holm)"]
    test = stats.ttest_rel(ours["cat"], theirs["cat"])
    low, high = test.confidence_interval(0.95)
    assert cat == ["cat", "3", "+0.2000", f"{low:.4f} to {high:.4f}", f"{3 * test.pvalue:.3g}"]
    assert dog[:3] + dog[4:] == ["dog", "3", "-0.0667", "0.845"]  # 2 * 0.4226
    assert three == ["3", "3", "+0.0000", "0.0000 to 0.0000", "1"]


@pytest.mark.parametrize(
    ("baseline", "pair"), [("c", "a against c"), ("b", "a against b"), ("a", "a against b")]
)
def test_class_section_compares_the_best_with_the_baseline_or_the_second(
    configurations, baseline, pair
):
    made = configurations({label: [{"x": 0.5}, {"x": 0.6}] for label in "abc"})
    [section] = compare(made, baseline)
    assert section.heading == f"Recall of each class: {pair}"


def test_class_section_pairs_by_seed_and_has_no_p_where_one_is_missing(configurations):
    made = configurations(
        {
            "a": [{"x": 0.5}, {"x": 0.7}, {"x": 0.8}],
            "b": [{"x": 0.4}, None, {"x": 0.9}],
        }
    )
    [section] = compare(made)
    assert section.table[1][:3] == ["x", "2", "+0.0000"]
    assert section.table[1][4] == ""
    [section] = compare(made, incomplete=True)
    assert section.table[1][4] == "1"


def test_class_section_lists_the_largest_differences_of_many_classes(configurations):
    names = [f"class {i}" for i in range(31)]
    theirs = dict.fromkeys(names, 0.5)
    ours = {name: 0.5 + (i - 25) / 100 for i, name in enumerate(names)}
    [section] = compare(configurations({"a": [ours, ours], "b": [theirs, theirs]}))
    assert section.heading == "Largest differences of recall, 15 of 31 classes: a against b"
    shown = [row[0] for row in section.table[1:]]
    gains, losses = range(30, 25, -1), range(9, -1, -1)
    assert shown == [f"class {i}" for i in (*gains, *losses)]
    assert [row[2] for row in section.table[5:7]] == ["+0.0100", "-0.1600"]


def test_class_section_lists_all_of_twenty_classes_in_their_order(configurations):
    recall = {f"class {i}": i / 20 for i in range(20)}
    [section] = compare(configurations({"a": [recall], "b": [recall]}))
    assert [row[0] for row in section.table[1:]] == list(recall)
    assert section.table[1] == ["class 0", "1", "+0.0000", "", ""]


def test_class_section_needs_classes_of_both(configurations):
    made = configurations({"a": [{"x": 0.5}, {"x": ""}], "b": [{"y": 0.5}, {"x": 0.5}]})
    assert compare(made) == []
    (made["b"]["0"].folder / "classes.csv").unlink()
    assert compare(made) == []
    assert compare(configurations({"alone": [{"x": 0.5}]}), "alone") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "class\nx\n",
        "recall\n0.5\n",
        "class,recall\nx,nan\ny,inf\nz,7\nw,-1\nv\n",
        "\x00\n",
        "\xff",
    ],
)
def test_class_section_survives_damaged_files(configurations, text):
    made = configurations({"a": [{"x": 0.5}], "b": [{"x": 0.5}]})
    (made["a"]["0"].folder / "classes.csv").write_bytes(text.encode("latin-1"))
    assert compare(made) == []
