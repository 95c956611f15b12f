"""Reads files that a stranger may have written: as plain data, of bounded size, or not at all.

No other module opens checkpoints, weights, configs, results or tables. Nothing that a file names is
imported, resolved, opened or run. Every function raises `UnreadableError`, with the path, for a file that
is missing, damaged, too large or not what it should be.
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
CONFIG, CHECKSUM = "config", "sha256"  # metadata keys of an exported file


class UnreadableError(UserError):
    """A file that can't be read as what it should be."""


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


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, see `parse_yaml`."""
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Return the mapping in a YAML text as plain values; `${...}` stays text.

    Refuses aliases, of which 300 bytes unfold to millions of nodes, and tags of Python.
    """
    try:
        if len(text) > TEXT_LIMIT:
            raise ValueError(f"larger than {TEXT_LIMIT:,} bytes")
        content = yaml.load(text, Loader=_PlainLoader)
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise ValueError("not a mapping of names to values")
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableError(f"{source} is damaged: {reason}") from error
    return content


class _PlainLoader(get_yaml_loader()):  # type: ignore[misc]  # reads 1e-3 as a number
    """The YAML that this project writes: neither aliases nor tags."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise yaml.YAMLError("it has aliases or tags")
        return super().compose_node(parent, index)


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
    """Return the texts in a list of anything."""
    found = values if isinstance(values, list) else []
    return [value for value in found if isinstance(value, str)]


def numbers(values: Any) -> dict[str, float]:
    """Return the finite numbers in an object of anything."""
    found = values.items() if isinstance(values, dict) else ()
    return {
        str(name): float(value)
        for name, value in found
        if isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e300
    }


def read_table(path: Path, growing: bool = False) -> list[dict[str, str]]:
    """Return the rows of a CSV file by column; cells that a row lacks are empty.

    `growing`: rows are still added; a last line without its end was cut and is left out.
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

    torch's reader does not look at the checksums of its zip file; here a flipped bit is damage.
    """
    import torch

    try:
        _check_zip(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may end in any
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            reason = f"it asks for {asked[1]}, which is no tensor and no plain value"
            raise UnreadableError(f"{path} is refused: {reason}") from error
        raise UnreadableError(f"{path} is damaged, or no checkpoint: {_reason(error)}") from error
    if not isinstance(content, Mapping):
        raise UnreadableError(f"{path} is no checkpoint: it holds a {type(content).__name__}")
    return dict(content)


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return  # torch's older format, which has no checksums
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, which torch never does")
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} does not match")


def _reason(error: BaseException) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle can't be read"  # torch's reason is a page of advice
    return " ".join(str(error).split())[:200] or type(error).__name__


def read_safetensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Return tensors and metadata; if these hold a checksum of both, it must match."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise UnreadableError(f"{path} is damaged: {_reason(error)}") from error
    if metadata.get(CHECKSUM, checksum(tensors, metadata)) != checksum(tensors, metadata):
        raise UnreadableError(f"{path} is damaged: its checksum does not match")
    return tensors, metadata


def checksum(tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of the config in an exported file and of its tensors, names included."""
    import torch

    digest = hashlib.sha256(metadata.get(CONFIG, "").encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Write a new file beside the target, to the disk, and rename: nobody sees half a file.

    The new file has a random name and is created by this call alone; a link at `path` is replaced,
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
    """Write a whole UTF-8 file."""
    with atomic_open(path) as file:
        file.write(text.encode())


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values as YAML that `files.read_yaml` reads back as they are."""
    write_text(path, to_yaml(content))


def to_yaml(content: Mapping[str, Any]) -> str:
    """Return plain values as YAML. Unlike OmegaConf's own it takes any text, such as `${a`."""
    text: str = yaml.dump(
        dict(content), Dumper=_PlainDumper, allow_unicode=True, sort_keys=False, width=10**6
    )
    return text


class _PlainDumper(get_omega_conf_dumper()):  # type: ignore[misc]  # quotes what would be a number
    """Writes what occurs twice twice, without an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib as PNG."""
    with atomic_open(path) as file:
        figure.savefig(file, format="png", dpi=120)
