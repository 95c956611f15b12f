"""Index of a large data set, `data.index`: its folders are listed once for all runs.

A later run looks at the times of the folders alone, and lists those that changed. They change when
a file comes, goes, is renamed or replaced by another one, but not when it is written in place: that
is noticed by its size or time, of SAMPLE files of each class.
"""

import hashlib
import json
import math
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tricklab.data.file_list import FileTable, join_tables
from tricklab.data.folders import SYSTEM, expand_home
from tricklab.data.images import EXTENSIONS
from tricklab.data.listing import NOTES, Listing, Stamp, list_folder, make_stamp, stat_file
from tricklab.data.progress import warn
from tricklab.devices import is_first
from tricklab.errors import UserError
from tricklab.files import atomic_open

VERSION = 1  # increment it if listings change: it invalidates all indices
SAMPLE = 3  # files of each class that are looked at
# A folder that changed so shortly before it was listed may change again within the same time stamp
UNSETTLED = 2.0  # seconds; the resolution of FAT


@dataclass
class FolderIndex:
    """Listings of the folders below `root` by their relative path, in the file `path`.

    `known` were read from the file, `used` are those of this run.
    """

    path: Path
    root: Path
    known: dict[str, Listing] = field(default_factory=dict)
    used: dict[str, Listing] = field(default_factory=dict)
    has_changed: bool = False

    def find(self, folder: Path) -> Listing:
        """Return the listing of a folder. Raises UserError: it can't be read."""
        name = folder.relative_to(self.root).as_posix()
        listing = self.known.get(name)
        if listing and is_current(listing, self.root, folder):
            self.used[name] = listing
            return listing
        self.has_changed = True
        start = time.time()
        listing = list_folder(self.root, folder)
        if is_settled(listing, start):
            self.used[name] = listing
        return listing

    def save(self) -> None:
        """Write the listings of this run, atomically. Raises UserError: it is not possible."""
        if not is_first() or not (self.has_changed or self.used.keys() != self.known.keys()):
            return
        table = join_tables([listing.images for listing in self.used.values()])
        header = json.dumps(make_header(self.root, self.used)).encode()
        try:
            with atomic_open(self.path) as file:
                np.savez(file, header=np.frombuffer(header, np.uint8), **table._asdict())
        except OSError as error:
            raise UserError(f"data.index={self.path.parent}: {error}") from error


def open_index(folder: str, root: Path) -> FolderIndex:
    """Open the index of `root` in a folder, which is created; an empty one if it is damaged.

    Raises UserError: the folder can't be written or read.
    """
    path = expand_home(folder, "data.index")
    location = hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]
    index = FolderIndex(path / f"{location}.npz", root)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if index.path.exists():
            index.known = read_listings(index.path, root)
    except OSError as error:
        raise UserError(f"data.index={folder}: {error}") from error
    except ValueError as error:
        warn(f"data.index: {index.path} {error}; the folders are listed again")
    return index


def read_listings(path: Path, root: Path) -> dict[str, Listing]:
    """Read an index: arrays, of which one holds JSON; empty if it is of other data or a version.

    Nothing in it is executed. Raises ValueError: it is damaged.
    """
    try:
        # a ZIP archive, whose checksums are verified
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(arrays["header"].tobytes())
            table = FileTable(*(arrays[name] for name in FileTable._fields))
        check_table(table)
        is_ours = header["of"] == identify(root)
        return split_table(table, header["folders"]) if is_ours else {}
    except Exception as error:  # a reader may fail on a damaged file in any way
        raise ValueError("is damaged") from error


def check_table(table: FileTable) -> None:
    """Raise ValueError: the arrays do not fit together."""
    types = [array.dtype for array in table]
    lengths = np.diff(table.starts)
    fits = len(table.starts) - 1 == len(table.sizes) == len(table.times)
    covers = table.starts[0] == 0 and table.starts[-1] == len(table.text)
    if types != [np.uint8, np.int64, np.int64, np.int64] or not (fits and covers):
        raise ValueError
    if any(array.ndim != 1 for array in table) or (lengths <= 0).any():
        raise ValueError


def identify(root: Path) -> list[Any]:
    """Return what an index is of: its version, the root, and which files count as images."""
    rules = repr([sorted(names) for names in (EXTENSIONS, NOTES, SYSTEM)])
    return [VERSION, str(root.absolute()), hashlib.sha256(rules.encode()).hexdigest()]


def make_header(root: Path, listings: dict[str, Listing]) -> dict[str, Any]:
    """Return all of the listings but their images, of which it has the number, as JSON."""
    folders = {}
    for name, listing in listings.items():
        folders[name] = listing._asdict() | {"images": listing.images.files}
    return {"of": identify(root), "folders": folders}


def split_table(table: FileTable, folders: dict[str, Any]) -> dict[str, Listing]:
    """Return the listing of each folder. Raises any exception: the header does not fit."""
    listings = {}
    first = 0
    for name, entry in folders.items():
        end = first + entry["images"]
        entry["images"] = table.part(first, end)
        entry["extensions"] = Counter(entry["extensions"])
        entry["stamps"] = [Stamp(*stamp) for stamp in entry["stamps"]]
        listings[name] = Listing(**entry)
        first = end
    if first != table.files:
        raise ValueError
    return listings


def is_current(listing: Listing, root: Path, folder: Path) -> bool:
    """Whether no folder of a listing has changed since, nor any of a sample of its files."""
    try:
        for stamp in listing.stamps:
            if make_stamp(stamp.folder, os.stat(folder / stamp.folder)) != stamp:
                return False
    except OSError:
        return False
    images = listing.images
    for i in range(0, images.files, max(1, math.ceil(images.files / SAMPLE))):
        status = stat_file(root / images.name(i))
        if status is None:
            return False
        if (status.st_size, status.st_mtime_ns) != (images.sizes[i], images.times[i]):
            return False
    return True


def is_settled(listing: Listing, start: float) -> bool:
    """Whether a change after the start of the listing will show in the times of its folders."""
    latest = max(max(stamp.modified, stamp.changed) for stamp in listing.stamps)
    return latest < (start - UNSETTLED) * 1e9
