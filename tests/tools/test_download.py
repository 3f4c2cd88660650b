"""A file from a server that cuts, corrupts and stalls."""

import errno
import hashlib
import http.server
import threading
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from _tools.convert import download
from lib import UserError

FILE = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(FILE).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves FILE with one trick."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.trick, self.released = "", threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        trick = self.server.trick
        if trick.isdigit():
            return self.send_error(int(trick))
        body = bytearray(FILE)
        if trick == "corrupt":
            body[len(body) // 2] ^= 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if trick in ("cut", "stall") else body)
        if trick == "stall":
            self.wfile.flush()
            self.server.released.wait(10)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def fetch(address: str, folder: Path, sha256: str = DIGEST[:8]) -> Path:
    return download.fetch(address, folder / "file.bin", sha256, lambda part: fault(part.read_bytes()))


def fault(content: bytes) -> str:
    return "" if len(content) == len(FILE) else f"{len(content)} bytes are no checkpoint"


@pytest.mark.parametrize("sha256", [DIGEST[:8], DIGEST, ""], ids=["beginning", "digest", "unknown"])
def test_a_complete_file_has_its_name(server, tmp_path, sha256):
    assert fetch(server.address, tmp_path, sha256).read_bytes() == FILE
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize(
    ("trick", "sha256", "why"),
    [
        ("corrupt", DIGEST[:8], "invalid hash value"),
        ("cut", DIGEST[:8], "invalid hash value"),
        ("cut", "", "150000 bytes are no checkpoint"),
        ("stall", "", "no connection .*timed out"),
        ("404", "", "answers 404"),
        ("503", "", "answers 503"),
    ],
)
def test_a_fault_is_named_and_nothing_is_kept(server, tmp_path, trick, sha256, why):
    server.trick = trick
    with pytest.raises(UserError, match=why):
        fetch(server.address, tmp_path, sha256)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_replaced(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"file\.bin exists: move the file away"):
        fetch(server.address, tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"mine"


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download, "download_url_to_file", full)
    with pytest.raises(UserError, match=r"file\.bin: No space left on device; free disk space"):
        fetch("https://example.org/a.pth", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_one_short_line(tmp_path, monkeypatch):
    def unreachable(*_):
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(download, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"no connection \(Temporary failure in name resolution\)"):
        fetch("https://example.org/a.pth", tmp_path)
    assert list(tmp_path.iterdir()) == []
