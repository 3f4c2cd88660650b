import pickle
from pathlib import Path

import numpy as np
import pytest

from lib import UserError
from media.tsv import BadRow, Tsv, fieldidx_path, read_fieldidx, write_fieldidx

ROWS = {
    "rows of any number of fields": b"a\tfirst\tsecond\nb\tonly\n\nd\t\t\tlast but empty\t\n",
    "ends without a newline": b"a\tfirst\nb\tlast",
    "ends of lines of Windows": b"a\tfirst\tsecond\r\nb\tlast\r\n",
    "one field": b"a\nb\n",
}


@pytest.mark.parametrize("content", ROWS.values(), ids=ROWS)
def test_fields_read_one_by_one_are_those_of_the_whole_row(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(content)
    whole = Tsv(path)
    assert not whole.indexed
    write_fieldidx(path)
    single = pickle.loads(pickle.dumps(Tsv(path)))
    assert single.indexed
    for row in range(len(whole)):
        assert list(single[row]) == whole[row]
        assert list(single[row][1:]) == whole[row][1:]
        assert list(single[row][2:][::-1]) == whole[row][2:][::-1]
        assert single[row][-1] == whole[row][-1]
        with pytest.raises(IndexError):
            single[row][len(whole[row])]


def test_only_the_fields_that_are_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"a" + b"\t" + b"\t".join([b"x" * 10_000] * 32) + b"\n")
    write_fieldidx(path)
    read: list[int] = []
    monkeypatch.setattr(
        "os.pread", lambda file, count, place: read.append(count) or b"\t" + b"x" * (count - 2) + b"\t"
    )
    fields = Tsv(path)[0][1:]
    assert not read and len(fields) == 32
    assert [fields[number] for number in (3, 20)] == [b"x" * 10_000] * 2
    assert read == [10_002] * 2


@pytest.mark.parametrize(
    "content", [b"a\tfirs\tseconds\n", b"aa\tfirst\tsecond\n", b"a\tfirst\n", b"a\tfirst\tse\tond\n"]
)
def test_an_index_of_other_rows_is_named_and_never_believed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"a\tfirst\tsecond\n")
    write_fieldidx(path)
    path.write_bytes(content)
    fields, true = Tsv(path)[0], content.rstrip(b"\n").split(b"\t")
    refused = 0
    for number in range(len(fields)):
        try:
            assert fields[number] == true[number]
        except BadRow as error:
            assert "does not fit" in str(error)
            refused += 1
    assert refused


def test_an_index_that_is_damaged_or_too_short(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b"a\tb\n")
    index = write_fieldidx(path)
    assert read_fieldidx(path, rows=1) is not None
    assert read_fieldidx(path, rows=2) is None
    np.save(index, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="fieldidx"):
        Tsv(path)
    index.write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        Tsv(path)
    fieldidx_path(path).unlink()
    assert Tsv(path)[0] == [b"a", b"b"]
