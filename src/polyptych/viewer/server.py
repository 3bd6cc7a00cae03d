"""The server behind the page: on this machine only, for this page only.

It binds to 127.0.0.1. Another site's page open in the same browser can reach that address too. So requests must name
this host (a foreign name that resolves to 127.0.0.1 is refused), requests that change anything must come from our own
page, and images have random names.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyptych.errors import InputError
from polyptych.prediction.predictor import Predictor
from polyptych.tasks._pictures import by_area
from polyptych.viewer.gallery import Gallery, png

HOST = "127.0.0.1"
STATIC = Path(__file__).parent / "static"
MEBIBYTE = 2**20
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
                               "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
                               "frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Refuses requests from other sites' pages, and adds security headers."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin, own = headers.get("origin"), f"http://{headers.get('host', '')}"
        foreign = (origin is not None and origin != own) or headers.get("sec-fetch-site", "none") not in (
            "none", "same-origin")
        if scope["method"] == "GET" and scope["path"] == "/":
            foreign = False  # a link to the page may be anywhere

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"],
                                      *((name.encode(), value.encode()) for name, value in HEADERS.items())]
            await send(message)

        if foreign:
            await _error("a request from another site's page", 403)(scope, receive, careful)
        else:
            await self.app(scope, receive, careful)


def create_app(predictors: Sequence[Predictor], limit: int = 32) -> Starlette:
    """The application.

    Args:
        predictors: the models that can be switched between.
        limit: maximum size of an image file in MiB.
    """
    gallery = Gallery(predictors)
    most = limit * MEBIBYTE

    def index(_: Request) -> Response:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    def models(_: Request) -> Response:
        return JSONResponse({"models": gallery.describe(), "limit": most})

    async def add(request: Request) -> Response:
        data = await _body(request, most)
        if data is None:
            return _error(f"a file of more than {limit} MiB; reduce it first", 413)
        drop = await run_in_threadpool(gallery.add, data, request.query_params.get("name", "")[:200])
        (height, width), original = drop.pixels.size, drop.original
        return JSONResponse({"id": drop.id, "width": width, "height": height, "original": original[::-1]})

    def image(request: Request) -> Response:
        return _picture(png(gallery.drop(request.path_params["image"]).pixels.array))

    def scene(request: Request) -> Response:
        found = gallery.exhibit(request.path_params["image"], request.path_params["model"])
        areas = {task: found.scene.areas(task) for task in found.scene.tasks}
        occurring = {task: by_area(pixels) for task, pixels in areas.items() if pixels is not None}
        return JSONResponse({"tasks": list(found.scene.tasks), "seconds": found.seconds, "occurring": occurring})

    def layer(request: Request) -> Response:
        found = gallery.exhibit(request.path_params["image"], request.path_params["model"]).scene
        task = request.path_params["task"]
        return _picture(png(found.panel(task) if request.query_params.get("plain") == "1" else found.layer(task)))

    def value(request: Request) -> Response:
        found = gallery.exhibit(request.path_params["image"], request.path_params["model"]).scene
        try:
            x, y = (int(request.query_params[name]) for name in "xy")
        except (KeyError, ValueError):
            return _error("no whole numbers x and y", 400)
        return JSONResponse({"x": x, "y": y, "values": {task: found.at(task, x, y) for task in found.tasks}})

    place = "/api/images/{image:str}"
    return Starlette(
        routes=[Route("/", index), Mount("/static", StaticFiles(directory=STATIC)), Route("/api/models", models),
                Route("/api/images", add, methods=["POST"]), Route(place, image),
                Route(place + "/models/{model:int}", scene), Route(place + "/models/{model:int}/at", value),
                Route(place + "/models/{model:int}/tasks/{task:str}", layer)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]), Middleware(Guard)],
        exception_handlers={InputError: lambda _, error: _error(str(error), 400),
                            KeyError: lambda _, error: _error("no such image (any more); drop it again", 404)})


def serve(predictors: Sequence[Predictor], port: int = 0, limit: int = 32, say: Any = print) -> None:
    """Serve the page until Ctrl-C.

    Args:
        port: 0 takes a free port.
        say: called with the address once the server listens.

    Raises:
        InputError: the port is not available.
    """
    listener = socket.socket()
    # Allows reusing a port right after it was released.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise InputError("--port", f"{port} ({getattr(error, 'strerror', None) or error})", "a free port",
                         "choose another, or leave it out") from None
    with contextlib.closing(listener):
        listener.listen()  # from here on, a browser waits instead of being refused
        say(f"http://{HOST}:{listener.getsockname()[1]}/")
        config = uvicorn.Config(create_app(predictors, limit), log_level="warning", access_log=False,
                                server_header=False)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


async def _body(request: Request, most: int) -> bytes | None:
    """The body, or None as soon as it is too long."""
    claimed = request.headers.get("content-length", "0")
    if not claimed.isdigit() or int(claimed) > most:
        return None
    parts, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length > most:
            return None
        parts.append(part)
    return b"".join(parts)


def _picture(data: bytes) -> Response:
    # Its name is random and its content never changes.
    return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=3600, immutable"})


def _error(text: str, status: int) -> Response:
    return Response(json.dumps({"error": text}), status, media_type="application/json")
