"""The server of the page: images in, scenes out; other sites, other hosts and other files are refused."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import polyptych
from polyptych.cli import main
from polyptych.errors import InputError
from polyptych.prediction.predictor import Predictor
from polyptych.tasks._base import CATALOG
from polyptych.types import LabelInfo

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


class Model:
    """The brightness of a pixel decides its class and depth."""

    size, fixed = None, False

    def __init__(self, caption: str, *names: str, nearer: float = 1.0):
        labels = LabelInfo(classes=("dark", "light"))
        self.tasks = {name: CATALOG.load(name).Config().build(labels=labels) for name in names}
        self.caption, self.nearer, self.calls = caption, nearer, 0

    def raw(self, images):
        self.calls += 1
        light = images.float().mean(1, keepdim=True) / 255
        known = {"semseg": torch.cat([1 - light, light], 1), "depth": (1 + light) / self.nearer}
        return {name: known[name] for name in self.tasks}


@pytest.fixture(scope="module")
def site():
    """Address of a server with two models, and the models."""
    from polyptych.viewer.server import create_app

    models = [Model("first", "semseg", "depth"), Model("second", "depth", nearer=2.0)]
    config = uvicorn.Config(create_app([Predictor(model) for model in models], limit=1), host="127.0.0.1", port=0,
                            log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1], models
    server.should_exit = True
    thread.join(10)


def request(port, method, path, body=None, headers=None):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read(), response.headers


def ask(port, path, method="GET", body=None, headers=None):
    status, data, _ = request(port, method, path, body, headers)
    return status, json.loads(data)


def png(array) -> bytes:
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


def picture(height=30, width=40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def opened(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def test_the_page_and_its_files(site) -> None:
    port, _ = site
    for path, kind in (("/", "text/html"), ("/static/page.js", "javascript"), ("/static/style.css", "text/css"),
                       ("/static/icon.svg", "image/svg")):
        status, data, headers = request(port, "GET", path)
        assert status == 200 and data and kind in headers["content-type"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    page = request(port, "GET", "/")[1].decode()
    assert "http://" not in page and "https://" not in page, "nothing comes from elsewhere"


def test_models(site) -> None:
    status, said = ask(site[0], "/api/models")
    assert status == 200 and [m["caption"] for m in said["models"]] == ["first", "second"]
    semseg, depth = said["models"][0]["tasks"]
    assert [entry["name"] for entry in semseg["legend"]["entries"]] == ["dark", "light"]
    assert depth["unit"] == "m" and depth["legend"]["continuous"] and said["limit"] == 2**20


def test_a_scene(site) -> None:
    port, models = site
    array = picture()
    status, added = ask(port, "/api/images?name=a.png", "POST", png(array))
    assert status == 200 and (added["width"], added["height"]) == (40, 30)
    place = f"/api/images/{added['id']}"
    assert np.array_equal(opened(request(port, "GET", place)[1]), array)
    before = models[0].calls
    status, scene = ask(port, f"{place}/models/0")
    assert status == 200 and scene["tasks"] == ["semseg", "depth"] and scene["seconds"] > 0
    expected = Predictor(models[0]).predict(array)
    light = int((expected.semseg == 1).sum())
    assert scene["occurring"] == {"semseg": [1, 0] if 2 * light > expected.semseg.size else [0, 1]}
    for task in expected.tasks:
        assert np.array_equal(opened(request(port, "GET", f"{place}/models/0/tasks/{task}")[1]), expected.layer(task))
        plain = opened(request(port, "GET", f"{place}/models/0/tasks/{task}?plain=1")[1])
        assert np.array_equal(plain, expected.panel(task))
    for x, y in ((0, 0), (39, 29), (7, 20)):
        _, answer = ask(port, f"{place}/models/0/at?x={x}&y={y}")
        assert answer["values"] == {"semseg": ("dark", "light")[expected.semseg[y, x]],
                                    "depth": f"{expected.depth[y, x]:.2f} m"}
    assert models[0].calls == before + 2, "one for the page, one for this test: a scene is predicted once"
    _, other = ask(port, f"{place}/models/1/at?x=7&y=20")
    assert other["values"] == {"depth": f"{expected.depth[20, 7] / 2:.2f} m"}


def test_a_large_image_is_reduced(site) -> None:
    _, added = ask(site[0], "/api/images", "POST", png(np.zeros((30, 4100, 3), np.uint8)))
    assert added["original"] == [4100, 30] and added["width"] == 2048 and added["height"] == 15


@pytest.mark.parametrize(("path", "status"), [
    ("/api/images/nobody", 404), ("/api/images/nobody/models/0", 404), ("/api/images/ID/models/7", 404),
    ("/api/images/ID/models/0/tasks/dept", 400), ("/api/images/ID/models/0/at", 400),
    ("/api/images/ID/models/0/at?x=1&y=one", 400), ("/api/images/ID/models/0/at?x=99&y=1", 400),
    ("/api/images/ID/models/0/at?x=-1&y=1", 400)])
def test_questions_without_an_answer(site, path: str, status: int) -> None:
    port, _ = site
    name = ask(port, "/api/images", "POST", png(picture()))[1]["id"]
    got, said = ask(port, path.replace("ID", name))
    assert got == status and said["error"] and "\n" not in said["error"]


@pytest.mark.parametrize("path", ["/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py",
                                  "/static//etc/passwd", "/nothing"])
def test_no_other_file(site, path: str) -> None:
    assert request(site[0], "GET", path)[0] == 404


@pytest.mark.parametrize("body", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 60, b"<svg onload='x'/>"])
def test_what_is_no_image(site, body: bytes) -> None:
    status, said = ask(site[0], "/api/images", "POST", body)
    assert status == 400 and said["error"].startswith("image: got an unreadable file")


def test_too_many_bytes(site) -> None:
    port, _ = site
    status, said = ask(port, "/api/images", "POST", b"\0" * (2**20 + 1))
    assert status == 413 and "more than 1 MiB" in said["error"]
    assert ask(port, "/api/images", "POST", png(picture()))[0] == 200


def test_too_many_bytes_without_a_stated_length() -> None:
    """Reading stops as soon as it is too much, however long the body would be."""
    from starlette.requests import Request

    from polyptych.viewer.server import _body

    read = 0

    async def endless():
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"\0" * 1000, "more_body": read < 10}

    def body(most):
        nonlocal read
        read = 0
        return asyncio.run(_body(Request({"type": "http", "headers": []}, endless), most))

    assert body(10_000) == b"\0" * 10_000 and read == 10
    assert body(9_999) is None and body(3_500) is None and read == 4
    assert asyncio.run(_body(Request({"type": "http", "headers": [(b"content-length", b"-1")]}, endless), 99)) is None


def test_a_small_file_that_claims_to_be_huge(site) -> None:
    data = io.BytesIO()
    Image.new("1", (20000, 20000)).save(data, "PNG")
    assert len(data.getvalue()) < 2**20
    status, said = ask(site[0], "/api/images", "POST", data.getvalue())
    assert status == 400 and said["error"].startswith("image: got")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_foreign_name_for_this_machine(site, host: str) -> None:
    """DNS rebinding: another site's name that resolves to 127.0.0.1."""
    port, _ = site
    for method, path in (("GET", "/"), ("GET", "/api/models"), ("POST", "/api/images")):
        assert request(port, method, path, b"" if method == "POST" else None, {"Host": host})[0] == 400
    assert request(port, "GET", "/", None, {"Host": f"localhost:{port}"})[0] == 200


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"},
                                     {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}])
def test_requests_of_other_pages(site, headers) -> None:
    port, _ = site
    assert request(port, "POST", "/api/images", png(picture()), headers)[0] == 403
    assert request(port, "GET", "/api/models", None, headers)[0] == 403
    assert request(port, "GET", "/", None, headers)[0] == 200, "a link to the page may stand anywhere"
    own = {"Origin": f"http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}
    assert request(port, "POST", "/api/images", png(picture()), own)[0] == 200


def test_only_so_many_images_are_held(site) -> None:
    port, _ = site
    names = [ask(port, "/api/images", "POST", png(picture()))[1]["id"] for _ in range(9)]
    assert ask(port, f"/api/images/{names[0]}/models/0")[0] == 404
    assert request(port, "GET", f"/api/images/{names[-1]}")[0] == 200


def test_a_port_that_is_taken(site) -> None:
    from polyptych.viewer.server import serve

    with pytest.raises(InputError, match=f"--port: got {site[0]} "):
        serve([], port=site[0])
    with pytest.raises(InputError, match="--port"):
        serve([], port=70000)


@pytest.mark.parametrize(("arguments", "part"), [
    (["/nowhere"], "/nowhere: got no such file or folder"), ([], "view"), (["/nowhere", "--limit", "0"], "--limit"),
    (["/nowhere", "--prot", "1"], "nearest: --port")])
def test_bad_arguments_are_one_line(capsys, arguments, part) -> None:
    assert main(["view", *arguments]) == 2
    said = capsys.readouterr().err
    assert part in said and said.count("\n") == 1


def test_without_the_packages(capsys, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["view", "/nowhere"]) == 2
    assert "pip install 'polyptych[view]'" in capsys.readouterr().err
    assert polyptych.load  # nothing else is missing
