"""What a class or function takes, read from its source: importing torch for that would take seconds."""

import ast
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.config import MULTI_OPTION_GROUPS
from tricklab.cli.lightning import EXTRA
from tricklab.errors import UserError, closest

FURTHER = {  # what takes the arguments that a class hands on
    "tricklab.logger.Wandb": "wandb.init",
    "pytorch_lightning.loggers.TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter",
}


SET_BY_CODE = ("params", "save_dir", "dir")


Definition = ast.ClassDef | ast.FunctionDef


class Signature(NamedTuple):
    """Arguments with their default, None where it is none or no constant; `more` is whether it takes any other too."""

    arguments: dict[str, Any]
    more: bool


def find_default(key: str, config: DictConfig) -> Any:
    """Return the default that a key added with + has in the source of its class. Raises UserError: it is none of it."""
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        node = OmegaConf.select(config, ".".join(parts[:length]), throw_on_resolution_failure=False)
        target = isinstance(node, DictConfig) and node.get("_target_")
        if not target:
            continue
        owner, name = ".".join(parts[:length]), parts[length]
        if name in ("_target_", "_partial_") and length == 2 and parts[0] in MULTI_OPTION_GROUPS:
            return None
        signature = add_further(str(target))
        if signature and name not in signature.arguments:
            raise_unknown_argument(f"{owner}.{name}", name, str(target), signature)
        if owner == "trainer":
            return EXTRA.get(name)
        return signature.arguments[name] if signature and length == len(parts) - 1 else None
    raise UserError(
        f"+{key}: no such option. + adds arguments of a class, as +optimizer.maximize=true"
    )


def add_further(target: str) -> Signature | None:
    """Return what a target takes from a config: not what the code gives it, and with what it hands on to another."""
    signature = read_signature(target)
    if signature is None:
        return None
    arguments = dict(signature.arguments)
    if further := read_signature(FURTHER.get(target, "")):
        arguments |= further.arguments
    if target.startswith("tricklab.") and target not in FURTHER:
        # required arguments stand in conf/ already, or come from the code
        arguments = {name: default for name, default in arguments.items() if default is not None}
    return Signature({k: v for k, v in arguments.items() if k not in SET_BY_CODE}, False)


def raise_unknown_argument(key: str, name: str, target: str, signature: Signature) -> None:
    near = closest(name, signature.arguments, 0.6)
    hint = f" Did you mean {key.rpartition('.')[0]}.{near}?" if near else ""
    listed = ", ".join(sorted(signature.arguments)) or "nothing more"
    raise UserError(f"+{key}: {target} takes no {name}; allowed: {listed}.{hint}")


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
