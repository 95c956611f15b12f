"""The part `gpu` of the benchmark, rehearsed on the CPU, and the block that it prints."""

import contextlib
import itertools
import json
import re
from types import SimpleNamespace

import pytest
import torch

from helpers.configs import configure
from tricklab.analysis.benchmark import gpu, gpu_modes, gpu_page, loops
from tricklab.analysis.benchmark.cases import (
    GREY,
    MODES,
    ON_GPU,
    RECIPE_MODE,
    REHEARSAL,
    RESNET,
    Mode,
)
from tricklab.errors import UserError
from tricklab.training import ImageClassifier

# What the cells of each column look like; without a GPU there is no peak
NUMBER = r"[\d,]+\.\d\d"
WHOLE = r"[\d,]+"
TEXT = ".+"
ANY = ".*"
CHECKS = {"check": TEXT, "result": TEXT}
SPEEDS = {
    "network": TEXT,
    "mode": TEXT,
    "steps/s": NUMBER,
    "images/s": WHOLE,
    "peak GB": f"-|{NUMBER}",
    "note": ANY,
}
RECIPE = {
    "data": "data=fake",
    "epochs": "1",
    "test accuracy": r"[01]\.\d{4}",
    "images/s": WHOLE,
    "seconds": WHOLE,
    "peak GB": f"-|{NUMBER}",
}


@pytest.fixture
def quick(monkeypatch):
    """Leave out what takes seconds: to compose each config, and to import torch's compiler."""
    for module in (gpu, gpu_modes):
        monkeypatch.setattr(module, "compose_one", lambda overrides: configure(*overrides))
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    monkeypatch.setattr(torch.compiler, "set_stance", contextlib.nullcontext)


def parse_tables(text):
    """Return the Markdown tables of a text: rows of cells, the first is the header."""
    tables = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()]
        tables.append([rows[0], *rows[2:]])
    return tables


def check_block(text, modes):
    """Check columns, rows and types of the block of a rehearsal."""
    assert re.search(r"\*\*CPU\*\*, torch \S+, CUDA \S+, \d{4}-\d\d-\d\d, `.* --rehearse`", text)
    assert "none of these numbers measures anything" in text
    tables = parse_tables(text)
    assert len(tables) == 3
    for (header, *rows), columns in zip(tables, (CHECKS, SPEEDS, RECIPE)):
        assert header == list(columns)
        for row in rows:
            for cell, pattern in zip(row, columns.values(), strict=True):
                assert re.fullmatch(pattern, cell), (cell, pattern)
    checks, speeds, recipe = (table[1:] for table in tables)
    assert [row[0] for row in checks] == ["tests marked gpu", "waits for the GPU"]
    assert [row[:2] for row in speeds] == [[net, m] for net in ON_GPU.nets for m in modes]
    assert len(recipe) == 1
    assert "The recipe: `model=resnet " in text


@pytest.mark.usefixtures("quick")
def test_rehearsal_prints_a_block_and_writes_the_same_numbers(run_script, monkeypatch, tmp_path):
    modes = {name: MODES[name] for name in (RECIPE_MODE, "TF32")}
    monkeypatch.setattr(gpu_modes, "MODES", modes)
    tests = {"passed": 3, "failed": 1, "skipped": 2, "failures": ["test_x"]}
    monkeypatch.setattr(gpu, "run_gpu_tests", lambda folder: tests)
    done = run_script("benchmark.py", "gpu", "--rehearse", "--json", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr
    check_block(done.stdout, modes)
    checks, speeds, _ = parse_tables(done.stdout)
    assert checks[1][1] == "3 passed, 1 failed, 2 skipped: test_x"
    assert [row[-1] for row in speeds[1:]] == ["", gpu_page.NO_MEANING] * 2
    results = json.loads((tmp_path / "gpu.json").read_text())["gpu"]
    assert results["tests"] == tests
    assert [f"{row['steps/s']:,.2f}" for row in results["modes"]] == [r[2] for r in speeds[1:]]


@pytest.mark.kills
def test_rehearsal_runs_every_mode_and_the_tests(run_script):
    done = run_script("benchmark.py", "gpu", "--rehearse")
    check_block(done.stdout, MODES)
    assert re.search(r"tests marked gpu +\| \d+ passed, 0 failed, \d+ skipped +\|", done.stdout)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_names_the_rehearsal(run_script):
    done = run_script("benchmark.py", "gpu")
    assert done.returncode == 1
    assert re.fullmatch(r"error: gpu: .* no CUDA device; --rehearse .*\n", done.stderr)
    assert done.stdout == ""


def test_rehearsal_is_only_of_the_part_gpu(run_script):
    done = run_script("benchmark.py", "start", "--rehearse")
    assert done.returncode == 2
    assert "--rehearse: only the part gpu has a rehearsal" in done.stderr


TESTS = """
import pytest

@pytest.mark.gpu
def test_passes(): pass

@pytest.mark.gpu
def test_fails(): assert False

@pytest.mark.gpu
def test_is_skipped(): pytest.skip("no GPU")

@pytest.mark.gpu
def test_has_an_error(no_such_fixture): pass

def test_is_not_marked(): assert False
"""


def test_marked_tests_are_counted_by_outcome(tmp_path):
    folder = tmp_path / "tests"
    (folder / "unit").mkdir(parents=True)
    (folder / "unit" / "test_marked.py").write_text(TESTS)
    assert gpu.run_gpu_tests(folder) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": ["test_fails", "test_has_an_error"],
    }


def test_missing_pytest_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu.subprocess, "run", lambda *args, **options: None)
    with pytest.raises(UserError, match="pytest does not run; pip install"):
        gpu.run_gpu_tests(tmp_path)


# Waits


@pytest.mark.usefixtures("quick")
def test_steps_between_two_logged_ones_are_checked(monkeypatch):
    """Not the logged ones, which wait for the loss."""
    modes = ["default"]
    trained = {"default": [], "error": []}
    monkeypatch.setattr(gpu_modes, "set_wait_mode", modes.append)
    training_step = ImageClassifier.training_step

    def record(self, batch, batch_idx):
        trained[modes[-1]].append(batch_idx)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(ImageClassifier, "training_step", record)
    assert gpu_modes.find_wait(REHEARSAL) == "nothing in steps 11 to 18, everything on"
    assert trained["error"] == list(range(11, 19))
    assert trained["default"] == [*range(11), 19]
    assert modes[-1] == "default"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("called a synchronizing CUDA operation", "RuntimeError: called a synchronizing CUDA"),
        ("something else", None),
    ],
)
def test_wait_is_reported_and_other_errors_are_raised(monkeypatch, message, found):
    def fail(*arguments, **options):
        raise RuntimeError(f"{message}\nmore")

    monkeypatch.setattr(gpu_modes, "fit", fail)
    if found:
        assert gpu_modes.find_wait(REHEARSAL) == f"{found} operation"
        return
    with pytest.raises(RuntimeError, match=message):
        gpu_modes.find_wait(REHEARSAL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_step_that_reads_its_loss_waits_for_the_gpu(monkeypatch):
    def training_step(self, batch, batch_idx):
        loss = self.loss(self(batch[0]), batch[1])
        loss.item()
        return loss

    monkeypatch.setattr(ImageClassifier, "training_step", training_step)
    small = ON_GPU._replace(data=("data=fake", "data.images=4000"))
    assert "synchronizing" in gpu_modes.find_wait(small)


# Modes


def test_tf32_is_allowed_or_forbidden_for_a_while():
    def state():
        return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()

    before = state()
    for allowed, expected in ((True, (True, "high")), (False, (False, "highest")), (None, before)):
        with gpu_modes.allow_tf32(allowed):
            assert state() == expected
        assert state() == before


@pytest.mark.usefixtures("quick")
def test_mode_that_fails_is_a_note_and_the_others_are_measured(monkeypatch):
    monkeypatch.setattr(gpu_modes, "MODES", {"a": Mode(("x=1",)), "b": Mode(("y=1",))})

    def measure(overrides, data, mode, steps):
        if mode.overrides == ("x=1",):
            raise ValueError("no such kernel\ndetails")
        return {"steps/s": 2.0, "images/s": 32.0, "peak GB": 1.5}

    monkeypatch.setattr(gpu_modes, "measure_mode", measure)
    failed, measured, *_ = gpu_modes.measure_modes(REHEARSAL)
    assert failed["note"] == "ValueError: no such kernel"
    assert failed["steps/s"] is None
    assert measured == {
        "network": "convnet",
        "mode": "b",
        "steps/s": 2.0,
        "images/s": 32.0,
        "peak GB": 1.5,
        "note": "",
    }


@pytest.mark.usefixtures("quick")
def test_no_mode_is_begun_after_the_time(monkeypatch):
    monkeypatch.setattr(gpu_modes, "measure_mode", None)
    rows = gpu_modes.measure_modes(REHEARSAL._replace(mode_seconds=0))
    assert {row["note"] for row in rows} == {"left out, as time was up"}
    assert len(rows) == 2 * len(MODES)


def test_network_of_cuda_graphs_keeps_its_logits():
    """The tensor that the compiled network returns is not the one that evaluation collects."""
    returned = []
    modes = []

    class Net(torch.nn.Module):
        def compile(self, mode):
            modes.append(mode)

        def forward(self, images):
            returned.append(images.flatten(1))
            return returned[-1]

    logits = gpu_modes.CudaGraphs(Net())(torch.ones(2, 1, 1, 3))
    assert modes == ["reduce-overhead"]
    returned[0].zero_()
    assert torch.equal(logits, torch.ones(2, 3))


@pytest.mark.usefixtures("quick")
def test_mode_sets_precision_network_and_overrides(monkeypatch):
    """As `fit` is called; its settings end with it."""
    calls = []

    def fit(config, data, prepare):
        precision = torch.get_float32_matmul_precision()
        calls.append((config.trainer.precision, precision, prepare, config.stop_after))
        return loops.Timing(0.0, 0.5, 0.0)

    monkeypatch.setattr(gpu_modes, "fit", fit)
    data = SimpleNamespace(batch_size=32)
    for mode in (Mode(("trainer.precision=bf16-mixed",), tf32=True), Mode(cuda_graphs=True)):
        row = gpu_modes.measure_mode(("model=mlp",), data, mode, 4)
        assert (row["steps/s"], row["images/s"]) == (8, 256)
    assert calls == [
        ("bf16-mixed", "high", loops.keep, "14it"),
        ("32-true", "highest", gpu_modes.CudaGraphs, "14it"),
    ]


def test_clock_waits_for_the_gpu(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    assert loops.time_when_done() > 0
    assert waits == [1]


def test_speed_is_that_of_the_steps_after_the_warmup(monkeypatch):
    """Read at the ends of step 1 and of the warmup, and before the evaluation: a second each."""
    seconds = itertools.count()
    monkeypatch.setattr(loops, "time_when_done", lambda: float(next(seconds)))
    small = (*GREY, "data.images=2200", "data.val_size=100", "model=mlp", "model.widths=[8]")
    assert loops.ours(small, 5) == 5 * 128
    assert next(seconds) == 3


# The recipe


@pytest.mark.parametrize(("speed", "epochs"), [(10_000, 21), (100, 1), (None, 1)])
def test_recipe_has_the_epochs_that_fit(speed, epochs):
    row = {"network": RESNET, "mode": RECIPE_MODE, "images/s": speed}
    assert gpu.count_epochs(ON_GPU, [row]) == epochs


@pytest.mark.parametrize(
    "place", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10", None]
)
def test_recipe_takes_cifar10_where_it_is(tmp_path, place):
    if place is None:
        assert gpu.find_source(ON_GPU, tmp_path) == ON_GPU.data
        return
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "data_batch_1").touch()
    assert gpu.find_source(ON_GPU, tmp_path) == ("data=cifar10", f"data.root={folder}")
    assert gpu.find_source(REHEARSAL, tmp_path) == REHEARSAL.data
