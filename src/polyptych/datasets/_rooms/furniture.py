"""Furniture, built from solids in its own frame: x along its width, y to its front, z up, origin on the floor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from polyptych.datasets._rooms import classes as c
from polyptych.datasets._rooms.materials import Color, Material, darker
from polyptych.datasets._rooms.solids import Builder, turned


@dataclass
class Piece:
    """Facts for the layout: width, depth and height, surfaces to put things on (x, y, z, width, depth), seats (x, y, z;
    facing along y), and light sources (x, y, z)."""

    size: tuple[float, float, float]
    surfaces: list[tuple[float, float, float, float, float]] = field(default_factory=list)
    seats: list[tuple[float, float, float]] = field(default_factory=list)
    shine: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Style:
    """Colors that the pieces of one room share."""

    wood: Color
    wood_dark: Color
    textile: Color
    accent: Color
    metal: Color
    white: Color = (0.90, 0.89, 0.86)


Maker = Callable[[Builder, Random, Style], Piece]


def shade(color: Color, rng: Random, amount: float = 0.06) -> Color:
    """A slightly different color, so that no two things are exactly alike."""
    tone = rng.uniform(-amount, amount)
    red, green, blue = (min(max(v + tone + rng.uniform(-amount, amount) / 3, 0.02), 0.98) for v in color)
    return red, green, blue


def wooden(b: Builder, rng: Random, style: Style) -> int:
    """Wood or, at times, paint."""
    if rng.random() < 0.25:
        return b.material(Material(shade(rng.choice((style.white, style.accent, style.metal)), rng), gloss=0.15))
    base = shade(rng.choice((style.wood, style.wood_dark)), rng)
    return b.material(Material(base, darker(base, 0.62), "wood", (0.11, 0.5), 0.12, seed=rng.randrange(200)))


def textile(b: Builder, rng: Random, style: Style, plain: float = 0.6) -> int:
    base = shade(rng.choice((style.textile, style.textile, style.accent, style.white)), rng)
    if rng.random() < plain:
        return b.material(Material(base, base, "fabric", (0.02, 0.02), seed=rng.randrange(200)))
    other = shade(rng.choice((style.white, style.accent, style.textile)), rng, 0.12)
    pattern = rng.choice(("checker", "stripes", "dots"))
    size = rng.uniform(0.05, 0.14)
    return b.material(Material(base, other, pattern, (size, size)))


def legs(b: Builder, width: float, depth: float, height: float, radius: float, material: int,
         square: bool = False) -> None:
    for x in (-width / 2, width / 2):
        for y in (-depth / 2, depth / 2):
            if square:
                b.box((x, y, height / 2), (2 * radius, 2 * radius, height), material)
            else:
                b.cylinder((x, y, 0), (x, y, height), radius, material)


def table(b: Builder, rng: Random, style: Style, *, width: tuple[float, float] = (1.1, 1.9),
          depth: tuple[float, float] = (0.75, 1.0), height: tuple[float, float] = (0.71, 0.77)) -> Piece:
    b.begin(c.TABLE)
    top, w, d, h = wooden(b, rng, style), rng.uniform(*width), rng.uniform(*depth), rng.uniform(*height)
    frame = top if rng.random() < 0.6 else b.material(Material(style.metal, gloss=0.5))
    if rng.random() < 0.25:
        r = min(w, d) * 0.55
        b.cylinder((0, 0, h - 0.035), (0, 0, h), r, top)
        b.cylinder((0, 0, 0.03), (0, 0, h - 0.03), 0.045, frame)
        b.cylinder((0, 0, 0), (0, 0, 0.03), r * 0.5, frame)
        return Piece((2 * r, 2 * r, h), [(0, 0, h, 1.2 * r, 1.2 * r)])
    b.box((0, 0, h - 0.02), (w, d, 0.04), top)
    legs(b, w - 0.12, d - 0.12, h - 0.03, rng.uniform(0.018, 0.035), frame, square=rng.random() < 0.5)
    if rng.random() < 0.5:
        b.box((0, 0, h - 0.075), (w - 0.12, d - 0.12, 0.07), frame)
    return Piece((w, d, h), [(0, 0, h, w * 0.85, d * 0.8)])


def coffee_table(b: Builder, rng: Random, style: Style) -> Piece:
    return table(b, rng, style, width=(0.8, 1.2), depth=(0.5, 0.65), height=(0.36, 0.45))


def desk(b: Builder, rng: Random, style: Style) -> Piece:
    return table(b, rng, style, width=(1.2, 1.6), depth=(0.6, 0.75))


def chair(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.CHAIR)
    frame = wooden(b, rng, style)
    seat = textile(b, rng, style) if rng.random() < 0.5 else frame
    w, d, h, back = rng.uniform(0.42, 0.5), rng.uniform(0.42, 0.48), rng.uniform(0.44, 0.48), rng.uniform(0.82, 1.0)
    if rng.random() < 0.2:
        b.cylinder((0, 0, 0.06), (0, 0, h - 0.05), 0.025, b.material(Material(style.metal, gloss=0.5)))
        b.cylinder((0, 0, 0.02), (0, 0, 0.07), 0.24, frame)
        b.box((0, 0, h - 0.04), (w, d, 0.08), seat)
    else:
        legs(b, w - 0.06, d - 0.06, h - 0.03, 0.018, frame, square=rng.random() < 0.5)
        b.box((0, 0, h - 0.02), (w, d, 0.045), seat)
    lean = turned(0, rng.uniform(0.05, 0.16))
    y = -d / 2 - 0.02
    if rng.random() < 0.5:
        b.box((0, y, (h + back) / 2 + 0.06), (w, 0.03, back - h - 0.1), seat, rotation=lean)
        posts = back - 0.15
    else:
        for k in range(3):
            b.box((0, y - 0.02 * k, h + (back - h) * (0.35 + 0.3 * k)), (w, 0.02, 0.06), frame, rotation=lean)
        posts = back
    for x in (-w / 2 + 0.02, w / 2 - 0.02):
        b.box((x, y, (h + posts) / 2), (0.035, 0.03, posts - h + 0.06), frame, rotation=lean)
    return Piece((w, d + 0.1, back), seats=[(0, 0.02, h)])


def sofa(b: Builder, rng: Random, style: Style, *, seats: tuple[int, int] = (2, 3)) -> Piece:
    b.begin(c.SOFA)
    cover = textile(b, rng, style, plain=0.75)
    n = rng.randint(*seats)
    unit, arm, d, h = rng.uniform(0.6, 0.72), rng.uniform(0.14, 0.22), rng.uniform(0.82, 0.95), rng.uniform(0.4, 0.46)
    back, armrest = rng.uniform(0.75, 0.92), rng.uniform(0.55, 0.65)
    w = n * unit + 2 * arm
    foot = b.material(Material(style.wood_dark))
    legs(b, w - 0.12, d - 0.12, 0.1, 0.025, foot)
    b.box((0, 0, 0.19), (w, d, 0.2), cover)
    b.box((0, -d / 2 + 0.11, (back + 0.1) / 2), (w, 0.2, back - 0.1), cover)
    for s in (-1, 1):
        x = s * (w / 2 - arm / 2)
        b.box((x, 0, (0.1 + armrest) / 2), (arm, d, armrest - 0.1), cover)
        b.cylinder((x, -d / 2, armrest), (x, d / 2, armrest), arm / 2, cover)
    places = []
    for k in range(n):
        x = (k - (n - 1) / 2) * unit
        b.box((x, 0.09, h - 0.06), (unit - 0.015, d - 0.2, 0.14), cover)
        b.box((x, -d / 2 + 0.27, h + 0.22), (unit - 0.03, 0.15, 0.4), cover, rotation=turned(0, 0.14))
        places.append((x, 0.06, h + 0.01))
    for _ in range(rng.randint(0, 2)):
        x, pillow = rng.choice((-1, 1)) * (n * unit / 2 - 0.22), textile(b, rng, style, plain=0.3)
        b.ellipsoid((x, -0.02, h + 0.2), (0.21, 0.09, 0.19), pillow, rotation=turned(0, 0.3))
    return Piece((w, d, back), seats=places)


def armchair(b: Builder, rng: Random, style: Style) -> Piece:
    return sofa(b, rng, style, seats=(1, 1))


def bed(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.BED)
    frame, w, length = wooden(b, rng, style), rng.choice((0.95, 1.4, 1.6)), 2.05
    sheet = b.material(Material(shade(style.white, rng), pattern="fabric", second=style.white))
    blanket = textile(b, rng, style, plain=0.45)
    h = rng.uniform(0.42, 0.55)
    b.box((0, 0, 0.2), (w, length, 0.16), frame)
    legs(b, w - 0.1, length - 0.1, 0.14, 0.03, frame, square=True)
    b.box((0, -length / 2 - 0.025, 0.5), (w + 0.06, 0.05, rng.uniform(0.7, 0.95)), frame)
    b.box((0, 0, (0.28 + h) / 2), (w - 0.05, length - 0.06, h - 0.28), sheet)
    b.box((0, 0.24, h - 0.06), (w + 0.01, length - 0.52, 0.2), blanket)
    n = 1 if w < 1.2 else 2
    for k in range(n):
        b.ellipsoid(((k - (n - 1) / 2) * 0.7, -length / 2 + 0.3, h + 0.07), (0.31, 0.2, 0.085), sheet,
                    rotation=turned(0, 0.25))
    return Piece((w + 0.06, length + 0.1, 1.0), seats=[(0, 0.75, h + 0.02)])


def cabinet(b: Builder, rng: Random, style: Style, *, width: tuple[float, float] = (0.9, 1.7),
            height: tuple[float, float] = (0.55, 0.95), depth: tuple[float, float] = (0.38, 0.5)) -> Piece:
    b.begin(c.CABINET)
    body, w, d, h = wooden(b, rng, style), rng.uniform(*width), rng.uniform(*depth), rng.uniform(*height)
    front = body if rng.random() < 0.5 else wooden(b, rng, style)
    knob = b.material(Material(style.metal, gloss=0.6))
    b.box((0, -0.01, h / 2 + 0.03), (w, d - 0.02, h - 0.06), body)
    columns, rows = max(1, round(w / 0.5)), max(1, round(h / rng.choice((0.28, 0.5, 0.95))))
    cw, ch = w / columns, (h - 0.08) / rows
    for i in range(columns):
        for j in range(rows):
            x, z = (i + 0.5) * cw - w / 2, 0.07 + (j + 0.5) * ch
            b.box((x, d / 2 - 0.005, z), (cw - 0.02, 0.025, ch - 0.02), front)
            b.sphere((x + (cw * 0.36 if rows == 1 else 0), d / 2 + 0.015, z), 0.016, knob)
    legs(b, w - 0.1, d - 0.1, 0.06, 0.02, knob)
    return Piece((w, d, h), [(0, 0, h, w * 0.9, d * 0.8)])


def nightstand(b: Builder, rng: Random, style: Style) -> Piece:
    return cabinet(b, rng, style, width=(0.42, 0.55), height=(0.45, 0.6), depth=(0.36, 0.42))


def wardrobe(b: Builder, rng: Random, style: Style) -> Piece:
    return cabinet(b, rng, style, width=(1.0, 1.8), height=(1.8, 2.1), depth=(0.5, 0.6))


def shelf(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.SHELF)
    wood, w, d, rows = wooden(b, rng, style), rng.uniform(0.7, 1.2), rng.uniform(0.26, 0.34), rng.randint(3, 5)
    h = 0.1 + rows * rng.uniform(0.34, 0.4)
    for x in (-w / 2 + 0.012, w / 2 - 0.012):
        b.box((x, 0, h / 2), (0.025, d, h), wood)
    b.box((0, -d / 2 + 0.008, h / 2), (w, 0.012, h), wood)
    for k in range(rows + 1):
        z = 0.05 + k * (h - 0.07) / rows
        b.box((0, 0, z), (w - 0.02, d - 0.01, 0.025), wood)
        if k == rows:
            break
        x = -w / 2 + 0.03
        while x < w / 2 - 0.1:
            run = min(rng.uniform(0.12, 0.45), w / 2 - 0.03 - x)
            if rng.random() < 0.75:
                tall = rng.uniform(0.18, 0.28)
                books = b.material(Material((0.5, 0.4, 0.3), pattern="books", scale=(rng.uniform(0.025, 0.05), 0.3),
                                            seed=rng.randrange(1000)))
                b.box((x + run / 2, rng.uniform(-0.03, 0.01), z + 0.012 + tall / 2), (run, d * 0.65, tall), books)
            x += run + 0.01
    return Piece((w, d, h), [(0, 0, h, w * 0.8, d * 0.7)])


def tv_stand(b: Builder, rng: Random, style: Style) -> Piece:
    return cabinet(b, rng, style, width=(1.3, 1.9), height=(0.4, 0.55), depth=(0.38, 0.45))


def floor_lamp(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.LAMP)
    h, r = rng.uniform(1.4, 1.75), rng.uniform(0.16, 0.24)
    metal = b.material(Material(style.metal, gloss=0.6))
    b.cylinder((0, 0, 0), (0, 0, 0.025), 0.15, metal)
    b.cylinder((0, 0, 0), (0, 0, h), 0.014, metal)
    _lampshade(b, rng, h, r)
    return Piece((2 * r, 2 * r, h + 0.2), shine=(0, 0, h))


def table_lamp(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.LAMP)
    h, r = rng.uniform(0.28, 0.42), rng.uniform(0.1, 0.15)
    foot = b.material(Material(shade(rng.choice((style.accent, style.metal, style.white)), rng), gloss=0.5))
    b.cylinder((0, 0, 0), (0, 0, 0.02), r * 0.7, foot)
    b.ellipsoid((0, 0, h * 0.35), (r * 0.5, r * 0.5, h * 0.33), foot)
    b.cylinder((0, 0, 0), (0, 0, h), 0.01, foot)
    _lampshade(b, rng, h, r)
    return Piece((2 * r, 2 * r, h + 0.15), shine=(0, 0, h))


def _lampshade(b: Builder, rng: Random, h: float, r: float) -> None:
    paper = b.material(Material(shade((0.97, 0.88, 0.70), rng), emission=rng.uniform(0.9, 1.5)))
    if rng.random() < 0.4:
        b.cylinder((0, 0, h - 0.7 * r), (0, 0, h + 0.7 * r), r, paper)
    else:
        b.ellipsoid((0, 0, h - r * 0.45), (r * 1.1, r * 1.1, r * 1.7), paper, low=0.2 * r, high=1.4 * r)


def plant(b: Builder, rng: Random, style: Style, *, size: tuple[float, float] = (0.7, 1.5)) -> Piece:
    b.begin(c.PLANT)
    total = rng.uniform(*size)
    r, pot_height = 0.10 + 0.06 * total, 0.12 + 0.13 * total
    pot = b.material(Material(shade(rng.choice(((0.72, 0.40, 0.26), style.white, style.metal, style.accent)), rng)))
    soil, stem = b.material(Material((0.2, 0.14, 0.1))), b.material(Material((0.33, 0.36, 0.16)))
    b.ellipsoid((0, 0, pot_height * 0.62), (r, r, pot_height), pot, low=pot_height * 0.62, high=pot_height * 0.38)
    b.cylinder((0, 0, pot_height), (0, 0, pot_height + 0.004), r * 0.9, soil)
    greens = [b.material(Material(shade((0.16, 0.42 + 0.1 * k, 0.13), rng), gloss=0.15)) for k in range(2)]
    spread = total * rng.uniform(0.25, 0.4)
    for k in range(rng.randint(7, 12)):
        angle = k * 2.4 + rng.uniform(-0.3, 0.3)
        tip_z = pot_height + (total - pot_height) * rng.uniform(0.35, 1.0)
        reach = spread * rng.uniform(0.4, 1.0)
        tip = (reach * math.cos(angle), reach * math.sin(angle), tip_z)
        root = (tip[0] * 0.15, tip[1] * 0.15, pot_height)
        leaf = total * rng.uniform(0.13, 0.2)
        if k % 2 == 0:
            b.cylinder(root, tip, 0.007, stem)
        c1, s1 = math.cos(angle), math.sin(angle)
        tilt, t2 = math.cos(0.6), math.sin(0.6)  # leaves hang outwards
        axes = (c1 * tilt, -s1, c1 * t2, s1 * tilt, c1, s1 * t2, -t2, 0.0, tilt)
        b.ellipsoid(tip, (leaf, leaf * 0.55, leaf * 0.14), greens[k % 2], rotation=axes)
    return Piece((max(2 * r, spread), max(2 * r, spread), total))
