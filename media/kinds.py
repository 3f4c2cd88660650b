"""The kind of a file by its first bytes, the id that its name gives, and the reason why it cannot be read."""

import os
import re
import struct
from pathlib import Path

from media.files import unsuitable

VIDEOS = frozenset(
    re.findall(
        r"\.\w+",
        ".3g2 .3gp .asf .avi .divx .f4v .flv .gif .m2t .m2ts .m2v .m4v .mkv .mov .mp4 .mpe .mpeg .mpg .mts"
        ".mxf .ogg .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv",
    )
)
PICTURES = frozenset([".avif", ".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])
ENDING = re.compile(r"(?<=.)\.[A-Za-z][A-Za-z0-9]{1,3}$")
MEDIA_ENDING = re.compile(rf"(?<=.)({'|'.join(map(re.escape, sorted(VIDEOS | PICTURES)))})$", re.IGNORECASE)
STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")
ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
BEGINNINGS = {  # the bytes with which files begin
    b"\xff\xd8\xff": "picture",
    b"\x89PNG\r\n\x1a\n": "picture",
    b"II*\0": "picture",
    b"MM\0*": "picture",
    b"GIF8": "video",
    b"\x1a\x45\xdf\xa3": "video",  # Matroska, WebM
    b"OggS": "video",
    b"FLV\x01": "video",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "video",  # ASF, WMV
    b"\0\0\x01\xba": "video",  # MPEG program stream
    b"\0\0\x01\xb3": "video",
    b".RMF": "video",
}
OTHERS = {  # other files, and what to do
    b"PK\x03\x04": "it is a zip archive: unpack it",
    b"\x1f\x8b": "it is a gzip archive: unpack it",
    b"Rar!": "it is a rar archive: unpack it",
    b"%PDF": "it is a PDF",
}


# ------------------------------------------------------------------------------------------------- names


def file_id(name: str | Path, is_folder: bool = False) -> str:
    """The id of a video or a picture, by the name of its file, or of its folder of frames.

    All endings of videos and pictures are left out, and dots at the end: DiDeMo's `NAME.mov`, `NAME.mov.mp4`
    and `NAME.` are one video. One other ending of a file, such as `.dat`, is left out too, but nothing that
    begins with a digit: the milliseconds of LSMDC's clips belong to their names.
    """
    name = os.path.basename(str(name).rstrip("/"))
    shorter = name if is_folder else ENDING.sub("", name)
    while shorter != (without := MEDIA_ENDING.sub("", shorter.rstrip("."))):
        shorter = without
    return shorter or name


def as_arguments(words: list[str]) -> list[str]:
    """A command line on which a file's name that begins with a dash is no option: `./-AbC.mp4`."""
    return [f"./{word}" if word.startswith("-") and os.path.exists(word) else word for word in words]


# ------------------------------------------------------------------------------------------------- kinds


def kind_of(path: Path) -> str:
    """`"video"`, `"picture"` or `""`, by the content of a file, or else by the ending of its name."""
    by_content = kind_of_bytes(first_bytes(path))
    if by_content:
        return by_content
    ending = f".{path.name.rpartition('.')[2].lower()}"
    return "video" if ending in VIDEOS else "picture" if ending in PICTURES else ""


def kind_of_bytes(head: bytes) -> str:
    """The same by the first bytes of a file alone (400 are enough)."""
    for beginning, kind in BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": "picture", b"AVI ": "video"}.get(head[8:12], "")
    if head[4:8] in ATOMS:
        return "picture" if head[8:12] in STILL_BRANDS else "video"
    if head[:2] == b"BM" and head[14:15] in (b"\x0c", b"\x28", b"\x34", b"\x38", b"\x40", b"\x6c", b"\x7c"):
        return "picture"
    streams = ((0, 188), (4, 192))  # MPEG transport streams, of broadcasts and of discs (.m2ts)
    if any(head[at : at + 1] == head[at + step : at + step + 1] == b"G" for at, step in streams):
        return "video"
    return ""


def first_bytes(path: Path, number: int = 400) -> bytes:
    """The beginning of a file; nothing of what is no regular file, or cannot be read."""
    try:
        if not path.is_file():  # a pipe would not answer
            return b""
        with path.open("rb") as file:
            return file.read(number)
    except OSError:
        return b""


# ----------------------------------------------------------------------------------------------- reasons


def explain(path: Path, error: BaseException) -> str:
    """Why a file cannot be read, in words: by its content if that shows it, else by the decoder's error."""
    words = getattr(error, "strerror", "") or str(error) or type(error).__name__
    fault = "" if path.is_dir() else fault_of(path)
    return fault or f"the decoder cannot read it ({words})"


def fault_of(path: Path) -> str:
    """The actual kind of a file that is no video or picture, or where it is truncated; empty if unknown."""
    if wrong := unsuitable(path):
        return wrong
    head = first_bytes(path)
    for beginning, what in OTHERS.items():
        if head.startswith(beginning):
            return what
    if b"<html" in head.lower():
        return "it is a web page, which came instead of the file"
    if not head.strip(b"\0"):
        return "it begins with zeros alone: copy or download it again"
    if head[4:8] in ATOMS and kind_of_bytes(head) == "video":
        return fault_of_atoms(path)
    return "it is text, no video or picture" if is_text(head) else ""


def is_text(head: bytes) -> bool:
    """Whether the beginning of a file is text, of which the last character may be cut."""
    text = head.decode("utf-8", errors="ignore")
    whole = len(text.encode()) > len(head) - 4
    return whole and all(c.isprintable() or c in "\t\r\n" for c in text)


def fault_of_atoms(path: Path) -> str:
    """Whether an MP4 or MOV lacks its moov atom, which locates the frames and often comes last."""
    size, place = path.stat().st_size, 0
    with path.open("rb") as file:
        while place + 8 <= size:
            file.seek(place)
            length, name = struct.unpack(">I4s", file.read(8))
            if length == 1:
                length = int.from_bytes(file.read(8))
            if name == b"moov":
                cut = place + length > size
                return "its moov atom is cut off: copy or download it again" if cut else ""
            if length < 8:  # the last one, or no atom
                break
            place += length
    return "it has no moov atom: it is cut off; copy or download it again"
