"""Normals from depth: exact on planes, nearly so on rendered rooms, and unmoved by what lies behind an edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from polyptych.data.preparation.normals import PlaneFit, normals_from_depth
from polyptych.datasets.rooms import Rooms
from polyptych.errors import InputError
from polyptych.types import Intrinsics

CAMERA = Intrinsics(60.0, 55.0, 15.0, 13.0)
SIZE = (24, 32)


def plane(normal: np.ndarray, point: np.ndarray, camera: Intrinsics = CAMERA,
          size: tuple[int, int] = SIZE) -> np.ndarray:
    """Depth of the plane through a point."""
    y, x = np.mgrid[:size[0], :size[1]]
    rays = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(size)])
    return (normal @ point) / np.einsum("c,chw->hw", normal, rays)


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees between two fields (3 ...) of unit vectors, exact for small angles too."""
    return np.degrees(2 * np.arcsin(np.clip(np.linalg.norm(a - b, axis=0) / 2, 0, 1)))


@settings(max_examples=40, deadline=None)
@given(st.floats(-1.2, 1.2), st.floats(-1.2, 1.2), st.floats(0.5, 9.5), st.sampled_from([(3, 1), (9, 1), (9, 2)]))
def test_a_plane_is_exact(along: float, across: float, far: float, shape: tuple[int, int]) -> None:
    normal = np.array([along, across, -1.0])
    normal /= np.linalg.norm(normal)
    depth = plane(normal, np.array([0, 0, far]))
    valid = (depth > 0.1) & (depth < 100)
    fit = PlaneFit(window=shape[0], stride=shape[1], edge=0.5)
    normals, found = normals_from_depth(depth, valid, CAMERA, fit)
    assert found[13, 15]
    assert angle(normals, normal[:, None, None])[found].max() < 0.01
    assert not found[~valid].any() and not normals[:, ~found].any()


def test_the_other_side_of_an_edge_has_no_say() -> None:
    """Without weights, a window that is half on another wall gives something between the two."""
    left, right = np.array([0.6, 0, -0.8]), np.array([0, -0.28, -0.96])
    depth = np.where(np.arange(SIZE[1]) < 16, plane(left, np.array([0, 0, 2.0])), plane(right, np.array([0, 0, 3.0])))
    truth = np.where(np.arange(SIZE[1]) < 16, left[:, None, None], right[:, None, None])
    normals, found = normals_from_depth(depth, np.ones(SIZE, bool), CAMERA, PlaneFit(window=7, stride=1))
    assert found.mean() > 0.95
    assert angle(normals, np.broadcast_to(truth, (3, *SIZE)))[found].max() < 1
    plain = PlaneFit(window=7, stride=1, edge=100, passes=0)
    blurred, found = normals_from_depth(depth, np.ones(SIZE, bool), CAMERA, plain)
    assert angle(blurred, np.broadcast_to(truth, (3, *SIZE)))[found].max() > 10


def test_noise_averages_out_over_the_window() -> None:
    normal = np.array([0.36, 0.48, -0.8])
    depth = plane(normal, np.array([0, 0, 2.0]))
    noisy = 1 / (1 / depth + np.random.default_rng(0).normal(0, 0.003, SIZE))
    errors = [np.median(angle(normals_from_depth(noisy, np.ones(SIZE, bool), CAMERA, PlaneFit(window=w, stride=1))[0],
                              normal[:, None, None])) for w in (3, 7, 15)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 2


def test_holes_and_nonsense_have_no_normal_and_harm_nobody() -> None:
    normal = np.array([0, 0.6, -0.8])
    depth = plane(normal, np.array([0, 0, 2.0]))
    depth[5:9, 5:9], depth[0, 0], depth[0, 1], depth[12, 12] = 0, np.nan, np.inf, -3
    valid = np.ones(SIZE, bool)
    valid[20:] = False
    normals, found = normals_from_depth(depth, valid, CAMERA, PlaneFit(window=5, stride=1))
    assert not found[5:9, 5:9].any() and not found[0, :2].any() and not found[12, 12] and not found[20:].any()
    assert angle(normals, normal[:, None, None])[found].max() < 0.01 and found.sum() > 400


def test_a_pixel_alone_has_no_normal() -> None:
    valid = np.zeros(SIZE, bool)
    valid[4, 4], valid[10, :] = True, True  # nor does a line
    assert not normals_from_depth(np.full(SIZE, 2.0), valid, CAMERA, PlaneFit(window=5, stride=1))[1].any()


@pytest.mark.parametrize("size", [(128, 160), pytest.param((240, 320), marks=pytest.mark.slow)])
def test_rooms_are_within_a_degree(size: tuple[int, int]) -> None:
    """Rendered rooms with their exact depth; curved things, creases and thin legs are what is left of the error."""
    rooms = Rooms.Config(size=size).build(split="val", tasks=("depth", "normals", "boundaries"))
    errors, seen = [], []
    for index in range(6):
        sample = rooms.read(index)
        camera = Intrinsics(*rooms.room(index).camera(size).intrinsics)
        valid = sample.valid["normals"].numpy()
        normals, found = normals_from_depth(sample.target["depth"].numpy(), valid, camera,
                                            PlaneFit(window=5, stride=1, noise=0.001))
        near = ndimage.maximum_filter(sample.target["boundaries"].numpy(), 7) > 0
        error = angle(normals, sample.target["normals"].numpy())
        errors.append(error[found & valid & ~near])
        seen.append(found[valid & ~near])
    error = np.concatenate(errors)
    assert np.median(error) < 0.1 and (error < 5).mean() > 0.9 and np.concatenate(seen).mean() > 0.8


@pytest.mark.parametrize("options", [{"window": 4}, {"window": 1}, {"stride": 0}, {"stride": 11}, {"edge": 0.0},
                                     {"noise": -1.0}, {"passes": -1}, {"support": 0.0}])
def test_senseless_parameters_are_refused(options: dict) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        PlaneFit(**options)
