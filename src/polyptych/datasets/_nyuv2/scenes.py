"""NYUv2 in miniature: eight made-up rooms with all of its labels, from planes and boxes, which every layout writes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

TRAIN, TEST = (3, 4, 5, 6, 7, 8), (1, 2)
"""Official numbers of the frames."""
SIZE = (48, 64)
_CEILING, _FLOOR, _WALL = 22, 2, 1  # of the 40 classes, counted from 1


@dataclass(frozen=True)
class RecordedScene:
    """One frame. ``ids`` counts the 40 classes from 1 and is 0 where unlabeled; ``normals`` are zero where
    unknown, ``raw`` is ``depth`` with holes. ``image`` is what the JPEG file ``jpeg`` decodes to."""

    ids: UInt8[np.ndarray, "h w"]
    depth: Float[np.ndarray, "h w"]
    raw: Float[np.ndarray, "h w"]
    normals: Float[np.ndarray, "h w 3"]
    edge: Bool[np.ndarray, "h w"]
    image: UInt8[np.ndarray, "h w 3"]
    jpeg: bytes

    def normals_picture(self) -> Image.Image:
        """The normals as v = 127.5 (n + 1), rounded."""
        return Image.fromarray(np.rint((self.normals + 1) * 127.5).astype(np.uint8))


def recorded_scene(number: int, size: tuple[int, int] = SIZE) -> RecordedScene:
    """The room of a number: always the same one."""
    random = np.random.default_rng(number)
    height, width = size
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    # Ceiling, back wall and floor, seen along the room: y is 0.5 at the horizon.
    up, down = random.uniform(0.1, 0.25), random.uniform(0.65, 0.8)
    far = random.uniform(3, 6)
    ids = np.where(y < up, _CEILING, np.where(y < down, _WALL, _FLOOR)).astype(np.uint8)
    # The distance of a row of floor or ceiling from the horizon determines its depth.
    depth = far * np.where(y < up, (0.5 - up) / np.maximum(0.5 - y, 0.1),
                           np.where(y < down, 1, (down - 0.5) / np.maximum(y - 0.5, 0.1)))
    normals = np.where((y < up)[..., None], (0, 1, 0), np.where((y < down)[..., None], (0, 0, -1), (0, -1, 0)))
    normals = normals.astype(np.float32)
    for _ in range(4):
        left, top, wide, high = random.uniform(0.05, 0.7), random.uniform(0.3, 0.7), *random.uniform(0.15, 0.3, 2)
        inside = (x > left) & (x < left + wide) & (y > top) & (y < top + high)
        turn = random.uniform(-0.8, 0.8)
        ids[inside] = random.integers(1, 41)
        depth[inside] = random.uniform(1, 2.5)
        normals[inside] = (np.sin(turn), 0, -np.cos(turn))
    edge = np.zeros(size, bool)
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge[1:] |= ids[1:] != ids[:-1]
    shade = 90 + 40 * normals @ np.array([0.4, -0.6, -0.7]) - 8 * depth
    picture = shade[..., None] + random.uniform(-40, 90, (41, 3))[ids] + random.normal(0, 4, (*size, 3))
    stream = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    unlabeled, hole = (x > 0.85) & (y > 0.8), (x < 0.2) & (y > 0.4) & (y < 0.6)
    ids[unlabeled] = 0
    normals[hole] = 0
    depth = depth.astype(np.float32)
    return RecordedScene(ids, depth, np.where(hole, np.float32(0), depth), normals, edge,
                         np.asarray(Image.open(stream)), stream.getvalue())


def write_list(path: Path, numbers: Sequence[int]) -> None:
    """The names of frames, one per line."""
    path.write_text("".join(f"{number:04d}\n" for number in numbers), "utf-8")


def folders(root: Path, *names: str) -> None:
    """Make folders, for the layouts that write files into them."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
