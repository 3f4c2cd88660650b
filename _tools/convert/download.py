"""One file from an address: under its name only when it is complete and can be read."""

import contextlib
import socket
import urllib.error
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

from torch.hub import download_url_to_file

from lib import UserError
from media.files import DISK, atomic_path, writing

PATIENCE = 10.0  # seconds without a byte after which a connection is given up


def fetch(address: str, path: Path, sha256: str, verify: Callable[[Path], str]) -> Path:
    """Download a file that is not there yet; `sha256` is the beginning of its digest, empty if not known.

    `verify` says what is wrong with the complete file, or "". Raises `UserError`, and then nothing is kept.
    """
    if path.exists():
        raise UserError(f"{path} exists: move the file away first.")
    with writing(str(path)), atomic_path(path) as temporary:
        try:
            with patience(PATIENCE):
                download_url_to_file(address, str(temporary), sha256 or None)
            wrong = verify(temporary)
        except urllib.error.HTTPError as error:
            wrong = f"the server answers {error.code} {error.reason}"
        except (OSError, HTTPException) as error:
            if getattr(error, "errno", None) in DISK:
                raise
            wrong = f"no connection ({getattr(error, 'reason', '') or error})"
        except RuntimeError as error:  # of the digest
            wrong = str(error)
        if wrong:
            raise UserError(f"{address}: {wrong}. Nothing was kept: run the command again.")
    return path


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Context in which a connection without a byte for so long fails: the library sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
