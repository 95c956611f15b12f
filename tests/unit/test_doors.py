"""Untrusted files are opened by one module for each format, see SECURITY.md."""

import ast

from helpers.paths import ROOT

READERS = {
    *("read_csv", "read_parquet", "memmap"),
    *("open", "read_text", "read_bytes", "open_text", "from_file"),
    *("load", "loads", "load_file", "safe_open", "Unpickler"),
    *("reader", "DictReader", "loadtxt", "genfromtxt"),
}
DOORS = {  # every module that opens files, and which; the first four open untrusted ones
    "src/tricklab/data/tables.py": "tables of labels",
    "src/tricklab/files.py": "texts, tables and tensors",
    "src/tricklab/data/images.py": "image files",
    "src/tricklab/data/published.py": "MNIST and CIFAR, as published",
    "src/tricklab/data/cache.py": "decoded images, to write and to map",
    "src/tricklab/data/folder_index.py": "the index of a data set, arrays and JSON",
    "src/tricklab/data/datasets.py": "the digits in scikit-learn",
    "src/tricklab/metrics_file.py": "metrics.csv, to append to",
    "src/tricklab/logger.py": "the id of a run in MLflow, by tricklab.files",
    "src/tricklab/run/folder.py": "the lock of a run, to hold it",
    "src/tricklab/jobs/process.py": "the log of a job, to write it",
    "src/tricklab/jobs/job.py": "the log of a job, for its last line",
    "src/tricklab/cli/config.py": "conf/",
    "src/tricklab/cli/help.py": "conf/",
    "src/tricklab/cli/schema.py": "conf/schema.json",
    "src/tricklab/cli/specs.py": "conf/",
    "src/tricklab/cli/defaults.py": "conf/",
    "src/tricklab/cli/launch.py": "the null device",
    "src/tricklab/devices.py": "the limits of cgroups",
    "src/tricklab/cli/signatures.py": "the source of installed packages",
    "src/tricklab/run/untrusted.py": "conf/",
    "src/tricklab/analysis/results_page.py": "conf/experiment",
    "src/tricklab/analysis/evidence.py": "conf/experiment",
    "src/tricklab/analysis/control.py": "the controls of a recipe, to append to",
    "src/tricklab/analysis/original.py": "git.diff of a run, by tricklab.files",
    "src/tricklab/analysis/model_card.py": "the card that it would replace, by tricklab.files",
    "src/tricklab/analysis/embeddings.py": "an archive, to write it",
    "src/tricklab/analysis/export.py": "the program that it has just exported, from memory",
    "scripts/export.py": "the same",
    "scripts/rename.py": "the checkout itself",
}
ONLY_USER = {
    "safe_open": "files.py",
    "torch.load(": "files.py",
    "yaml.load(": "files.py",
    "Unpickler": "data/published.py",
    "Image.open(": "data/images.py",
}


def find_readers(path):
    """Return the names of the functions called in a file that could open another file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            names.add(getattr(node.func, "attr", getattr(node.func, "id", "")))
    return names & READERS


def test_files_are_opened_by_listed_modules_only():
    paths = [*ROOT.glob("src/**/*.py"), *ROOT.glob("scripts/*.py"), ROOT / "train.py"]
    users = {path.relative_to(ROOT).as_posix() for path in paths if find_readers(path)}
    assert users == DOORS.keys()


def test_tensors_images_and_pickles_are_read_by_one_module_each():
    source = ROOT / "src" / "tricklab"
    texts = {
        path.relative_to(source).as_posix(): path.read_text() for path in source.glob("**/*.py")
    }
    for call, module in ONLY_USER.items():
        assert {path for path, text in texts.items() if call in text} == {module}
