"""A file from a server that cuts, corrupts, redirects and stalls."""

import hashlib
import http.server
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from _tools.convert import download
from _tools.convert.download import Wanted, fetch
from lib import UserError

FILE = np.random.default_rng(0).bytes(300_000)
DIGEST = hashlib.sha256(FILE).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves FILE, and does to each answer what is first on `tricks`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tricks: list[str] = []
        self.ranges: list[str] = []
        self.etag, self.content, self.released = '"v1"', FILE, threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_) -> None: ...

    def do_GET(self) -> None:
        server = self.server
        trick = server.tricks.pop(0) if server.tricks else ""
        server.ranges.append(self.headers.get("Range", ""))
        if trick.isdigit():
            return self.send_error(int(trick))
        if trick.startswith("to "):
            self.send_response(302)
            self.send_header("Location", trick[3:])
            return self.end_headers()
        start, content = 0, server.content
        asked = self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        same = self.headers.get("If-Range", server.etag) == server.etag
        if asked and same and trick != "no ranges":
            start = int(asked)
            if start >= len(content):
                return self.send_error(416)
        body = bytearray(content[start:])
        if trick == "corrupt":
            body[len(body) // 2] ^= 1
        self.send_response(206 if start else 200)
        if start:
            shown = 0 if trick == "wrong part" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(content) - 1}/{len(content)}")
        if trick != "no length":
            self.send_header("Content-Length", str(len(body) + (10**15 if trick == "huge" else 0)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        if trick in ("cut", "stall", "no length"):
            body = body[: len(body) // 2]
        self.wfile.write(body)
        if trick == "stall":
            self.wfile.flush()
            server.released.wait(10)


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def wanted(server, tmp_path):
    return Wanted(server.address, tmp_path / "file.bin", len(FILE), DIGEST[:8], timeout=0.2, pause=0)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("tricks", "resumed"),
    [
        ([], 0),
        (["cut"], 1),
        (["cut", "cut", "cut"], 3),
        (["stall"], 1),
        (["503", "cut", "429"], 1),
        (["cut", "no ranges"], 0),
        (["to /elsewhere.bin"], 0),
        (["cut", "to /elsewhere.bin"], 2),
    ],
    ids=str,
)
def test_ends_right(server, wanted, tricks, resumed):
    server.tricks = list(tricks)
    assert fetch(wanted).read_bytes() == FILE
    assert left(wanted.path.parent) == ["file.bin"]
    # what was there was asked for once more only where the server gave the rest
    assert server.tricks == []
    assert sum(bool(asked) for asked in server.ranges) >= resumed


@pytest.mark.parametrize(
    ("tricks", "why"),
    [
        (["corrupt"], "its sha256 is"),
        (["cut", "corrupt"], "its sha256 is"),
        (["cut", "wrong part"], "sends from byte 0"),
        (["huge"], "not the published 300000"),
        (["no length"], "150000 bytes came, not 300000"),
        (["404"], "answers 404"),
        (["503"] * 9, "answers 503"),
        (["to file:///etc/passwd"], "not allowed"),
    ],
    ids=str,
)
def test_says_why_and_leaves_nothing_under_the_name(server, wanted, tricks, why):
    server.tricks = list(tricks)
    with pytest.raises(UserError, match=why):
        fetch(wanted)
    assert not wanted.path.exists()
    if "answers" not in why:
        assert left(wanted.path.parent) == []  # what is damaged is not gone on with
    server.tricks = []
    assert fetch(wanted).read_bytes() == FILE


def test_goes_on_after_a_kill_and_with_nothing_else(server, wanted, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.tricks = ["cut", "503"]
    with pytest.raises(UserError, match="150000 bytes are kept"):
        fetch(wanted)
    assert left(wanted.path.parent) == [".file.bin.part", ".file.bin.part.json"]
    server.ranges.clear()
    assert fetch(wanted).read_bytes() == FILE
    assert server.ranges == ["bytes=150000-"]


def test_a_file_that_has_changed_meanwhile_is_begun_anew(server, wanted, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.etag, server.content, server.tricks = '"v0"', bytes(len(FILE)), ["cut", "503"]
    with pytest.raises(UserError):
        fetch(wanted)
    server.etag, server.content = '"v1"', FILE
    assert fetch(wanted).read_bytes() == FILE


def test_a_complete_part_is_only_named(server, wanted):
    """Killed between the last byte and the renaming."""
    part = wanted.path.with_name(".file.bin.part")
    part.write_bytes(FILE)
    download.notes(part).write_text(
        f'{{"address": "{server.address}", "etag": "\\"v1\\"", "total": {len(FILE)}}}'
    )
    assert fetch(wanted).read_bytes() == FILE
    assert server.ranges == [f"bytes={len(FILE)}-"]


def test_what_cannot_be_read_as_weights_is_not_kept(server, wanted):
    with pytest.raises(UserError, match="it is no checkpoint"):
        fetch(wanted, verify=lambda part: "it is no checkpoint" if part.exists() else "")
    assert left(wanted.path.parent) == []


def test_a_full_disk_is_noticed_before(server, wanted, monkeypatch):
    usage = download.shutil.disk_usage(wanted.path.parent)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="needs 300000 bytes more"):
        fetch(wanted)
    assert not wanted.path.exists()


@pytest.mark.parametrize("to", ["http://example.com/x", "ftp://example.com/x"])
def test_a_redirect_from_an_encrypted_address_to_an_open_one_is_not_followed(to):
    request = urllib.request.Request("https://example.com/x")
    with pytest.raises(download.Damaged, match="leads on to"):
        download._Redirects().redirect_request(request, None, 302, "Found", {}, to)


def test_two_at_once_do_not_mix(server, wanted):
    server.tricks = ["stall"]
    other = threading.Thread(target=fetch, args=(Wanted(wanted.address, wanted.path, timeout=5, pause=0),))
    other.start()
    while not server.ranges:  # until it has begun
        threading.Event().wait(0.005)
    with pytest.raises(UserError, match="another process"):
        fetch(wanted)
    server.released.set()
    other.join()
    assert wanted.path.read_bytes() == FILE


def test_without_a_network_it_says_so_at_once(tmp_path, monkeypatch, capsys):
    """Whatever keeps a server from being reached: no name, no route, no answer."""
    asked, waited = [], []

    def unreachable(self, request, timeout):
        asked.append(timeout)
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", unreachable)
    monkeypatch.setattr(download.time, "sleep", waited.append)
    with pytest.raises(UserError, match=r"name resolution.*Nothing came"):
        fetch(Wanted("https://example.org/a.pth", tmp_path / "a.pth"))
    assert len(asked) == 2 and max(asked) <= 10 and sum(waited) <= 2
    assert "a.pth: Temporary failure in name resolution; trying again in 2 seconds" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
