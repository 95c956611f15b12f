"""Image files by the million: names, sizes and times in arrays instead of Python objects.

Worker processes share arrays with the process that they were forked from. Of Python objects each
worker gets its own copies, page by page, as reading one changes its reference count.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

CHUNK = 2**16  # files that are Python objects at a time

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]


class ImageFile(NamedTuple):
    """A file as it was found: path, name below the root, size in bytes, modification time in ns.

    Files of the same `group` are kept in the same split; "" is no group.
    """

    path: Path
    name: str
    size: int
    time: int
    group: str = ""


class FileTable(NamedTuple):
    """Names, sizes and times of N files.

    `text` has the names in UTF-8, one after the other; that of file i begins at `starts[i]`
    [N + 1]. Names that are not UTF-8 keep their bytes.
    """

    text: Bytes
    starts: Integers
    sizes: Integers
    times: Integers

    @property
    def files(self) -> int:
        return len(self.sizes)

    def part(self, first: int, end: int) -> "FileTable":
        """Return the files from `first` to before `end`, without a copy of their names."""
        starts = self.starts[first : end + 1]
        text = self.text[starts[0] : starts[-1]]
        return FileTable(text, starts - starts[0], self.sizes[first:end], self.times[first:end])

    def name(self, i: int) -> str:
        return _decode(self.text[self.starts[i] : self.starts[i + 1]].tobytes())


def make_table(files: Sequence[tuple[str, int, int]]) -> FileTable:
    """Return a table of files, each a name, a size and a time."""
    names = [name.encode("utf-8", "surrogateescape") for name, _, _ in files]
    starts = np.cumsum([0, *map(len, names)], dtype=np.int64)
    numbers = np.array([file[1:] for file in files], dtype=np.int64).reshape(-1, 2)
    text = np.frombuffer(b"".join(names), np.uint8)
    return FileTable(text, starts, numbers[:, 0].copy(), numbers[:, 1].copy())


def join_tables(tables: Sequence[FileTable]) -> FileTable:
    """Return the files of several tables in one."""
    lengths = [np.diff(table.starts) for table in tables]
    empty = np.zeros(0, np.int64)
    return FileTable(
        np.concatenate([np.zeros(0, np.uint8), *(table.text for table in tables)]),
        np.concatenate([np.zeros(1, np.int64), *lengths]).cumsum(),
        np.concatenate([empty, *(table.sizes for table in tables)]),
        np.concatenate([empty, *(table.times for table in tables)]),
    )


@dataclass(frozen=True, eq=False)
class FileList:
    """Image files below `root`: those in the `rows` [N] of a table.

    `groups` [N] are numbers of `group_names`, which are sorted; None is no group.
    """

    root: Path
    table: FileTable
    rows: Integers
    groups: Integers | None = None
    group_names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> ImageFile:
        row = int(self.rows[i])
        name = self.table.name(row)
        group = "" if self.groups is None else self.group_names[self.groups[i]]
        size, time = int(self.table.sizes[row]), int(self.table.times[row])
        return ImageFile(self.root / name, name, size, time, group)

    def __iter__(self) -> Iterator[ImageFile]:
        return map(self.__getitem__, range(len(self)))

    def select(self, indices: Tensor) -> "FileList":
        """Return the files with these indices, of the same table."""
        chosen = indices.numpy()
        groups = None if self.groups is None else self.groups[chosen]
        return FileList(self.root, self.table, self.rows[chosen], groups, self.group_names)

    def with_groups(self, names: Sequence[str]) -> "FileList":
        """Return the files in the groups of these names [N]; empty names are no groups."""
        if not any(names):
            return self
        group_names = sorted(set(names))
        number_of = {name: number for number, name in enumerate(group_names)}
        groups = np.fromiter(map(number_of.__getitem__, names), np.int64, len(names))
        return FileList(self.root, self.table, self.rows, groups, group_names)

    def names(self) -> Iterator[str]:
        """Yield the names, in a tenth of the time that whole files take."""
        for rows in np.split(self.rows, range(CHUNK, len(self), CHUNK)):
            starts, ends = self.table.starts[rows].tolist(), self.table.starts[rows + 1].tolist()
            for start, end in zip(starts, ends, strict=True):
                yield _decode(self.table.text[start:end].tobytes())

    def group_of_each(self) -> Iterator[str]:
        """Yield the groups; nothing without groups."""
        if self.groups is not None:
            yield from map(self.group_names.__getitem__, self.groups.tolist())

    def entries(self) -> Iterator[tuple[Any, ...]]:
        """Yield name, size and time of each file, and its group if there are groups."""
        numbers = [self.table.sizes, self.table.times]
        columns: list[Iterable[Any]] = [self.names(), *(_values(a, self.rows) for a in numbers)]
        if self.groups is not None:
            columns.append(self.group_of_each())
        return zip(*columns, strict=True)


def _values(array: Integers, rows: Integers) -> Iterator[int]:
    for chunk in np.split(rows, range(CHUNK, len(rows), CHUNK)):
        yield from array[chunk].tolist()


def _decode(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def make_list(root: Path, tables: Sequence[FileTable]) -> FileList:
    """Return the files of tables, in order."""
    table = join_tables(tables)
    return FileList(root, table, np.arange(table.files))


class LabeledFiles(NamedTuple):
    """Files with the index of their class, int64 [N]."""

    files: FileList
    labels: Tensor

    def select(self, indices: Tensor) -> "LabeledFiles":
        return LabeledFiles(self.files.select(indices), self.labels[indices])
