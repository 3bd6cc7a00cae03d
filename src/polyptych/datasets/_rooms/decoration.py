"""Decoration of walls and ceilings, and small objects."""

from __future__ import annotations

import math
from random import Random

from polyptych.datasets._rooms import classes as c
from polyptych.datasets._rooms.furniture import Maker, Piece, Style, plant, shade, table_lamp, textile
from polyptych.datasets._rooms.materials import Material, any_color, darker
from polyptych.datasets._rooms.solids import Builder, turned


def window(b: Builder, rng: Random, style: Style, *, width: float, height: float) -> Piece:
    """Its frame, mullions and glass, with the view behind the glass painted on it; the origin is its middle."""
    b.begin(c.WINDOW)
    frame = b.material(Material(shade(rng.choice((style.white, style.white, style.wood_dark)), rng)))
    sky = rng.choice((((0.55, 0.74, 0.95), (0.90, 0.93, 0.95)), ((0.80, 0.84, 0.88), (0.93, 0.93, 0.92))))
    glass = b.material(Material(*sky, "view", (1.0, 1.0), 0.1, rng.uniform(0.8, 1.5), True, rng.randrange(200)))
    b.box((0, 0.006, 0), (width - 0.04, 0.012, height - 0.04), glass)
    for s in (-1, 1):
        b.box((s * (width / 2 - 0.025), 0.02, 0), (0.05, 0.05, height), frame)
        b.box((0, 0.02, s * (height / 2 - 0.025)), (width, 0.05, 0.05), frame)
    b.box((0, 0.018, 0), (0.03, 0.036, height - 0.04), frame)
    b.box((0, 0.016, height * 0.15), (width - 0.04, 0.032, 0.025), frame)
    b.box((0, 0.06, -height / 2 - 0.015), (width + 0.1, 0.12, 0.03), frame)
    return Piece((width, 0.12, height))


def picture(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.PICTURE)
    w, h = rng.uniform(0.35, 1.0), rng.uniform(0.35, 0.8)
    frame = b.material(Material(shade(rng.choice((style.wood_dark, style.white, style.metal, style.wood)), rng)))
    first, second = any_color(rng, 0.1, 0.9), any_color(rng, 0.1, 0.9)
    canvas = b.material(Material(first, second, "art", (w, h), seed=rng.randrange(1, 200)))
    b.box((0, 0.012, 0), (w, 0.024, h), frame)
    b.box((0, 0.014, 0), (w - 0.07, 0.026, h - 0.07), canvas)
    return Piece((w, 0.03, h))


def door(b: Builder, rng: Random, style: Style) -> Piece:
    """Its origin is the middle of its lower edge."""
    b.begin(c.DOOR)
    w, h = rng.uniform(0.82, 0.95), rng.uniform(2.0, 2.1)
    color = shade(rng.choice((style.white, style.wood, style.wood_dark)), rng)
    leaf = b.material(Material(color, darker(color, 0.7), "wood", (0.16, 0.5)))
    trim, knob = b.material(Material(shade(style.white, rng))), b.material(Material(style.metal, gloss=0.8))
    b.box((0, 0.015, h / 2), (w, 0.03, h), leaf)
    for s in (-1, 1):
        b.box((s * (w / 2 + 0.035), 0.02, h / 2), (0.07, 0.05, h), trim)
    b.box((0, 0.02, h + 0.035), (w + 0.14, 0.05, 0.07), trim)
    for z, tall in ((0.52, 0.7), (1.45, 0.85)):
        b.box((0, 0.03, z), (w * 0.68, 0.02, tall), leaf)
    b.sphere((w * 0.42, 0.07, 1.02), 0.03, knob)
    return Piece((w + 0.14, 0.06, h + 0.07))


def wall_shelf(b: Builder, rng: Random, style: Style) -> Piece:
    """A board with a row of books; the origin is the middle of the board."""
    b.begin(c.SHELF)
    w = rng.uniform(0.6, 1.2)
    board = b.material(Material(shade(style.wood, rng), style.wood_dark, "wood", (0.1, 0.4)))
    b.box((0, 0.12, 0), (w, 0.24, 0.03), board)
    run = w * rng.uniform(0.4, 0.8)
    books = b.material(Material((0.5, 0.4, 0.3), pattern="books", scale=(rng.uniform(0.025, 0.045), 0.3),
                                seed=rng.randrange(1000)))
    b.box(((run - w) / 2 + 0.04, 0.11, 0.125), (run, 0.17, 0.22), books)
    return Piece((w, 0.24, 0.4))


def ceiling_lamp(b: Builder, rng: Random, style: Style) -> Piece:
    """The origin is on the ceiling."""
    b.begin(c.LAMP)
    metal = b.material(Material(style.metal, gloss=0.6))
    glow = b.material(Material((1.0, 0.95, 0.85), emission=1.5))
    if rng.random() < 0.55:
        drop, r = rng.uniform(0.45, 0.75), rng.uniform(0.17, 0.26)
        cover = b.material(Material(shade(rng.choice((style.accent, style.metal, style.white)), rng), emission=0.25))
        b.cylinder((0, 0, -drop), (0, 0, 0), 0.008, metal)
        b.ellipsoid((0, 0, -drop), (r, r, r * 0.9), cover, low=0, high=r)
        b.sphere((0, 0, -drop + 0.005), r * 0.4, glow)
        return Piece((2 * r, 2 * r, drop + 0.1), shine=(0, 0, -drop - 0.15))
    r = rng.uniform(0.18, 0.28)
    b.cylinder((0, 0, -0.03), (0, 0, 0), r * 1.1, metal)
    b.ellipsoid((0, 0, -0.02), (r, r, 0.11), glow, low=0.11, high=0.0)
    return Piece((2 * r, 2 * r, 0.15), shine=(0, 0, -0.25))


def books(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.OBJECT)
    z = 0.0
    for _ in range(rng.randint(1, 4)):
        h, w, d = rng.uniform(0.02, 0.045), rng.uniform(0.14, 0.2), rng.uniform(0.2, 0.27)
        color = any_color(rng, 0.1, 0.85)
        b.box((rng.uniform(-0.01, 0.01), 0, z + h / 2), (w, d, h), b.material(Material(color)),
              rotation=turned(2, rng.uniform(-0.3, 0.3)))
        z += h
    return Piece((0.2, 0.27, z))


def vase(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.OBJECT)
    r, h = rng.uniform(0.05, 0.09), rng.uniform(0.18, 0.34)
    clay = b.material(Material(shade(rng.choice((style.accent, style.textile, style.white)), rng), gloss=0.7))
    b.ellipsoid((0, 0, h * 0.4), (r, r, h * 0.45), clay, low=h * 0.4, high=h * 0.42)
    b.cylinder((0, 0, h * 0.7), (0, 0, h), r * 0.5, clay)
    return Piece((2 * r, 2 * r, h))


def bowl(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.OBJECT)
    r = rng.uniform(0.1, 0.15)
    clay = b.material(Material(shade(rng.choice((style.accent, style.white, style.wood)), rng), gloss=0.5))
    b.ellipsoid((0, 0, 0.09), (r, r, 0.09), clay, low=0.09, high=0.0)
    for k in range(rng.randint(2, 4)):
        fruit = b.material(Material(shade(rng.choice(((0.85, 0.2, 0.12), (0.95, 0.6, 0.1), (0.5, 0.7, 0.2))), rng)))
        b.sphere((r * 0.4 * math.cos(2.1 * k), r * 0.4 * math.sin(2.1 * k), 0.1), 0.04, fruit)
    return Piece((2 * r, 2 * r, 0.14))


def mug(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.OBJECT)
    clay = b.material(Material(shade(rng.choice((style.white, style.accent, style.metal)), rng), gloss=0.5))
    b.cylinder((0, 0, 0), (0, 0, 0.1), 0.042, clay)
    b.box((0.05, 0, 0.05), (0.03, 0.012, 0.06), clay)
    return Piece((0.12, 0.09, 0.1))


def carton(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.OBJECT)
    w, d, h = (rng.uniform(0.2, 0.45) for _ in range(3))
    card = b.material(Material(shade((0.68, 0.52, 0.34), rng), pattern="fabric", second=(0.6, 0.45, 0.3)))
    tape = b.material(Material((0.8, 0.7, 0.5), gloss=0.3))
    b.box((0, 0, h / 2), (w, d, h), card)
    b.box((0, 0, h / 2), (0.05, d + 0.002, h + 0.002), tape)
    return Piece((w, d, h))


def ball(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.OBJECT)
    r = rng.uniform(0.09, 0.13)
    first, second = any_color(rng, 0.15, 0.95), any_color(rng, 0.15, 0.95)
    b.sphere((0, 0, r), r, b.material(Material(first, second, "stripes", (0.06, 0.06), 0.3)))
    return Piece((2 * r, 2 * r, 2 * r))


def pouf(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.OBJECT)
    r, h = rng.uniform(0.2, 0.28), rng.uniform(0.32, 0.42)
    b.ellipsoid((0, 0, h / 2), (r * 1.1, r * 1.1, h * 0.75), textile(b, rng, style, 0.4), low=h / 2, high=h / 2)
    return Piece((2 * r, 2 * r, h))


def television(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.OBJECT)
    w = rng.uniform(0.8, 1.2)
    h = w * 0.57
    case = b.material(Material((0.05, 0.05, 0.06), gloss=0.4))
    lit = rng.random() < 0.5
    screen = b.material(Material((0.15, 0.35, 0.6), (0.75, 0.5, 0.3), "screen", emission=0.9) if lit
                        else Material((0.03, 0.03, 0.04), gloss=1.0))
    b.box((0, 0, 0.01), (w * 0.4, 0.2, 0.02), case)
    b.box((0, -0.02, 0.06), (0.08, 0.03, 0.1), case)
    b.box((0, 0, 0.08 + h / 2), (w, 0.04, h), case)
    b.box((0, 0.02, 0.08 + h / 2), (w - 0.04, 0.004, h - 0.04), screen)
    return Piece((w, 0.22, h + 0.1))


def laptop(b: Builder, rng: Random, style: Style) -> Piece:
    b.begin(c.OBJECT)
    case = b.material(Material(rng.choice(((0.7, 0.71, 0.73), (0.12, 0.12, 0.13))), gloss=0.4))
    screen = b.material(Material((0.2, 0.45, 0.7), (0.85, 0.85, 0.9), "screen", emission=0.8))
    b.box((0, 0, 0.01), (0.33, 0.23, 0.018), case)
    b.box((0, -0.15, 0.12), (0.33, 0.01, 0.22), case, rotation=turned(0, 0.3))
    b.box((0, -0.144, 0.12), (0.31, 0.004, 0.2), screen, rotation=turned(0, 0.3))
    return Piece((0.34, 0.35, 0.24))


def small_plant(b: Builder, rng: Random, style: Style) -> Piece:
    return plant(b, rng, style, size=(0.25, 0.45))


ON_TABLES: tuple[Maker, ...] = (books, vase, bowl, mug, laptop, small_plant, table_lamp, books, mug)
ON_CABINETS: tuple[Maker, ...] = (books, vase, small_plant, table_lamp, bowl)
ON_FLOORS: tuple[Maker, ...] = (carton, ball, pouf, books, carton)
