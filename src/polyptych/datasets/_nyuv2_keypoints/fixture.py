"""Frames of rooms with keypoints in miniature: six made-up scenes, the keypoints as points and as heat maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from polyptych.datasets._nyuv2.scenes import recorded_scene
from polyptych.datasets._nyuv2_keypoints.types import COUNT

TRAIN, TEST = (1, 2, 3, 4, 5), (6,)
"""Numbers of the scenes."""
FRAMES = 3
"""Frames of each scene."""
SIZE = (48, 64)
CELLS = (12, 16)


def keypoints(number: int) -> Float[np.ndarray, "k 3"]:
    """x, y and visibility of every type in frame ``number``; about one in eight is visible."""
    random = np.random.default_rng(number)
    xy = random.uniform(0, 1, (COUNT, 2)) * (SIZE[1] - 1, SIZE[0] - 1)
    visible = random.random((COUNT, 1)) < 0.125
    return np.concatenate([xy * visible, visible], -1).astype(np.float32)


def heat_maps(points: Float[np.ndarray, "k 3"]) -> Float[np.ndarray, "k h w"]:
    """A Gaussian of height 1 and one cell's standard deviation at every visible keypoint."""
    rows, columns = np.mgrid[:CELLS[0], :CELLS[1]]
    x = (points[:, 0, None, None] + 0.5) * CELLS[1] / SIZE[1] - 0.5
    y = (points[:, 1, None, None] + 0.5) * CELLS[0] / SIZE[0] - 0.5
    heat = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 2) * points[:, 2, None, None]
    return heat.astype(np.float32)


def write(root: Path, layout: str) -> None:
    for part, scenes in (("train", TRAIN), ("test", TEST)):
        (root / f"{part}.txt").write_text("".join(
            f"scene_{number}/{frame:04d}\n" for number in scenes for frame in range(FRAMES)), encoding="utf-8")
    for number in TRAIN + TEST:
        for kind in ("image", "keypoints", "depth", "normals"):
            (root / kind / f"scene_{number}").mkdir(parents=True)
        for frame in range(FRAMES):
            name, points = f"scene_{number}/{frame:04d}", keypoints(100 * number + frame)
            scene = recorded_scene(number, SIZE)
            (root / f"image/{name}.jpg").write_bytes(scene.jpeg)
            np.save(root / f"keypoints/{name}.npy", points if layout == "points" else heat_maps(points))
            np.save(root / f"depth/{name}.npy", scene.raw)
            np.save(root / f"normals/{name}.npy", scene.normals)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    layout: partial(write, layout=layout) for layout in ("points", "heat_maps")}
