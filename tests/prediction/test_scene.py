"""A scene: arrays in stated units, words, pictures, overlays, points, files."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fakes import Model
from PIL import Image

from polyptych.errors import InputError
from polyptych.prediction.point_cloud import find_camera, unproject
from polyptych.prediction.predictor import Predictor
from polyptych.prediction.scene import Outputs, Scene, write_scene

SIZE = (11, 14)


@pytest.fixture(scope="module")
def scene() -> Scene:
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return Predictor(Model()).predict(image)


def test_arrays_by_name(scene: Scene) -> None:
    assert scene.semseg.shape == scene.parts.shape == SIZE and scene.semseg.dtype == np.int64
    assert scene.depth.shape == scene.inverse_depth.shape == SIZE and scene.depth.dtype == np.float32
    assert scene.normals.shape == (*SIZE, 3) and np.allclose(np.linalg.norm(scene.normals, axis=-1), 1, atol=1e-5)
    assert scene.keypoints.shape == (5, 3) and (scene.keypoints[:, 0] < SIZE[1]).all()
    assert scene.classification.shape == (5,) and scene.classification.sum() == pytest.approx(1)
    assert 0 <= scene.boundaries.min() <= scene.boundaries.max() <= 1
    assert scene["depth"] is scene.depth, "made once"
    assert set(scene.tasks) <= set(dir(scene))


def test_what_is_not_there(scene: Scene) -> None:
    assert not hasattr(scene, "dept")
    with pytest.raises(AttributeError, match="has no 'dept'"):
        _ = scene.dept
    with pytest.raises(InputError, match=r"task: got 'dept'.*nearest: depth"):
        scene.unit("dept")
    with pytest.raises(InputError, match=r"pixel: got x 14, y 0; needs x from 0 to 13"):
        scene.at("depth", 14, 0)
    with pytest.raises(InputError, match="pixel"):
        scene.at("depth", -1, 0)
    assert np.array_equal(copy.deepcopy(scene).depth, scene.depth)


def test_words(scene: Scene) -> None:
    assert scene.unit("depth") == "m" and scene.unit("semseg") == "class id"
    assert scene.classes("semseg")[1] == "floor"
    assert scene.at("depth", 3, 2) == f"{scene.depth[2, 3]:.2f} m"
    assert scene.at("semseg", 13, 10) == scene.classes("semseg")[scene.semseg[10, 13]]
    assert len(scene.legend("semseg").entries) == 5


def test_pictures(scene: Scene) -> None:
    assert set(scene.painted()) == set(scene.tasks)
    assert all(picture.shape == (*SIZE, 3) for picture in scene.painted().values())
    assert scene.panel().shape[1] > len(scene.tasks) * SIZE[1]


def test_overlays(scene: Scene) -> None:
    for task in scene.tasks:
        assert np.array_equal(scene.overlay(task, 0), scene.image)
        layer = scene.layer(task)
        shown = layer[..., 3] == 255
        assert np.array_equal(scene.overlay(task, 1)[shown], layer[shown][:, :3])
    half = scene.overlay("semseg", 0.5).astype(float)
    assert np.abs(half - (scene.image / 2 + scene.panel("semseg") / 2)).max() <= 0.5
    with pytest.raises(InputError, match="opacity"):
        scene.overlay("depth", 1.5)


def test_points_lie_where_the_camera_sees_them(scene: Scene) -> None:
    fx, fy, cx, cy = 20.0, 22.0, 6.0, 5.5
    cloud = scene.points(intrinsics=(fx, fy, cx, cy))
    x, y, z = cloud.positions.astype(np.float64).T
    rows, columns = np.indices(SIZE).reshape(2, -1)
    assert np.allclose(fx * x / z + cx, columns, atol=1e-4) and np.allclose(fy * y / z + cy, rows, atol=1e-4)
    assert np.allclose(z, scene.depth.ravel())
    assert np.array_equal(cloud.colors, scene.image.reshape(-1, 3))
    assert np.array_equal(cloud.normals, scene.normals.reshape(-1, 3)) and len(cloud) == SIZE[0] * SIZE[1]


def test_the_field_of_view_reaches_from_border_to_border() -> None:
    camera = find_camera((11, 14), field_of_view=90)
    depth = np.ones((11, 14), np.float32)
    x = unproject(depth, camera, np.zeros((11, 14, 3), np.uint8)).positions.reshape(11, 14, 3)[0, :, 0]
    assert x[0] == -x[-1] and x[-1] == pytest.approx(13 / 14)  # the border, half a pixel further, is at 45 degrees
    assert find_camera((11, 14)) == find_camera((11, 14), field_of_view=60)


@pytest.mark.parametrize("options", [
    {"intrinsics": (0, 1, 1, 1)}, {"intrinsics": (1, 1, float("nan"), 1)}, {"field_of_view": 180},
    {"field_of_view": 0}, {"intrinsics": (1, 1, 1, 1), "field_of_view": 60}])
def test_cameras_that_make_no_sense(scene: Scene, options) -> None:
    with pytest.raises(InputError, match=r"--field-of-view|--intrinsics"):
        scene.points(**options)


def test_no_points_without_depth() -> None:
    scene = Predictor(Model("semseg", "normals")).predict(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(InputError, match="a task that predicts depth in meters"):
        scene.points()


def read_ply(path) -> np.ndarray:
    """By the format's own description: header lines, then one record per vertex."""
    data = path.read_bytes()
    header, _, body = data.partition(b"end_header\n")
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    types = {"float": "<f4", "uchar": "u1"}
    fields = [(line.split()[2], types[line.split()[1]]) for line in lines if line.startswith("property")]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    assert len(body) == count * np.dtype(fields).itemsize
    return np.frombuffer(body, fields)


@pytest.mark.parametrize("names", [("depth",), ("depth", "normals")])
def test_ply(tmp_path, names) -> None:
    scene = Predictor(Model(*names)).predict(np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8))
    cloud = scene.points()
    vertices = read_ply(cloud.save(tmp_path / "a.ply"))
    assert np.array_equal(np.stack([vertices[axis] for axis in "xyz"], -1), cloud.positions)
    assert np.array_equal(np.stack([vertices[c] for c in ("red", "green", "blue")], -1), cloud.colors)
    assert ("nx" in vertices.dtype.names) == ("normals" in names)
    if cloud.normals is not None:
        assert np.array_equal(np.stack([vertices[f"n{axis}"] for axis in "xyz"], -1), cloud.normals)


def test_files(scene: Scene, tmp_path) -> None:
    outputs = Outputs(arrays=True, maps=True, overlay=True, points=True, field_of_view=70)
    written = write_scene(scene, tmp_path, "a", outputs)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    for task in scene.tasks:
        assert np.array_equal(np.load(tmp_path / f"a_{task}.npy", allow_pickle=False), scene[task])
        assert np.array_equal(np.array(Image.open(tmp_path / f"a_{task}.png")), scene.panel(task))
        assert np.array_equal(np.array(Image.open(tmp_path / f"a_{task}_overlay.png")), scene.overlay(task))
    with Image.open(tmp_path / "a_depth_16bit.png") as kept:
        assert "millimeters" in kept.text["meaning"]
        millimeters = np.array(kept)
    assert millimeters.dtype == np.uint16
    assert np.abs(millimeters - 1000.0 * np.minimum(scene.depth, 65.535)).max() <= 0.501
    assert np.array_equal(np.array(Image.open(tmp_path / "a_semseg_16bit.png")), scene.semseg)
    assert not (tmp_path / "a_normals_16bit.png").exists()
    assert len(read_ply(tmp_path / "a.ply")) == SIZE[0] * SIZE[1]


def test_save(scene: Scene, tmp_path) -> None:
    written = scene.save(tmp_path / "new" / "folder")
    assert all(path.is_file() for path in written) and (tmp_path / "new" / "folder" / "scene_panels.png") in written
    assert np.array_equal(np.load(tmp_path / "new" / "folder" / "scene_depth.npy"), scene.depth)


def test_a_task_with_a_name_of_its_own() -> None:
    model = Model("semseg", "depth")
    model.tasks = {"material": model.tasks["semseg"], "size": model.tasks["depth"]}
    model.weights = {"material": model.weights["semseg"], "size": model.weights["depth"]}
    scene = Predictor(model).predict(np.zeros((4, 6, 3), np.uint8))
    assert scene.material.shape == (4, 6)
    assert scene.size == (4, 6) and scene["size"].dtype == np.float32, "an attribute that exists wins"


@pytest.mark.parametrize(("options", "part"), [
    ({"opacity": 2.0}, "--opacity"), ({"field_of_view": 60.0}, "--points"),
    ({"intrinsics": (1.0, 1.0, 1.0, 1.0)}, "--points"), ({"points": True, "field_of_view": 200.0}, "--field-of-view"),
    ({"points": True, "intrinsics": (-1.0, 1.0, 1.0, 1.0)}, "--intrinsics")])
def test_bad_outputs_are_named(options, part: str) -> None:
    with pytest.raises(InputError, match=part):
        Outputs(**options)


def test_a_guessed_camera_is_said() -> None:
    assert "60 degrees" in Outputs(points=True).guessed
    assert not Outputs(points=True, field_of_view=50).guessed and not Outputs().guessed


def test_decoded_predictions_are_there_for_metrics(scene: Scene) -> None:
    assert scene.decoded["normals"].shape == (3, *SIZE) and isinstance(scene.decoded["normals"], torch.Tensor)
