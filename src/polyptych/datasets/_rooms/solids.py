"""Solids of a room: every one is convex, the intersection of half-spaces with at most one quadric.

A box is six half-spaces, a cylinder a quadric and two half-spaces, an ellipsoid a quadric alone, a dome an ellipsoid
between two half-spaces, a capsule a cylinder and two spheres. World coordinates are meters, x and y horizontal, z up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from polyptych.datasets._rooms.materials import Material

Vector = tuple[float, float, float]
Rows = tuple[float, ...]
IDENTITY: Rows = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
NO_PLANE = math.inf
SHELL = 6
"""The first surfaces are the faces of the room: x low, x high, y low, y high, floor, ceiling. Solids follow."""


@dataclass(frozen=True)
class Solids:
    """All solids as arrays.

    Attributes:
        center: center of each solid.
        axes: its local axes as columns; the world point is ``center + axes @ local``.
        half: half the extents of its bounding box along these axes.
        curvature: inverse radii of the quadric ``|curvature * local| <= 1``; all zero means no quadric.
        planes: offsets of the half-spaces ``+-local <= offset``, ordered -x, +x, -y, +y, -z, +z; infinite = absent.
    """

    center: Float64[np.ndarray, "n 3"]
    axes: Float64[np.ndarray, "n 3 3"]
    half: Float64[np.ndarray, "n 3"]
    curvature: Float64[np.ndarray, "n 3"]
    planes: Float64[np.ndarray, "n 6"]

    def __len__(self) -> int:
        return len(self.center)

    def normals(self) -> Float64[np.ndarray, "n 6 3"]:
        """Outward normals of the half-spaces, in world coordinates."""
        axes = self.axes.transpose(0, 2, 1)
        return np.stack([-axes, axes], 2).reshape(-1, 6, 3)

    def only(self, keep: Bool[np.ndarray, n]) -> Solids:
        """The solids where ``keep`` is True."""
        return Solids(self.center[keep], self.axes[keep], self.half[keep], self.curvature[keep], self.planes[keep])

    def inside(self, point: Float64[np.ndarray, 3], margin: float = 0.0) -> Bool[np.ndarray, n]:
        """Whether ``point`` lies in the bounding box of each solid, enlarged by ``margin``."""
        local = np.einsum("nji,nj->ni", self.axes, point - self.center)
        return (np.abs(local) <= self.half + margin).all(1)


@dataclass(frozen=True)
class Surfaces:
    """Properties of each visible surface: the six faces of the room, then every solid."""

    instance: Int64[np.ndarray, s]
    part: Int64[np.ndarray, s]
    material: Int64[np.ndarray, s]
    origin: Float64[np.ndarray, "s 3"]
    axes: Float64[np.ndarray, "s 3 3"]


class Builder:
    """Collects solids. ``begin`` opens an object (one instance), ``place`` puts its local frame into the room."""

    def __init__(self) -> None:
        self.classes: list[int] = []  # of each object
        self.materials: list[Material] = []
        self._shapes: list[tuple[float, ...]] = []
        self._owners: list[tuple[int, int, int]] = []  # instance, part, material
        self._frames: list[tuple[float, float, float, float]] = []
        self._instances: list[int] = []
        self._begun = 0

    def begin(self, class_id: int, *, instance: int | None = None) -> int:
        """Open an object of a class; what follows belongs to it. Returns its number, which is also its instance
        unless it is part of the ``instance`` of another object (a rug is part of the floor)."""
        self._instances.append(len(self.classes) if instance is None else instance)
        self.classes.append(class_id)
        self._frames.append((0.0, 0.0, 0.0, 0.0))
        self._begun = len(self._shapes)
        return len(self.classes) - 1

    def place(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> None:
        """Place the current object, rotated by ``yaw`` about the vertical."""
        self._frames[-1] = (x, y, z, yaw)

    def cancel(self) -> None:
        """Remove the current object."""
        self.classes.pop()
        self._instances.pop()
        self._frames.pop()
        del self._shapes[self._begun:], self._owners[self._begun:]

    def material(self, material: Material) -> int:
        self.materials.append(material)
        return len(self.materials) - 1

    def box(self, center: Vector, size: Vector, material: int, *, rotation: Rows = IDENTITY, part: int = 0) -> None:
        hx, hy, hz = size[0] / 2, size[1] / 2, size[2] / 2
        self._add((*center, *rotation, hx, hy, hz, 0.0, 0.0, 0.0, hx, hx, hy, hy, hz, hz), material, part)

    def ellipsoid(self, center: Vector, radii: Vector, material: int, *, rotation: Rows = IDENTITY, part: int = 0,
                  low: float = NO_PLANE, high: float = NO_PLANE) -> None:
        """``low`` and ``high`` cut it to a dome (meters below and above its center along its z axis)."""
        self._add((*center, *rotation, *radii, 1 / radii[0], 1 / radii[1], 1 / radii[2],
                   NO_PLANE, NO_PLANE, NO_PLANE, NO_PLANE, low, high), material, part)

    def sphere(self, center: Vector, radius: float, material: int, *, part: int = 0) -> None:
        self.ellipsoid(center, (radius, radius, radius), material, part=part)

    def cylinder(self, start: Vector, end: Vector, radius: float, material: int, *, part: int = 0) -> None:
        """With flat caps at ``start`` and ``end``."""
        middle = tuple((a + b) / 2 for a, b in zip(start, end, strict=True))
        length = math.dist(start, end)
        half, rotation = length / 2, towards(start, end)
        self._add((*middle, *rotation, radius, radius, half, 1 / radius, 1 / radius, 0.0,
                   NO_PLANE, NO_PLANE, NO_PLANE, NO_PLANE, half, half), material, part)

    def capsule(self, start: Vector, end: Vector, radius: float, material: int, *, part: int = 0) -> None:
        """A cylinder with round ends."""
        self.cylinder(start, end, radius, material, part=part)
        for point in (start, end):
            self.sphere(point, radius, material, part=part)

    def finish(self, shell: tuple[tuple[int, int], ...]) -> tuple[Solids, Surfaces]:
        """Everything as arrays. ``shell`` gives object and material of the six faces of the room."""
        shapes = np.array(self._shapes, np.float64).reshape(-1, 24)
        owners = np.array(self._owners, np.int64).reshape(-1, 3)
        instances = np.array(self._instances, np.int64)
        frames = np.array(self._frames, np.float64)[owners[:, 0]]
        cos, sin = np.cos(frames[:, 3]), np.sin(frames[:, 3])
        turn = np.zeros((len(shapes), 3, 3))
        turn[:, 0, 0], turn[:, 0, 1], turn[:, 1, 0], turn[:, 1, 1], turn[:, 2, 2] = cos, -sin, sin, cos, 1
        center = frames[:, :3] + np.einsum("nij,nj->ni", turn, shapes[:, :3])
        axes = turn @ shapes[:, 3:12].reshape(-1, 3, 3)
        solids = Solids(center, axes, shapes[:, 12:15], shapes[:, 15:18], shapes[:, 18:24])
        faces = np.array(shell, np.int64)
        owners = np.concatenate([np.stack([faces[:, 0], np.zeros(SHELL, np.int64), faces[:, 1]], 1), owners])
        return solids, Surfaces(instances[owners[:, 0]], owners[:, 1], owners[:, 2],
                                np.concatenate([np.zeros((SHELL, 3)), center]),
                                np.concatenate([np.broadcast_to(np.eye(3), (SHELL, 3, 3)), axes]))

    def _add(self, shape: tuple[float, ...], material: int, part: int) -> None:
        self._shapes.append(shape)
        self._owners.append((len(self.classes) - 1, part, material))


def towards(start: Vector, end: Vector) -> Rows:
    """A rotation (row-major, axes in columns) whose z axis points from ``start`` to ``end``."""
    length = max(math.dist(start, end), 1e-9)
    x, y, z = ((b - a) / length for a, b in zip(start, end, strict=True))
    # Branchless orthonormal basis (Duff et al., Journal of Computer Graphics Techniques 2017).
    sign = math.copysign(1.0, z)
    a = -1.0 / (sign + z)
    b = x * y * a
    return (1 + sign * x * x * a, b, x, sign * b, sign + y * y * a, y, -sign * x, -y, z)


def turned(axis: int, angle: float) -> Rows:
    """The rotation by ``angle`` about a coordinate axis (0 x, 1 y, 2 z), row-major."""
    c, s = math.cos(angle), math.sin(angle)
    return ((1.0, 0.0, 0.0, 0.0, c, -s, 0.0, s, c), (c, 0.0, s, 0.0, 1.0, 0.0, -s, 0.0, c),
            (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0))[axis]
