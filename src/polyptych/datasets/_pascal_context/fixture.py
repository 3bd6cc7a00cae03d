"""Made-up photographs in the folders of PASCAL_MT: a few small ones of different sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

TRAIN = [f"2008_{i:06d}" for i in (2, 3, 15, 19, 23, 28)]
VAL = ["2008_000008", "2008_000026", "2010_000001"]
_SIZES = ((60, 80), (80, 60), (54, 80))
_IN_CONTEXT_ONLY = {"2008_000003", "2008_000026"}  # no VOC segmentation
_CONTEXT = (9, 25, 45, 59, 113, 284, 308, 431)  # context classes, four with normals (59 is a car) and four without

Part = tuple[str, np.ndarray]
Thing = tuple[str, int, np.ndarray, list[Part]]


class Photograph:
    """One made-up image with its labels.

    ``things`` are the objects of the part annotation: a car, then persons as ``persons`` counts; the second one
    overlaps the first, and the third has no parts.
    """

    def __init__(self, name: str):
        place = [*TRAIN, *VAL].index(name)
        g = np.random.default_rng(place)
        h, w = self.size = _SIZES[place % 3]
        self.persons = place % 4
        self.context = np.repeat(np.repeat(g.choice(_CONTEXT, (3, 4)), -(-h // 3), 0), -(-w // 4), 1)[:h, :w]
        self.context = self.context.astype(np.uint16)
        self.semseg = np.where(self.context == 59, 7, 0).astype(np.uint8)
        self.semseg[self._box(0.8, 0.8, 0.1, 0.3)] = 255
        self.things: list[Thing] = [("car", 7, self._box(0, 0, 0.3, 0.3), [("wheel", self._box(0.2, 0, 0.1, 0.1))])]
        for person in range(self.persons):
            self.things.append(self._person(person))
            self.semseg[self.things[-1][2]] = 15
        self.salient = np.clip(g.integers(0, 60, (h, w)) + 180 * (self.semseg > 0), 0, 255).astype(np.uint8)
        slope = np.stack([np.linspace(-0.5, 0.5, w)[None].repeat(h, 0), np.linspace(-0.5, 0.5, h)[:, None].repeat(w, 1),
                          np.full((h, w), -1.0)], -1)
        self.normals = slope / np.linalg.norm(slope, axis=-1, keepdims=True)
        self.image = np.clip(self.context[..., None] % [97, 53, 71] * 2 + 60 * (self.semseg == 15)[..., None], 0, 255)
        self.image = self.image.astype(np.uint8)

    def _person(self, number: int) -> Thing:
        left = 0.35 + 0.12 * number
        whole = self._box(0.1, left, 0.85, 0.25)
        parts = [("head", self._box(0.1, left, 0.2, 0.25)), ("lear", self._box(0.15, left, 0.05, 0.05)),
                 ("torso", self._box(0.3, left, 0.3, 0.25)), ("ruarm", self._box(0.3, left, 0.15, 0.08)),
                 ("rhand", self._box(0.45, left, 0.1, 0.08)), ("luleg", self._box(0.6, left, 0.2, 0.25)),
                 ("lfoot", self._box(0.8, left, 0.15, 0.25))]
        return "person", 15, whole, parts if number < 2 else []

    def _box(self, top: float, left: float, height: float, width: float) -> np.ndarray:
        h, w = self.size
        mask = np.zeros((h, w), bool)
        mask[round(top * h):round((top + height) * h), round(left * w):round((left + width) * w)] = True
        return mask


def annotation(things: list[Thing]) -> dict[str, np.ndarray]:
    """The variable ``anno`` of a file in ``human_parts/``, as PASCAL-Part has it."""
    objects = np.empty((1, len(things)), [(name, object) for name in ("class", "class_ind", "mask", "parts")])
    for k, (name, index, mask, own) in enumerate(things):
        parts = np.empty((1, len(own)), [("part_name", object), ("mask", object)])
        for j, (part, area) in enumerate(own):
            parts[0, j] = (part, area.astype(np.uint8))
        objects[0, k] = (name, np.uint8(index), mask.astype(np.uint8), parts if own else np.empty((0, 0)))
    anno = np.empty((1, 1), [("imname", object), ("objects", object)])
    anno[0, 0] = ("made up", objects)
    return {"anno": anno}


def write_pascal_mt(root: Path) -> None:
    """The unpacked PASCAL_MT."""
    for folder in ("ImageSets/Context", "JPEGImages", "pascal-context/trainval", "semseg/VOC12",
                   "semseg/pascal-context", "human_parts", "normals_distill", "sal_distill"):
        (root / folder).mkdir(parents=True)
    for split, names in (("train", TRAIN), ("val", VAL), ("trainval", sorted([*TRAIN, *VAL]))):
        (root / f"ImageSets/Context/{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    for name in [*TRAIN, *VAL]:
        photograph = Photograph(name)
        Image.fromarray(photograph.image).save(root / f"JPEGImages/{name}.jpg", quality=95)
        savemat(root / f"pascal-context/trainval/{name}.mat", {"LabelMap": photograph.context}, do_compression=True)
        semseg = Image.fromarray(photograph.semseg)
        semseg.putpalette([(37 * i + 11 * channel * i) % 256 for i in range(256) for channel in range(3)])
        semseg.save(root / "semseg" / ("pascal-context" if name in _IN_CONTEXT_ONLY else "VOC12") / f"{name}.png")
        savemat(root / f"human_parts/{name}.mat", annotation(photograph.things), do_compression=True)
        encoded = np.rint((photograph.normals + 1) * 127.5).astype(np.uint8)
        Image.fromarray(encoded).save(root / f"normals_distill/{name}.png")
        Image.fromarray(photograph.salient).save(root / f"sal_distill/{name}.png")


LAYOUTS: dict[str, Callable[[Path], None]] = {"pascal_mt": write_pascal_mt}
