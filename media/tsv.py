"""Rows of TSV files: by number (`NAME.lineidx`), or by video id (`NAME.id2lineidx.pkl`).

With a third index, `NAME.fieldidx.npy`, a sample reads from the disk only the frames that it uses.
"""

import mmap
import os
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, overload

import numpy as np

from lib import UserError, log, shown
from media.files import atomic_path, check_file, reading
from media.pickles import Foreign, Machine


class BadRow(Exception):
    """A row that cannot be read: file, row number, id and reason in one line."""


class Tsv:
    """Rows of a TSV file, by its index `NAME.lineidx` (built when missing).

    `offsets` are its rows' where another index was read. It holds no open file when pickled, and opens its
    own in each process: safe under fork and spawn. With `NAME.fieldidx.npy`, fields are read one by one.
    """

    def __init__(self, path: str | Path, offsets: np.ndarray | None = None) -> None:
        self.path = Path(path)
        check_tsv(self.path)
        self.size = self.path.stat().st_size
        self.offsets = read_lineidx(self.path) if offsets is None else offsets
        self.indexed = read_fieldidx(self.path, len(self.offsets)) is not None
        self._close()
        if offsets is None:
            self._check_end()

    def __len__(self) -> int:
        return len(self.offsets)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        return {**state, "_file": None, "_map": None, "_ends": None}

    def _close(self) -> None:
        self._file: IO[bytes] | None = None
        self._map: mmap.mmap | None = None
        self._ends: np.ndarray | None = None

    @property
    def file(self) -> IO[bytes]:
        """The file, open for reading without a buffer."""
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        return self._file

    @property
    def map(self) -> mmap.mmap:
        """The file's bytes."""
        if self._map is None:
            self._map = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def __getitem__(self, row: int) -> Sequence[bytes]:
        """The fields of a row; raises `BadRow` where the index does not lead to the start of one."""
        if not 0 <= row < len(self):
            raise BadRow(f"{self.path} has no row {row}: it has {len(self)}.")
        start = int(self.offsets[row])
        if self.indexed and start < self.size:
            return self._fields(row, start)
        if start >= self.size or (start and self.map[start - 1] != ord("\n")):
            raise BadRow(f"{self.path} row {row}: its offset {start} in the .lineidx is not a row's start.")
        end = self.map.find(b"\n", start)
        return self.map[start : self.size if end < 0 else end].rstrip(b"\r").split(b"\t")

    def _fields(self, row: int, start: int) -> "Fields":
        """The fields of a row as `NAME.fieldidx.npy` gives them."""
        if self._ends is None:
            self._ends = read_fieldidx(self.path, len(self))
            if self._ends is None:
                raise BadRow(f"{fieldidx_path(self.path)} has changed since the run was started.")
        count, *ends = self._ends[row].tolist()
        return Fields(self, start, [-1, *ends[:count]], range(count))

    def _check_end(self) -> None:
        """Raise `UserError` unless the index ends with the file's last row."""
        last, index = int(self.offsets[-1]) if len(self) else self.size, lineidx_path(self.path)
        if last > self.size or (last == self.size and len(self)):
            raise UserError(
                f"{self.path} ends at byte {self.size}, before its last row in {index}: it is truncated; "
                "download or make it again. If the index is outdated, delete the index: it is rebuilt."
            )
        if last < self.size and self.map.find(b"\n", last) not in (-1, self.size - 1):
            raise UserError(f"{index} ends before {self.path} does: delete it; it is rebuilt.")


class Fields(Sequence[bytes]):
    """The fields of a row, each read from the file when it is asked for; a slice of them reads nothing.

    `ends` are their ends in bytes behind the row's start, after a -1.
    """

    def __init__(self, tsv: Tsv, start: int, ends: Sequence[int], places: range) -> None:
        self.tsv, self.start, self.ends, self.places = tsv, start, ends, places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> "Fields": ...
    def __getitem__(self, place: int | slice) -> "bytes | Fields":
        """A field; raises `BadRow` where the index does not lead from one separator to the next."""
        if isinstance(place, slice):
            return Fields(self.tsv, self.start, self.ends, self.places[place])
        number = self.places[place]
        begin, end = (self.start + self.ends[number + more] for more in (0, 1))
        before = b"\n" if number == 0 else b"\t"
        after = (b"\n", b"\r", b"") if number + 2 == len(self.ends) else (b"\t",)
        content = os.pread(self.tsv.file.fileno(), end + 1 - max(begin, 0), max(begin, 0))
        content = content if begin >= 0 else before + content  # the file's first field has none before it
        length = end - begin
        fits = content[:1] == before and content[length:] in after and len(content) >= length
        if not fits or b"\t" in (field := content[1:length]) or b"\n" in field:
            index = fieldidx_path(self.tsv.path)
            raise BadRow(f"{index} does not fit {self.tsv.path.name}: delete the index, or write it again.")
        return field


def lineidx_path(tsv: Path) -> Path:
    """NAME.tsv -> NAME.lineidx."""
    return tsv.with_suffix(".lineidx")


def check_tsv(path: Path) -> None:
    """Raise `UserError` for a path that is no file."""
    if not path.exists():
        raise UserError(f"{path} does not exist; _data/README.md says how data is prepared.")
    with reading(path, "a TSV", "see _data/README.md"):
        check_file(path, most=1 << 60)


def is_ours(path: Path) -> bool:
    """Whether a file is a TSV of ours: its first row is an id, a TAB and a field.

    Nothing is written beside any other file, whatever a YAML names.
    """
    with path.open("rb") as file:
        start = file.read(1 << 16)
    name, tab, _ = start.split(b"\n", 1)[0].partition(b"\t")
    return bool(name and tab and b"\0" not in start)


def read_numbers(path: Path) -> np.ndarray:
    """The whole numbers of a text file, int64; raises `ValueError` for anything else, and beyond 64 bits."""
    content = path.read_bytes()
    if wrong := re.search(rb"[^0-9\s]", content):
        raise ValueError(f"byte {wrong.start()} is neither a digit nor a space")
    if long := re.search(rb"[0-9]{19}", content):
        raise ValueError(f"the number at byte {long.start()} is beyond 64 bits")
    return np.array(content.split(), dtype=np.int64)


def read_lineidx(tsv: Path) -> np.ndarray:
    """Byte offset of each row, int64; the index is written first where there is none."""
    index = lineidx_path(tsv)
    if not index.exists():
        try:
            if is_ours(tsv):
                write_lineidx(tsv)
        except OSError as error:
            log.warning("%s cannot be written (%s): the index is rebuilt at every start.", index, error)
        return find_rows(tsv)
    with reading(index, "a list of byte offsets", "delete it; it is rebuilt"):
        check_file(index, most=1 << 31)
        offsets = read_numbers(index)
        if len(offsets) and (offsets[0] or (np.diff(offsets) <= 0).any()):
            raise ValueError("its numbers do not increase from 0")
    return offsets


def write_lineidx(tsv: Path) -> Path:
    """Write the byte offset of each row of `tsv`, a line each, to its index; return the index's path."""
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


# ------------------------------------------------------------------------------------------- by field


def fieldidx_path(tsv: Path) -> Path:
    """NAME.tsv -> NAME.fieldidx.npy."""
    return tsv.with_suffix(".fieldidx.npy")


def read_fieldidx(tsv: Path, rows: int) -> np.ndarray | None:
    """Per row the number of its fields, then each field's end: uint32 (rows, 1 + the most fields).

    An end is given in bytes behind the row's start. None where there is no index, or one of other rows.
    """
    path = fieldidx_path(tsv)
    if not path.exists():
        return None
    with reading(path, "an index of fields", "delete it, or write it again (_tools/index_tsv.py)"):
        check_file(path, most=1 << 50)
        ends = np.load(path, mmap_mode="r", allow_pickle=False)
    if ends.dtype != np.uint32 or ends.ndim != 2 or len(ends) != rows:
        log.warning(
            "%s has not the rows of %s and is not used: delete it, or write it again.", path, tsv.name
        )
        return None
    return ends


def write_fieldidx(tsv: Path) -> Path:
    """Write where each field of each row ends (see `read_fieldidx`); returns the index's path."""
    offsets = find_rows(tsv)
    bounds = np.append(offsets, tsv.stat().st_size)
    ends: list[np.ndarray] = []
    with tsv.open("rb") as file:
        for length in np.diff(bounds).tolist():
            row = file.read(length).removesuffix(b"\n")
            row = row.rstrip(b"\r")
            tabs = np.flatnonzero(np.frombuffer(row, np.uint8) == ord("\t"))
            ends.append(np.append(tabs, len(row)))
    if len(offsets) and np.diff(bounds).max() >= 1 << 32:
        raise UserError(f"{tsv} has a row of 4 GiB or more, for which there is no index of fields.")
    table = np.zeros((len(ends), 1 + max(map(len, ends), default=0)), np.uint32)
    for line, own in zip(table, ends, strict=True):
        line[0] = len(own)
        line[1 : 1 + len(own)] = own
    with atomic_path(fieldidx_path(tsv)) as temporary, temporary.open("wb") as out:
        np.save(out, table)
    return fieldidx_path(tsv)


# ------------------------------------------------------------------------------------------- by video id


class Videos:
    """Rows of `img_DATASET.tsv` by video id, by `img_DATASET.id2lineidx.pkl` (built when missing)."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        check_tsv(path)
        index = sorted(read_id2lineidx(path).items(), key=lambda pair: pair[1])
        self.tsv = Tsv(path, np.array([offset for _, offset in index], dtype=np.int64))
        self.rows = {name: row for row, (name, _) in enumerate(index)}

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def __getitem__(self, name: str) -> Sequence[bytes]:
        """The fields of a video's row; raises `BadRow` where that is another video's."""
        fields = self.tsv[self.rows[name]]
        if fields[0] != name.encode():
            index = id2lineidx_path(self.tsv.path)
            raise BadRow(
                f"{index} points to the row of {shown(fields[0].decode(errors='replace'))!r}: delete it"
            )
        return fields


def id2lineidx_path(tsv: Path) -> Path:
    """NAME.tsv -> NAME.id2lineidx.pkl."""
    return tsv.with_suffix(".id2lineidx.pkl")


def read_id2lineidx(tsv: Path) -> dict[str, int]:
    """{video id: byte offset of its row}; built and written first where there is none.

    One that does not fit the TSV stays as it is, since the user may have downloaded it.
    """
    path = id2lineidx_path(tsv)
    if path.exists():
        index = unpickle_index(path)
        if index_fits(index, tsv):
            return index
        log.warning("%s does not fit %s: an index in memory is used; delete that file.", path, tsv.name)
        return find_ids(tsv)
    index = find_ids(tsv)
    if not is_ours(tsv):
        return index
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(pickle.dumps(index))
    except OSError as error:
        log.warning("%s cannot be written (%s): the index is rebuilt at every start.", path, error)
    return index


def unpickle_index(path: Path) -> dict[str, int]:
    """A pickled dict of offsets; `UserError` for a file that is anything else. Nothing in it is run."""
    with reading(path, "an index", "delete it; it is rebuilt"):
        check_file(path, most=1 << 27)
        index = Machine(NUMPY).load(path.read_bytes())
        if not isinstance(index, dict):
            raise ValueError("it is not a dict of video ids and byte offsets")
        index = {key: numpy_number(value) for key, value in index.items()}
        if not all(type(k) is str and type(v) is int and abs(v) < 1 << 62 for k, v in index.items()):
            raise ValueError("it is not a dict of video ids and byte offsets")
    return index


class Scalar(NamedTuple):
    """A whole number of NumPy, as a pickle has it."""

    kind: Any
    content: Any


NUMPY: dict[str, Callable[..., Any]] = {
    f"numpy.{core}.multiarray.scalar": Scalar for core in ("core", "_core")
}
NUMPY |= {"numpy.dtype": lambda kind, *_: Foreign(f"numpy.dtype {kind}")}


def numpy_number(value: Any) -> Any:
    """A number of NumPy as one of Python; anything else as it is."""
    if not isinstance(value, Scalar) or not isinstance(value.kind, Foreign):
        return value
    kind = re.fullmatch(r"numpy\.dtype ([iu])([1248])", value.kind.name)
    if not kind or not isinstance(value.content, bytes) or len(value.content) != int(kind[2]):
        return value
    return int.from_bytes(value.content, "little", signed=kind[1] == "i")


GAPS = 64  # rows of an index behind which another one is looked for


def index_fits(index: dict[str, int], tsv: Path, looks: int = 1000) -> bool:
    """Whether the index ends with the file's last row, and up to `looks` of its rows begin with their id.

    Of a few of them (a row may have megabytes) it is also seen whether the index knows the row behind.
    """
    pairs = sorted(index.items(), key=lambda pair: pair[1])
    size = tsv.stat().st_size
    if not pairs or pairs[0][1] < 0 or pairs[-1][1] >= size:
        return not pairs and not size
    with tsv.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.find(b"\n", pairs[-1][1])
        if end >= 0 and content[end : end + 1024].strip():  # a row that the index does not know
            return False
        picked = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(looks, len(pairs))).astype(int)]
        starts = [(name.encode(errors="surrogateescape") + b"\t", start) for name, start in picked]
        for place in np.linspace(0, len(pairs) - 2, min(GAPS, len(pairs) - 1)).astype(int):
            end = content.find(b"\n", pairs[place][1])
            if content[end : pairs[place + 1][1]].strip():  # a row that the index lacks
                return False
        return all(
            content[start : start + len(name)] == name and (not start or content[start - 1] == ord("\n"))
            for name, start in starts
        )


def find_ids(tsv: Path) -> dict[str, int]:
    """{video id: byte offset of its row}, read from the TSV itself."""
    offsets, twice = find_rows(tsv).tolist(), []
    index: dict[str, int] = {}
    with tsv.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            field, tab, _ = file.read(1024).partition(b"\t")
            name = field.decode(errors="replace")
            if tab and name in index:
                twice.append(name)
            if tab:
                index[name] = offset
    if twice:
        log.warning(
            "%s: %d rows have the id of a row before, first %r; the last row of an id is read",
            tsv, len(twice), shown(twice[0]),
        )  # fmt: skip
    return index
