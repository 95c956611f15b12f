"""Writes into run folders, which a stranger may have prepared: whole files, and through no link."""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml  # type: ignore[import-untyped]
from omegaconf._utils import get_omega_conf_dumper

from tricklab.errors import UserError

OWN = ("checkpoints", ".hydra", "tensorboard", "wandb")  # folders that a run makes in its own


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


def refuse_links(folder: Path) -> None:
    """Raise UserError if a link leads out of a run folder from where a run writes.

    That is right in the folder and in the folders `OWN`. Links within W&B's are its own, which
    writes into new folders alone.
    """
    written = [path for path in folder.glob("*") if path.name in OWN or not path.is_dir()]
    for name in set(OWN) - {"wandb"}:
        written += (folder / name).rglob("*")
    for path in written:
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} is a link that leads out of the run's folder; remove it")
