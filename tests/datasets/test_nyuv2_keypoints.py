"""Frames with keypoints: both ways of storing them, scenes that stay together, rooms as data, what goes wrong."""

from __future__ import annotations

import json
import math
import shutil
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from copying import copied
from polyptych.datasets._nyuv2.scenes import recorded_scene
from polyptych.datasets._nyuv2_keypoints.about import ABOUT
from polyptych.datasets._nyuv2_keypoints.fixture import CELLS, FRAMES, LAYOUTS, SIZE, TEST, TRAIN, heat_maps, keypoints
from polyptych.datasets._nyuv2_keypoints.labels import peaks
from polyptych.datasets.nyuv2_keypoints import NYUv2Keypoints
from polyptych.datasets.rooms import Rooms
from polyptych.errors import InputError
from polyptych.tasks._base import CATALOG
from polyptych.tasks.keypoints import Keypoints

TASKS = ("keypoints", "depth", "normals")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    roots = {name: tmp_path_factory.mktemp(name) for name in LAYOUTS}
    for name, write in LAYOUTS.items():
        write(roots[name])
    return roots


def open_split(root: Path, split: str = "train", tasks: tuple[str, ...] = TASKS, **options) -> NYUv2Keypoints:
    return NYUv2Keypoints(NYUv2Keypoints.Config(root=root, **options), split=split, tasks=tasks)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_written_is_read(written, layout):
    dataset = open_split(written[layout], validation=0.0)
    assert len(dataset) == len(TRAIN) * FRAMES and dataset.protocol == f"nyuv2_keypoints-48-48x64-{layout}"
    for index, frame in ((0, 100), (1, 101), (3, 200)):
        sample, room, points = dataset.read(index), recorded_scene(frame // 100, SIZE), keypoints(frame)
        assert sample.info.id == f"scene_{frame // 100}/{frame % 100:04d}"
        assert np.array_equal(sample.image.permute(1, 2, 0), room.image)
        found = sample.target["keypoints"].numpy()
        assert found.shape == (1, 48, 3) and np.array_equal(found[0, :, 2], points[:, 2]) and points[:, 2].any()
        cell = np.array([SIZE[1] / CELLS[1], SIZE[0] / CELLS[0]])
        off = np.abs(found[0, :, :2] - points[:, :2]) / cell
        assert off.max() <= (0 if layout == "points" else 0.5 + 1e-4)
        assert np.array_equal(sample.valid["depth"], room.raw > 0)
        assert np.array_equal(sample.target["depth"], room.raw)
        assert np.allclose(sample.target["normals"].permute(1, 2, 0), room.normals, atol=1e-6)
        for task in TASKS:
            assert CATALOG.load(task).Config().build(labels=dataset.labels[task]).fault(
                sample.target[task], sample.valid[task]) is None


def test_scenes_stay_together(written):
    splits = {split: {frame.split("/")[0] for frame in open_split(written["points"], split).frames}
              for split in ("train", "val", "test")}
    assert splits["val"] and splits["test"] == {f"scene_{number}" for number in TEST}
    assert splits["train"] | splits["val"] == {f"scene_{number}" for number in TRAIN}
    assert not splits["train"] & splits["val"]


def test_without_keypoints_their_files_are_not_needed(written, tmp_path):
    root = copied(written["points"], tmp_path / "copy")
    shutil.rmtree(root / "keypoints")
    assert set(open_split(root, tasks=("depth",)).read(0).target) == {"depth"}
    with pytest.raises(InputError, match=r"keypoints: got 0 of 12 listed files \(the first .*/0000\.npy\)"):
        open_split(root)


def test_the_protocol_does_not_depend_on_the_tasks(written):
    for root in written.values():
        assert open_split(root, "test").protocol == open_split(root, tasks=("depth",)).protocol


def test_named_types(written, tmp_path):
    root = copied(written["points"], tmp_path / "copy")
    names = [f"corner {i}" for i in range(48)]
    described = {"types": names, "mirror": [[0, 1], [2, 3]], "skeleton": [[0, 2]]}
    (root / "keypoints.json").write_text(json.dumps(described))
    info = open_split(root).labels["keypoints"]
    assert info.classes == tuple(names) and info.mirror == ((0, 1), (2, 3)) and info.skeleton == ((0, 2),)
    assert not info.note and "without mirroring" in open_split(written["points"]).labels["keypoints"].note


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float32, (48, 2), elements=st.floats(0, 1, width=32)), st.integers(0, 2**48 - 1))
def test_the_peak_of_a_bump_is_within_half_a_cell_of_its_point(xy, visible):
    shown = np.array([(visible >> i) & 1 for i in range(48)], np.float32)[:, None]
    stored = np.concatenate([xy * (SIZE[1] - 1, SIZE[0] - 1), shown], -1).astype(np.float32)
    found = peaks(heat_maps(stored), Path("x.npy"), 48, SIZE)
    assert np.array_equal(found[:, 2:], shown)
    half = np.array([SIZE[1] / CELLS[1], SIZE[0] / CELLS[0]]) / 2
    assert (np.abs(found[:, :2] - stored[:, :2]) * shown <= half + 1e-3).all()


def test_synthetic_rooms_as_data(tmp_path):
    """Joints of one person per room stand for corners: through files, loss and metric see the same points."""
    rooms = Rooms(Rooms.Config(size=(64, 80), max_people=1, empty=0.0), split="train", tasks=TASKS)
    labels = rooms.labels["keypoints"]
    for kind in ("image", *TASKS):
        for place in ("a", "b"):
            (tmp_path / kind / place).mkdir(parents=True)
    (tmp_path / "keypoints.json").write_text(json.dumps({
        "types": labels.classes, "mirror": labels.mirror, "skeleton": labels.skeleton}))
    (tmp_path / "train.txt").write_text("a/0\na/1\n")
    (tmp_path / "test.txt").write_text("b/2\n")
    samples = {f"{'ab'[i // 2]}/{i}": rooms.read(i) for i in range(3)}
    for name, sample in samples.items():
        Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(tmp_path / f"image/{name}.png")
        np.save(tmp_path / f"keypoints/{name}.npy", sample.target["keypoints"][0].numpy())
        np.save(tmp_path / f"depth/{name}.npy", (sample.target["depth"] * sample.valid["depth"]).numpy())
        np.save(tmp_path / f"normals/{name}.npy",
                (sample.target["normals"] * sample.valid["normals"]).permute(1, 2, 0).numpy())
    dataset = open_split(tmp_path, validation=0.0)
    for index in range(2):
        ours, theirs = dataset.read(index), samples[dataset.frames[index]]
        assert torch.equal(ours.image, theirs.image)
        points = theirs.target["keypoints"]
        assert torch.equal(ours.target["keypoints"], torch.where(points[..., 2:] > 0, points, 0))
        for task in ("depth", "normals"):
            assert torch.equal(ours.valid[task], theirs.valid[task])
            seen = ours.valid[task]
            assert torch.allclose(ours.target[task][..., seen], theirs.target[task][..., seen], atol=1e-5)
    task = Keypoints.Config().build(labels=dataset.labels["keypoints"])
    sample = dataset.read(0)
    target, valid = sample.target["keypoints"][None], sample.valid["keypoints"][None]
    assert target[..., 2].sum() > 3
    metric = task.metric()
    metric.update(task.render(target, valid, (64, 80)), target, valid)
    assert metric.compute()["error"] < 100 * math.sqrt(0.5) / math.hypot(64, 80)  # the nearest pixel
    assert task.loss(torch.zeros(1, task.channels, 16, 20), target, valid).sum > 0


def test_the_facts_name_the_layouts_that_exist():
    choices = typing.get_args(typing.get_type_hints(NYUv2Keypoints.Config)["layout"])
    assert {"auto", *ABOUT.layouts} == {"auto", *LAYOUTS} == set(choices)


# -- what goes wrong --------------------------------------------------------------------------------------------


def changed(k=0, **values) -> np.ndarray:
    points = keypoints(100).copy()
    points[k] = (values.get("x", 3), values.get("y", 3), values.get("visible", 1))
    return points


@pytest.mark.parametrize(("layout", "file", "array", "expected"), [
    ("points", "keypoints", np.zeros((17, 3)), "got float64 of shape (17, 3); needs numbers of shape (48, 3)"),
    ("points", "keypoints", np.array(["a"]), "needs numbers of shape (48, 3)"),
    ("points", "keypoints", changed(visible=2), "got a visibility other than 0 and 1"),
    ("points", "keypoints", changed(visible=np.nan), "got a visibility other than 0 and 1"),
    ("points", "keypoints", changed(x=64), "got the visible point (64, 3); needs points inside the image of 48x64"),
    ("points", "keypoints", changed(y=np.nan), "got the visible point (3, nan)"),
    ("heat_maps", "keypoints", np.zeros((47, 12, 16)), "needs floating point of shape (48, h, w)"),
    ("heat_maps", "keypoints", np.zeros((48, 0, 16)), "needs floating point of shape (48, h, w)"),
    ("heat_maps", "keypoints", np.zeros((48, 12, 16), int), "got int64 of shape"),
    ("heat_maps", "keypoints", np.full((48, 12, 16), 255.0), "got values from 255 to 255; needs values from 0 to 1"),
    ("heat_maps", "keypoints", np.full((48, 12, 16), np.nan), "got values from nan to nan"),
    ("points", "depth", np.zeros(SIZE, np.uint16), "got depth as uint16; needs meters"),
    ("points", "depth", np.zeros((10, 64)), "got a label of 10x64 pixels; needs the size of its image, 48x64"),
    ("points", "normals", np.full((*SIZE, 3), 7.0), "got components up to 7"),
])
def test_wrong_arrays(written, tmp_path, layout, file, array, expected):
    root = copied(written[layout], tmp_path / "copy")
    np.save(root / f"{file}/scene_1/0000.npy", array)
    with pytest.raises(InputError) as error:
        open_split(root, validation=0.0, layout=layout).read(0)
    assert str(error.value).startswith(str(root / f"{file}/scene_1/0000.npy")) and expected in str(error.value)


def test_an_invisible_point_may_be_anywhere(written, tmp_path):
    root = copied(written["points"], tmp_path / "copy")
    np.save(root / "keypoints/scene_1/0000.npy", changed(x=np.nan, y=-900, visible=0))
    assert open_split(root, validation=0.0).read(0).target["keypoints"][0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("file", "text", "expected"), [
    ("keypoints.json", "{", "keypoints.json: got an unreadable file"),
    ("keypoints.json", '{"types": [], "mirror": []}', "keypoints.json: got no types"),
    ("keypoints.json", '{"types": ["a", "b"], "mirror": [[0, 2]]}', "got the pair [0, 2]; needs two different numbers"),
    ("keypoints.json", '{"types": ["a", "b"], "mirror": [[0, 1], [1, 0]]}', "got a type in two mirror pairs"),
    ("keypoints.json", '{"types": ["a"], "mirrors": []}', "unknown field"),
    ("keypoints.json", '{"types": ["a"]}', "needs numbers of shape (1, 3)"),
    ("train.txt", "scene_1/0000\n0001\n", "train.txt: got '0001'; needs SCENE/FRAME on every line"),
    ("train.txt", "../0000\n", "needs SCENE/FRAME on every line"),
    ("train.txt", "", "got no frames"),
    ("train.txt", "scene_1/0000\nscene_1/0009\n", "got 1 of 2 listed files (the first missing one is "),
    ("test.txt", "scene_6/0000\nscene_2/0001", "test.txt: got scene 'scene_2', which is in train.txt too"),
])
def test_wrong_lists(written, tmp_path, file, text, expected):
    root = copied(written["points"], tmp_path / "copy")
    (root / file).write_text(text)
    with pytest.raises(InputError) as error:
        open_split(root, validation=0.0, layout="points").read(0)
    assert str(root) in str(error.value) and expected in str(error.value)


def test_missing_pieces(written, tmp_path):
    with pytest.raises(InputError, match=r"root of nyuv2_keypoints \(.*\): got no such folder"):
        open_split(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"train\.txt: got no such file"):
        open_split(tmp_path)
    with pytest.raises(InputError, match=r"validation of nyuv2_keypoints: got 1; needs a share"):
        open_split(written["points"], validation=1)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_broken_files_give_an_input_error_or_labels_that_the_loader_can_judge(written, data):
    root = written[data.draw(st.sampled_from(sorted(LAYOUTS)))]
    path = root / data.draw(st.sampled_from(
        ["image/scene_1/0000.jpg", *(f"{task}/scene_1/0000.npy" for task in TASKS), "train.txt"]))
    original = path.read_bytes()
    broken = bytearray(original[:data.draw(st.integers(0, len(original)))])
    for _ in range(data.draw(st.integers(0, 3)) if broken else 0):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(bytes(broken))
        sample = open_split(root, validation=0.0).read(0)
    except InputError as error:
        assert str(root) in str(error)
    else:
        assert sample.target["keypoints"].shape == (1, 48, 3) and sample.target["keypoints"].isfinite().all()
        assert all(sample.valid[task].shape == sample.image.shape[1:] for task in TASKS)
    finally:
        path.write_bytes(original)
