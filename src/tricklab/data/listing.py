"""What a folder of images contains."""

import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tricklab.data.file_list import FileTable, make_table
from tricklab.data.folders import extension_of, walk
from tricklab.data.images import EXTENSIONS

NOTES = {  # extensions of files that lie beside images, and are skipped without a warning
    *(".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".rst", ".html"),
    *(".htm", ".log", ".db", ".ini", ".url", ".lnk", ".xmp", ".aae", ".py", ".sh", ".md5"),
}


class Stamp(NamedTuple):
    """A folder, relative to the listed one, and what changes when a file comes, goes or is renamed.

    Times in ns. `changed` is the inode's, which no program can set.
    """

    folder: str
    modified: int
    changed: int
    inode: int


class Listing(NamedTuple):
    """The images below a folder, sorted by path, with names relative to a root.

    `files` counts all files except NOTES, `extensions` those of formats that are not decoded;
    `links` are those that lead to no file. `stamps` are of the folder and those below it, before
    they were listed.
    """

    images: FileTable
    files: int
    extensions: Counter[str]
    links: list[str]
    stamps: list[Stamp]


def list_folder(root: Path, folder: Path) -> Listing:
    """List a folder below `root`, see `walk`, which raises UserError."""
    images: list[tuple[str, int, int]] = []
    files = 0
    extensions: Counter[str] = Counter()
    links: list[str] = []
    stamps = []
    for path, status, names in walk(folder):
        stamps.append(make_stamp(os.path.relpath(path, folder), status))
        listed = [(name, extension_of(name)) for name in names]
        files += sum(extension not in NOTES for _, extension in listed)
        extensions.update(e for _, e in listed if e not in NOTES and e not in EXTENSIONS)
        found, lost = stat_images(path, [name for name, e in listed if e in EXTENSIONS])
        prefix = os.path.relpath(path, root) + "/"
        images += [(f"{prefix}{name}".removeprefix("./"), size, time) for name, size, time in found]
        links += lost
    images.sort(key=lambda image: image[0].split("/"))  # as paths are sorted
    return Listing(make_table(images), files, extensions, links, stamps)


def stat_images(folder: str, names: Sequence[str]) -> tuple[list[tuple[str, int, int]], list[str]]:
    """Return names, sizes and times of the regular files, and the paths of the others."""
    found, lost = [], []
    for name in names:
        status = stat_file(f"{folder}/{name}")
        if status is None:
            lost.append(str(Path(folder, name)))
        else:
            found.append((name, status.st_size, status.st_mtime_ns))
    return found, lost


def make_stamp(folder: str, status: os.stat_result) -> Stamp:
    return Stamp(folder, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def stat_file(path: Path | str) -> os.stat_result | None:
    """Return size and times of a regular file, also behind a link; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None
