"""Made-up NYUv2 frames on disk, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TRAIN, TEST = ["0003", "0004", "0007", "0008", "0010"], ["0001", "0002"]


class Frame:
    """One made-up frame: 48x64, four blocks of classes parted by void seams, an unlabeled area, depth holes."""

    def __init__(self, name: str, height: int = 48, width: int = 64):
        g = np.random.default_rng(int(name))
        self.image = g.integers(0, 256, (height, width, 3), np.uint8)
        self.ids = np.repeat(np.repeat(g.permutation(40)[:4].reshape(2, 2), height // 2, 0), width // 2, 1)
        self.labeled = np.ones((height, width), bool)
        self.labeled[:, width // 2 - 1:width // 2 + 1] = False
        self.labeled[-12:, -16:] = False
        self.code = g.integers(20, 200, (height, width), np.uint8)
        normals = g.normal(size=(height, width, 3))
        self.normals = (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32)
        self.edge = g.random((height, width)) > 0.9

    @property
    def depth(self) -> np.ndarray:
        return ((self.code + 0.5) / 25.5).astype(np.float32)


def write_folder(root: Path, packing: str = "npy") -> Path:
    """NYUD_MT as the survey packed it, with a gap in the official numbers."""
    for folder in ("images", "segmentation", "depth", "normals", "edge", "gt_sets"):
        (root / folder).mkdir(parents=True)
    (root / "gt_sets/train.txt").write_text("\n".join(TRAIN))
    (root / "gt_sets/val.txt").write_text("\n".join(TEST) + "\n")
    for name in TRAIN + TEST:
        frame = Frame(name)
        # PNG under the customary name for JPEG keeps the values exact; the decoder looks at the content.
        Image.fromarray(frame.image).save(root / f"images/{name}.jpg", "PNG")
        ids = np.where(frame.labeled, frame.ids + 1, 0).astype(np.uint8)
        Image.fromarray(ids).save(root / f"segmentation/{name}.png")
        np.save(root / f"depth/{name}.npy", frame.depth)
        np.save(root / f"normals/{name}.npy", frame.normals)
        np.save(root / f"edge/{name}.npy", frame.edge.astype(np.uint8))
    return root


def damage(path: Path, how: str) -> None:
    if how == "truncate":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "text":
        path.write_text("not what it seems")
    elif how == "empty":
        path.write_bytes(b"")
    elif path.suffix == ".npy":
        array = np.load(path)
        np.save(path, {"class": np.where(array >= 0, 57, array), "small": array[:-2], "large": array * 200,
                       "half": np.where(array >= 0, 3.5, array), "objects": np.array([None])}[how])
    else:
        array = np.asarray(Image.open(path)).copy()
        Image.fromarray({"class": np.where(array < 40, 57, array).astype(np.uint8), "small": array[:-2],
                         "color": np.stack([array] * 3, -1)}[how]).save(path)
