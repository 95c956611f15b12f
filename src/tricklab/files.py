"""Files: reads what a stranger may have written, as plain data of bounded size; writes atomically.

No other module opens checkpoints, weights, configs, results or tables. Nothing named in a file is
imported, resolved, opened or run. Every reader raises `UnreadableError`, with the path, for a file
that is missing, damaged, too large or of another kind.
"""

import csv
import hashlib
import json
import os
import pickle
import re
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml  # type: ignore[import-untyped]
from omegaconf._utils import get_omega_conf_dumper, get_yaml_loader

from tricklab.errors import UserError

if TYPE_CHECKING:  # importing torch takes seconds
    from torch import Tensor

TEXT_LIMIT = 2**20  # bytes of YAML, which is parsed at some 100 kB/s
TABLE_LIMIT = 2**30  # bytes of JSON and CSV
MAX_DEPTH = 100  # nested levels of YAML
CONFIG, CHECKSUM = "config", "sha256"  # metadata keys of an exported file


class UnreadableError(UserError):
    """A file that is missing, damaged, too large or of another kind."""


def read_text(path: Path, limit: int = TEXT_LIMIT) -> str:
    """Return the text of a UTF-8 file of at most `limit` bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise UnreadableError(f"{path} is larger than {limit:,} bytes")
        return content.decode("utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"{path}: {error}") from error


def use_libyaml() -> None:
    """Read YAML by libyaml: the same values in a tenth of the time.

    OmegaConf derives its loader from `yaml.SafeLoader` each time it reads a file.
    """
    yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, see `parse_yaml`."""
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the mapping in a YAML text as plain values; `${...}` stays text.

    Refuses aliases, of which 300 bytes unfold to millions of nodes, tags of Python, and what is
    nested too deeply for functions that call themselves.
    """
    try:
        if len(text) > TEXT_LIMIT:
            raise ValueError(f"larger than {TEXT_LIMIT:,} bytes")
        check_structure(text)
        content = yaml.load(text, Loader=get_yaml_loader())  # reads 1e-3 as a number
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise ValueError("not a mapping of names to values")
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableError(f"{source} is damaged: {reason}") from error
    return content


def check_structure(text: str) -> None:
    """Raise YAMLError for what the YAML that this project writes never has."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise yaml.YAMLError("aliases and tags are not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_DEPTH} nested levels")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    try:
        content = json.loads(read_text(path, TABLE_LIMIT))
    except (RecursionError, ValueError) as error:
        if isinstance(error, UnreadableError):
            raise
        raise UnreadableError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise UnreadableError(f"{path} is damaged: not an object")
    return content


def texts(values: Any) -> list[str]:
    """Return the strings in a list of values of any type."""
    found = values if isinstance(values, list) else []
    return [value for value in found if isinstance(value, str)]


def numbers(values: Any) -> dict[str, float]:
    """Return the finite numbers in a mapping with values of any type."""
    found = values.items() if isinstance(values, dict) else ()
    return {
        str(name): float(value)
        for name, value in found
        if isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e300
    }


def read_table(path: Path, growing: bool = False) -> list[dict[str, str]]:
    """Return the rows of a CSV file by column; missing cells are empty.

    `growing`: the file is still written to; an incomplete last line is skipped.
    """
    text = read_text(path, TABLE_LIMIT)
    lines = (text[: text.rfind("\n") + 1] if growing else text).splitlines()
    try:
        rows = list(csv.DictReader(lines, restkey="", restval=""))
    except csv.Error as error:
        raise UnreadableError(f"{path} is damaged: {error}") from error
    for row in rows:
        row.pop("", None)  # cells without a column
    return rows


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a checkpoint on the CPU: tensors and plain values alone (`weights_only`).

    Unlike torch's reader, this one verifies the checksums of the zip file.
    """
    import torch

    try:
        _check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise any
        if requested := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it asks for {requested[1]}, which is neither a tensor nor a plain value"
            raise UnreadableError(f"{path} is refused: {reason}") from error
        reason = f"is damaged, or not a checkpoint: {_reason(error)}"
        raise UnreadableError(f"{path} {reason}") from error
    if not isinstance(content, Mapping):
        raise UnreadableError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return dict(content)


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return  # torch's older format has no checksums
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it is compressed; torch never compresses")
            if entry.external_attr:  # may mark a folder, of which torch would read nothing
                raise ValueError(f"{entry.filename} has attributes; torch writes none")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} does not match")


def _reason(error: BaseException) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle can't be read"  # instead of torch's page of advice
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_safetensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Return tensors and metadata. A checksum in the metadata must match both."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise UnreadableError(f"{path} is damaged: {_reason(error)}") from error
    if CONFIG in metadata and metadata.keys() - {CONFIG, CHECKSUM}:
        raise UnreadableError(f"{path} is damaged: its metadata have unknown keys")
    if metadata.get(CHECKSUM, checksum(tensors, metadata)) != checksum(tensors, metadata):
        raise UnreadableError(f"{path} is damaged: its checksum does not match")
    return tensors, metadata


def checksum(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of the config and the named tensors of an exported file."""
    import torch

    digest = hashlib.sha256(metadata.get(CONFIG, "").encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Write a temporary file beside the target, sync it and rename it: readers see all or nothing.

    The temporary file has a random name and must not exist before. A link at `path` is replaced,
    not followed.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(os.open(beside, flags, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically."""
    with atomic_open(path) as file:
        file.write(text.encode())


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values as YAML, from which `read_yaml` restores them."""
    write_text(path, to_yaml(content))


def to_yaml(content: Mapping[str, Any]) -> str:
    """Return plain values as YAML. Unlike OmegaConf, accept any string, such as `${a`."""
    text: str = yaml.dump(
        dict(content), Dumper=_PlainDumper, allow_unicode=True, sort_keys=False, width=10**6
    )
    return text


class _PlainDumper(get_omega_conf_dumper()):  # type: ignore[misc]  # quotes what would be a number
    """Writes repeated values in full, without aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib as PNG."""
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=120)
