"""People: poseable figures of capsules and ellipsoids with clothes, body parts and joints."""

from __future__ import annotations

import math
from random import Random

from polyptych.datasets._rooms import classes as c
from polyptych.datasets._rooms.materials import Color, Material
from polyptych.datasets._rooms.solids import Builder, Vector, towards

SKIN: tuple[Color, ...] = ((0.96, 0.80, 0.69), (0.88, 0.68, 0.54), (0.72, 0.50, 0.36), (0.52, 0.35, 0.25),
                           (0.36, 0.24, 0.18))
HAIR: tuple[Color, ...] = ((0.09, 0.07, 0.06), (0.28, 0.18, 0.11), (0.45, 0.30, 0.16), (0.80, 0.66, 0.40),
                           (0.55, 0.25, 0.12), (0.62, 0.61, 0.60))
CLOTHES: tuple[Color, ...] = ((0.80, 0.18, 0.18), (0.16, 0.34, 0.62), (0.93, 0.92, 0.90), (0.15, 0.16, 0.19),
                              (0.30, 0.52, 0.36), (0.93, 0.72, 0.25), (0.56, 0.38, 0.60), (0.52, 0.54, 0.57),
                              (0.88, 0.55, 0.45), (0.42, 0.30, 0.22), (0.35, 0.62, 0.68))
TROUSERS: tuple[Color, ...] = ((0.18, 0.25, 0.42), (0.14, 0.14, 0.16), (0.62, 0.54, 0.42), (0.38, 0.40, 0.42),
                               (0.32, 0.22, 0.18), (0.30, 0.38, 0.55))


def person(b: Builder, rng: Random, *, seat: float | None = None) -> list[Vector]:
    """Add a person to the builder; the joints come back in the local frame (x to its right, y to its front, z up),
    in the order of :data:`classes.JOINTS`. The origin lies on the floor below the hips.

    Args:
        seat: height of the seat that the person sits on; None stands.
    """
    b.begin(c.PERSON)
    size = rng.uniform(0.90, 1.08) if seat is not None or rng.random() < 0.85 else rng.uniform(0.62, 0.8)
    girth = size * rng.uniform(0.92, 1.18)
    skin, shirt, sleeves, trousers, shins, shoes, hair = _wardrobe(b, rng)

    hip_z = seat + 0.10 * size if seat is not None else 0.92 * size
    lean = rng.uniform(-0.12, 0.02) if seat is not None else rng.uniform(-0.04, 0.08)
    shoulder_z, shoulder_y = hip_z + 0.50 * size, 0.5 * size * math.sin(lean)
    hips = [(s * 0.095 * size, 0.0, hip_z) for s in (-1, 1)]
    shoulders = [(s * 0.185 * size, shoulder_y, shoulder_z) for s in (-1, 1)]
    head = (rng.uniform(-0.02, 0.02), shoulder_y + 0.03 * size, shoulder_z + 0.245 * size)

    _trunk(b, size, girth, hip_z, shoulders, head, shirt, trousers, skin)
    _head(b, rng, size, head, skin, hair)
    elbows, wrists = _arms(b, rng, size, girth, shoulders, shirt, sleeves, skin, seat is not None)
    stride = rng.uniform(-0.28, 0.28)
    knees, ankles = [], []
    for s, hip in zip((-1, 1), hips, strict=True):
        if seat is not None:
            spread = rng.uniform(0.0, 0.2)
            knee = (hip[0] + s * spread * 0.3, 0.42 * size, hip_z + 0.02)
            reach = rng.uniform(-0.1, 0.22)
            drop = min(0.43 * size, knee[2] - 0.08)
            ankle = (knee[0], knee[1] + reach * size * 0.6, knee[2] - drop * math.cos(reach))
        else:
            a = s * stride + rng.uniform(-0.03, 0.03)
            bend = max(0.0, -s * stride) * rng.uniform(0.3, 1.0)
            knee = (hip[0] + s * 0.015, 0.43 * size * math.sin(a), hip_z - 0.43 * size * math.cos(a))
            ankle = (knee[0], knee[1] + 0.42 * size * math.sin(a - bend), knee[2] - 0.42 * size * math.cos(a - bend))
            ankle = (ankle[0], ankle[1], max(ankle[2], 0.075 * size))
        b.capsule(hip, knee, 0.078 * girth, trousers, part=c.UPPER_LEG)
        b.capsule(knee, ankle, 0.053 * girth, shins, part=c.LOWER_LEG)
        b.ellipsoid((ankle[0], ankle[1] + 0.06 * size, max(ankle[2] - 0.035 * size, 0.04)),
                    (0.048 * size, 0.13 * size, 0.045 * size), shoes, part=c.LOWER_LEG)
        knees.append(knee)
        ankles.append(ankle)
    return [head, *shoulders, *elbows, *wrists, *hips, *knees, *ankles]


def _wardrobe(b: Builder, rng: Random) -> tuple[int, ...]:
    skin = b.material(Material(rng.choice(SKIN), gloss=0.08))
    color, other = rng.sample(CLOTHES, 2)
    pattern = rng.choice(("fabric", "fabric", "stripes", "checker"))
    width = rng.uniform(0.03, 0.07)
    shirt = b.material(Material(color, other if pattern != "fabric" else color, pattern, (width, width)))
    if pattern == "stripes":  # horizontally round the body: the pattern runs along the height
        shirt = b.material(Material(color, other, "checker", (10.0, width)))
    cloth = rng.choice(TROUSERS)
    trousers = b.material(Material(cloth, cloth, "fabric", (0.02, 0.02), seed=rng.randrange(200)))
    sleeves = shirt if rng.random() < 0.5 else skin
    shins = trousers if rng.random() < 0.75 else skin
    shoes = b.material(Material(rng.choice(CLOTHES)))
    return skin, shirt, sleeves, trousers, shins, shoes, b.material(Material(rng.choice(HAIR)))


def _trunk(b: Builder, size: float, girth: float, hip_z: float, shoulders: list[Vector], head: Vector,
           shirt: int, trousers: int, skin: int) -> None:
    neck = (0.0, shoulders[0][1] + 0.005, shoulders[0][2] + 0.01 * size)
    base = (0.0, 0.0, hip_z + 0.02)
    x, y, z = (0.42 * p + 0.58 * q for p, q in zip(base, neck, strict=True))
    axes = towards(base, neck)
    b.ellipsoid((x, y, z), (0.178 * girth, 0.122 * girth, 0.30 * size), shirt, rotation=_upright(axes), part=c.TORSO)
    b.ellipsoid((0, 0, hip_z + 0.09 * size), (0.155 * girth, 0.12 * girth, 0.17 * size), shirt, part=c.TORSO)
    b.ellipsoid((0, 0, hip_z - 0.01), (0.158 * girth, 0.125 * girth, 0.10 * size), trousers, part=c.TORSO)
    b.capsule(shoulders[0], shoulders[1], 0.062 * girth, shirt, part=c.TORSO)
    b.cylinder(neck, (head[0], head[1] - 0.01, head[2] - 0.06 * size), 0.05 * size, skin, part=c.HEAD)


def _upright(axes: tuple[float, ...]) -> tuple[float, ...]:
    """A rotation with the given z axis that keeps x to the right; the trunk only leans forward or back."""
    y, z = axes[5], axes[8]
    return (1.0, 0.0, 0.0, 0.0, z, y, 0.0, -y, z)


def _head(b: Builder, rng: Random, size: float, head: Vector, skin: int, hair: int) -> None:
    x, y, z = head
    b.ellipsoid(head, (0.078 * size, 0.095 * size, 0.118 * size), skin, part=c.HEAD)
    b.ellipsoid((x, y + 0.092 * size, z - 0.015 * size), (0.014, 0.022, 0.02), skin, part=c.HEAD)
    eyes = b.material(Material((0.12, 0.09, 0.08), gloss=0.5))
    for s in (-1, 1):
        b.sphere((x + s * 0.03 * size, y + 0.078 * size, z + 0.012 * size), 0.013 * size, eyes, part=c.HEAD)
    style = rng.random()
    b.ellipsoid((x, y - 0.022 * size, z + 0.03 * size), (0.088 * size, 0.098 * size, 0.108 * size), hair, part=c.HEAD)
    if style < 0.35:  # long hair
        b.ellipsoid((x, y - 0.065 * size, z - 0.06 * size), (0.09 * size, 0.055 * size, 0.16 * size), hair, part=c.HEAD)
    elif style < 0.45:
        b.sphere((x, y - 0.06 * size, z + 0.13 * size), 0.045 * size, hair, part=c.HEAD)


def _arms(b: Builder, rng: Random, size: float, girth: float, shoulders: list[Vector], shirt: int, sleeves: int,
          skin: int, sits: bool) -> tuple[list[Vector], list[Vector]]:
    upper, lower = 0.285 * size, 0.255 * size
    elbows, wrists = [], []
    for s, shoulder in zip((-1, 1), shoulders, strict=True):
        pose = rng.choice(("down", "lap", "lap", "hold") if sits else
                          ("down", "down", "hip", "hold", "point", "raise", "phone"))
        swing, out, bend, inward = {  # flexion, abduction, elbow, how far the lower arm turns to the middle
            "down": (rng.uniform(-0.3, 0.3), rng.uniform(0.1, 0.25), rng.uniform(0.05, 0.5), 0.1),
            "lap": (rng.uniform(0.3, 0.5), rng.uniform(0.1, 0.25), rng.uniform(0.9, 1.2), 0.35),
            "hip": (-0.25, rng.uniform(0.6, 0.8), 1.0, 1.5),
            "hold": (rng.uniform(0.1, 0.4), 0.15, rng.uniform(1.3, 1.7), rng.uniform(0.1, 0.5)),
            "point": (rng.uniform(0.9, 1.6), rng.uniform(0.0, 0.6), rng.uniform(0.0, 0.3), 0.0),
            "raise": (rng.uniform(0.2, 1.0), rng.uniform(1.2, 2.2), rng.uniform(0.3, 1.3), -0.2),
            "phone": (0.4, rng.uniform(0.3, 0.5), 2.3, 0.3),
        }[pose]
        down, side, front = math.cos(out), math.sin(out), math.sin(swing)
        upward = down * math.cos(swing)
        first = (s * side, front * down, -upward)
        elbow = _beyond(shoulder, first, upper)
        if pose == "raise":
            second = (s * side * 0.4, front * 0.3, 1.0)
        else:
            angle = swing + bend
            second = (s * (side * math.cos(bend) - math.sin(bend) * inward), math.sin(angle) * (1 - 0.5 * abs(inward)),
                      -math.cos(angle))
        length = math.hypot(*second)
        wrist = _beyond(elbow, second, lower, length)
        hand = _beyond(elbow, second, lower + 0.06 * size, length)
        b.capsule(shoulder, elbow, 0.05 * girth, shirt, part=c.UPPER_ARM)
        b.capsule(elbow, wrist, 0.038 * girth, sleeves, part=c.LOWER_ARM)
        b.sphere(hand, 0.048 * size, skin, part=c.LOWER_ARM)
        elbows.append(elbow)
        wrists.append(wrist)
    return elbows, wrists


def _beyond(point: Vector, direction: Vector, distance: float, length: float = 1.0) -> Vector:
    """The point at a distance from another, in a direction of the given length."""
    x, y, z = (p + distance * q / length for p, q in zip(point, direction, strict=True))
    return x, y, z
