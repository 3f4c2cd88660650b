"""Folders of videos and pictures."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from lib import shown
from media.decoding import ANIMATED
from media.kinds import kind_of

LISTED = 10  # files passed over that are printed


def find_files(folder: Path, frame_folders: bool = False) -> list[tuple[Path, str]]:
    """Videos and pictures below a folder, in the order of their names, or the folders of frames in it.

    Each comes with its kind, "video" or "image". Prints how many others there are, and the first of them.
    """
    if frame_folders:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        say_passed_over([path for path in inside if not path.is_dir()], "no folder of frames")
        return [(path, "video") for path in inside if path.is_dir()]
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    kinds = ["" if path.name.startswith(".") else kind_of(path) for path in files]
    others = [path for path, kind in zip(files, kinds, strict=True) if not kind]
    say_passed_over(others, "neither video nor picture, or hidden")
    return [
        (path, "image" if kind == "picture" and not is_animated(path) else "video")
        for path, kind in zip(files, kinds, strict=True)
        if kind
    ]


def say_passed_over(paths: Iterable[Path], why: str) -> None:
    """Print how many files are passed over, and the first of them."""
    names = [shown(path.name) for path in paths]
    if names:
        more = " ..." if len(names) > LISTED else ""
        print(f"{len(names)} files ignored ({why}): {', '.join(names[:LISTED])}{more}")


def is_animated(path: Path) -> bool:
    """Whether a picture has several frames; False for one that cannot be opened: that is reported later."""
    try:
        with Image.open(path) as image:
            return image.format in ANIMATED and getattr(image, "n_frames", 1) > 1
    except (OSError, ValueError, SyntaxError):
        return False
