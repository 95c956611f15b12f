"""The part `gpu`: tests, waits, speeds and a recipe on one GPU, or a rehearsal on the CPU."""

import contextlib
import datetime
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from omegaconf import OmegaConf

from tricklab.analysis.benchmark.cases import (
    ON_GPU,
    RECIPE,
    RECIPE_MODE,
    REHEARSAL,
    RESNET,
    GpuCase,
    Overrides,
)
from tricklab.analysis.benchmark.gpu_modes import (
    Result,
    compose_one,
    find_wait,
    measure_modes,
    peak_memory,
    release,
)
from tricklab.cli.config import CONF
from tricklab.errors import UserError
from tricklab.files import read_json
from tricklab.run.experiment import run

ROOT = CONF.parent
OUTCOMES = ("passed", "failed", "skipped")
TRAINING_FRACTION = 0.7  # of the time of the recipe; the rest is evaluation, and a reserve


def measure_gpu(rehearse: bool) -> Result:
    """Measure everything. Raises UserError: there is no GPU, and this is no rehearsal."""
    if not rehearse and not torch.cuda.is_available():
        hint = "--rehearse runs all of it on the CPU, at a tiny size"
        raise UserError(f"gpu: torch {torch.__version__} finds no CUDA device; {hint}")
    case = REHEARSAL if rehearse else ON_GPU
    results = describe_machine(rehearse)
    with torch.compiler.set_stance("force_eager" if rehearse else "default"):
        results["tests"] = run_gpu_tests(ROOT / "tests")
        results["waits"] = find_wait(case)
        results["modes"] = measure_modes(case)
        results["recipe"] = train_recipe(case, count_epochs(case, results["modes"]))
    return results


def describe_machine(rehearse: bool) -> Result:
    return {
        "rehearsal": rehearse,
        "device": "CPU" if rehearse else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "date": str(datetime.date.today()),
        "command": "python scripts/benchmark.py gpu" + " --rehearse" * rehearse,
    }


def run_gpu_tests(folder: Path) -> Result:
    """Run the tests marked gpu in a new process; return their number by outcome, and the failures.

    Raises UserError: pytest does not run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        report = Path(temporary) / "report.xml"
        options = ("-m", "gpu", "-n", "0", f"--junitxml={report}")
        command = [sys.executable, "-m", "pytest", *options, str(folder)]
        subprocess.run(command, cwd=folder.parent, stdout=subprocess.DEVNULL, check=False)
        if not report.exists():
            raise UserError("gpu: pytest does not run; pip install -e '.[dev]' installs it")
        tests = list(ElementTree.parse(report).iter("testcase"))
    outcomes = [find_outcome(test) for test in tests]
    results: Result = {name: outcomes.count(name) for name in OUTCOMES}
    results["failures"] = [t.get("name") for t in tests if find_outcome(t) == "failed"]
    return results


def find_outcome(test: ElementTree.Element) -> str:
    """Return the outcome of a test in a JUnit report."""
    children = {child.tag for child in test}
    if "skipped" in children:
        return "skipped"
    return "failed" if children & {"failure", "error"} else "passed"


def find_source(case: GpuCase, folder: Path) -> Overrides:
    """Return CIFAR-10 in a data folder if it is there, for a GPU; else synthetic images."""
    name = "cifar-10-batches-py"
    places = (folder / name, folder / "cifar10" / name, folder / "cifar10")
    found = [place for place in places if (place / "data_batch_1").is_file()]
    if case is REHEARSAL or not found:
        return case.data
    return ("data=cifar10", f"data.root={found[0]}")


def count_epochs(case: GpuCase, modes: Sequence[Result]) -> int:
    """Return how many epochs of the recipe fit into its seconds, at least one."""
    speeds = {(row["network"], row["mode"]): row["images/s"] for row in modes}
    speed = speeds[RESNET, RECIPE_MODE] or 0.0  # the mode may have failed
    return max(1, int(TRAINING_FRACTION * case.recipe_seconds * speed / case.images))


def train_recipe(case: GpuCase, epochs: int) -> Result:
    """Train and test as `python train.py` does; return the results."""
    release()
    source = find_source(case, ROOT / "data")
    recipe = (*case.nets[RESNET], *RECIPE, f"trainer.max_epochs={epochs}")
    started = time.monotonic()
    result = run_quietly((*source, *recipe))
    return {
        "data": source[0],
        "epochs": epochs,
        "test accuracy": result["metrics"]["test/acc"],
        "images/s": result["images_per_second"],
        "seconds": time.monotonic() - started,
        "peak GB": peak_memory(),
        "overrides": " ".join(recipe),
    }


def run_quietly(overrides: Overrides) -> dict[str, Any]:
    """Return the `result.json` of a run in a temporary folder."""
    config = compose_one(overrides)
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    with tempfile.TemporaryDirectory() as temporary, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(temporary) / "run"
        run(own, folder, overrides)
        return read_json(folder / "result.json")
