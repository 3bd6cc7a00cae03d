"""NYUv2 in miniature: the same eight made-up rooms in every layout, for tests and for trying things out."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from scipy.io import savemat

from polyptych.datasets._nyuv2.classes import FORTY_TO_THIRTEEN
from polyptych.datasets._nyuv2.official_labels import TO_FORTY
from polyptych.datasets._nyuv2.scenes import Scene, scene

TRAIN, TEST = (3, 4, 5, 6, 7, 8), (1, 2)
"""Official numbers."""
SIZE = (48, 64)


def write_nyud_mt(root: Path, packing: str) -> None:
    """``images/ segmentation/ depth/ normals/ edge/ gt_sets/`` as ``astmt``, ``survey`` or ``invpt`` has them."""
    _folders(root, "images", "segmentation", "depth", "normals", "edge", "gt_sets")
    for part, numbers in (("train", TRAIN), ("val", TEST)):
        (root / f"gt_sets/{part}.txt").write_text("".join(f"{number:04d}\n" for number in numbers))
    for number in TRAIN + TEST:
        name, room = f"{number:04d}", scene(number, SIZE)
        if packing == "invpt":
            Image.fromarray(room.image).save(root / f"images/{name}.png")
        else:
            (root / f"images/{name}.jpg").write_bytes(room.jpeg)
        if packing == "astmt":
            savemat(root / f"segmentation/{name}.mat", {"segmentation": room.ids})
            savemat(root / f"depth/{name}.mat", {"depth": room.depth})
            _normals(room).save(root / f"normals/{name}.jpg", quality=95, subsampling=0)
        else:
            Image.fromarray(room.ids).save(root / f"segmentation/{name}.png")
            np.save(root / f"depth/{name}.npy", room.depth)
        if packing == "survey":
            np.save(root / f"normals/{name}.npy", room.normals)
            np.save(root / f"edge/{name}.npy", room.edge.astype(np.uint8))
        else:
            Image.fromarray(room.edge.astype(np.uint8) * 255).save(root / f"edge/{name}.png")
        if packing == "invpt":
            _normals(room).save(root / f"normals/{name}.png")


def write_mtan(root: Path) -> None:
    """``{train,val}/{image,label,depth,normal}/I.npy``, 13 classes."""
    for part, numbers in (("train", TRAIN), ("val", TEST)):
        _folders(root / part, "image", "label", "depth", "normal")
        for i, number in enumerate(numbers):
            room = scene(number, SIZE)
            thirteen = FORTY_TO_THIRTEEN[np.maximum(room.ids, 1) - 1].astype(np.float32)
            np.save(root / part / f"image/{i}.npy", room.image.astype(np.float32) / 255)
            np.save(root / part / f"label/{i}.npy", np.where(room.ids > 0, thirteen, np.float32(-1)))
            np.save(root / part / f"depth/{i}.npy", room.raw[..., None])
            np.save(root / part / f"normal/{i}.npy", room.normals)


def write_official(root: Path, size: tuple[int, int] = SIZE) -> None:
    """``nyu_depth_v2_labeled.mat`` and ``splits.mat``, and the normals of Eigen and Fergus."""
    _folders(root, "normals")
    first_of = np.unique(TO_FORTY, return_index=True)[1].astype(np.uint16)  # the first label of each class
    rooms = [scene(number, size) for number in sorted(TRAIN + TEST)]
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        # HDF5 counts axes in the opposite order of MATLAB.
        file["images"] = np.stack([room.image.transpose(2, 1, 0) for room in rooms])
        file["labels"] = np.stack([first_of[room.ids].T for room in rooms])
        file["depths"] = np.stack([room.depth.T for room in rooms])
        file["rawDepths"] = np.stack([room.raw.T for room in rooms])
    savemat(root / "splits.mat", {f"{part}Ndxs": np.array(numbers, np.uint16)[:, None]
                                  for part, numbers in (("train", TRAIN), ("test", TEST))})
    for i, room in enumerate(rooms):
        _normals(room).save(root / f"normals/{i:04d}.png")


def write_adashare(root: Path) -> None:
    """``img/ seg/ normal_mask/ depth/`` and ``nyu_v2_3task.json``."""
    _folders(root, "img", "seg", "normal_mask", "depth")
    paths = {number: [f"{folder}/{number:04d}.{suffix}" for folder, suffix in
                      (("img", "png"), ("seg", "png"), ("normal_mask", "png"), ("depth", "npy"))]
             for number in TRAIN + TEST}
    parts = {"train": TRAIN, "train1": TRAIN[::2], "train2": TRAIN[1::2], "test": TEST}
    index = {part: [paths[number] for number in numbers] for part, numbers in parts.items()}
    (root / "nyu_v2_3task.json").write_text(json.dumps(index))
    for number, (image, seg, normals, depth) in paths.items():
        room = scene(number, SIZE)
        known = room.normals.any(-1, keepdims=True)
        Image.fromarray(room.image).save(root / image)
        Image.fromarray(np.where(room.ids > 0, room.ids - 1, 255).astype(np.uint8)).save(root / seg)
        Image.fromarray(np.where(known, np.asarray(_normals(room)), np.uint8(255))).save(root / normals)
        np.save(root / depth, room.depth)


def write_frames(root: Path) -> None:
    """``images/ seg40/ depth/ normals/`` and the lists, compressed."""
    _folders(root, "images", "seg40", "depth", "normals")
    for part, numbers in (("train", TRAIN), ("test", TEST)):
        (root / f"{part}.txt").write_text("".join(f"{number:04d}\n" for number in numbers))
    for number in TRAIN + TEST:
        name, room = f"{number:04d}", scene(number, SIZE)
        (root / f"images/{name}.jpg").write_bytes(room.jpeg)
        Image.fromarray(np.where(room.ids > 0, room.ids - 1, 255).astype(np.uint8)).save(root / f"seg40/{name}.png")
        code = (room.depth * 25.5).clip(0, 255).astype(np.uint8)
        Image.fromarray(code).save(root / f"depth/{name}.webp", lossless=True)
        _normals(room).reduce(3).save(root / f"normals/{name}.jpg", quality=95)


def _folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)


def _normals(room: Scene) -> Image.Image:
    return Image.fromarray(np.rint((room.normals + 1) * 127.5).astype(np.uint8))


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "folder": partial(write_nyud_mt, packing="survey"),
    **{packing: partial(write_nyud_mt, packing=packing) for packing in ("survey", "astmt", "invpt")},
    "mtan": write_mtan, "official": write_official, "adashare": write_adashare, "frames": write_frames}
