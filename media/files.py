"""Files: written atomically, locked, and read so that any fault gives one line."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from lib import UserError, log, shown

UMASK = os.umask(0o077)  # the process's own, read once: to read it is to change it
os.umask(UMASK)
TEMPORARY = ".violet-"  # within the names of files that are being written, and of no others


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; it becomes `path` unless an exception is raised.

    Its name is `.NAME.violet-XXXXXXXX`. An `OSError` of writing names `path`, whichever call it came from,
    and so does a library's error behind which the disk's stands.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{TEMPORARY}")
        os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~UMASK)  # mkstemp's own mode keeps others from reading
        temporary.replace(path)
    except UserError:
        raise
    except Exception as error:
        number = disk_error(error) or (error.errno if isinstance(error, OSError) else None)
        if number is None or getattr(error, "filename", None) not in (None, name):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def disk_error(error: BaseException) -> int | None:
    """The number of the disk's error behind a library's own; None if the fault is another.

    torch raises its own while it handles the disk's, safetensors puts the number in words, numpy says how
    much was written.
    """
    behind: BaseException | None = error
    while behind is not None:
        number = behind.errno if isinstance(behind, OSError) else None
        if words := re.search(r"\(os error (\d+)\)", str(behind)):
            number = int(words[1])
        elif re.fullmatch(r"\d+ requested and \d+ written", str(behind)):
            number = errno.ENOSPC
        if number in DISK:
            return number
        behind = behind.__cause__ or behind.__context__
    return None


def digest(*paths: Path) -> str:
    """SHA-256, in hexadecimal digits, of a file, or of several one after another."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def leftovers(folder: Path) -> list[Path]:
    """The temporary files of `atomic_path` in a folder; only a killed program leaves any."""
    return [path for path in folder.glob(f".*{TEMPORARY}*") if path.is_file() and not path.is_symlink()]


def hold(path: Path) -> IO[str] | None:
    """The lock that a file stands for, held until the file is closed or the process ends.

    None: another process holds it.
    """
    file = path.open("a")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process: no worker inherits it
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            file.close()
            return None
        log.debug("%s cannot be locked: %s", path, error)  # not all network file systems can
    return file


# ------------------------------------------------------------------------- one line for whatever goes wrong

EMPTY = "it is empty"
DEEPEST = 100  # levels of lists and dicts within one another that a file of text may have
DISK = frozenset([errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG])
DISK |= {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR}


@contextlib.contextmanager
def reading(path: str | Path, what: str, todo: str = "fetch or make it again") -> Iterator[None]:
    """Whatever a reader raises inside becomes one line: the file, the reason, a remedy.

    `what` says how the file was to be read ("JSON", "a checkpoint of tensors"). Raises `UserError`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # readers of damaged files raise any kind
        raise UserError(f"{path} cannot be read as {what}: {why(path, error)}; {todo}.") from error


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """A disk that is full, read-only or forbidden becomes one line. Raises `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (number := disk_error(error)) is None:
            raise
        place = getattr(error, "filename", None) or what
        raise UserError(
            f"{place}: {os.strerror(number)}; free disk space, or choose another folder."
        ) from error


def why(path: str | Path, error: BaseException) -> str:
    """The reason why a file cannot be read: by its content where that says more than the reader's error."""
    return unsuitable(Path(path)) or words_of(error)


def words_of(error: BaseException) -> str:
    """The reason that an error gives, in one line."""
    if isinstance(error, UnicodeDecodeError):
        return f"the text is not UTF-8 (byte {error.start})"
    if isinstance(error, RecursionError):
        return "lists or dicts are nested too deep, or contain themselves"
    if isinstance(error, KeyError | IndexError | TypeError | AttributeError):
        return "it is damaged, or of another form"
    if isinstance(error, MemoryError):
        return "more memory is claimed than there is"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return shown(first)[:300].rstrip(".;") or type(error).__name__


def unsuitable(path: Path) -> str:
    """Whether a path leads to no file, or to one that is something else altogether; empty if it does not."""
    try:
        kind, size = path.stat().st_mode, path.stat().st_size
        if stat.S_ISDIR(kind):
            return "it is a folder"
        if not stat.S_ISREG(kind):
            return "it is a pipe, a socket or a device, not a file"
        if not size:
            return EMPTY
        with path.open("rb") as file:
            start = file.read(512).lstrip(b"\xef\xbb\xbf \t\r\n")
    except FileNotFoundError:
        return "it does not exist (No such file)"
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    if re.match(rb"<(!doctype html|html|head|body|\?xml)", start, re.IGNORECASE):
        return f"it is a web page ({size} bytes), which came instead of the file"
    if start.startswith(b"version https://git-lfs.github.com"):
        return "it is a git-lfs pointer: run `git lfs pull` where it came from"
    return ""


def read_json(path: Path, todo: str = "correct it, or make it again", most: int = 1 << 28) -> Any:
    """The content of a JSON file in UTF-8, of `most` bytes at most. Raises `UserError`."""
    with reading(path, "JSON", todo):
        check_file(path, most)
        return parse_json(path.read_bytes())


def parse_json(text: bytes | str) -> Any:
    """A JSON text in UTF-8; halves of surrogate pairs, which no UTF-8 text has, become U+FFFD.

    Raises `ValueError`, for a number beyond 64 bits and for what is nested too deep as well.
    """
    text = text if isinstance(text, str) else text.decode("utf-8-sig")
    try:
        content = json.loads(text, parse_int=_whole)
        return _without_halves(content) if re.search(r"\\u[dD][89a-fA-F]", text) else content
    except RecursionError:
        raise ValueError("lists or dicts are nested too deep") from None


def _whole(digits: str) -> int:
    if len(digits) > 18 and not -(1 << 63) <= int(digits) < 1 << 63:
        raise ValueError(f"the number {digits[:20]}... is beyond 64 bits")
    return int(digits)


def _without_halves(content: Any) -> Any:
    if isinstance(content, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", content)
    if isinstance(content, list):
        return [_without_halves(item) for item in content]
    if isinstance(content, dict):
        return {_without_halves(key): _without_halves(item) for key, item in content.items()}
    return content


class _Yaml(yaml.SafeLoader):
    """YAML without aliases: a few lines of them may stand for gigabytes, and no corpus needs one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias, and what is nested too deep."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError("lists or dicts are nested too deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(path: Path, todo: str = "correct it, see _data/README.md") -> Any:
    """The content of a YAML file in UTF-8. Raises `UserError`."""
    with reading(path, "YAML", todo):
        check_file(path, most=1 << 18)
        return yaml.load(path.read_bytes().decode("utf-8-sig"), _Yaml)


def check_file(path: Path, most: int = 1 << 31) -> None:
    """Raise `ValueError` if a path is no regular file, or has more bytes than such a file ever has."""
    if (wrong := unsuitable(path)) and wrong != EMPTY:
        raise ValueError(wrong)
    if path.stat().st_size > most:
        raise ValueError(f"it has {path.stat().st_size} bytes, more than the limit of {most}")
