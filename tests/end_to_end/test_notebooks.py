"""Notebooks are committed with the outputs of one run, and run at a small size."""

import json

import matplotlib
import pytest
from matplotlib import pyplot

from helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"EPOCHS": 1, "SEEDS": 2, "SLOTS": 1, "IMAGES": 20}
MAX_BYTES = 2_000_000


def read_code_cells(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_fills_its_figures(path, monkeypatch, tmp_path):
    """Cell by cell, as a kernel would."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names = {"__name__": "__main__"}
    for cell in read_code_cells(path):
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            names |= {name: value for name, value in SMALL.items() if name in names}
    figures = [pyplot.figure(number) for number in pyplot.get_fignums()]
    assert len(figures) >= 1
    for figure in figures:
        assert all(axes.has_data() for axes in figure.axes)
    pyplot.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_the_outputs_of_one_run(path):
    cells = read_code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert path.stat().st_size < MAX_BYTES
    assert "/tmp" not in path.read_text("utf-8")
