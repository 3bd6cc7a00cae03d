"""A server that speaks what the client of Hugging Face asks: repositories, commits, large files, downloads. Real HTTP.

``faults`` makes it misbehave: ``cut`` sends half of a large file, ``other`` other contents of the same length,
``closed`` asks for a token, ``full`` refuses commits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as constants
import pytest

COMMIT = "c" * 40


class Hub:
    """What the server holds: files by repository and path, large files by hash."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.faults: set[str] = set()
        self.asked: list[str] = []
        self.url = ""


def _answer(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"{}", **headers: str) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def _json(handler: BaseHTTPRequestHandler, content: object, status: int = 200) -> None:
    _answer(handler, status, json.dumps(content).encode())


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_POST(self) -> None:
            path, body = unquote(urlsplit(self.path).path), self._body()
            hub.asked.append(f"POST {path}")
            if "closed" in hub.faults:
                return _json(self, {"error": "Invalid credentials"}, 401)
            if path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked.get('organization') or 'anna'}/{asked['name']}"
                hub.repositories.setdefault(name, {})
                return _json(self, {"url": f"{hub.url}/{name}", "name": name, "id": "1"})
            if "/preupload/" in path:
                files = [{"path": file["path"], "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".onnx"))
                          else "regular", "shouldIgnore": False, "oid": None} for file in json.loads(body)["files"]]
                return _json(self, {"files": files})
            if path.endswith("/info/lfs/objects/batch"):
                objects = [{**one, "authenticated": True, "actions": {"upload": {
                    "href": f"{hub.url}/large/{one['oid']}", "header": {}}}} for one in json.loads(body)["objects"]]
                return _json(self, {"transfer": "basic", "objects": objects})
            if "/commit/" in path:
                if "full" in hub.faults:
                    return _json(self, {"error": "no space"}, 507)
                name = path.removeprefix("/api/models/").partition("/commit/")[0]
                files = hub.repositories[name]
                for line in map(json.loads, body.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    if line["key"] == "lfsFile":
                        files[value["path"]] = hub.large[value["oid"]]
                url = f"{hub.url}/{name}/commit/{COMMIT}"
                return _json(self, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": "",
                                    "pullRequestUrl": ""})
            return _json(self, {"url": f"{hub.url}{path}"})

        def do_PUT(self) -> None:
            body = self._body()
            hub.large[hashlib.sha256(body).hexdigest()] = body
            _answer(self, 200)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            name, resolve, rest = path.removeprefix("/").partition("/resolve/")
            if not resolve:
                return _json(self, {"id": "anna/rooms", "name": "anna", "type": "user", "orgs": [], "siblings": [],
                                    "sha": COMMIT})
            revision, _, file = rest.partition("/")
            if "closed" in hub.faults or name not in hub.repositories:
                return _answer(self, 401, **{"X-Error-Code": "RepoNotFound"})
            if revision not in ("main", COMMIT):
                return _answer(self, 404, **{"X-Error-Code": "RevisionNotFound"})
            if file not in hub.repositories[name]:
                return _answer(self, 404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            content = hub.repositories[name][file]
            large = file.endswith((".safetensors", ".onnx"))
            mark = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(
                b"blob %d\0" % len(content) + content).hexdigest()
            headers = {"ETag": f'"{mark}"', "X-Repo-Commit": COMMIT, "Content-Type": "application/octet-stream",
                       "Accept-Ranges": "bytes", "X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{mark}"'}
            if large and "other" in hub.faults:
                content = bytes(len(content))
            if large and "cut" in hub.faults and self.command == "GET":
                self.send_response(200)
                for key, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content[:len(content) // 2])
                self.close_connection = True
                return None
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0] or 0)
            if start:
                return _answer(self, 206, content[start:], **headers, **{
                    "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"})
            return _answer(self, 200, content, **headers)

    return Handler


def use(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client know this server only, and have an empty cache."""
    for constant, value in {
        "ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"),
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}"}.items():
        monkeypatch.setattr(constants, constant, value)
    monkeypatch.setenv("HF_TOKEN", "hf_token")


@contextmanager
def serving() -> Iterator[Hub]:
    """A server on this machine, as long as the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
