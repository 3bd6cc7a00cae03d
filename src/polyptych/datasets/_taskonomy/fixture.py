"""Taskonomy in miniature: every building of Tiny with two made-up views, in either order of folders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from polyptych.datasets._taskonomy.buildings import BUILDINGS
from polyptych.datasets._taskonomy.views import DOMAINS, Order, Views

SIZE = (24, 32)
NAMES = ("point_2_view_0", "point_10_view_1")
"""In the order in which they are read, which is not alphabetical."""


def pictures(building: str, name: str) -> dict[str, np.ndarray]:
    """All files of one view, as stored: a tilted wall with a hole in the scan."""
    random = np.random.default_rng([*building.encode(), *name.encode()])
    y, x = np.mgrid[:SIZE[0], :SIZE[1]] / np.array(SIZE)[:, None, None]
    hole = (x - random.uniform(0.3, 0.7)) ** 2 + (y - random.uniform(0.3, 0.7)) ** 2 < 0.02
    turn = random.uniform(-1, 1)
    ids = random.integers(1, 18, (3, 4)).repeat(SIZE[0] // 3, 0).repeat(SIZE[1] // 4, 1)
    ids[:, SIZE[1] // 2] = 0  # uncertain
    normal = np.rint(127.5 * (np.array([np.sin(turn), 0, np.cos(turn)]) + 1)) * np.ones((*SIZE, 1))
    return {
        "image": (np.stack([x, y, ids / 17], -1) * 255).astype(np.uint8),
        "semseg": ids.astype(np.uint8),
        "depth": np.where(hole, 65535, 512 * (random.uniform(1.5, 4) + turn * x)).astype(np.uint16),
        "normals": np.where(hole[..., None], 127, normal).astype(np.uint8),
        "keypoints2d": random.integers(0, 600, SIZE).astype(np.uint16),
        "edge_texture": random.integers(0, 8000, SIZE).astype(np.uint16),
    }


def write(root: Path, order: Order) -> None:
    """All domains of all buildings."""
    views = Views(root, order)
    for building in (building for part in BUILDINGS.values() for building in part):
        for kind in DOMAINS:
            views.folder(building, kind).mkdir(parents=True)
        for name in NAMES:
            for kind, array in pictures(building, name).items():
                Image.fromarray(array).save(views.path(f"{building}/{name}", kind))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "buildings": partial(write, order="buildings"), "domains": partial(write, order="domains")}
