"""One file from an address: resumed where it was cut, verified, and under its name only when it is whole."""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from lib import UserError

CHUNK = 1 << 20  # bytes
TRIES = 5  # in a row that bring nothing
CALLS = 2  # in a row that reach no server
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers after which it may go better
# what a network, a server or a proxy may do in the middle of an answer
BROKEN = (OSError, http.client.HTTPException, EOFError)


class Damaged(Exception):
    """What has come is not the file that was asked for."""


@dataclass(frozen=True)
class Wanted:
    """A file and what is known of it beforehand."""

    address: str
    path: Path
    bytes: int = 0
    """0: not known"""
    sha256: str = ""
    """the digest or its beginning; empty: not known"""
    timeout: float = 10.0
    """seconds without a byte after which a connection is given up"""
    pause: float = 2.0
    """seconds before the next try, doubled each time"""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from an encrypted address to an open one, nor to other kinds of address."""

    def redirect_request(
        self, request: Any, file: Any, code: int, message: str, headers: Any, to: str
    ) -> Any:
        """See urllib."""
        kinds = {request.type, "https"}
        if urllib.parse.urlsplit(to).scheme not in kinds:
            raise Damaged(f"{request.full_url} leads on to {to}, which is not encrypted or no web address")
        return super().redirect_request(request, file, code, message, headers, to)


def fetch(wanted: Wanted, verify: Callable[[Path], str] = lambda path: "") -> Path:
    """Download a file, going on with what an earlier try left; `verify` says what is wrong with it, or "".

    Until it is whole and verified it is beside its place, hidden: `.NAME.part`. Raises `UserError` that says
    why it did not come.
    """
    part = wanted.path.with_name(f".{wanted.path.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{part} is being written by another process.") from error
        try:
            receive(wanted, part, file)
            wrong = faults(wanted, part) or verify(part)
        except Damaged as error:
            wrong = str(error)
        if wrong:
            discard(part)
            raise UserError(
                f"{wanted.address}: {wrong}. Nothing is kept of it: try again, or elsewhere if it stays so."
            )
        os.fsync(file.fileno())
        part.replace(wanted.path)
        notes(part).unlink(missing_ok=True)
    return wanted.path


def receive(wanted: Wanted, part: Path, file: IO[bytes]) -> None:
    """Append to the part until it is complete; raises `UserError` after so many tries without progress."""
    idle = 0
    while True:
        before, unreached = part.stat().st_size, False
        try:
            if transfer(wanted, part, file):
                return
            why = "the connection was closed before the end"
        except urllib.error.HTTPError as error:
            why = f"the server answers {error.code} {error.reason}"
            if error.code not in PASSING:
                idle = TRIES
        except BROKEN as error:
            unreached = isinstance(error, urllib.error.URLError)  # else it was in the middle of an answer
            idle = max(idle, TRIES - CALLS) if unreached else idle
            why = str(getattr(error, "reason", "") or error) or type(error).__name__
            if getattr(error, "errno", None) == errno.ENOSPC:  # the disk, not the network
                raise UserError(f"{part}: no space left; what has come so far is kept.") from error
        idle = 0 if part.stat().st_size > before else idle + 1
        if idle >= TRIES:
            kept = part.stat().st_size
            if not kept:
                discard(part)
            what = f"{kept} bytes are kept; the same command goes on there." if kept else "Nothing came."
            raise UserError(f"{wanted.address}: {why}. {what}")
        pause = wanted.pause * (1 if unreached else 2 ** max(0, idle - 1))
        print(f"{wanted.path.name}: {why}; trying again in {pause:g} seconds", file=sys.stderr, flush=True)
        time.sleep(pause)


def transfer(wanted: Wanted, part: Path, file: IO[bytes]) -> bool:
    """One connection: what it brings is appended. Returns whether the file is complete now.

    What an earlier connection left is only gone on with if the server says that the file is still the same.
    """
    have = part.stat().st_size
    opener = urllib.request.build_opener(_Redirects)
    try:
        answer = opener.open(rest_of(wanted, part), timeout=wanted.timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # there is nothing behind what is there
            if have == read_notes(part).get("total"):
                return True
            file.truncate(0)
            return False
        raise
    with answer:
        start, total = extent(answer)
        if start != (have if answer.status == 206 else 0):
            raise Damaged(f"it sends from byte {start} on, not from {have}")
        if not start:
            file.truncate(0)
        check_size(wanted, part, total, total - start if total else 0)
        strong = (answer.headers.get("ETag") or "").startswith('"')
        etag = answer.headers["ETag"] if strong else answer.headers.get("Last-Modified")
        notes(part).write_text(json.dumps({"address": wanted.address, "etag": etag, "total": total}))
        with progress(wanted.path.name, start, total) as bar:
            while block := answer.read1(CHUNK):  # as it comes: what `read` waits for is lost in a cut
                file.write(block)
                file.flush()
                bar.update(len(block))
    now = part.stat().st_size
    return now >= total if total else True


def rest_of(wanted: Wanted, part: Path) -> urllib.request.Request:
    """The request for what a part lacks, if the file is still the one that it is of; else for all of it."""
    have, known = part.stat().st_size, read_notes(part)
    headers = {"User-Agent": "violet", "Accept-Encoding": "identity"}
    if have and known.get("address") == wanted.address and known.get("etag"):
        headers |= {"Range": f"bytes={have}-", "If-Range": known["etag"]}
    return urllib.request.Request(wanted.address, headers=headers)


def extent(answer: Any) -> tuple[int, int]:
    """(first byte, size of the whole file) of an answer; size 0: the server does not say."""
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", "").strip())
        if not found:
            raise Damaged("it sends a part without saying which")
        return int(found[1]), int(found[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else 0


def check_size(wanted: Wanted, part: Path, total: int, left: int) -> None:
    """Refuse another size than the published one, and one that the disk has no room for."""
    if wanted.bytes and total and total != wanted.bytes:
        raise Damaged(f"it has {total} bytes, not the published {wanted.bytes}")
    free = shutil.disk_usage(part.parent).free
    if left > free:
        raise UserError(f"{wanted.path} needs {left} bytes more, and {part.parent} has {free} left.")


def faults(wanted: Wanted, part: Path) -> str:
    """What is wrong with a complete file by its size and digest; empty if nothing is known to be."""
    size = part.stat().st_size
    if not size or (wanted.bytes and size != wanted.bytes):
        return f"{size} bytes came, not {wanted.bytes or 'a file'}"
    total = read_notes(part).get("total")
    if total and size != total:
        return f"{size} bytes came, not {total}"
    digest = sha256_of(part) if wanted.sha256 else ""
    return f"its sha256 is {digest}, not {wanted.sha256}..." if not digest.startswith(wanted.sha256) else ""


def sha256_of(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def notes(part: Path) -> Path:
    """Where it is noted what a part is of."""
    return part.with_name(f"{part.name}.json")


def read_notes(part: Path) -> dict[str, Any]:
    """Address, version and size of the file that a part is of; empty if that is not known."""
    try:
        content = json.loads(notes(part).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def discard(part: Path) -> None:
    """Remove a part and its notes."""
    part.unlink(missing_ok=True)
    notes(part).unlink(missing_ok=True)


@contextlib.contextmanager
def progress(name: str, start: int, total: int) -> Iterator[Any]:
    """A bar, where someone looks."""
    quiet = None if sys.stderr.isatty() else True
    with tqdm(desc=name, total=total or None, initial=start, unit="B", unit_scale=True, disable=quiet) as bar:
        yield bar
