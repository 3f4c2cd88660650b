"""Sources of make_tsv.py (a folder, a CSV, a frames TSV, captions) -> the items whose rows it writes."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from _tools.convert.clips import Item
from _tools.convert.files import numbered_table, read_json
from lib import UserError, shown
from media.folders import find_files
from media.kinds import file_id


class Line(NamedTuple):
    """A line of a CSV: a file of a kind ("video" or "image"), and what is said of it."""

    id: str
    name: str
    kind: str
    caption: str
    start: float = 0.0
    end: float | None = None


def read_items(
    source: Path,
    captions_path: Path | None,
    needs_captions: bool = True,
    frame_folders: bool = False,
    window: tuple[float, float | None] = (0.0, None),
) -> list[Item]:
    """The items of a folder, CSV or TSV in the order of their rows-to-be.

    `frame_folders`: the folders in a folder are the videos, a picture per frame. `window` is the clip of
    those that do not say their own.
    """
    captions: dict[str, tuple[str, ...]] = {}
    if captions_path or (needs_captions and source.suffix == ".csv"):
        captions = read_captions(captions_path or source)
    elif needs_captions:
        raise UserError(f"{source}: pre-training needs captions; give --captions FILE, or --frames_only")
    if source.suffix == ".tsv":
        rows = [Item(id_, captions.get(id_, ()), source, "row", offset) for id_, offset in read_ids(source)]
        say_unused(captions, {row.id for row in rows}, source)
        return rows
    if source.suffix == ".csv":
        lines = list(read_csv(source, need_caption=needs_captions and captions_path is None))
        files = [(line.id, source.parent / line.name, line.kind, line.start, line.end) for line in lines]
    else:
        found = find_files(source, frame_folders)
        files = [(file_id(path, path.is_dir()), path, kind, 0.0, None) for path, kind in found]
    items: dict[str, Item] = {}
    for id_, path, kind, start, end in files:
        if (start, end) == (0.0, None):
            start, end = window
        made = Item(id_, captions.get(id_, ()), path, kind, 0, start, end)
        known = items.setdefault(id_, made)
        if known != made:
            raise UserError(
                f"{source}: {known.path} and {path} would have the same id {id_}; rename one, or give each "
                "clip of a video its own in a column `id`"
            )
    say_unused(captions, items.keys(), source)
    return list(items.values())


def say_unused(captions: Collection[str], known: Collection[str], source: Path) -> None:
    """Print how many captions are without a file in the source."""
    unused = [id_ for id_ in captions if id_ not in known]
    if unused:
        print(f"{source} has no file for the captions of {len(unused)} ids, first {unused[0]}")


def read_ids(tsv: Path) -> Iterator[tuple[str, int]]:
    """The id of each row of a frames TSV, and the row's offset in bytes."""
    offset = 0
    with tsv.open("rb") as file:
        for line in file:
            yield line.split(b"\t", 1)[0].rstrip(b"\r\n").decode(errors="replace"), offset
            offset += len(line)


def read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    """Captions by id, from a JSON {id: [captions]} or from a CSV, whose files give the ids (`file_id`)."""
    captions: dict[str, list[str]] = {}
    try:
        if path.suffix == ".csv":
            for line in read_csv(path):
                captions.setdefault(line.id, []).append(line.caption)
        else:
            entries = read_json(path)
            captions = {id_: [texts] if isinstance(texts, str) else texts for id_, texts in entries.items()}
    except AttributeError as error:
        raise UserError(f"{path}: not a JSON of {{id: [captions]}} ({error}); correct it") from error
    for id_, texts in captions.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{path}: the captions of {shown(id_)} are {texts!r}, not texts; correct it")
    return {id_: tuple(text.strip() for text in texts if text.strip()) for id_, texts in captions.items()}


def read_csv(path: Path, need_caption: bool = True) -> Iterator[Line]:
    """The lines of a CSV: a file is in the column of its kind, `id`, `start` and `end` are optional."""
    for number, row in numbered_table(path):
        kind = "image" if row.get("image") else "video"
        if not row.get(kind) or (need_caption and row.get("caption") is None):
            need = "`video` or `image`, and `caption`, which is in double quotes if it has commas"
            raise UserError(f"{path} line {number}: {row}; it needs {need}")
        name = row[kind]
        id_ = row.get("id") or file_id(name)
        yield Line(id_, name, kind, row.get("caption") or "", *clip_of(row, path, number))


def clip_of(row: dict[str, str], path: Path, line: int) -> tuple[float, float | None]:
    """Where a line's clip begins and ends, in seconds."""
    try:
        start = float(row.get("start") or 0)
        end = float(row["end"]) if row.get("end") else None
    except ValueError:
        start, end = -1.0, None
    if start < 0 or (end is not None and end <= start):
        raise UserError(f"{path} line {line}: `start` and `end` are seconds, 0 <= start < end; correct it")
    return start, end
