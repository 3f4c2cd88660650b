"""Rows of TSV files, by memory map and line index: `NAME.tsv` and the byte offsets in `NAME.lineidx`."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from lib import UserError, atomic_path, log


class BadRow(Exception):
    """A row that cannot be read: file, row number, id and reason in one line."""


class Tsv:
    """Rows of a TSV file by memory map, by its index `NAME.lineidx` (built when missing).

    It holds no open file when pickled, and opens its own in each process: safe under fork and spawn.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist; _data/README.md says how data is prepared.")
        self.size = self.path.stat().st_size
        self.offsets = read_lineidx(self.path)
        self._map: mmap.mmap | None = None
        self._check_end()

    def __len__(self) -> int:
        return len(self.offsets)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    @property
    def map(self) -> mmap.mmap:
        """The file's bytes."""
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def __getitem__(self, row: int) -> list[bytes]:
        """The fields of a row; raises `BadRow` where the index does not lead to the start of one."""
        if not 0 <= row < len(self):
            raise BadRow(f"{self.path} has no row {row}: it has {len(self)}.")
        start = int(self.offsets[row])
        if start >= self.size or (start and self.map[start - 1] != ord("\n")):
            raise BadRow(f"{self.path} row {row}: its offset {start} in the .lineidx is not a row's start.")
        end = self.map.find(b"\n", start)
        return self.map[start : self.size if end < 0 else end].rstrip(b"\r").split(b"\t")

    def _check_end(self) -> None:
        """Raise `UserError` unless the index ends with the file's last row."""
        last, index = int(self.offsets[-1]) if len(self) else self.size, lineidx_path(self.path)
        if last > self.size or (last == self.size and len(self)):
            raise UserError(
                f"{self.path} ends at byte {self.size}, before its last row in {index}: it is cut off; fetch "
                "or make it again. If it is the index that is old, delete that: it is built when missing."
            )
        if last < self.size and self.map.find(b"\n", last) not in (-1, self.size - 1):
            raise UserError(f"{index} ends before {self.path} does: delete it, it is built when missing.")


def lineidx_path(tsv: Path) -> Path:
    """NAME.tsv -> NAME.lineidx."""
    return tsv.with_suffix(".lineidx")


def read_lineidx(tsv: Path) -> np.ndarray:
    """Byte offset of each row, int64; the index is written first where there is none."""
    index = lineidx_path(tsv)
    if not index.exists():
        try:
            write_lineidx(tsv)
        except OSError as error:
            log.warning("%s cannot be written (%s): the index is built at every start.", index, error)
            return find_rows(tsv)
    try:
        return np.array(index.read_bytes().split(), dtype=np.int64)
    except ValueError as error:
        raise UserError(f"{index} is not a list of byte offsets ({error}): delete it.") from error


def write_lineidx(tsv: Path) -> Path:
    """Write the byte offset of each row of `tsv`, a line each, beside it; return the index's path."""
    index = lineidx_path(Path(tsv))
    with atomic_path(index) as temporary:
        temporary.write_text("".join(f"{offset}\n" for offset in find_rows(Path(tsv)).tolist()))
    return index


def find_rows(tsv: Path, chunk: int = 1 << 26) -> np.ndarray:
    """Byte offset of each row, int64."""
    starts, position = [np.zeros(1, np.int64)], 0
    with tsv.open("rb") as file:
        while block := file.read(chunk):
            starts.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + position + 1)
            position += len(block)
    offsets = np.concatenate(starts)
    return offsets[offsets < position]  # what follows the last newline is no row
