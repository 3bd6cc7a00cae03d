"""A scene: one image and everything predicted from it, as arrays, pictures, words, points in space, and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8, UInt16
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from polyptych.data.arrays import write_npy
from polyptych.errors import InputError, nearest
from polyptych.prediction.point_cloud import FIELD_OF_VIEW, PointCloud, find_camera, unproject
from polyptych.reports.panels import cell_size, fitted, strip
from polyptych.tasks._base import Task
from polyptych.tasks._pictures import Legend


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything predicted from an image. ``scene.depth`` (or ``scene["depth"]``) is the array of the task of that
    name:

    - class maps: int64 (h w), class ids, named by :meth:`classes`;
    - depth: float32 (h w), meters; inverse depth: float32 (h w), in the unit of its labels;
    - normals: float32 (h w 3), unit vectors, x right, y down, z forward;
    - boundaries, saliency: float32 (h w), probability; heat maps: float32 (h w), -1 to 1;
    - keypoints: float32 (k 3), x and y in pixels and the height of the peak;
    - classification: float32 (k), probability of each class.

    h and w are those of the image. :meth:`unit` returns the unit in words.

    Attributes:
        image: the image, uint8 RGB.
        task: the tasks by name.
        decoded: their predictions in the form that metrics take, channels first.
        name: name of the image, for captions.
    """

    image: UInt8[np.ndarray, "h w 3"]
    task: Mapping[str, Task]
    decoded: Mapping[str, Tensor]
    name: str = ""
    _arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The predicted tasks."""
        return tuple(self.decoded)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[0], self.image.shape[1]

    def __getitem__(self, task: str) -> np.ndarray:
        if task not in self._arrays:
            self._arrays[task] = self._known(task).array(self.decoded[task])
        return self._arrays[task]

    def __getattr__(self, name: str) -> np.ndarray:
        # Called only for missing attributes; "decoded" itself is missing while the object is created or copied.
        if name.startswith("_") or name in ("decoded", "task") or name not in self.decoded:
            raise AttributeError(f"a scene of {', '.join(self.__dict__.get('decoded', ()))} has no '{name}'")
        return self[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.tasks})

    def unit(self, task: str) -> str:
        """The unit of the numbers in a task's array, in words."""
        return self._known(task).unit

    def classes(self, task: str) -> tuple[str, ...]:
        """Names of the classes (or types of keypoints), in the order of their ids; empty for a task without any."""
        return self._known(task).labels.classes

    def legend(self, task: str) -> Legend:
        """What the colors of the task's picture mean."""
        return self._known(task).legend()

    def areas(self, task: str) -> Int[np.ndarray, " k"] | None:
        """Number of pixels of each class of a task; None for a task that gives pixels no class."""
        return self._known(task).areas(self.decoded[task])

    def at(self, task: str, x: int, y: int) -> str:
        """The task's prediction at column ``x`` and row ``y``, in words: ``1.52 m``, ``wall``.

        Raises:
            InputError: the pixel is outside the image.
        """
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise InputError("pixel", f"x {x}, y {y}", f"x from 0 to {width - 1}, y from 0 to {height - 1}",
                             "look inside the image")
        return self._known(task).at(self.decoded[task], x, y)

    def painted(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Every task as a picture of the size of the image."""
        return {name: self.panel(name) for name in self.tasks}

    def panel(self, task: str | None = None) -> UInt8[np.ndarray, "_ _ 3"]:
        """A picture: of one task, as large as the image; or the image and all tasks side by side, with their names."""
        if task is None:
            # One by one: the pictures of all tasks would not fit into memory for a large image.
            size = cell_size(self.image)
            return strip(self.image, {name: fitted(self.panel(name), size) for name in self.tasks}, caption=self.name)
        return self._known(task).paint(self.decoded[task], self.image)

    def layer(self, task: str) -> UInt8[np.ndarray, "h w 4"]:
        """An RGBA overlay for the image, transparent where the task predicts nothing to show."""
        return self._known(task).layer(self.decoded[task], self.image)

    def overlay(self, task: str, opacity: float = 0.6) -> UInt8[np.ndarray, "h w 3"]:
        """The task's colors over the image.

        Raises:
            InputError: the opacity is not from 0 to 1.
        """
        if not 0 <= opacity <= 1:
            raise InputError("opacity", str(opacity), "a number from 0 to 1", "0.6 shows both")
        layer = self.layer(task).astype(np.float32)
        alpha = opacity * layer[..., 3:] / 255
        return ((1 - alpha) * self.image + alpha * layer[..., :3] + 0.5).astype(np.uint8)

    def points(self, intrinsics: tuple[float, float, float, float] | None = None,
               field_of_view: float | None = None) -> PointCloud:
        """The pixels as colored points in space, with normals where they are predicted.

        Args:
            intrinsics: fx, fy, cx, cy of the camera, in pixels of the image; centers of pixels are whole numbers.
            field_of_view: instead, the horizontal field of view in degrees of a camera whose optical axis passes
                through the center of the image. Without both, 60 is assumed: shapes are then only about right.

        Raises:
            InputError: no task predicts meters, or the camera is out of range.
        """
        camera = find_camera(self.size, intrinsics, field_of_view)
        said = [(name, self.task[name].distance(value)) for name, value in self.decoded.items()]
        distance = next((meters for _, meters in said if meters is not None), None)
        if distance is None:
            raise InputError("points", f"a model of {', '.join(self.tasks)}", "a task that predicts depth in meters",
                             "use a model with such a task")
        normals = next((vectors for name, value in self.decoded.items()
                        for vectors in [self.task[name].directions(value)] if vectors is not None), None)
        return unproject(distance.float().numpy(), camera, self.image,
                         None if normals is None else normals.float().numpy().transpose(1, 2, 0))

    def save(self, folder: Path | str, stem: str = "scene") -> list[Path]:
        """Write ``STEM_panels.png``, and ``STEM_TASK.png`` (a picture) and ``STEM_TASK.npy`` (the array) for every
        task; returns the files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = [write_picture(folder / f"{stem}_panels.png", self.panel())]
        return written + write_scene(self, folder, stem, Outputs(arrays=True))

    def _known(self, task: str) -> Task:
        if task not in self.decoded:
            raise InputError("task", f"'{task}'", nearest(task, self.decoded), "name a task of the scene")
        return self.task[task]


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What to write in addition to the picture of every task."""

    arrays: bool = False
    """Write raw arrays (.npy): class ids, meters, unit vectors, probabilities, keypoints."""
    maps: bool = False
    """Write 16-bit PNGs: depth in millimeters, class ids, probabilities; the text chunk "meaning" explains the numbers.
    Tasks that do not fit into one channel have none."""
    overlay: bool = False
    """Write each task overlaid on the image; for a video, a second video."""
    opacity: float = 0.6
    """Opacity of overlays, from 0 (image only) to 1 (prediction only)."""
    points: bool = False
    """Write a colored point cloud (.ply) from depth, with normals if they are predicted."""
    intrinsics: tuple[float, float, float, float] | None = None
    """Camera intrinsics FX FY CX CY in image pixels, for --points."""
    field_of_view: float | None = None
    """Horizontal field of view in degrees, instead of intrinsics (default: 60)."""

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise InputError("--opacity", str(self.opacity), "a number from 0 to 1", "0.6 shows both")
        if self.points:
            find_camera((1, 1), self.intrinsics, self.field_of_view)  # wrong numbers are refused before the work
        elif self.intrinsics is not None or self.field_of_view is not None:
            raise InputError("--intrinsics and --field-of-view", "a camera but no --points", "--points",
                             "add it, or leave the camera out")

    @property
    def guessed(self) -> str:
        """A remark if the camera is a guess; empty otherwise."""
        if not self.points or self.intrinsics is not None or self.field_of_view is not None:
            return ""
        return f"points: assuming a field of view of {FIELD_OF_VIEW:g} degrees; give --intrinsics or --field-of-view"


def write_scene(scene: Scene, folder: Path, stem: str, outputs: Outputs, pictures: bool = True) -> list[Path]:
    """Write ``STEM_TASK.png`` and the other requested outputs; returns the files.

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
            write_npy(written[-1], scene[task])
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
