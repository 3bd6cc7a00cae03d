"""Fetching a file over HTTP such that a broken connection costs nothing: the download continues where it stopped."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from polyptych import __version__
from polyptych.errors import InputError
from polyptych.record import put_in_place

_CHUNK = 1 << 18
_TRIES = 5  # in a row without a byte of progress


def download(url: str, path: Path, sha256: str = "", progress: Callable[[int, int], None] = lambda done, total: None,
             timeout: float = 60.0, pause: float = 1.0) -> Path:
    """Fetch ``url`` to ``path``, which appears only when it is complete and its checksum is right.

    Received bytes are kept in ``path.part``; a later call continues from there if the server supports ranges and its
    file is still the same (by ETag or date), and starts over otherwise. An existing file is not fetched again.

    Args:
        sha256: hexadecimal; empty if unknown.
        progress: called with (bytes done, bytes in all or 0 if the server does not say).
        timeout: seconds without a byte.
        pause: seconds before the first new try; doubled for each further one.

    Raises:
        InputError: not an http(s) address; no answer or an error from the server; a full disk; a wrong checksum, which
            removes the file, so that the next call starts over.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(url, "an address of another kind", "http:// or https://", "fetch the file by hand")
    part, notes = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(url, part, notes, progress, timeout, pause)
        except OSError as error:
            raise InputError(part, f"{error.strerror or error} while writing", "a writable folder with enough room",
                             "free some space; the same command continues") from error
        _check(part, url, sha256, [part, notes])
        put_in_place(part, path)
        notes.unlink(missing_ok=True)
    else:
        _check(path, url, sha256, [path])
    return path


def _check(path: Path, url: str, sha256: str, wrong: list[Path]) -> None:
    if not sha256:
        return
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != sha256.lower():
        for file_ in wrong:
            file_.unlink(missing_ok=True)
        raise InputError(path, f"a file with the checksum {digest.hexdigest()}", f"sha256 {sha256.lower()}",
                         f"the file was removed; fetch {url} again, and do not use it if this happens twice")


def _fetch(url: str, part: Path, notes: Path, progress: Callable[[int, int], None], timeout: float,
           pause: float) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            if _continue(url, part, notes, progress, timeout):
                return
            said = "the connection broke"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise InputError(url, f"HTTP {error.code} ({error.reason})", "an answer with the file",
                                 "look at the official page, or fetch the file by hand") from None
            said = f"HTTP {error.code}"
        except urllib.error.URLError as error:
            said = str(error.reason)
        except (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
        failures = failures + 1 if _size(part) <= before else 0
        if failures >= _TRIES:
            raise InputError(url, f"{' '.join(said.split())} ({_size(part)} bytes have arrived)",
                             "a server that answers", "check the network; the same command continues where it stopped")
        time.sleep(pause * 2**failures)


def _continue(url: str, part: Path, notes: Path, progress: Callable[[int, int], None], timeout: float) -> bool:
    """One connection; True when the file is complete."""
    start, known = _size(part), _read_notes(notes)
    mark = known.get("mark", "") if known.get("url") == url else ""
    headers = {"User-Agent": f"polyptych/{__version__}", "Accept-Encoding": "identity"}
    if start and mark:
        headers |= {"Range": f"bytes={start}-", "If-Range": mark}
    opener = urllib.request.OpenerDirector()  # the default one also opens files and ftp, where a redirect might lead
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
                    urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
                    urllib.request.HTTPDefaultErrorHandler):
        opener.add_handler(handler())
    try:
        answer = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send, or the two files differ
            if start == _total(error.headers, 0):
                return True
            part.unlink()
            return False
        raise
    if answer is None:
        raise InputError(url, "a redirect to an address of another kind", "http:// or https://",
                         "fetch the file by hand")
    with answer:
        if answer.status != 206 or _first(answer.headers) != start:
            start = 0
        notes.write_text(json.dumps({"url": url, "mark": _mark(answer.headers)}), encoding="utf-8")
        total = _total(answer.headers, start)
        with part.open("ab" if start else "wb") as out:
            progress(start, total)
            while chunk := answer.read1(_CHUNK):
                out.write(chunk)
                start += len(chunk)
                progress(start, total)
    return not total or start >= total


def _mark(headers: Message) -> str:
    """How the server identifies a version of the file; weak ETags may not be used for ranges."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _first(headers: Message) -> int:
    found = re.match(r"bytes (\d+)-", headers.get("Content-Range", ""))
    return int(found[1]) if found else -1


def _total(headers: Message, start: int) -> int:
    """Bytes of the whole file; 0 if the server does not say."""
    if found := re.search(r"/(\d+)$", headers.get("Content-Range", "")):
        return int(found[1])
    length = headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_notes(path: Path) -> dict[str, Any]:
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        return notes if isinstance(notes, dict) else {}
    except (OSError, ValueError):
        return {}  # then the download starts over
