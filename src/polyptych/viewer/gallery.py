"""The contents of the page: models, dropped images, and the scenes predicted from them."""

from __future__ import annotations

import io
import secrets
import struct
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from polyptych.data.pictures import as_rgb, identify, upright
from polyptych.errors import InputError
from polyptych.prediction.inputs import Pixels
from polyptych.prediction.predictor import Predictor
from polyptych.prediction.scene import Scene
from polyptych.tasks._pictures import Legend

LARGEST_SIDE = 2048
"""Maximum pixels of the longer side; larger images are reduced on arrival, because a few of them would fill the
memory."""
LARGEST_IMAGE = 100_000_000
"""Maximum pixels of an image that is opened at all: a file of a few kilobytes may claim to be far larger."""
FORMS = "JPEG, PNG, WebP, GIF, BMP or TIFF"
HELD = 8
"""Number of images and scenes that are kept."""

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Drop:
    """A dropped image: its pixels as shown and predicted, and its original size (h, w)."""

    id: str
    pixels: Pixels
    original: tuple[int, int]


@dataclass(frozen=True)
class Exhibit:
    """A scene, and the seconds that its prediction took."""

    scene: Scene
    seconds: float


class Recent(Generic[Key, Value]):
    """A cache of the most recently used entries."""

    def __init__(self, most: int):
        self._most, self._entries = most, OrderedDict[Key, Value]()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Key, value: Value) -> None:
        with self._lock:
            self._entries[key] = value
            while len(self._entries) > self._most:
                self._entries.popitem(last=False)


class Gallery:
    """The state of the server. Its methods are thread-safe.

    Args:
        predictors: one for every model that the page offers.
    """

    def __init__(self, predictors: Sequence[Predictor]):
        self.predictors = list(predictors)
        self._busy = [threading.Lock() for _ in self.predictors]
        self._drops: Recent[str, Drop] = Recent(HELD)
        self._exhibits: Recent[tuple[str, int], Exhibit] = Recent(HELD)

    def describe(self) -> list[dict[str, Any]]:
        """Caption and tasks of every model, for the page."""
        return [{"caption": predictor.model.caption, "tasks": [
            {"name": name, "unit": task.unit, "legend": _legend(task.legend()), "layer": _legend(task.layer_legend())}
            for name, task in predictor.tasks.items()]} for predictor in self.predictors]

    def add(self, data: bytes, name: str = "") -> Drop:
        """Take an image file.

        Raises:
            InputError: it is not an image, or too large.
        """
        array, original = _opened(data)
        drop = Drop(secrets.token_urlsafe(12), Pixels(array, name), original)
        self._drops.put(drop.id, drop)
        return drop

    def drop(self, image: str) -> Drop:
        """A dropped image by its name.

        Raises:
            KeyError: there is no such image, or it was evicted by later ones.
        """
        found = self._drops.get(image)
        if found is None:
            raise KeyError(image)
        return found

    def exhibit(self, image: str, model: int) -> Exhibit:
        """The scene of an image and a model; predicted only once.

        Raises:
            KeyError: no such image or model.
        """
        if not 0 <= model < len(self.predictors):
            raise KeyError(model)
        drop = self.drop(image)
        with self._busy[model]:
            found = self._exhibits.get((image, model))
            if found is None:
                start = time.perf_counter()
                scene = self.predictors[model].predict(drop.pixels)
                found = Exhibit(replace(scene, name=drop.pixels.name), time.perf_counter() - start)
                self._exhibits.put((image, model), found)
        return found


def png(picture: UInt8[np.ndarray, "h w _"]) -> bytes:
    """RGB or RGBA as a PNG file, compressed fast rather than small, because it stays on this machine."""
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG", compress_level=1)
    return data.getvalue()


def _legend(legend: Legend) -> dict[str, Any]:
    return {"continuous": legend.continuous,
            "entries": [{"name": name, "color": list(color)} for name, color in legend.entries]}


def _opened(data: bytes) -> tuple[np.ndarray, tuple[int, int]]:
    try:
        with identify(io.BytesIO(data), "image", FORMS) as image:
            if image.width * image.height > LARGEST_IMAGE:
                raise InputError("image", f"{image.width} x {image.height} pixels",
                                 f"at most {LARGEST_IMAGE // 10**6} million", "reduce it first")
            picture = as_rgb(upright(image), "image")
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise InputError("image", f"an unreadable file ({error})", FORMS, "drop another file") from None
    original = (picture.height, picture.width)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BICUBIC)
    return np.array(picture), original
