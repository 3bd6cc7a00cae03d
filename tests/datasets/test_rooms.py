"""Rooms: reproducible, the same room at every resolution, and labels that agree with independent computations."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch

from polyptych.datasets._base import CATALOG
from polyptych.datasets._rooms import classes as c
from polyptych.datasets._rooms.casting import cast, cast_room, look, surface_normals
from polyptych.datasets._rooms.labels import LABELS, instances
from polyptych.datasets._rooms.materials import PATTERNS, Material, albedo
from polyptych.datasets._rooms.solids import SHELL, Builder, towards, turned
from polyptych.datasets._rooms.view import observe
from polyptych.datasets.rooms import Rooms
from polyptych.errors import InputError
from polyptych.types import Sample

TASKS = tuple(LABELS)
SIZE = (96, 120)


def rooms(split: str = "test", tasks: tuple[str, ...] = TASKS, **options: object) -> Rooms:
    return Rooms.Config(**{"size": SIZE, **options}).build(split=split, tasks=tasks)  # type: ignore[arg-type,return-value]


@cache
def sample(index: int) -> Sample:
    return rooms().read(index)


def same(a: Sample, b: Sample) -> bool:
    return torch.equal(a.image, b.image) and all(
        torch.equal(a.target[t], b.target[t]) and torch.equal(a.valid[t], b.valid[t]) for t in TASKS)


# -- the dataset -------------------------------------------------------------------------------------------------

def test_is_found_by_its_name() -> None:
    assert CATALOG.load("rooms") is Rooms
    assert Rooms.Config().name == "rooms"


def test_lengths_and_protocol() -> None:
    assert [len(rooms(s)) for s in ("train", "val", "test")] == [1_000_000, 64, 128]
    assert len(rooms("train", frames=10)) == 10
    assert rooms().protocol == "rooms-1-96x120"
    assert rooms(clutter=2.0).protocol != rooms().protocol
    with pytest.raises(IndexError):
        rooms().read(128)


@pytest.mark.parametrize("options", [{"size": (8, 100)}, {"frames": -1}, {"empty": 1.5}, {"clutter": -0.1}])
def test_refuses_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="of rooms: got"):
        rooms(**options)


def test_refuses_unknown_split_and_task() -> None:
    with pytest.raises(InputError, match="one of train, val, test"):
        rooms("training")
    with pytest.raises(InputError, match="no labels for it"):
        rooms(tasks=("albedo",))


def test_same_index_same_bits() -> None:
    for index in (0, 7):
        assert same(rooms().read(index), rooms().read(index))


def test_splits_and_indices_differ() -> None:
    seeds = {rooms(split)._seed(i) for split in ("train", "val", "test") for i in range(60)}
    assert len(seeds) == 180
    assert len({rooms(split).read(3).image.numpy().tobytes() for split in ("train", "val", "test")}) == 3


def test_forms_of_the_labels() -> None:
    s, (h, w) = sample(0), SIZE
    assert s.image.dtype == torch.uint8 and s.image.shape == (3, h, w)
    assert s.info.id == "test/000000" and s.info.native == s.info.content == SIZE
    shapes = {"semseg": (h, w), "depth": (h, w), "normals": (3, h, w), "boundaries": (h, w), "saliency": (h, w),
              "parts": (h, w)}
    for task, shape in shapes.items():
        assert s.target[task].shape == shape
        assert s.target[task].dtype == (torch.int64 if task in ("semseg", "parts") else torch.float32)
    assert s.target["keypoints"].shape[1:] == (len(c.JOINTS), 3)
    assert all(s.valid[t].shape == (h, w) and s.valid[t].dtype == torch.bool for t in TASKS)
    for index in range(6):
        s = sample(index)
        assert float(s.target["depth"].min()) > 0 and float(s.target["depth"].max()) < 10
        assert set(s.target["boundaries"].unique().tolist()) == {0.0, 1.0}
        assert set(s.target["saliency"].unique().tolist()) <= {0.0, 1.0}


def test_only_asked_tasks_are_made() -> None:
    s = rooms(tasks=("depth",)).read(0)
    assert set(s.target) == set(s.valid) == {"depth"}
    assert torch.equal(s.image, sample(0).image)


def test_label_information_is_consistent() -> None:
    for info in Rooms.labels.values():
        assert not info.colors or len(info.colors) == len(info.classes)
        for a, b in info.mirror:
            assert info.classes[a].replace("left", "right") == info.classes[b]
        assert all(max(pair) < len(info.classes) for pair in info.skeleton)
    assert len(set(c.CLASS_COLORS)) == len(c.CLASSES)


@pytest.mark.parametrize("size", [(17, 33), (64, 16), (51, 40)])
def test_any_size(size: tuple[int, int]) -> None:
    s = rooms(size=size).read(1)
    assert s.image.shape == (3, *size) and s.target["normals"].shape == (3, *size)


def test_two_resolutions_show_the_same_scene() -> None:
    for index in range(4):
        fine = rooms(size=(2 * SIZE[0], 2 * SIZE[1])).read(index)
        coarse = sample(index)
        agree = (fine.target["semseg"][::2, ::2] == coarse.target["semseg"]).float().mean()
        assert agree > 0.9
        ratio = fine.target["depth"][::2, ::2] / coarse.target["depth"]
        assert abs(float(ratio.median()) - 1) < 0.01
        mean = [float(x.image.float().mean()) for x in (fine, coarse)]
        assert abs(mean[0] - mean[1]) < 4


# -- labels ------------------------------------------------------------------------------------------------------

def test_normals_are_unit_and_face_the_camera() -> None:
    for index in range(4):
        view = observe(rooms().room(index), SIZE)
        length = np.linalg.norm(view.normals, axis=0)
        assert np.abs(length - 1).max() < 1e-4
        facing = view.normals[0] * view.u + view.normals[1] * view.v[:, None] + view.normals[2]
        assert facing.max() <= 1e-4 and (facing < 0).mean() > 0.999


def test_normals_agree_with_depth() -> None:
    """Back-project the depth with the intrinsics and cross the central differences; independent of the ray caster."""
    errors = []
    for index in range(6):
        s, room = sample(index), rooms().room(index)
        view = observe(room, SIZE)
        fx, fy, cx, cy = room.camera(SIZE).intrinsics
        z = s.target["depth"].double().numpy()
        y, x = np.indices(SIZE)
        points = np.stack([(x - cx) / fx * z, (y - cy) / fy * z, z])
        right = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
        down = points[:, 2:, 1:-1] - points[:, :-2, 1:-1]
        normal = np.cross(down, right, axis=0)
        normal /= np.linalg.norm(normal, axis=0)
        cosine = (normal * s.target["normals"].numpy()[:, 1:-1, 1:-1]).sum(0)
        face = view.ids * 8 + view.faces
        inner = face[1:-1, 1:-1]
        smooth = np.ones(inner.shape, bool)
        for dy in (0, 1, 2):
            for dx in (0, 1, 2):
                smooth &= face[dy:dy + SIZE[0] - 2, dx:dx + SIZE[1] - 2] == inner
        errors.append(np.degrees(np.arccos(np.clip(cosine[smooth], -1, 1))))
    errors = np.concatenate(errors)
    assert np.median(errors) < 0.1
    assert (errors < 1.5).mean() > 0.97


def test_boundaries_are_where_the_object_changes() -> None:
    for index in range(4):
        room = rooms().room(index)
        view = observe(room, SIZE)
        instance, edge = instances(room, view), sample(index).target["boundaries"].numpy() > 0
        touches = np.zeros(SIZE, bool)
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                for ny, nx in ((y + 1, x), (y, x + 1)):
                    if ny < SIZE[0] and nx < SIZE[1] and instance[y, x] != instance[ny, nx]:
                        touches[y, x] = touches[ny, nx] = True
                        assert edge[(y, x) if view.w[y, x] > view.w[ny, nx] else (ny, nx)]
        assert not (edge & ~touches).any()
        assert 0.01 < edge.mean() < 0.3


def test_parts_are_exactly_the_people() -> None:
    found = 0
    for index in range(12):
        s = sample(index)
        is_person = s.target["semseg"] == c.PERSON
        assert torch.equal(s.target["parts"] > 0, is_person)
        assert bool(s.valid["parts"].all()) == bool(is_person.any())
        found += bool(is_person.any())
    assert found >= 7
    empty = rooms(empty=1.0).read(0)
    assert not empty.valid["parts"].any() and empty.target["keypoints"].shape == (0, 13, 3)


def test_visible_keypoints_lie_on_their_person() -> None:
    seen = 0
    for index in range(12):
        room = rooms().room(index)
        instance = instances(room, observe(room, SIZE))
        people = [p for p in room.people if (instance == p.instance).any()]
        keypoints = sample(index).target["keypoints"]
        assert len(keypoints) == len(people)
        for person, joints in zip(people, keypoints.tolist(), strict=True):
            for x, y, visible in joints:
                if visible:
                    assert instance[round(y), round(x)] == person.instance
                    seen += 1
    assert seen > 30


def test_a_joint_behind_something_is_not_visible() -> None:
    room = rooms(size=(192, 240)).room(0)
    view = observe(room, (192, 240))
    for person in room.people:
        x, y, z = room.camera((192, 240)).project(person.joints).T
        for k in range(len(x)):
            row, column = round(y[k]), round(x[k])
            if 0 <= row < 192 and 0 <= column < 240 and view.depth[row, column] < z[k] - 0.5:
                hidden = [j[k, 2] for j in LABELS["keypoints"](room, view)[0] if abs(j[k, 0] - x[k]) < 1e-3]
                assert not any(hidden)


def test_glass_has_neither_depth_nor_normals() -> None:
    share = []
    for index in range(12):
        s = sample(index)
        assert torch.equal(s.valid["depth"], s.valid["normals"])
        assert (s.target["semseg"][~s.valid["depth"]] == c.WINDOW).all()
        share.append(float((~s.valid["depth"]).float().mean()))
        assert all(s.valid[t].all() for t in ("semseg", "boundaries", "saliency", "keypoints"))
    assert 0 < np.mean(share) < 0.3


def test_saliency_is_the_people_or_one_object() -> None:
    data = rooms(tasks=("semseg", "saliency"), empty=0.4)
    for index in range(10):
        target = data.read(index).target
        chosen = set(target["semseg"][target["saliency"] > 0].tolist())
        assert len(chosen) <= 1 and not chosen & {c.WALL, c.FLOOR, c.CEILING, c.WINDOW, c.DOOR}


def test_people_are_seen_and_the_camera_stands_free() -> None:
    data, seen, count = rooms("train"), 0, 40
    for index in range(count):
        room = data.room(index)
        assert not room.solids.inside(np.array(room.position), 0.05).any()
        view = observe(room, (36, 45))
        seen += bool((room.classes[instances(room, view)] == c.PERSON).any())
    assert seen >= 0.75 * count


@pytest.mark.slow
def test_every_class_occurs() -> None:
    data, count = rooms("train"), np.zeros(len(c.CLASSES), int)
    parts: set[int] = set()
    for index in range(300):
        room = data.room(index)
        view = observe(room, (64, 80))
        count += np.bincount(LABELS["semseg"](room, view)[0].ravel(), minlength=len(count)) > 0
        parts |= set(np.unique(LABELS["parts"](room, view)[0]).tolist())
    assert count.min() >= 15, dict(zip(c.CLASSES, count.tolist(), strict=True))
    assert parts == set(range(len(c.PARTS)))


# -- the ray caster against membership tests along each ray ------------------------------------------------------

def _box(p: np.ndarray) -> np.ndarray:
    return (np.abs(p) <= np.array([0.4, 0.2, 0.3])).all(-1)


def _sphere(p: np.ndarray) -> np.ndarray:
    return np.linalg.norm(p, axis=-1) <= 0.35


def _ellipsoid(p: np.ndarray) -> np.ndarray:
    return ((p / np.array([0.5, 0.2, 0.3])) ** 2).sum(-1) <= 1


def _dome(p: np.ndarray) -> np.ndarray:
    return _sphere(p) & (p[..., 2] <= 0.2) & (p[..., 2] >= -0.1)


A, B = np.array([-0.3, 0.1, -0.2]), np.array([0.3, -0.1, 0.4])  # ends of the cylinder and the capsule


def _cylinder(p: np.ndarray) -> np.ndarray:
    t = ((p - A) @ (B - A)) / ((B - A) @ (B - A))
    return (t >= 0) & (t <= 1) & (np.linalg.norm(p - A - t[..., None] * (B - A), axis=-1) <= 0.15)


def _capsule(p: np.ndarray) -> np.ndarray:
    return _cylinder(p) | (np.linalg.norm(p - A, axis=-1) <= 0.15) | (np.linalg.norm(p - B, axis=-1) <= 0.15)


SHAPES: dict[str, tuple[Callable[[Builder], None], Callable[[np.ndarray], np.ndarray]]] = {
    "box": (lambda b: b.box((0, 0, 0), (0.8, 0.4, 0.6), 0), _box),
    "sphere": (lambda b: b.sphere((0, 0, 0), 0.35, 0), _sphere),
    "ellipsoid": (lambda b: b.ellipsoid((0, 0, 0), (0.5, 0.2, 0.3), 0), _ellipsoid),
    "dome": (lambda b: b.ellipsoid((0, 0, 0), (0.35, 0.35, 0.35), 0, low=0.1, high=0.2), _dome),
    "cylinder": (lambda b: b.cylinder((-0.3, 0.1, -0.2), (0.3, -0.1, 0.4), 0.15, 0), _cylinder),
    "capsule": (lambda b: b.capsule((-0.3, 0.1, -0.2), (0.3, -0.1, 0.4), 0.15, 0), _capsule),
}


@pytest.mark.parametrize("origin", [
    (0.3, 2.2, 1.1), pytest.param((-0.6, 4.0, 0.2), marks=pytest.mark.grid)])
@pytest.mark.parametrize("name", SHAPES)
def test_solids_are_met_where_the_ray_enters_them(name: str, origin: tuple[float, float, float]) -> None:
    add, contains = SHAPES[name]
    b, yaw = Builder(), 0.7
    shell = tuple((b.begin(c.WALL), 0) for _ in range(SHELL))
    b.begin(c.OBJECT)
    add(b)
    b.place(*origin, yaw)
    solids, _ = b.finish(shell)
    camera = look((0.0, 0.0, 1.6), (0.2, 3.0, 0.6), 60.0, (60, 80), roll=0.2)
    w, ids = np.zeros(camera.size, np.float32), np.zeros(camera.size, np.int32)
    cast(solids, camera, w, ids)

    u, v = camera.pixels()
    rays = np.stack(np.broadcast_arrays(u, v[:, None], 1.0), -1).astype(np.float64)
    turn = np.array(turned(2, -yaw)).reshape(3, 3)

    def inside(t: np.ndarray) -> np.ndarray:
        points = camera.position + (rays * t[..., None]) @ camera.rotation
        return contains((points - origin) @ turn.T)

    depth = ((np.array(origin) - camera.position) @ camera.rotation.T)[2]
    steps = np.linspace(depth - 0.8, depth + 0.8, 350)  # every solid is within 0.7 of its origin
    member = np.stack([inside(np.full(camera.size, t)) for t in steps])
    hit, first = member.any(0), member.argmax(0)
    far, near = steps[first], steps[np.maximum(first - 1, 0)]
    for _ in range(30):
        middle = (near + far) / 2
        is_in = inside(middle)
        near, far = np.where(is_in, near, middle), np.where(is_in, middle, far)
    found = w > 0
    assert hit.sum() > 40
    assert (found != hit).sum() <= 0.04 * hit.sum() + 1, "only rays that graze may differ"
    both = found & hit
    assert np.quantile(np.abs(1 / w[both] - far[both]), 0.97) < 2e-4
    assert ((ids > 0) == found).all()


def test_the_room_is_met_where_a_scalar_ray_meets_it() -> None:
    room, camera = (4.0, 5.0, 2.6), look((1.5, 0.5, 1.5), (2.5, 4.0, 1.0), 50.0, (40, 50), roll=0.05)
    w, face = cast_room(room, camera)
    u, v = camera.pixels()
    for y in range(0, 40, 7):
        for x in range(0, 50, 7):
            direction = np.array([u[x], v[y], 1.0]) @ camera.rotation
            meets = [((room[k] if s else 0.0) - camera.position[k]) / direction[k] if direction[k] else math.inf
                     for k in range(3) for s in (0, 1)]
            t = min(m for m in meets if m > 0)
            assert abs(1 / w[y, x] - t) < 1e-4 and face[y, x] == meets.index(t)


def test_normals_of_a_sphere_and_a_box() -> None:
    b = Builder()
    shell = tuple((b.begin(c.WALL), 0) for _ in range(SHELL))
    b.begin(c.OBJECT)
    b.sphere((1.0, 3.0, 1.2), 0.5, 0)
    b.box((2.6, 3.0, 1.0), (0.8, 0.8, 0.8), 0, rotation=turned(2, 0.5))
    solids, _ = b.finish(shell)
    camera, room = look((1.8, 0.4, 1.5), (1.8, 3.0, 1.1), 60.0, (60, 90)), (4.0, 5.0, 2.6)
    w, ids = cast_room(room, camera)
    cast(solids, camera, w, ids)
    u, v = (x.ravel() for x in np.broadcast_arrays(camera.pixels()[0], camera.pixels()[1][:, None]))
    normals, face = surface_normals(solids, room, camera, ids.ravel(), u, v, w.ravel())
    points = (np.stack([u, v, np.ones_like(u)]) / w.ravel()).T @ camera.rotation + camera.position
    world = normals.T @ camera.rotation
    sphere, box = ids.ravel() == SHELL, ids.ravel() == SHELL + 1
    expected = (points - (1.0, 3.0, 1.2))[sphere] / 0.5
    assert np.abs(world[sphere] - expected).max() < 5e-3 and (face[sphere] == 6).all()
    local = (points - (2.6, 3.0, 1.0))[box] @ np.array(turned(2, 0.5)).reshape(3, 3)
    axis = np.abs(local).argmax(1)
    cosine = np.abs(world[box] @ np.array(turned(2, 0.5)).reshape(3, 3))[np.arange(len(axis)), axis]
    assert (cosine > 0.999).mean() > 0.97


def test_towards_is_a_rotation() -> None:
    for end in ((1, 0, 0), (0, 0, 1), (0, 0, -1), (0.3, -2, 0.7)):
        matrix = np.array(towards((0, 0, 0), end)).reshape(3, 3)
        assert np.allclose(matrix.T @ matrix, np.eye(3), atol=1e-12) and np.isclose(np.linalg.det(matrix), 1)
        assert np.allclose(matrix[:, 2], np.array(end) / np.linalg.norm(end))


@pytest.mark.parametrize("pattern", ["plain", *PATTERNS])
def test_patterns_give_colors(pattern: str) -> None:
    rng = np.random.default_rng(0)
    local = rng.uniform(-2, 2, (3, 500)).astype(np.float32)
    normal = np.eye(3, dtype=np.float32)[:, rng.integers(0, 3, 500)]
    color = albedo([Material((0.8, 0.3, 0.2), (0.1, 0.2, 0.6), pattern)], np.zeros(500, np.int64), local, normal,
                   np.full(500, 0.01, np.float32))
    assert color.shape == (3, 500) and np.isfinite(color).all() and color.min() >= 0 and color.max() <= 1
    assert pattern in ("plain", "fabric") or color.std(1).max() > 0.01
