"""The part of a Markdown page between two marks."""

from pathlib import Path

from lib import UserError

START, END = "<!-- results -->", "<!-- end of results -->"


def split(text: str, path: Path, start: str = START, finish: str = END) -> tuple[str, str, str]:
    """A page before, within and behind the table that two marks enclose."""
    before, mark, rest = text.partition(start)
    within, end, behind = rest.partition(finish)
    if not mark or not end:
        raise UserError(f"{path} has no table between {start} and {finish}.")
    return before, within, behind
