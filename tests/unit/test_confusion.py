"""Results per class against scikit-learn, and their files and figure."""

import csv
import warnings

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn import metrics as sklearn_metrics

from tricklab.analysis.evaluation import bootstrap_intervals
from tricklab.metrics import class_metrics, class_scores, confusion_matrix, evaluate
from tricklab.run import confusion as module
from tricklab.run.confusion import draw_confusion, find_pairs, order_by_confusion, write_classes

CASES = [  # images, classes, classes with images, classes that are predicted
    (1, 2, 2, 2),
    (30, 2, 1, 2),
    (200, 5, 5, 5),
    (200, 5, 5, 1),
    (300, 10, 4, 7),
    (40, 100, 100, 100),
    (5000, 1000, 1000, 1000),
    (20, 1, 1, 1),
]
ODD_NAMES = ["Größe", "猫", "$x_1$ \\frac", "=1+1", "a\nb", "z" * 80, "\u202eabc", "🦄"]


def sample(images, classes, labelled, predicted):
    """Return logits of which many are ties, and labels, with some classes in neither."""
    random = torch.Generator().manual_seed(images)
    labels = torch.randint(labelled, (images,), generator=random)
    logits = torch.randint(3, (images, classes), generator=random).float()
    logits += 2 * torch.nn.functional.one_hot(labels, classes)
    logits[:, predicted:] = -1
    return logits, labels


def pairs_of_confused(classes, images=10):
    """Return a confusion matrix in which class 2 i and 2 i + classes are confused half the time."""
    matrix = torch.eye(classes, dtype=torch.long) * images
    partner = (torch.arange(classes) + classes // 2) % classes
    matrix[torch.arange(classes), partner] = images // 2
    return matrix


@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label was found")
@pytest.mark.parametrize(("images", "classes", "labelled", "predicted"), CASES)
def test_class_metrics_equal_those_of_scikit_learn(images, classes, labelled, predicted):
    logits, labels = sample(images, classes, labelled, predicted)
    true, guess = labels.numpy(), logits.argmax(1).numpy()
    matrix = confusion_matrix(logits, labels, classes)
    assert torch.equal(matrix, confusion_matrix(logits.argmax(1), labels, classes))
    expected = sklearn_metrics.confusion_matrix(true, guess, labels=range(classes))
    assert np.array_equal(matrix.numpy(), expected)
    results = evaluate(logits, labels)
    f1 = sklearn_metrics.f1_score(true, guess, average="macro", zero_division=0)
    balanced = sklearn_metrics.balanced_accuracy_score(true, guess)
    assert results["balanced_acc"] == pytest.approx(balanced, abs=1e-12)
    assert results["f1_macro"] == pytest.approx(f1, abs=1e-12)
    of_classes = sklearn_metrics.precision_recall_fscore_support(
        true, guess, labels=range(classes), zero_division=np.nan
    )
    scores = class_scores(matrix)
    for name, values in zip(("precision", "recall", "f1"), of_classes, strict=False):
        assert scores[name].numpy() == pytest.approx(values, abs=1e-12, nan_ok=True)


def test_metrics_per_class_follow_the_accuracy():
    logits, labels = sample(200, 30, 30, 30)
    assert list(evaluate(logits, labels))[:5] == [
        *("loss", "acc", "acc_top5", "balanced_acc", "f1_macro")
    ]


def test_balanced_accuracy_of_a_constant_prediction_is_chance():
    """At an accuracy of 0.9; by hand, F1 is 2 * 9 / (9 + 10) for one class and 0 for the other."""
    matrix = torch.tensor([[9, 0], [1, 0]])
    expected = {"balanced_acc": 0.5, "f1_macro": 9 / 19}
    assert class_metrics(matrix) == pytest.approx(expected, abs=1e-15)


def test_bootstrap_has_intervals_of_metrics_per_class():
    logits, labels = sample(100, 5, 5, 4)
    intervals = bootstrap_intervals(logits, labels, 1.0, 50)
    results = evaluate(logits, labels)
    for name in ("balanced_acc", "f1_macro"):
        low, high = intervals[f"test/{name}"]
        assert low < results[name] < high


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_files_per_class(tmp_path):
    """Class b is never predicted, c has no images, d neither."""
    matrix = torch.tensor([[3, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    write_classes(matrix, ["=a", "b\n", "c", "d"], tmp_path)
    assert read_csv(tmp_path / "classes.csv") == [
        ["class", "n", "precision", "recall", "f1"],
        ["'=a", "4", "0.6", "0.75", "0.6666666666666666"],
        ["b\\n", "2", "", "0.0", "0.0"],
        ["c", "0", "0.0", "", "0.0"],
        ["d", "0", "", "", ""],
    ]
    assert read_csv(tmp_path / "confusion.csv") == [
        ["true class", "'=a", "b\\n", "c", "d"],
        ["'=a", "3", "0", "1", "0"],
        ["b\\n", "2", "0", "0", "0"],
        ["c", "0", "0", "0", "0"],
        ["d", "0", "0", "0", "0"],
    ]


def test_pairs_are_sorted_by_images():
    matrix = torch.tensor([[5, 2, 0], [7, 1, 0], [0, 2, 98]])
    assert find_pairs(matrix) == [(1, 0, 7, 7 / 8), (0, 1, 2, 2 / 7), (2, 1, 2, 2 / 100)]


def test_order_puts_confused_classes_side_by_side():
    order = order_by_confusion(pairs_of_confused(60)).tolist()
    assert sorted(order) == list(range(60))
    assert all(abs(a - b) == 30 for a, b in zip(order[::2], order[1::2], strict=True))


def read_texts(monkeypatch, matrix, names, path):
    """Draw a figure; return the texts in it, without those of ticks that matplotlib chooses."""
    figures = []
    savefig = Figure.savefig

    def keep(figure, *arguments, **options):
        figures.append(figure)
        savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw_confusion(matrix, names, path)
    texts = []
    for axes in figures[0].axes:
        texts += [text.get_text() for text in axes.texts]
        texts += [label.get_text() for label in axes.get_yticklabels()]
    return figures[0], texts


@pytest.mark.parametrize("classes", [1, 2, 10, 20])
def test_figure_of_few_classes_has_counts_and_names(monkeypatch, tmp_path, classes):
    matrix = torch.arange(classes**2).view(classes, classes) + 1000
    names = [f"name {i}" for i in range(classes)]
    figure, texts = read_texts(monkeypatch, matrix, names, tmp_path / "c.png")
    assert texts[: classes**2] == [f"{1000 + i:,}" for i in range(classes**2)]
    assert set(names) <= set(texts)
    assert f"{int(matrix.sum()):,} images" in figure.get_suptitle()


@pytest.mark.parametrize(("classes", "listed"), [(21, 20), (100, 20), (1000, 20)])
def test_figure_of_many_classes_lists_the_most_frequent_mistakes(
    monkeypatch, tmp_path, classes, listed
):
    matrix = pairs_of_confused(classes)
    matrix[3, 4] = 30
    names = [f"name {i}" for i in range(classes)]
    figure, texts = read_texts(monkeypatch, matrix, names, tmp_path / "c.png")
    assert texts[4:8] == ["name 3", "→ name 4", "30", f"{30 / 45:.1%}"]
    assert sum(text.startswith("→") for text in texts) == listed
    assert figure.axes[1].get_title() == f"confused classes, {listed} of {classes + 1:,} pairs"
    with Image.open(tmp_path / "c.png") as image:
        assert max(image.size) < 2000


def test_figure_without_mistakes(monkeypatch, tmp_path):
    names = [str(i) for i in range(30)]
    matrix = torch.eye(30, dtype=torch.long)
    figure, _ = read_texts(monkeypatch, matrix, names, tmp_path / "c.png")
    assert figure.axes[1].get_title() == "no image is misclassified"


@pytest.mark.parametrize("copies", [1, 4])
def test_figure_draws_any_names(monkeypatch, tmp_path, copies):
    """Without warnings: a name with characters that no font has is replaced by its number."""
    names = ODD_NAMES * copies
    monkeypatch.setattr(module, "FONTS", module.FONTS[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, texts = read_texts(monkeypatch, pairs_of_confused(len(names)), names, tmp_path / "c.png")
    shown = {"Größe", "class 1", "$x_1$ \\frac", "=1+1", "a\\nb", "\\u202eabc", "class 7"}
    shown.add(f"{'z' * 11}…{'z' * 12}")
    assert shown <= set(texts)
    assert not any("猫" in text for text in texts)
