"""What a class or function takes, read from its source: importing torch for that would take seconds."""

import ast
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

Definition = ast.ClassDef | ast.FunctionDef


class Signature(NamedTuple):
    """Arguments with their default, None where it is none or no constant; `more` is whether it takes any other too."""

    arguments: dict[str, Any]
    more: bool


@functools.cache
def read_signature(target: str) -> Signature | None:
    """Return what `_target_` takes, as "torch.optim.SGD"; None where its source is not found."""
    package, *names = target.split(".")
    if not package or not all(names):
        return None
    spec = find_spec(package)  # imports nothing, for a package at the top
    if not names or not spec or not spec.submodule_search_locations:
        return None
    found = find(Path(spec.submodule_search_locations[0]) / "__init__.py", names)
    return found and read_arguments(*found)


def find(file: Path, names: list[str]) -> tuple[Path, Definition] | None:
    """Find the definition of a dotted name below a module's file, through what that imports from others."""
    first, *rest = names
    for module in (file.parent / first / "__init__.py", file.parent / f"{first}.py"):
        if rest and file.name == "__init__.py" and module.is_file():
            return find(module, rest)
    if rest or not file.is_file():
        return None
    tree = parse(file)
    for node in tree.body:
        if isinstance(node, Definition) and node.name == first:
            return file, node
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == first:
            return find(file, [node.value.id]) if isinstance(node.value, ast.Name) else None
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) in (first, "*"):
                    name = first if alias.name == "*" else alias.name
                    if found := find_imported(file, node, name):
                        return found
    return None


def find_imported(file: Path, node: ast.ImportFrom, name: str) -> tuple[Path, Definition] | None:
    parts = node.module.split(".") if node.module else []
    if node.level:
        return find(file.parents[node.level - 1] / "__init__.py", [*parts, name])
    spec = find_spec(parts[0])
    if not spec or not spec.submodule_search_locations:
        return None
    return find(Path(spec.submodule_search_locations[0]) / "__init__.py", [*parts[1:], name])


@functools.cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def read_arguments(file: Path, node: Definition) -> Signature | None:
    """Read the arguments of a function, or of a class's `__init__`, which may be that of a base."""
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                return read_arguments(file, part)
        bases = (find(file, [base.id]) for base in node.bases if isinstance(base, ast.Name))
        return next((found for base in bases if base and (found := read_arguments(*base))), None)
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults = dict(zip([a.arg for a in plain][::-1], given.defaults[::-1], strict=False))
    defaults |= {a.arg: d for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True) if d}
    names = [a.arg for a in (*plain, *given.kwonlyargs) if a.arg != "self"]
    return Signature({name: constant(defaults.get(name)) for name in names}, bool(given.kwarg))


def constant(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node else None
    except ValueError:
        return None
