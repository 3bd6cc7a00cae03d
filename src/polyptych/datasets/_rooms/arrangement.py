"""From a seed to a room: its furniture, its lights, its people and the camera."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
from jaxtyping import Float64

from polyptych.datasets._rooms import classes as c
from polyptych.datasets._rooms import decoration as deco
from polyptych.datasets._rooms import furniture as furn
from polyptych.datasets._rooms.casting import Camera, look
from polyptych.datasets._rooms.furniture import Style, shade
from polyptych.datasets._rooms.lighting import Atmosphere, Light, illuminate
from polyptych.datasets._rooms.materials import Color, Material, darker
from polyptych.datasets._rooms.people import person
from polyptych.datasets._rooms.placing import FreeSpace, Placed
from polyptych.datasets._rooms.solids import Builder, Solids, Surfaces

WOODS: tuple[Color, ...] = ((0.72, 0.53, 0.35), (0.55, 0.38, 0.24), (0.82, 0.68, 0.50), (0.45, 0.30, 0.20))
WALLS: tuple[Color, ...] = ((0.90, 0.88, 0.83), (0.82, 0.85, 0.86), (0.86, 0.81, 0.72), (0.72, 0.78, 0.74),
                            (0.66, 0.73, 0.80), (0.85, 0.74, 0.69), (0.62, 0.65, 0.58), (0.92, 0.90, 0.89))
ACCENTS: tuple[Color, ...] = ((0.80, 0.32, 0.24), (0.16, 0.42, 0.50), (0.90, 0.68, 0.26), (0.34, 0.50, 0.36),
                              (0.50, 0.30, 0.45), (0.22, 0.30, 0.48), (0.88, 0.58, 0.50))
TEXTILES: tuple[Color, ...] = ((0.55, 0.55, 0.56), (0.78, 0.73, 0.66), (0.30, 0.36, 0.44), (0.58, 0.45, 0.36),
                               (0.40, 0.48, 0.42), (0.70, 0.42, 0.36), (0.26, 0.27, 0.30))


@dataclass(frozen=True)
class Person:
    """One person: its instance and its joints in the world, in the order of :data:`classes.JOINTS`."""

    instance: int
    joints: Float64[np.ndarray, "k 3"]


@dataclass(frozen=True)
class Room:
    """A complete room, independent of resolution.

    Attributes:
        extent: the corner opposite the origin.
        classes: class of each instance.
        vividness: how vivid each instance's color is, in [0, 1].
        zoom: focal length over the width of the picture.
    """

    extent: tuple[float, float, float]
    solids: Solids
    surfaces: Surfaces
    classes: np.ndarray
    vividness: np.ndarray
    materials: list[Material]
    people: list[Person]
    lights: list[Light]
    atmosphere: Atmosphere
    position: tuple[float, float, float]
    target: tuple[float, float, float]
    roll: float
    zoom: float

    def glass(self) -> np.ndarray:
        """Which surfaces are glass: light passes, but depth and normals cannot be measured."""
        return np.array([m.glass for m in self.materials])[self.surfaces.material]

    def camera(self, size: tuple[int, int]) -> Camera:
        """The camera at a resolution; the horizontal field of view is always the same."""
        return look(self.position, self.target, self.zoom * size[1], size, self.roll)


def furnish(rng: Random, *, max_people: int = 3, empty: float = 0.1, clutter: float = 1.0) -> Room:
    """A random room, determined by the state of ``rng``."""
    b = Builder()
    size = (rng.uniform(3.6, 6.6), rng.uniform(3.8, 6.6), rng.uniform(2.45, 3.0))
    wood = rng.randrange(len(WOODS))
    style = Style(shade(WOODS[wood], rng), shade(WOODS[(wood + 1) % len(WOODS)], rng),
                  shade(rng.choice(TEXTILES), rng), shade(rng.choice(ACCENTS), rng),
                  shade(rng.choice(((0.15, 0.15, 0.16), (0.62, 0.62, 0.64), (0.60, 0.48, 0.28))), rng, 0.03))
    shell = _shell(b, rng, style)
    position = (size[0] * rng.uniform(0.22, 0.78), rng.uniform(0.25, 0.8), rng.uniform(1.25, 1.75))
    target = (size[0] / 2 + rng.uniform(-0.22, 0.22) * size[0], size[1] * rng.uniform(0.6, 0.85),
              rng.uniform(0.65, 1.15))
    zoom = 0.5 / math.tan(math.radians(rng.uniform(58, 78)) / 2)
    space = FreeSpace(b, rng, size, position, target, zoom)

    windows = _openings(space, style, size)
    placed = _program(space, style)
    _hang(space, style)
    lamps = _ceiling_lamps(space, style)
    _rug(space, style, placed)
    _skirting(b, rng, size)
    _scatter(space, style, placed, clutter)
    people = _populate(space, placed, max_people, empty)
    lights, atmosphere = illuminate(rng, windows, lamps, space.shining, size, style)

    solids, surfaces = b.finish(shell)
    used = np.zeros(len(b.classes))
    weight = solids.half.prod(1) ** (2 / 3)
    colors = np.array([m.color for m in b.materials])[surfaces.material[6:]]
    np.add.at(used, surfaces.instance[6:], weight * (colors.max(1) - colors.min(1)))
    total = np.bincount(surfaces.instance[6:], weight, len(b.classes))
    return Room(size, solids, surfaces, np.array(b.classes), used / np.maximum(total, 1e-9), b.materials, people,
                 lights, atmosphere, position, target, rng.gauss(0, 0.025), zoom)


def _shell(b: Builder, rng: Random, style: Style) -> tuple[tuple[int, int], ...]:
    """Instance and material of the six faces of the space."""
    color = shade(rng.choice(WALLS), rng, 0.04)
    plain = b.material(Material(color, color, "fabric", (0.02, 0.02)))
    accent = plain
    if rng.random() < 0.4:
        second = shade(rng.choice((style.accent, *WALLS)), rng)
        accent = b.material(rng.choice((
            Material(second), Material(color, second, "stripes", (rng.uniform(0.06, 0.2), 1.0)),
            Material((0.62, 0.34, 0.26), (0.75, 0.71, 0.66), "bricks", (0.23, 0.075)),
            Material((0.90, 0.89, 0.87), (0.72, 0.71, 0.70), "bricks", (0.24, 0.08)),
            Material(color, second, "dots", (0.16, 0.16)))))
    which = rng.choice((0, 1, 3, 3))
    dark = darker(style.wood, 0.55)
    floor = b.material(rng.choice((
        Material(style.wood, dark, "planks", (0.13, 1.3), 0.25, seed=rng.randrange(200)),
        Material(style.wood, dark, "planks", (0.09, 0.8), 0.25, seed=rng.randrange(200)),
        Material((0.80, 0.78, 0.74), (0.55, 0.54, 0.52), "tiles", (0.42, 0.42), 0.4),
        Material((0.88, 0.86, 0.82), (0.35, 0.36, 0.38), "checker", (0.4, 0.4), 0.4),
        Material(shade((0.62, 0.58, 0.52), rng), pattern="fabric", second=(0.6, 0.6, 0.6)))))
    ceiling = b.material(Material(shade((0.93, 0.93, 0.91), rng, 0.02)))
    faces = [(b.begin(c.WALL), accent if k == which else plain) for k in range(4)]
    return (*faces, (b.begin(c.FLOOR), floor), (b.begin(c.CEILING), ceiling))


def _openings(space: FreeSpace, style: Style, size: tuple[float, float, float]) -> list[Placed]:
    windows = []
    for _ in range(space.rng.choice((1, 1, 1, 2, 2, 3))):
        width, height = space.rng.uniform(0.9, 2.0), space.rng.uniform(1.1, 1.5)
        z = space.rng.uniform(0.85, 0.95) + height / 2
        found = space.mount(partial(deco.window, width=width, height=height), style,
                           z=min(z, size[2] - 0.15 - height / 2), walls="nnewewn")
        if found:
            windows.append(found)
            if space.rng.random() < 0.55:
                _curtains(space, style, found)
    if space.rng.random() < 0.6:
        space.mount(deco.door, style, z=0.0, walls="nnew", from_floor=True)
    return windows


def _curtains(space: FreeSpace, style: Style, window: Placed) -> None:
    b, rng = space.b, space.rng
    w, _, h = window.piece.size
    b.begin(c.WINDOW, instance=window.instance)
    cloth = b.material(Material(shade(rng.choice((style.textile, style.accent, style.white)), rng)))
    rod = b.material(Material(style.metal, gloss=0.6))
    top, low = h / 2 + 0.12, -h / 2 - rng.choice((0.15, 0.7))
    for side in (-1, 1):
        for k in range(rng.randint(3, 5)):
            x = side * (w / 2 + 0.12 - 0.065 * k)
            b.ellipsoid((x, 0.09, (top + low) / 2), (0.05, 0.035, (top - low) * 0.7), cloth,
                        low=(top - low) / 2, high=(top - low) / 2)
    b.cylinder((-w / 2 - 0.25, 0.09, top), (w / 2 + 0.25, 0.09, top), 0.014, rod)
    b.place(*window.origin, window.yaw)


def _program(space: FreeSpace, style: Style) -> list[Placed]:
    """Place the furniture for the purpose of the room."""
    rng = space.rng
    found: list[Placed] = []

    def against(*makers: furn.Maker, walls: str = "nnew") -> list[Placed]:
        pieces = [space.against(maker, style, walls=walls) for maker in makers]
        found.extend(p for p in pieces if p)
        return [p for p in pieces if p]

    def in_front(anchor: Placed, maker: furn.Maker, gap: float) -> None:
        x, y, _ = anchor.world(0.0, anchor.piece.size[1] / 2 + gap, 0.0)
        if piece := space.stand(maker, style, x, y, anchor.yaw):
            found.append(piece)

    use = rng.choice(("living", "living", "bedroom", "dining", "office"))
    if use == "living":
        for couch in against(furn.sofa, walls="nnew"):
            in_front(couch, furn.coffee_table, rng.uniform(0.6, 0.8))
        against(furn.tv_stand, walls="ewn")
        if found and found[-1].piece.size[2] < 0.6:
            space.top(found[-1], deco.television, style)
        against(furn.armchair, furn.shelf, furn.floor_lamp)
    elif use == "bedroom":
        for bed in against(furn.bed):
            for side in (-1, 1):
                x, y, _ = bed.world(side * (bed.piece.size[0] / 2 + 0.32), -bed.piece.size[1] / 2 + 0.22, 0)
                if piece := space.stand(furn.nightstand, style, x, y, bed.yaw):
                    found.append(piece)
        against(furn.wardrobe, furn.cabinet, furn.chair)
    elif use == "dining":
        x, y = space.size[0] * rng.uniform(0.35, 0.65), space.size[1] * rng.uniform(0.5, 0.68)
        if dining := space.stand(furn.table, style, x, y, rng.choice((0.0, math.pi / 2))):
            found.append(dining)
            found.extend(space.around(dining, furn.chair, style, rng.randint(3, 6)))
        against(furn.cabinet, furn.shelf)
    else:
        for work in against(furn.desk, furn.desk):
            in_front(work, lambda b, r, s: furn.chair(b, r, s), 0.12)
            if found[-1] is not work:  # the chair looks at the desk
                found[-1] = space.turn(found[-1], math.pi)
        against(furn.shelf, furn.cabinet, furn.sofa)
    extras = [furn.floor_lamp, furn.plant, furn.plant, furn.shelf, furn.cabinet, furn.chair, furn.armchair, furn.table]
    against(*rng.sample(extras, rng.randint(2, 5)))
    return found


def _hang(space: FreeSpace, style: Style) -> None:
    for _ in range(space.rng.randint(1, 4)):
        space.mount(deco.picture, style, z=space.rng.uniform(1.45, 1.75), walls="nnew")
    if space.rng.random() < 0.4:
        space.mount(deco.wall_shelf, style, z=space.rng.uniform(1.3, 1.7), walls="nnew")


def _ceiling_lamps(space: FreeSpace, style: Style) -> list[tuple[float, float, float]]:
    positions = []
    for _ in range(space.rng.choice((0, 1, 1, 1, 2))):
        x, y = space.size[0] * space.rng.uniform(0.3, 0.7), space.size[1] * space.rng.uniform(0.45, 0.75)
        piece = deco.ceiling_lamp(space.b, space.rng, style)
        space.b.place(x, y, space.size[2], space.rng.uniform(0, 6))
        positions.append((x, y, space.size[2] + piece.shine[2]))  # type: ignore[index]  # a ceiling lamp always shines
    return positions


def _rug(space: FreeSpace, style: Style, placed: list[Placed]) -> None:
    rng, b = space.rng, space.b
    if rng.random() < 0.35:
        return
    half = (rng.uniform(0.7, 1.3), rng.uniform(0.5, 0.95))
    seats = [p for p in placed if p.piece.seats and p.piece.size[0] > 1.2]
    if seats:
        x, y, _ = seats[0].world(0.0, seats[0].piece.size[1] / 2 + half[1] * 0.8, 0.0)
    else:
        x, y = space.size[0] / 2, space.size[1] * 0.6
    b.begin(c.FLOOR, instance=4)
    color, second = rng.sample((style.accent, style.textile, style.white, style.wood_dark), 2)
    rug = b.material(rng.choice((Material(color, second, "rug", half), Material(color, second, "stripes", (0.1, 1.0)),
                                 Material(shade(color, rng), color, "fabric", (0.02, 0.02)))))
    b.box((0, 0, 0.004), (2 * half[0], 2 * half[1], 0.008), rug)
    b.place(min(max(x, half[0]), space.size[0] - half[0]), min(max(y, half[1]), space.size[1] - half[1]), 0,
            seats[0].yaw if seats and half[0] < space.size[1] / 2 else 0.0)


def _skirting(b: Builder, rng: Random, size: tuple[float, float, float]) -> None:
    board = b.material(Material(shade((0.9, 0.89, 0.86), rng)))
    for wall, center, extent in ((0, (0.008, size[1] / 2, 0.045), (0.016, size[1], 0.09)),
                                 (1, (size[0] - 0.008, size[1] / 2, 0.045), (0.016, size[1], 0.09)),
                                 (3, (size[0] / 2, size[1] - 0.008, 0.045), (size[0], 0.016, 0.09))):
        b.begin(c.WALL, instance=wall)
        b.box(center, extent, board)


def _scatter(space: FreeSpace, style: Style, placed: list[Placed], clutter: float) -> None:
    rng = space.rng
    for piece in placed:
        makers = deco.ON_CABINETS if piece.class_id in (c.CABINET, c.SHELF) else deco.ON_TABLES
        for x, y, z, width, depth in piece.piece.surfaces:
            cells = max(1, int(width / 0.36))
            for k in range(cells):
                if rng.random() < 0.55 * clutter:
                    spot = (x + ((k + 0.5) / cells - 0.5) * width, y + rng.uniform(-0.25, 0.25) * depth, z)
                    space.put(piece, rng.choice(makers), style, spot)
    for _ in range(round(rng.uniform(0, 5) * clutter)):
        x, y = space.in_view(1.9, 5.0)
        space.stand(rng.choice(deco.ON_FLOORS), style, x, y, rng.uniform(0, 6.3))


def _populate(space: FreeSpace, placed: list[Placed], max_people: int, empty: float) -> list[Person]:
    """People sit where seats are in view, or stand where the floor is free."""
    rng = space.rng
    people: list[Person] = []
    if rng.random() < empty or max_people < 1:
        return people
    seats = [(*p.world(*seat), p.yaw) for p in placed for seat in p.piece.seats]
    seats = [s for s in seats if space.visible(s[0], s[1], s[2] + 0.4)]
    rng.shuffle(seats)
    for _ in range(rng.randint(1, max_people)):
        if seats and rng.random() < 0.45:
            x, y, height, yaw = seats.pop()
            joints = person(space.b, rng, seat=height)
        else:
            spot = space.free_spot(0.42)
            if spot is None:
                continue
            x, y = spot
            # Most look toward the camera or across the room, some away from it.
            yaw = math.atan2(x - space.position[0], space.position[1] - y) + rng.gauss(0, 1.1)
            joints = person(space.b, rng)
        space.b.place(x, y, 0.0, yaw)
        cos, sin = math.cos(yaw), math.sin(yaw)
        world = np.array([(x + cos * p - sin * q, y + sin * p + cos * q, z) for p, q, z in joints])
        people.append(Person(len(space.b.classes) - 1, world))
    return people
