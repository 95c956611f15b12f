"""A file of embeddings that is written row by row, so that it may be larger than memory."""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from tricklab.errors import UserError
from tricklab.files import atomic_open


class EmbeddingsFile:
    """Writes `embeddings` [N, D] float32 and `files` [N] for `numpy.load`.

    Row i belongs to file i; it is NaN where the file can't be decoded.
    """

    def __init__(self, archive: zipfile.ZipFile, files: Sequence[Path]):
        self.archive = archive
        self.files = files
        self.entry: IO[bytes] | None = None
        self.missing = 0  # rows before the first embedding, which has the number of columns
        self.columns = 0

    def add(self, embedding: Tensor | None) -> None:
        """Append the row of the next file; None if there is no embedding."""
        if embedding is None and not self.entry:
            self.missing += 1
            return
        if not self.entry:
            assert embedding is not None
            self._begin(len(embedding))
        assert self.entry
        row = np.full(self.columns, np.nan, "<f4") if embedding is None else embedding.numpy()
        self.entry.write(row.astype("<f4").tobytes())

    def _begin(self, columns: int) -> None:
        self.columns = columns
        self.entry = self.archive.open("embeddings.npy", "w", force_zip64=True)
        shape = (len(self.files), columns)
        description = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.entry, description)
        for _ in range(self.missing):
            self.add(None)

    def finish(self) -> None:
        """Write the names of the files. Raises UserError: none of them could be decoded."""
        if not self.entry:
            raise UserError("embeddings: no file can be decoded")
        self.entry.close()
        names = np.array([str(file) for file in self.files])
        with self.archive.open("files.npy", "w") as entry:
            np.save(entry, names, allow_pickle=False)


@contextmanager
def open_embeddings(path: str, files: Sequence[Path]) -> Iterator[EmbeddingsFile]:
    """Open a file of embeddings, which is written as a whole or not at all."""
    with atomic_open(Path(path).expanduser()) as file:
        stream: Any = file
        with zipfile.ZipFile(stream, "w") as archive:
            embeddings = EmbeddingsFile(archive, files)
            yield embeddings
            embeddings.finish()
