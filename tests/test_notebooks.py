"""The notebooks run, at a small size; what is committed has its pictures."""

import json

import matplotlib
import pytest
from conftest import ROOT
from matplotlib import pyplot

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"EPOCHS": 1, "SEEDS": 2, "SLOTS": 1, "IMAGES": 20}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, monkeypatch, tmp_path):
    """Cell by cell, as a kernel would."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names = {"__name__": "__main__"}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                names |= {name: value for name, value in SMALL.items() if name in names}
    assert all(
        axes.has_data() for number in pyplot.get_fignums() for axes in pyplot.figure(number).axes
    )
    assert len(pyplot.get_fignums()) >= 1
    pyplot.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_as_it_was_run(path):
    cells = [
        cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"
    ]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert path.stat().st_size < 2_000_000
    assert "/tmp" not in path.read_text("utf-8")
