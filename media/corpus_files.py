"""The files that the YAML of a pre-training corpus names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def yaml_path(name: str | Path, data_dir: str = "") -> Path:
    """A corpus's YAML: where the name leads to, or else in `data_dir`."""
    beside = Path(data_dir) / name
    return beside if not Path(name).exists() and beside.is_file() else Path(name)


def named_files(path: Path, content: Mapping[str, Any], key: str) -> list[Path]:
    """The files that the YAML at `path` names under a key, relative to its folder or as written.

    For a composite corpus, a text file that lists them, a path a line, may stand for the list.
    """
    names = content.get(key) or []
    files = relative_to(path, names if isinstance(names, list) else [names])
    if content.get("composite") and len(files) == 1 and key != "caption_linelist" and is_list(files[0]):
        return relative_to(files[0], files[0].read_text().split("\n"))
    return files


def relative_to(path: Path, names: Iterable[str]) -> list[Path]:
    """Paths in the folder of `path`, or as they are where they lead to nothing there."""
    names = [str(name).strip() for name in names if str(name).strip()]
    return [path.parent / name if (path.parent / name).exists() else Path(name) for name in names]


def is_list(path: Path) -> bool:
    """Whether a file lists other files, a path a line, instead of being a TSV itself."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(1 << 16)
    return bool(first.strip()) and b"\t" not in first
