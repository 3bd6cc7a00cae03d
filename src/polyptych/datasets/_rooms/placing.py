"""Placement: along walls, on walls, on the floor, on other objects, without collisions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

from polyptych.datasets._rooms.furniture import Maker, Piece, Style
from polyptych.datasets._rooms.solids import Builder

_YAW = {"n": math.pi, "s": 0.0, "w": -math.pi / 2, "e": math.pi / 2}
"""How a piece is turned whose back is to the wall at high y (n), low y (s), low x (w) or high x (e)."""


@dataclass(frozen=True)
class Placed:
    """A piece and where it stands."""

    piece: Piece
    instance: int
    class_id: int
    origin: tuple[float, float, float]
    yaw: float

    def world(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """A point of the piece's frame in the room."""
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return (self.origin[0] + cos * x - sin * y, self.origin[1] + sin * x + cos * y, self.origin[2] + z)


class FreeSpace:
    """Tracks the free space on the floor and the walls while a room is furnished."""

    def __init__(self, b: Builder, rng: Random, size: tuple[float, float, float],
                 position: tuple[float, float, float], target: tuple[float, float, float], zoom: float):
        self.b, self.rng, self.size, self.position = b, rng, size, position
        self.shining: list[tuple[float, float, float]] = []
        self._heading = math.atan2(target[1] - position[1], target[0] - position[0])
        self._half_view = math.atan(0.5 / zoom)
        self._floor: list[tuple[float, float, float, float]] = []
        self._walls: dict[str, list[tuple[float, float, float, float]]] = {w: [] for w in _YAW}
        # Nothing may be around the camera or directly in front of it.
        for distance, radius in ((0.0, 0.55), (0.6, 0.5), (1.1, 0.5)):
            x = position[0] + distance * math.cos(self._heading)
            y = position[1] + distance * math.sin(self._heading)
            self._floor.append((x - radius, x + radius, y - radius, y + radius))

    # -- pieces --------------------------------------------------------------------------------------------------

    def against(self, maker: Maker, style: Style, *, walls: str) -> Placed | None:
        """With its back to one of ``walls``; None if there is no room."""
        piece = maker(self.b, self.rng, style)
        width, depth, height = piece.size
        for _ in range(10):
            wall = self.rng.choice(walls)
            length = self._length(wall)
            if length < width + 0.1:
                continue
            along = self.rng.uniform(width / 2 + 0.04, length - width / 2 - 0.04)
            x, y = self._at(wall, along, depth / 2 + 0.03)
            rectangle = self._rectangle(x, y, width, depth, _YAW[wall])
            span = (along - width / 2, along + width / 2, 0.0, height)
            if self._free(rectangle, 0.04) and self._wall_free(wall, span):
                self._walls[wall].append(span)
                return self._settle(piece, (x, y, 0.0), _YAW[wall], rectangle)
        self.b.cancel()
        return None

    def stand(self, maker: Maker, style: Style, x: float, y: float, yaw: float, *,
              overlap: float = 0.0) -> Placed | None:
        """Freely at a given place; None if there is no room. ``overlap`` meters may be shared with others."""
        piece = maker(self.b, self.rng, style)
        rectangle = self._rectangle(x, y, piece.size[0], piece.size[1], yaw)
        if not self._inside(rectangle) or not self._free(rectangle, 0.03 - overlap):
            self.b.cancel()
            return None
        return self._settle(piece, (x, y, 0.0), yaw, rectangle)

    def around(self, table: Placed, maker: Maker, style: Style, count: int) -> list[Placed]:
        """Seats around a table, looking at it."""
        w, d = table.piece.size[0] / 2, table.piece.size[1] / 2
        spots = [(-0.4 * w, d), (0.4 * w, d), (-0.4 * w, -d), (0.4 * w, -d), (w, 0.0), (-w, 0.0)]
        self.rng.shuffle(spots)
        found = []
        for x, y in spots[:count]:
            push = self.rng.uniform(0.1, 0.3)
            dx, dy = (math.copysign(push, x), 0.0) if y == 0 else (0.0, math.copysign(push, y))
            wx, wy, _ = table.world(x + dx, y + dy, 0.0)
            yaw = table.yaw + math.atan2(dx, -dy) + self.rng.gauss(0, 0.12)
            if seat := self.stand(maker, style, wx, wy, yaw, overlap=0.22):
                found.append(seat)
        return found

    def turn(self, placed: Placed, angle: float) -> Placed:
        """Turn the piece that was placed last."""
        self.b.place(*placed.origin, placed.yaw + angle)
        return replace(placed, yaw=placed.yaw + angle)

    def mount(self, maker: Maker, style: Style, *, z: float, walls: str, from_floor: bool = False) -> Placed | None:
        """On a wall, its origin at height ``z``; what reaches the floor (a door) keeps the floor before it free."""
        piece = maker(self.b, self.rng, style)
        width, _, height = piece.size
        low, high = (z, z + height) if from_floor else (z - height / 2, z + height / 2)
        for _ in range(8):
            wall = self.rng.choice(walls)
            length = self._length(wall)
            if length < width + 0.7:
                continue
            along = self.rng.uniform(width / 2 + 0.3, length - width / 2 - 0.3)
            span = (along - width / 2 - 0.08, along + width / 2 + 0.08, low - 0.05, high + 0.05)
            if not self._wall_free(wall, span):
                continue
            self._walls[wall].append(span)
            x, y = self._at(wall, along, 0.0)
            if from_floor:
                fx, fy = self._at(wall, along, 0.35)
                self._floor.append(self._rectangle(fx, fy, width, 0.7, _YAW[wall]))
            self.b.place(x, y, z, _YAW[wall])
            return self._placed(piece, (x, y, z), _YAW[wall])
        self.b.cancel()
        return None

    def top(self, below: Placed, maker: Maker, style: Style) -> None:
        """In the middle of the first surface of another piece, which is then taken."""
        x, y, z, *_ = below.piece.surfaces.pop(0)
        self.put(below, maker, style, (x, y, z), turn=0.0)

    def put(self, below: Placed, maker: Maker, style: Style, spot: tuple[float, float, float],
            turn: float | None = None) -> None:
        """On another piece, at a spot of its frame."""
        piece = maker(self.b, self.rng, style)
        yaw = below.yaw + (self.rng.gauss(0, 0.35) if turn is None else turn)
        origin = below.world(*spot)
        self.b.place(*origin, yaw)
        self._note_shine(self._placed(piece, origin, yaw))

    # -- places --------------------------------------------------------------------------------------------------

    def visible(self, x: float, y: float, z: float) -> bool:
        """Whether a point is roughly in the middle part of the picture and not too near."""
        dx, dy = x - self.position[0], y - self.position[1]
        angle = math.remainder(math.atan2(dy, dx) - self._heading, math.tau)
        return math.hypot(dx, dy) > 1.4 and abs(angle) < 0.85 * self._half_view

    def in_view(self, near: float, far: float) -> tuple[float, float]:
        """A random place on the floor that the camera looks toward."""
        angle = self._heading + self.rng.uniform(-0.8, 0.8) * self._half_view
        distance = self.rng.uniform(near, far)
        return (self.position[0] + distance * math.cos(angle), self.position[1] + distance * math.sin(angle))

    def free_spot(self, width: float) -> tuple[float, float] | None:
        """A free place in view for somebody to stand, which is then taken."""
        for _ in range(24):
            x, y = self.in_view(1.7, 4.6)
            rectangle = self._rectangle(x, y, width, width, 0.0)
            if self._inside(rectangle, 0.1) and self._free(rectangle, 0.0):
                self._floor.append(rectangle)
                return x, y
        return None

    def _settle(self, piece: Piece, origin: tuple[float, float, float], yaw: float,
                rectangle: tuple[float, float, float, float]) -> Placed:
        self._floor.append(rectangle)
        self.b.place(*origin, yaw)
        placed = self._placed(piece, origin, yaw)
        self._note_shine(placed)
        return placed

    def _placed(self, piece: Piece, origin: tuple[float, float, float], yaw: float) -> Placed:
        return Placed(piece, len(self.b.classes) - 1, self.b.classes[-1], origin, yaw)

    def _note_shine(self, placed: Placed) -> None:
        if placed.piece.shine:
            self.shining.append(placed.world(*placed.piece.shine))

    def _length(self, wall: str) -> float:
        return self.size[0] if wall in "ns" else self.size[1]

    def _at(self, wall: str, along: float, out: float) -> tuple[float, float]:
        return {"n": (along, self.size[1] - out), "s": (along, out), "w": (out, along),
                "e": (self.size[0] - out, along)}[wall]

    def _inside(self, r: tuple[float, float, float, float], margin: float = 0.0) -> bool:
        return (r[0] >= margin and r[1] <= self.size[0] - margin
                and r[2] >= margin and r[3] <= self.size[1] - margin)

    def _free(self, r: tuple[float, float, float, float], margin: float) -> bool:
        return all(r[1] + margin <= o[0] or o[1] + margin <= r[0] or r[3] + margin <= o[2] or o[3] + margin <= r[2]
                   for o in self._floor)

    def _wall_free(self, wall: str, s: tuple[float, float, float, float]) -> bool:
        return all(s[1] <= o[0] or o[1] <= s[0] or s[3] <= o[2] or o[3] <= s[2] for o in self._walls[wall])

    @staticmethod
    def _rectangle(x: float, y: float, width: float, depth: float, yaw: float) -> tuple[float, float, float, float]:
        cos, sin = abs(math.cos(yaw)), abs(math.sin(yaw))
        half_x, half_y = (cos * width + sin * depth) / 2, (sin * width + cos * depth) / 2
        return (x - half_x, x + half_x, y - half_y, y + half_y)
