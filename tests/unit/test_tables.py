"""Labels in a table, groups of images, and the groups that names of files tell."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from helpers.configs import configure
from helpers.datasets import write_photographs
from tricklab.data.evaluation import build_test_data
from tricklab.errors import UserError
from tricklab.run.build import build_data
from tricklab.run.instantiate import build
from tricklab.run.untrusted import validate_config


def write_table(path, rows, header=("path", "label"), delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)


@pytest.fixture
def images(tmp_path):
    """Return a folder with 20 images a class, and their rows."""
    write_photographs(tmp_path, images=20)
    rows = []
    for name in ("cat", "dog"):
        for path in sorted((tmp_path / name).iterdir()):
            rows.append((f"{name}/{path.name}", name))
    return tmp_path, rows


def build_table(folder, *overrides, table="table.csv"):
    options = (f"data.table='{folder}/{table}'", "data.size=8", "data.num_workers=0")
    return build_data(configure("data=table", *options, *overrides))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_table_is_the_folder_that_it_lists(images, delimiter):
    folder, rows = images
    write_table(folder / "table.csv", rows[::-1], delimiter=delimiter)
    ours = build_table(folder)
    options = ("data=folder", f"data.root='{folder}'", "data.size=8", "data.num_workers=0")
    (folder / "table.csv").rename(folder.parent / "table.csv")
    theirs = build_data(configure(*options))
    assert ours.classes == theirs.classes == ["cat", "dog"]
    for one, other in zip(ours.splits.parts, theirs.splits.parts, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
    assert torch.equal(ours.train_indices, theirs.train_indices)


def test_table_has_columns_of_any_name_and_a_root(images):
    folder, rows = images
    (folder / "elsewhere").mkdir()
    named = [(i, name, label) for i, (name, label) in enumerate(rows)]
    write_table(folder / "elsewhere" / "table.csv", named, ("id", "file name", "Klasse"))
    options = ("data.path='file name'", "data.label=Klasse", f"data.root='{folder}'")
    data = build_table(folder, *options, table="elsewhere/table.csv")
    assert len(data.splits.train.labels) + len(data.splits.test.labels) == 40


def test_labels_that_are_numbers_are_sorted_as_numbers(images):
    folder, rows = images
    numbers = {name: [2, 10, 9][i % 3] for i, (name, _) in enumerate(rows)}
    write_table(folder / "table.csv", numbers.items())
    data = build_table(folder)
    assert data.classes == ["2", "9", "10"]
    write_table(folder / "table.csv", [(name, f"{n}a") for name, n in numbers.items()])
    assert build_table(folder).classes == ["10a", "2a", "9a"]


def test_some_classes_of_a_table_are_used(images):
    folder, rows = images
    numbers = {name: [2, 10, 9][i % 3] for i, (name, _) in enumerate(rows)}
    write_table(folder / "table.csv", numbers.items())
    data = build_table(folder, "data.classes=[10,2]")  # names, not positions
    assert data.classes == ["2", "10"]
    assert data.splits.left_out == ["9"]
    used = [number for number in numbers.values() if number != 9]
    assert len(data.splits.train.labels) + len(data.splits.test.labels) == len(used)
    labels = torch.cat([data.splits.train.labels, data.splits.test.labels])
    assert labels.bincount().tolist() == [used.count(2), used.count(10)]


def test_labels_may_look_like_missing_values(images):
    folder, rows = images
    write_table(folder / "table.csv", [(n, "NA" if c == "cat" else "null") for n, c in rows])
    assert build_table(folder).classes == ["NA", "null"]


def test_parquet_has_numbers_and_texts(images):
    pytest.importorskip("pyarrow")
    folder, rows = images
    frame = pd.DataFrame(rows, columns=["path", "label"])
    frame["label"] = (frame["label"] == "dog") * 3.0
    frame.to_parquet(folder / "table.parquet")
    data = build_table(folder, table="table.parquet")
    assert data.classes == ["0", "3"]
    frame["label"] = [["cat", "dog"]] * len(frame)
    frame.to_parquet(folder / "table.parquet")
    with pytest.raises(UserError, match=r"row 1 has several labels, 'cat\|dog'"):
        build_table(folder, table="table.parquet")


def test_splits_of_a_table_are_kept_and_missing_ones_are_made(images):
    folder, rows = images
    parts = ["train", "Train", "validation", "test"]
    split = [(name, label, parts[i % 4]) for i, (name, label) in enumerate(rows)]
    write_table(folder / "table.csv", split, ("path", "label", "split"))
    data = build_table(folder)
    assert [len(part.labels) for part in data.splits.parts] == [20, 10, 10]
    assert len(data.val_indices) == 10
    write_table(folder / "table.csv", split, ("path", "label", "fold"))
    assert [len(part.labels) for part in build_table(folder).splits.parts] == [32, 8]
    data = build_table(folder, "data.split=fold")
    assert [len(part.labels) for part in data.splits.parts] == [20, 10, 10]


def test_groups_of_a_table_are_in_one_part(images):
    folder, rows = images
    grouped = [(name, label, f"patient {i % 10}") for i, (name, label) in enumerate(rows)]
    write_table(folder / "table.csv", grouped, ("path", "label", "group"))
    group_of = {name: group for name, _, group in grouped}
    data = build_table(folder, "data.cache=none")
    files = [file.name for file in data.splits.train.images.files]
    parts = [
        {group_of[files[i]] for i in data.train_indices.tolist()},
        {group_of[files[i]] for i in data.val_indices.tolist()},
        {group_of[file.name] for file in data.splits.test.images.files},
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10
    assert all(parts)


def test_group_in_two_splits_is_refused(images):
    folder, rows = images
    grouped = [(name, label, "ab"[i % 2], "x") for i, (name, label) in enumerate(rows)]
    grouped = [(name, label, {"a": "train", "b": "test"}[s], g) for name, label, s, g in grouped]
    write_table(folder / "table.csv", grouped, ("path", "label", "split", "group"))
    with pytest.raises(UserError, match=r"group 'x' is in train and in test"):
        build_table(folder)


def test_groups_of_a_folder_follow_from_a_pattern(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for patient in range(6):
            for view in range(5):
                pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / f"patient{patient}_{view}.png")
    options = ("data=folder", f"data.root='{tmp_path}'", "data.size=8", "data.num_workers=0")
    for pattern in (r"patient\d+", r"(patient\d)_\d"):
        data = build_data(configure(*options, f"data.group='{pattern}'", "data.cache=none"))
        parts = [
            {data.splits.train.images.files[i].group for i in data.train_indices.tolist()},
            {data.splits.train.images.files[i].group for i in data.val_indices.tolist()},
            {file.group for file in data.splits.test.images.files},
        ]
        assert set.union(*parts) == {f"patient{i}" for i in range(6)}
        assert sum(map(len, parts)) == 6
    with pytest.raises(UserError, match=r"data\.group=person is not found in cat/patient0_0\.png"):
        build_data(configure(*options, "data.group=person"))
    with pytest.raises(UserError, match=r"data\.group=\(: no regular expression"):
        build_data(configure(*options, "data.group='('"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: ("cat/3.png", "cat|dog")}, r"row 4 has several labels, 'cat\|dog'\. Expected one"),
        ({3: ("cat/3.png", "['cat', 'dog']")}, "row 4 has several labels"),
        ({3: ("cat/3.png", "cat, dog")}, "row 4 has several labels"),
        ({3: ("cat/0.jpg", "dog")}, r"cat/0\.jpg has the labels cat and dog\. Expected one label"),
        ({3: ("cat/0.jpg", "cat")}, r"row 4 repeats the image cat/0\.jpg"),
        ({3: ("cat/none.jpg", "cat")}, r"1 of 40 images are not found, the first: cat/none\.jpg"),
        ({3: ("cat/3.png", "")}, "row 4 has no label"),
    ],
)
def test_table_that_is_wrong_is_refused_in_one_line(images, change, message):
    folder, rows = images
    write_table(folder / "table.csv", [change.get(i, row) for i, row in enumerate(rows)])
    with pytest.raises(UserError, match=message) as refused:
        build_table(folder)
    assert "\n" not in str(refused.value)


def test_table_that_can_not_be_read_is_named(images):
    folder, rows = images
    with pytest.raises(UserError, match=r"table\.csv is not a file\. Expected a CSV or Parquet"):
        build_table(folder)
    (folder / "table.csv").write_bytes(b"path,label\n\xff\xfe,cat\n")
    with pytest.raises(UserError, match=r"table\.csv can't be read: .*utf-8"):
        build_table(folder)
    write_table(folder / "table.csv", rows, ("file", "class"))
    message = r"data\.path=path: .* has no such column; allowed: file, class\."
    with pytest.raises(UserError, match=message):
        build_table(folder)
    write_table(folder / "table.csv", [(*row, "tset") for row in rows], ("path", "label", "split"))
    with pytest.raises(UserError, match=r"row 1 is of the split 'tset'; allowed: train, training"):
        build_table(folder)
    (folder / "table.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"allowed: files that end in \.csv"):
        build_table(folder, table="table.xlsx")


def test_other_tables_are_evaluated_as_a_whole_or_their_test_rows(images):
    folder, rows = images
    options = {"size": [8, 8], "num_workers": 0, "batch_size": 4, "seed": 0, "root": None}
    options |= {"path": "path", "label": "label", "split": None, "group": None}

    def count(classes=("cat", "dog")):
        table = str(folder / "table.csv")
        data = build_test_data("table", classes, {"table": table, **options})
        return len(data.splits.test.labels)

    write_table(folder / "table.csv", rows)
    assert count() == 40
    split = [(*row, "test" if i % 4 else "train") for i, row in enumerate(rows)]
    write_table(folder / "table.csv", split, ("path", "label", "split"))
    assert count() == 30
    with pytest.raises(UserError, match="has the class 'dog', which the checkpoint does not have"):
        count(("cat", "fox"))


def test_train_and_evaluate_a_table(images, run, run_script):
    folder, rows = images
    write_table(folder / "table.csv", rows)
    data = ("data=table", f"data.table='{folder}/table.csv'", "data.size=16")
    done = run("model=mlp", "stop_after=1ep", "augment=[resized_crop,flip]", *data)
    output = run_script("evaluate.py", str(done.folder), "resamples=0").stdout
    assert f"test/acc {done.result['metrics']['test/acc']}\n" in output


@pytest.mark.parametrize("pattern", ["(a+)+$", r".*.*.*.*x", r"(\w{2,9}){3}"])
def test_slow_patterns_of_a_stranger_are_refused(pattern):
    config = {"data": {"_target_": "tricklab.data.datasets.folder", "group": pattern}}
    config["model"] = {"_target_": "tricklab.model.mlp"}
    with pytest.raises(UserError, match=r"data\.group=.*; allowed: 3 repetitions"):
        validate_config(config, "x")
    config["data"]["group"] = r"patient(\d+)_"
    assert validate_config(config, "x").data.group == r"patient(\d+)_"


def test_arrays_have_no_options_of_files():
    assert build(configure("data=digits").data).splits.groups is None
