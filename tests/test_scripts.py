"""The scripts, each from the command line and from the path of a checkpoint alone."""

import csv
import io

import pytest


def test_evaluate_gives_the_numbers_of_the_run(run, script):
    done = run("model=mlp", "trainer.max_epochs=2", "mixup=on", "augment=flip_crop")
    best = f"ckpt={done.folder}/checkpoints/best.ckpt"
    said = script("evaluate.py", best)
    assert said.returncode == 0, said.stderr
    metrics = dict(line.split() for line in said.stdout.splitlines())
    expected = {k: v for k, v in done.result["metrics"].items() if k.startswith("test/")}
    assert {k: float(v) for k, v in metrics.items()} == expected


def test_predict_names_the_classes_of_files(run, tree, script):
    root = tree({"train": 12, "test": 4})
    done = run("data=folder", f"data.root='{root}'", "model=mlp", "trainer.max_epochs=2", "data.resize=16")
    said = script("predict.py", f"ckpt={done.folder}/checkpoints/best.ckpt", f"input={root}/test")
    assert said.returncode == 0, said.stderr
    rows = list(csv.DictReader(io.StringIO(said.stdout)))
    assert [row["file"] for row in rows] == [
        str(root / "test" / c / f"{i}.png") for c in ("cat", "dog") for i in range(4)
    ]
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    right = sum(row["class"] in row["file"] for row in rows) / len(rows)
    assert right == done.result["metrics"]["test/acc"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ckpt=/nowhere.ckpt"], "ckpt=/nowhere.ckpt; allowed: the path of a checkpoint"),
        (["{best}", "data=digit"], "data=digit does not exist"),
        (["{best}", "data.batchsize=3"], "data.batchsize does not exist"),
        (["{best}", "data=fake", "data.classes=3"], "classes"),
    ],
)
def test_mistakes_are_one_line(run, script, arguments, says):
    done = run("debug=batch", "model=mlp")
    best = f"ckpt={done.folder}/checkpoints/best.ckpt"
    said = script("evaluate.py", *(a.format(best=best) for a in arguments))
    assert said.returncode == 1
    assert says in said.stderr
    assert len(said.stderr.splitlines()) == 1
