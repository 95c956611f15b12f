"""Arguments of classes and functions, read from their source: importing torch takes seconds."""

import ast
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from tricklab.cli.config import MULTI_OPTION_GROUPS
from tricklab.cli.lightning import EXTRA_ARGUMENTS
from tricklab.errors import UserError, closest

# Functions that receive the further keyword arguments of a class
FORWARDS_TO = {
    "tricklab.logger.Wandb": "wandb.init",
    "pytorch_lightning.loggers.TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter",
}

# Arguments that the code passes, so that a config can't
SET_BY_CODE = ("params", "save_dir", "dir")

Definition = ast.ClassDef | ast.FunctionDef


class Signature(NamedTuple):
    """Arguments by name with their default, or None for none or a non-literal one."""

    arguments: dict[str, Any]
    has_kwargs: bool


def find_default(key: str, config: DictConfig) -> Any:
    """Return the default that a key added with + has in the source of its class.

    Raises UserError: it is no argument of the class, or there is no class.
    """
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        owner = ".".join(parts[:length])
        if target := find_target(owner, config):
            return find_argument_default(owner, parts[length:], target)
    example = "+ adds arguments of a class, as +optimizer.maximize=true"
    raise UserError(f"+{key}: no such option. {example}")


def find_target(owner: str, config: DictConfig) -> str:
    """Return the `_target_` of a node, or ""."""
    node = OmegaConf.select(config, owner, throw_on_resolution_failure=False)
    return str(node.get("_target_") or "") if isinstance(node, DictConfig) else ""


def find_argument_default(owner: str, path: list[str], target: str) -> Any:
    """Return the default of the argument `path[0]` of a target; None for values below it."""
    name = path[0]
    group, _, inner = owner.partition(".")
    is_component = group in MULTI_OPTION_GROUPS and inner and "." not in inner
    if name in ("_target_", "_partial_") and is_component:
        return None
    signature = read_config_signature(target)
    if signature and name not in signature.arguments:
        raise_unknown_argument(f"{owner}.{name}", target, signature)
    if owner == "trainer":
        return EXTRA_ARGUMENTS.get(name)
    return signature.arguments[name] if signature and len(path) == 1 else None


def read_config_signature(target: str) -> Signature | None:
    """Return the arguments that a config can pass to a target, forwarded ones included."""
    signature = read_signature(target)
    if signature is None:
        return None
    arguments = dict(signature.arguments)
    if target in FORWARDS_TO:
        forwarded = read_signature(FORWARDS_TO[target])
        arguments |= forwarded.arguments if forwarded else {}
    elif target.startswith("tricklab."):
        # Arguments without a default are in conf/ already, or passed by the code
        arguments = {name: default for name, default in arguments.items() if default is not None}
    for name in SET_BY_CODE:
        arguments.pop(name, None)
    return Signature(arguments, has_kwargs=False)


def raise_unknown_argument(key: str, target: str, signature: Signature) -> None:
    owner, _, name = key.rpartition(".")
    near = closest(name, signature.arguments, 0.6)
    hint = f" Did you mean {owner}.{near}?" if near else ""
    allowed = ", ".join(sorted(signature.arguments)) or "nothing more"
    raise UserError(f"+{key}: {target} takes no {name}; allowed: {allowed}.{hint}")


@functools.cache
def read_signature(target: str) -> Signature | None:
    """Return the arguments of a `_target_` such as "torch.optim.SGD"; None without its source."""
    package, *names = target.split(".")
    if not names or not package or not all(names):
        return None
    folder = find_package(package)
    found = find_definition(folder / "__init__.py", names) if folder else None
    return read_parameters(*found) if found else None


def find_package(name: str) -> Path | None:
    """Return the folder of a top-level package, without importing it."""
    spec = find_spec(name)
    if not spec or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def find_definition(file: Path, names: list[str]) -> tuple[Path, Definition] | None:
    """Find the definition of a dotted name below a module's file, also where it is imported."""
    first, *rest = names
    if rest and file.name == "__init__.py":
        for module in (file.parent / first / "__init__.py", file.parent / f"{first}.py"):
            if module.is_file():
                return find_definition(module, rest)
    if rest or not file.is_file():
        return None
    tree = parse_file(file)
    for node in tree.body:
        if isinstance(node, Definition) and node.name == first:
            return file, node
    return find_alias(file, tree, first)


def find_alias(file: Path, tree: ast.Module, name: str) -> tuple[Path, Definition] | None:
    """Find the definition of a name that a module assigns or imports."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            value = node.value
            return find_definition(file, [value.id]) if isinstance(value, ast.Name) else None
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if found := find_imported(file, node, alias, name):
                    return found
    return None


def find_imported(
    file: Path, node: ast.ImportFrom, alias: ast.alias, name: str
) -> tuple[Path, Definition] | None:
    """Find the definition of a name if `from ... import alias` provides it."""
    if (alias.asname or alias.name) not in (name, "*"):
        return None
    original = name if alias.name == "*" else alias.name
    parts = node.module.split(".") if node.module else []
    if node.level:
        folder: Path | None = file.parents[node.level - 1]
    else:
        folder = find_package(parts.pop(0))
    return find_definition(folder / "__init__.py", [*parts, original]) if folder else None


@functools.cache
def parse_file(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def read_parameters(file: Path, node: Definition) -> Signature | None:
    """Read the arguments of a function, or of the `__init__` of a class or of its base."""
    if isinstance(node, ast.FunctionDef):
        return read_function(node)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return read_function(statement)
    for base in node.bases:
        found = find_definition(file, [base.id]) if isinstance(base, ast.Name) else None
        if found and (signature := read_parameters(*found)):
            return signature
    return None


def read_function(node: ast.FunctionDef) -> Signature:
    arguments: dict[str, Any] = {}
    positional = [*node.args.posonlyargs, *node.args.args]
    required = len(positional) - len(node.args.defaults)
    defaults = [*[None] * required, *node.args.defaults]
    for argument, default in zip(positional, defaults, strict=True):
        arguments[argument.arg] = literal_value(default)
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        arguments[argument.arg] = literal_value(default)
    arguments.pop("self", None)
    return Signature(arguments, has_kwargs=node.args.kwarg is not None)


def literal_value(node: ast.expr | None) -> Any:
    """Return the value of a literal, None for anything else."""
    try:
        return ast.literal_eval(node) if node else None
    except ValueError:
        return None
