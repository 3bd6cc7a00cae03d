"""MTAN's arrays of 128x256 or 256x512, with 2, 7 or 19 classes and inverse depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polyptych.data.arrays import class_ids, flat, read_npy
from polyptych.datasets._cityscapes.classes import TABLES, VOID
from polyptych.datasets._cityscapes.layouts._base import CityscapesLayout
from polyptych.datasets._cityscapes.streets import FRAMES, StreetScene
from polyptych.datasets._mtan import MTANArrays
from polyptych.errors import InputError

_LABELS = {19: ("label_19",), 7: ("label_7", "label"), 2: ("label_2",)}  # LibMTL calls label_7 label


class MTANLayout(MTANArrays, CityscapesLayout):
    """``{train,val}/{image,depth,label_2,label_7,label_19}/I.npy``; ``label`` is read as ``label_7``, because LibMTL
    calls it that. The folder ``depth`` holds **inverse** depth: 0 is unknown, otherwise (inferred, the authors do not
    say) the 16-bit code of the official disparity divided by 65535.
    """

    looks_for = "train/image/ with .npy files and train/depth/ or train/label_*/"
    note = "128x256 or 256x512; label_2, label_7 (or label) and label_19; its depth is inverse depth"
    auto_order = 20
    tested_on = "mtan"
    semseg_note = "as stored; how the authors of MTAN grouped the classes is not documented"
    kinds = {"semseg": ("semseg",), "inverse_depth": ("inverse_depth",)}  # noqa: RUF012

    def __init__(self, config: Any):
        self.folders = {"image": "image", "inverse_depth": "depth",
                        "semseg": _label_folder(Path(config.root), config.classes)}
        super().__init__(config)

    @classmethod
    def matches(cls, root: Path) -> bool:
        labels = [name for names in _LABELS.values() for name in names]
        return (root / "train/image").is_dir() and any((root / "train" / n).is_dir() for n in ("depth", *labels))

    @classmethod
    def accept(cls, config: Any, tasks: tuple[str, ...]) -> None:
        root = Path(config.root)
        has = [classes for classes in _LABELS if (root / "train" / _label_folder(root, classes)).is_dir()]
        if "semseg" in tasks and has and config.classes not in has:
            raise InputError("classes of cityscapes", f"{config.classes}, for which {root} has no label folder",
                             f"one of {', '.join(map(str, has))}", f"set classes to {has[0]}")
        if config.inverse_depth == "pixels":
            raise InputError("inverse_depth of cityscapes", "'pixels' with the layout 'mtan'", "'fraction'",
                             "leave the option out, or use the official files")
        if "depth" in tasks:
            raise InputError("task 'depth'", "cityscapes in the layout 'mtan', which has no metric depth",
                             "the task inverse_depth", "replace depth by inverse_depth, or use the official files")

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        return class_ids(read_npy(path), path, lowest=0, highest=self.config.classes - 1, void=-1)

    def inverse_depth(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "inverse_depth")
        values = flat(read_npy(path), path)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN included
            raise InputError(path, f"values from {values.min():g} to {values.max():g}",
                             "inverse depth from 0 to 1", "check that the file belongs to this dataset")
        return values.astype(np.float32), values > 0

    @classmethod
    def write_fixture(cls, root: Path) -> None:
        """The scenes at half their size."""
        for split in ("train", "val"):
            for i, frame in enumerate(FRAMES[split]):
                scene = StreetScene(frame)
                arrays = {"image": (scene.image / 255).astype(np.float32),
                          "depth": (scene.codes / 65535).astype(np.float32)[..., None]}
                for classes, table in TABLES.items():
                    ids = table[scene.ids].astype(np.float32)
                    arrays[f"label_{classes}"] = np.where(ids == VOID, -1, ids)
                for folder, array in arrays.items():
                    (root / split / folder).mkdir(parents=True, exist_ok=True)
                    np.save(root / split / folder / f"{i}.npy", array[::2, ::2])


def _label_folder(root: Path, classes: int) -> str:
    names = _LABELS[classes]
    return next((name for name in names if (root / "train" / name).is_dir()), names[0])
