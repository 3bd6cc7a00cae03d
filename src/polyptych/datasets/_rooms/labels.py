"""Exact labels of a view, one function per task: ``LABELS[task](room, view)`` gives target and mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float32, Int64

from polyptych.datasets._rooms import classes as c
from polyptych.datasets._rooms.arrangement import Room
from polyptych.datasets._rooms.view import View

Label = tuple[np.ndarray, Bool[np.ndarray, "h w"]]

BODY = 0.25
"""A joint is inside the body: it counts as visible if the surface of the same person is at most this far in front of
it."""
LARGE = 0.005
"""Share of the picture that a person must fill to be salient."""


def instances(room: Room, view: View) -> Int64[np.ndarray, "h w"]:
    """The object that each pixel shows; every wall, the floor and the ceiling are objects of their own."""
    return room.surfaces.instance[view.ids]


def semseg(room: Room, view: View) -> Label:
    """Class ids, in the order of :data:`classes.CLASSES`."""
    return room.classes[instances(room, view)], np.ones(view.ids.shape, bool)


def depth(room: Room, view: View) -> Label:
    """Meters along the optical axis, unknown on the glass of windows."""
    return view.depth, ~_glass(room, view)


def normals(room: Room, view: View) -> Label:
    """Unit vectors toward the camera (x right, y down, z forward), unknown on the glass of windows."""
    return view.normals, ~_glass(room, view)


def boundaries(room: Room, view: View) -> Label:
    """Where two neighboring pixels show different objects, the nearer of the two is on the boundary."""
    instance, w = instances(room, view), view.w
    edge = np.zeros(instance.shape, bool)
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        differs = instance[a] != instance[b]
        nearer = w[a] >= w[b]
        edge[a] |= differs & nearer
        edge[b] |= differs & ~nearer
    return edge.astype(np.float32), np.ones(edge.shape, bool)


def saliency(room: Room, view: View) -> Label:
    """The people that fill at least :data:`LARGE` of the picture (and a quarter of what the largest fills); without
    any, the object that best combines size, vivid color and a central position."""
    instance = instances(room, view)
    count = len(room.classes)
    area = np.bincount(instance.ravel(), minlength=count) / instance.size
    is_person = room.classes == c.PERSON
    chosen = is_person & (area >= max(LARGE, area[is_person].max(initial=0) / 4))
    if not chosen.any():
        background = np.isin(room.classes, (c.WALL, c.FLOOR, c.CEILING, c.WINDOW, c.DOOR))
        score = np.sqrt(area) * (0.15 + room.vividness) * _centrality(instance, count)
        score[background] = 0
        chosen[score.argmax()] = score.max() > 0
    return chosen[instance].astype(np.float32), np.ones(instance.shape, bool)


def parts(room: Room, view: View) -> Label:
    """Parts of people, in the order of :data:`classes.PARTS`; no label at all for a picture without people."""
    part = room.surfaces.part[view.ids]
    return part, np.full(part.shape, bool(part.any()))


def keypoints(room: Room, view: View) -> Label:
    """(persons, joints, 3): x, y in pixels and whether the joint is visible, for every person of whom at least one
    pixel is seen."""
    instance = instances(room, view)
    seen = np.bincount(instance.ravel(), minlength=len(room.classes)) > 0
    found = [_joints(person.joints, person.instance, instance, view) for person in room.people
             if seen[person.instance]]
    target = np.stack(found) if found else np.zeros((0, len(c.JOINTS), 3), np.float32)
    return target, np.ones(instance.shape, bool)


def _joints(joints: np.ndarray, number: int, instance: np.ndarray, view: View) -> Float32[np.ndarray, "k 3"]:
    height, width = instance.shape
    x, y, z = view.camera.project(joints).T
    behind = z <= 0.05
    x, y = np.where(behind, 0, x), np.where(behind, 0, y)
    column, row = np.rint(x).astype(np.int64), np.rint(y).astype(np.int64)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & ~behind
    column, row = np.clip(column, 0, width - 1), np.clip(row, 0, height - 1)
    visible = inside & (instance[row, column] == number) & (view.depth[row, column] > z - BODY)
    return np.stack([x, y, visible], 1).astype(np.float32)


def _glass(room: Room, view: View) -> Bool[np.ndarray, "h w"]:
    return room.glass()[view.ids]


def _centrality(instance: np.ndarray, count: int) -> Float32[np.ndarray, n]:
    """One for an object in the middle of the picture, falling to a half at its borders."""
    height, width = instance.shape
    flat = instance.ravel()
    number = np.maximum(np.bincount(flat, minlength=count), 1)
    y, x = np.indices(instance.shape)
    mean_x = np.bincount(flat, x.ravel() / width, count) / number
    mean_y = np.bincount(flat, y.ravel() / height, count) / number
    return 1 - np.maximum(np.abs(mean_x - 0.5), np.abs(mean_y - 0.5))


LABELS: dict[str, Callable[[Room, View], Label]] = {
    "semseg": semseg, "depth": depth, "normals": normals, "boundaries": boundaries, "saliency": saliency,
    "parts": parts, "keypoints": keypoints,
}
