"""Reading annotations and captions: UTF-8 with or without BOM, CRLF or LF, tables with and without heads.

Each form has its one reader here: `read_json` (JSON lines too), `read_table` (CSV), `read_lines` (tabs).
"""

import csv
import fnmatch
import functools
import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib import UserError
from media.files import parse_json

Item = dict[str, Any]
Splits = dict[str, list[Item]]


class Public:
    """The folder with a dataset's public files, found by their published names whatever the case.

    `named` says where one is that has another name, by its role. `used` is what was found so far.
    """

    def __init__(self, folder: Path, named: dict[str, Path] | None = None) -> None:
        self.folder, self.named = folder, named or {}
        self.used: dict[str, Path] = {}
        self.roles: list[str] = []

    @functools.cached_property
    def files(self) -> list[Path]:
        """All files in the folder and below, without the hidden files of macOS archives."""
        return sorted(path for path in self.folder.rglob("[!.]*") if path.is_file())

    def find(self, role: str, *patterns: str) -> Path:
        """As `look_for`; raises `UserError` where no file fits."""
        found = self.look_for(role, *patterns)
        if found is None:
            raise UserError(
                f"{self.folder} has no {' or '.join(patterns)}: download it (see _data/README.md), or "
                f"give --file {role}=PATH."
            )
        return found

    def look_for(self, role: str, *patterns: str) -> Path | None:
        """The file that fits the first pattern which any file fits; raises `UserError` where several do."""
        self.roles.append(role)
        fits = [self.named[role]] if role in self.named else []
        for pattern in () if fits else patterns:
            fits = [path for path in self.files if fnmatch.fnmatch(path.name.lower(), pattern.lower())]
            if fits:
                break
        if len(fits) > 1:
            names = ", ".join(str(path) for path in fits)
            raise UserError(f"{names}: several files match: give another folder, or --file {role}=PATH.")
        if fits:
            self.used[role] = fits[0]
        return self.used.get(role)


def read_text(path: Path) -> str:
    """The text of a file; line ends as they are."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 ({error}); download it again.") from error


def read_json(path: Path) -> Any:
    """A JSON file, or one of JSON lines (a list, then), whatever its name ends in."""
    text = read_text(path)
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        if len(lines) > 1 and is_object(lines[0]) and is_object(lines[1]):
            return [parse_json(line) for line in lines]
        content = parse_json(text)
        return [content] if path.suffix == ".jsonl" and isinstance(content, dict) else content
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); correct it, or download it again.") from error


def is_object(line: str) -> bool:
    """Whether a line is a JSON object of its own."""
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def read_table(path: Path, delimiter: str = ",", columns: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """The rows of a table by column, quoted as CSV is; raises `UserError` naming a row at fault."""
    for _, row in numbered_table(path, delimiter, columns):
        yield row


def numbered_table(
    path: Path, delimiter: str = ",", columns: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """The same, each row with the number of its last line."""
    # strict, as a forgotten quote would swallow the rows after it
    spaces = delimiter == ","
    text = io.StringIO(read_text(path), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=spaces)
    try:
        head = [name.strip() for name in next(reader, [])]
        if lacking := [name for name in columns if name not in head]:
            raise UserError(f"{path} has the columns {head}, not {lacking}; correct or download it again.")
        for row in reader:
            if row and len(row) != len(head):
                need = "a text with commas or quotes is put in double quotes" if spaces else "correct it"
                raise UserError(f"{path} line {reader.line_num}: {len(row)} fields, not {len(head)}: {need}.")
            if row:
                yield reader.line_num, dict(zip(head, row, strict=True))
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.line_num} is not readable as UTF-8 CSV ({error}); correct the file."
        ) from error


def read_lines(path: Path, least: int) -> Iterator[list[str]]:
    """The fields of each line of a file that has tabs, and quotes that mean nothing."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        fields = line.rstrip("\r").split("\t")
        if fields == [""]:
            continue
        if len(fields) < least:
            raise UserError(f"{path} line {number}: {len(fields)} fields, not {least} or more; correct it.")
        yield fields


def hold_out(items: list[Item], share: float, seed: int = 88) -> Splits:
    """Training questions -> train and val, by a share of the videos, if no val is published."""
    videos = sorted({item["video"] for item in items})
    held = set(random.Random(seed).sample(videos, round(share * len(videos))))
    splits = {
        "train": [item for item in items if item["video"] not in held],
        "val": [item for item in items if item["video"] in held],
    }
    return {split: rows for split, rows in splits.items() if rows}
