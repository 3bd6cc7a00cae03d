"""Downloads from a real server on this machine that breaks connections, lies, and changes its mind."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyptych.data.preparation.downloads import download
from polyptych.errors import InputError

CONTENT = bytes(i * i % 251 for i in range(300_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Hands out ``content`` under any name.

    Attributes:
        ranges: whether it honors Range.
        breaks: after how many bytes the next connections break.
        tag: the ETag.
        status: an error to answer with instead.
        asked: the Range header of every request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.ranges, self.tag, self.status = CONTENT, True, '"1"', 200
        self.breaks: list[int] = []
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/set.tgz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") in (None, server.tag):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        if start >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(server.content) - start))
        self.send_header("ETag", server.tag)
        self.end_headers()
        body = server.content[start:]
        self.wfile.write(body[:server.breaks.pop(0)] if server.breaks else body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_arrives_with_progress(server: Server, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    path = download(server.url, tmp_path / "new/set.tgz", SHA256, lambda done, total: told.append((done, total)))
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["set.tgz"]
    assert told[0] == (0, len(CONTENT)) and told[-1] == (len(CONTENT), len(CONTENT)) and told == sorted(told)


def test_a_broken_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000, 50_000]
    path = download(server.url, tmp_path / "set.tgz", SHA256, pause=0)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_an_interrupted_download_goes_on_later(server: Server, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 60_000:
            raise KeyboardInterrupt

    server.breaks = [70_000]
    with pytest.raises(KeyboardInterrupt):
        download(server.url, tmp_path / "set.tgz", SHA256, interrupt)
    assert not (tmp_path / "set.tgz").exists() and (tmp_path / "set.tgz.part").stat().st_size > 60_000
    server.breaks = []
    assert download(server.url, tmp_path / "set.tgz", SHA256).read_bytes() == CONTENT
    assert server.asked[1] is not None and len(server.asked) == 2


def test_a_download_that_was_killed_when_complete_is_not_repeated(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000]
    download(server.url, tmp_path / "first.tgz", pause=0)
    (tmp_path / "set.tgz.part").write_bytes(CONTENT)
    (tmp_path / "set.tgz.part.json").write_text(f'{{"url": "{server.url}", "mark": "\\"1\\""}}')
    assert download(server.url, tmp_path / "set.tgz", SHA256).read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={len(CONTENT)}-"


@pytest.mark.parametrize("why", ["no ranges", "another file", "unknown leftover"])
def test_it_starts_over_where_going_on_would_be_wrong(server: Server, tmp_path: Path, why: str) -> None:
    if why == "unknown leftover":
        (tmp_path / "set.tgz.part").write_bytes(b"x" * 1000)
    else:
        server.breaks = [100_000]
        with pytest.raises(InputError):
            # The server breaks down after that, for good.
            download(server.url, tmp_path / "set.tgz", pause=0,
                     progress=lambda done, _: setattr(server, "status", 503))
        assert (tmp_path / "set.tgz.part").stat().st_size == 100_000
        server.status = 200
        if why == "no ranges":
            server.ranges = False
        else:
            server.content, server.tag = CONTENT[::-1], '"2"'
    assert download(server.url, tmp_path / "set.tgz").read_bytes() == server.content


def test_a_wrong_checksum_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match=SHA256):
            server.content = CONTENT + b"!"
            download(server.url, tmp_path / "set.tgz", SHA256)
        assert not any(tmp_path.iterdir())
    server.content = CONTENT
    assert download(server.url, tmp_path / "set.tgz", SHA256.upper()).read_bytes() == CONTENT


def test_a_file_that_is_there_is_checked_and_not_fetched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.tgz").write_bytes(CONTENT)
    download(server.url, tmp_path / "set.tgz", SHA256)
    assert server.asked == []
    (tmp_path / "set.tgz").write_bytes(b"other")
    with pytest.raises(InputError, match="checksum"):
        download(server.url, tmp_path / "set.tgz", SHA256)


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (503, 5)])
def test_errors_of_the_server_are_one_line(server: Server, tmp_path: Path, status: int, tries: int) -> None:
    server.status = status
    with pytest.raises(InputError, match=f"HTTP {status}") as error:
        download(server.url, tmp_path / "set.tgz", pause=0)
    assert "\n" not in str(error.value) and len(server.asked) == tries
    assert not (tmp_path / "set.tgz").exists()


def test_nobody_answers(tmp_path: Path) -> None:
    with Server() as server:
        url = server.url
    with pytest.raises(InputError, match="a server that answers"):
        download(url, tmp_path / "set.tgz", pause=0)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/set.tgz", "set.tgz"])
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError, match="https://"):
        download(url, tmp_path / "set.tgz")
