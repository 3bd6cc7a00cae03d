"""What is written of a scene: pictures, overlays, arrays, 16-bit maps, points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from polyptych.errors import InputError
from polyptych.prediction.scene import FIELD_OF_VIEW, Scene


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What is written beside the picture of every task."""

    arrays: bool = False
    """Raw arrays (.npy): class ids, meters, unit vectors, probabilities, keypoints."""
    maps: bool = False
    """16-bit PNGs: depth in millimeters, class ids, probabilities; the text chunk "meaning" says what the numbers are.
    Tasks that one channel cannot hold have none."""
    overlay: bool = False
    """Every task laid over the image; of a video, a second video."""
    opacity: float = 0.6
    """Of overlays, 0 to 1."""
    points: bool = False
    """A colored point cloud (.ply) from depth, with normals where they are predicted."""
    intrinsics: tuple[float, float, float, float] | None = None
    """FX FY CX CY of the camera in pixels of the image, for --points."""
    field_of_view: float | None = None
    """Instead: degrees from the left to the right border of the image. Without both it is taken to be 60."""

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise InputError("--opacity", str(self.opacity), "a number from 0 to 1", "0.6 shows both")
        if self.points:
            from polyptych.prediction.point_cloud import find_camera

            find_camera((1, 1), self.intrinsics, self.field_of_view)  # wrong numbers are refused before the work
        elif self.intrinsics is not None or self.field_of_view is not None:
            raise InputError("--intrinsics and --field-of-view", "a camera but no --points", "--points",
                             "add it, or leave the camera out")

    @property
    def guessed(self) -> str:
        """A remark where the camera is a guess; empty otherwise."""
        if not self.points or self.intrinsics is not None or self.field_of_view is not None:
            return ""
        return f"points: taking a field of view of {FIELD_OF_VIEW:g} degrees; give --intrinsics or --field-of-view"


def write_scene(scene: Scene, folder: Path, stem: str, outputs: Outputs, pictures: bool = True) -> list[Path]:
    """Write ``STEM_TASK.png`` and what else is asked for; returns the files.

    Raises:
        InputError: points are asked for and no task predicts meters.
    """
    written = []
    for task in scene.tasks:
        base = folder / f"{stem}_{task}"
        if pictures:
            written.append(write_picture(base.with_name(f"{base.name}.png"), scene.panel(task)))
            if outputs.overlay:
                written.append(write_picture(base.with_name(f"{base.name}_overlay.png"),
                                             scene.overlay(task, outputs.opacity)))
        if outputs.arrays:
            written.append(base.with_name(f"{base.name}.npy"))
            np.save(written[-1], scene[task])
        kept = scene.task[task].stored(scene.decoded[task]) if outputs.maps else None
        if kept is not None:
            written.append(_write_map(base.with_name(f"{base.name}_16bit.png"), kept.values, kept.meaning))
    if outputs.points:
        cloud = scene.points(outputs.intrinsics, outputs.field_of_view)
        written.append(cloud.save(folder / f"{stem}.ply"))
    return written


def write_picture(path: Path, picture: UInt8[np.ndarray, "h w 3"]) -> Path:
    Image.fromarray(picture).save(path)
    return path


def _write_map(path: Path, values: UInt16[np.ndarray, "h w"], meaning: str) -> Path:
    notes = PngInfo()
    notes.add_text("meaning", meaning)
    Image.fromarray(values).save(path, pnginfo=notes)
    return path
