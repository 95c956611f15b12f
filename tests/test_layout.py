"""Imports go one way: a module imports only from its own level and from those below it, without circles."""

import ast
from graphlib import TopologicalSorter

from helpers.paths import ROOT

import tricklab

NAME = tricklab.__name__
SOURCE = ROOT / "src" / NAME
LEVELS = [  # the lowest first; a folder stands for what is not named below it
    {"errors", "files", "devices", "option"},
    {"metrics", "randomness", "penalty", "loss", "fast"},
    {"augment", "model", "callbacks", "duration"},
    {"scheduler", "mixup", "optimizer"},
    {"data"},
    {"training", "logger"},
    {"cli"},
    {"run"},
    {"sweep", "analysis", "jobs", "cli.launch", "cli.help", "cli.start"},
]


def find_level(module: str) -> int:
    names = (module, module.partition(".")[0])
    return next(i for name in names for i, level in enumerate(LEVELS) if name in level)


def find_imports(module: str) -> set[str]:
    """Return the modules of the project that a module imports, also within functions."""
    tree = ast.parse((SOURCE / f"{module.replace('.', '/')}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix(f"{NAME}.") for name in found} & MODULES


MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if path.name != "__init__.py"
}


def test_imports_go_down():
    wrong = [
        f"{module} imports {other}"
        for module in sorted(MODULES)
        for other in sorted(find_imports(module))
        if find_level(other) > find_level(module)
    ]
    assert wrong == []


def test_imports_make_no_circle():
    TopologicalSorter({module: find_imports(module) for module in MODULES}).prepare()
