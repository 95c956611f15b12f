"""Imports go one way: a module imports from its own level and those below, without circles."""

import ast
from graphlib import TopologicalSorter

import tricklab
from helpers.paths import ROOT

NAME = tricklab.__name__
SOURCE = ROOT / "src" / NAME
LEVELS = [  # the lowest first; a folder stands for its modules that are not listed
    {
        "errors",
        "files",
        "devices",
        "option",
        "color",
        "boxes",
        "dropout",
        "resnet",
    },  # ground: of the project, only errors
    {"metrics", "randomness", "penalty", "loss", "direct_loop", "fast"},
    {"augment", "model", "callbacks", "duration"},
    {"scheduler", "mixup", "optimizer"},
    {"data"},
    {"training", "logger", "metrics_file", "teacher", "wandb_run"},
    {"cli"},
    {"run"},
    {"sweep", "analysis", "jobs", "cli.launch", "cli.help", "cli.start"},
]
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if path.name != "__init__.py"
}


def find_level(module: str) -> int:
    for name in (module, module.partition(".")[0]):
        for i, level in enumerate(LEVELS):
            if name in level:
                return i
    raise LookupError(f"{module} is in no level")


def find_imports(module: str) -> set[str]:
    """Return the modules of the project that a module imports, also within functions."""
    tree = ast.parse((SOURCE / f"{module.replace('.', '/')}.py").read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix(f"{NAME}.") for name in names} & MODULES


def test_imports_go_down():
    upward = []
    for module in sorted(MODULES):
        for other in sorted(find_imports(module)):
            if find_level(other) > find_level(module):
                upward.append(f"{module} imports {other}")
    assert upward == []


def test_imports_make_no_circle():
    TopologicalSorter({module: find_imports(module) for module in MODULES}).prepare()
