"""Made-up street scenes in both layouts of Cityscapes, a few small frames each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from polyptych.datasets._cityscapes.classes import TABLES, VOID

SIZE = (64, 128)
FRAMES = {
    "train": [f"{city}_{sequence:06d}_000019" for city in ("aachen", "bochum", "jena") for sequence in range(3)],
    "val": ["frankfurt_000000_000294", "frankfurt_000001_007973", "munster_000000_000019"],
    "test": ["berlin_000000_000019"],
}
CAMERA = {
    "extrinsic": {"baseline": 0.209313, "pitch": 0.038, "roll": 0.0, "x": 1.7, "y": 0.1, "yaw": -0.0195, "z": 1.22},
    "intrinsic": {"fx": 2262.52, "fy": 2265.3, "u0": 1096.98, "v0": 513.137},
}


class Scene:
    """One made-up frame. ``ids`` holds all 34 label ids, ``codes`` the disparities 0 (unknown), 1 (infinitely
    far), 257 (one pixel), 32257 (the largest) and whatever comes between."""

    def __init__(self, frame: str):
        g = np.random.default_rng([ord(letter) for letter in frame])
        height, width = SIZE
        self.ids = np.repeat(np.repeat(g.permutation(34).repeat(2)[:64].reshape(8, 8), 8, 0), 16, 1).astype(np.uint8)
        self.ids[-1, :68] = np.arange(34).repeat(2)
        self.image = np.clip(self.ids[..., None] * [7, 5, 3] + g.integers(0, 40, (height, width, 3)), 0, 255)
        self.image = self.image.astype(np.uint8)
        ramp = np.linspace(0, 1, height)[:, None] ** 2 * 32000
        self.codes = (ramp + g.integers(258, 500, (height, width))).astype(np.uint16)
        self.codes[0, :8] = np.array([0, 1, 257, 32257]).repeat(2)


def write_official(root: Path) -> None:
    """The unpacked archives, with a test split whose labels are dummies."""
    for split, frames in FRAMES.items():
        for frame in frames:
            scene = Scene(frame)
            ids = scene.ids if split != "test" else np.zeros(SIZE, np.uint8)
            city = frame.split("_")[0]

            def place(package: str, ending: str, split: str = split, city: str = city, frame: str = frame) -> Path:
                folder = root / package / split / city
                folder.mkdir(parents=True, exist_ok=True)
                return folder / f"{frame}_{ending}"

            Image.fromarray(scene.image).save(place("leftImg8bit", "leftImg8bit.png"))
            Image.fromarray(ids).save(place("gtFine", "gtFine_labelIds.png"))
            Image.fromarray(ids.astype(np.uint16)).save(place("gtFine", "gtFine_instanceIds.png"))
            Image.fromarray(scene.codes).save(place("disparity", "disparity.png"))
            place("camera", "camera.json").write_text(json.dumps(CAMERA, indent=4))


def write_mtan(root: Path) -> None:
    """The same scenes at half the size, as the authors of MTAN store them."""
    for split in ("train", "val"):
        for i, frame in enumerate(FRAMES[split]):
            scene = Scene(frame)

            def save(kind: str, array: np.ndarray, split: str = split, i: int = i) -> None:
                folder = root / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                np.save(folder / f"{i}.npy", array[::2, ::2])

            save("image", (scene.image / 255).astype(np.float32))
            save("depth", (scene.codes / 65535).astype(np.float32)[..., None])
            for classes, table in TABLES.items():
                ids = table[scene.ids].astype(np.float32)
                save(f"label_{classes}", np.where(ids == VOID, -1, ids))


LAYOUTS: dict[str, Callable[[Path], None]] = {"official": write_official, "mtan": write_mtan}
