"""Which modules open files: strangers' through one door each, see SECURITY.md."""

import ast
from collections import defaultdict

from helpers.paths import ROOT

READERS = {"load", "loads", "safe_open", "load_file", "open", "read_text", "read_bytes", "reader"}
READERS |= {"DictReader", "Unpickler", "from_file", "open_text", "loadtxt", "genfromtxt"}
DOORS = {  # what else opens files, and which: none of them is a stranger's
    "src/tricklab/files.py": "texts, tables and tensors of strangers",
    "src/tricklab/data/images.py": "image files",
    "src/tricklab/data/cache.py": "decoded images, to write and to map",
    "src/tricklab/data/published.py": "MNIST and CIFAR, as published",
    "src/tricklab/data/datasets.py": "the digits in scikit-learn",
    "src/tricklab/logger.py": "metrics.csv, to append to",
    "src/tricklab/run/folder.py": "the lock of a run, to hold it",
    "src/tricklab/jobs/process.py": "the log of a job, to write it",
    "src/tricklab/jobs/job.py": "the log of a job, for its last line",
    "src/tricklab/cli/config.py": "conf/",
    "src/tricklab/cli/help.py": "conf/",
    "src/tricklab/cli/specs.py": "conf/",
    "src/tricklab/cli/defaults.py": "conf/",
    "src/tricklab/cli/launch.py": "the null device",
    "src/tricklab/cli/signatures.py": "the source of installed packages",
    "src/tricklab/analysis/untrusted.py": "conf/",
    "src/tricklab/analysis/results_page.py": "conf/experiment",
    "scripts/rename.py": "the checkout itself",
}


def readers(path):
    """Return the names of what is called in a file that could open another one."""
    calls = (
        node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    )
    names = {getattr(call, "attr", getattr(call, "id", "")) for call in calls}
    return names & READERS


def test_only_the_doors_open_files():
    found = defaultdict(set)
    for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("scripts/*.py"), ROOT / "train.py"]:
        if names := readers(path):
            found[path.relative_to(ROOT).as_posix()] = names
    assert found.keys() - DOORS.keys() == set()
    assert DOORS.keys() - found.keys() == set()


def test_tensors_pictures_and_pickles_have_one_door_each():
    only = {"safe_open": "files.py", "Unpickler": "data/published.py"}
    texts = {path: path.read_text() for path in ROOT.glob("src/tricklab/**/*.py")}
    only |= {"torch.load(": "files.py", "Image.open(": "data/images.py", "yaml.load(": "files.py"}
    for call, home in only.items():
        users = {path.as_posix() for path, text in texts.items() if call in text}
        assert users == {(ROOT / "src/tricklab" / home).as_posix()}
