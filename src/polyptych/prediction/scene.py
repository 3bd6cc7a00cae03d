"""A scene: one image and everything that was predicted of it, as arrays, pictures, words and points in space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from polyptych.errors import InputError, nearest
from polyptych.reports.panels import strip
from polyptych.tasks._base import Task
from polyptych.tasks._pictures import Legend

if TYPE_CHECKING:
    from polyptych.prediction.point_cloud import PointCloud

FIELD_OF_VIEW = 60.0
"""Of a camera that nobody described: degrees from the left to the right border of the image."""


@dataclass(frozen=True, eq=False)
class Scene:
    """What was predicted of an image. ``scene.depth`` (or ``scene["depth"]``) is the array of the task of this name:

    - class maps: int64 (h w), class ids, named by :meth:`classes`;
    - depth: float32 (h w), meters; inverse depth: float32 (h w), in the unit of its labels;
    - normals: float32 (h w 3), unit vectors, x right, y down, z forward;
    - boundaries, saliency: float32 (h w), probability; heat maps: float32 (h w), -1 to 1;
    - keypoints: float32 (k 3), x and y in pixels and the height of the peak;
    - classification: float32 (k), probability of each class.

    h and w are those of the image. :meth:`unit` says the unit in words.

    Attributes:
        image: the image, uint8 RGB.
        task: the tasks by name.
        decoded: their predictions as metrics take them, channels first.
        name: of the image, for captions.
    """

    image: UInt8[np.ndarray, "h w 3"]
    task: Mapping[str, Task]
    decoded: Mapping[str, Tensor]
    name: str = ""
    _arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What was predicted."""
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
        # Only asked for what is no attribute; "decoded" itself is missing while the object is made or copied.
        if name.startswith("_") or name in ("decoded", "task") or name not in self.decoded:
            raise AttributeError(f"a scene of {', '.join(self.__dict__.get('decoded', ()))} has no '{name}'")
        return self[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.tasks})

    def unit(self, task: str) -> str:
        """Of the numbers of a task's array, in words."""
        return self._known(task).unit

    def classes(self, task: str) -> tuple[str, ...]:
        """Names of the classes (or types of keypoints), in the order of their ids; empty for a task without any."""
        return self._known(task).labels.classes

    def legend(self, task: str) -> Legend:
        """What the colors of the task's picture mean."""
        return self._known(task).legend()

    def at(self, task: str, x: int, y: int) -> str:
        """What the task says at column ``x`` and row ``y``, in words: ``1.52 m``, ``wall``.

        Raises:
            InputError: that is outside the image.
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
            return strip(self.image, self.painted(), caption=self.name)
        return self._known(task).paint(self.decoded[task], self.image)

    def layer(self, task: str) -> UInt8[np.ndarray, "h w 4"]:
        """RGBA to be laid over the image; transparent where the task says nothing."""
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
            field_of_view: instead, degrees from the left to the right border, of a camera that looks through the
                middle. Without both it is taken to be 60: shapes are then only about right.

        Raises:
            InputError: no task predicts meters, or the camera makes no sense.
        """
        from polyptych.prediction.point_cloud import find_camera, unproject

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
        from polyptych.prediction.outputs import Outputs, write_picture, write_scene

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = [write_picture(folder / f"{stem}_panels.png", self.panel())]
        return written + write_scene(self, folder, stem, Outputs(arrays=True))

    def _known(self, task: str) -> Task:
        if task not in self.decoded:
            raise InputError("task", f"'{task}'", nearest(task, self.decoded), "name a task of the scene")
        return self.task[task]
