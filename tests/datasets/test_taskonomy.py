"""Taskonomy: both orders of folders, units, holes, uncertain pixels, the Tiny split, what goes wrong."""

from __future__ import annotations

import pickle
import shutil
import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from copying import copied
from polyptych.datasets._taskonomy.about import ABOUT
from polyptych.datasets._taskonomy.buildings import BUILDINGS, CLASSES
from polyptych.datasets._taskonomy.fixture import LAYOUTS, NAMES, SIZE, pictures
from polyptych.datasets._taskonomy.views import DOMAINS, Views
from polyptych.datasets.taskonomy import Taskonomy
from polyptych.errors import InputError
from polyptych.tasks._base import CATALOG

TASKS = ("semseg", "depth", "normals", "keypoints2d", "edge_texture")
VIEW = f"allensville/{NAMES[0]}"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    roots = {name: tmp_path_factory.mktemp(name) for name in LAYOUTS}
    for name, write in LAYOUTS.items():
        write(roots[name])
    return roots


@pytest.fixture
def small(written, tmp_path) -> Path:
    """Two buildings that a test may damage."""
    for building in ("allensville", "beechwood"):
        copied(written["buildings"] / building, tmp_path / building)
    return tmp_path


def open_split(root: Path, split: str = "train", tasks: tuple[str, ...] = TASKS, **options) -> Taskonomy:
    return Taskonomy(Taskonomy.Config(root=root, **options), split=split, tasks=tasks)


def open_small(root: Path, tasks: tuple[str, ...] = TASKS, **options) -> Taskonomy:
    return open_split(root, tasks=tasks, buildings=("allensville",), **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_orders_give_what_was_written(written, layout):
    dataset = open_split(written[layout])
    assert dataset.protocol == "taskonomy-tiny-24x32" and len(dataset) == 50
    assert dataset.views[:3] == [f"allensville/{NAMES[0]}", f"allensville/{NAMES[1]}", f"beechwood/{NAMES[0]}"]
    for index in (0, 1, 49):
        sample = dataset.read(index)
        stored = pictures(*sample.info.id.split("/"))
        hole = stored["depth"] == 65535
        assert hole.any() and sample.info.native == SIZE
        assert np.array_equal(sample.image.permute(1, 2, 0), stored["image"])
        assert np.array_equal(sample.valid["semseg"], stored["semseg"] > 0) and not sample.valid["semseg"].all()
        certain = stored["semseg"] > 0
        assert np.array_equal(sample.target["semseg"].numpy()[certain], stored["semseg"][certain] - 1)
        assert np.array_equal(sample.valid["depth"], ~hole) and np.array_equal(sample.valid["normals"], ~hole)
        assert np.allclose(sample.target["depth"].numpy()[~hole], stored["depth"][~hole] / 512)
        decoded = (stored["normals"] / 127.5 - 1)[~hole]
        assert np.allclose(sample.target["normals"].permute(1, 2, 0).numpy()[~hole], decoded, atol=0.01)
        for task, top in (("keypoints2d", 0.005), ("edge_texture", 0.08)):
            expected = np.clip(stored[task] / 65536, 0, top) / top * 2 - 1
            assert np.allclose(sample.target[task], expected, atol=1e-5) and sample.valid[task].all()
            assert (expected == 1).any() and expected.min() < 0
        for task in TASKS:
            assert CATALOG.load(task).Config().build(labels=dataset.labels[task]).fault(
                sample.target[task], sample.valid[task]) is None


def test_the_split_of_tiny(written):
    splits = {split: open_split(written["domains"], split, ("depth",)) for split in ("train", "val", "test")}
    assert {split: len(dataset) / 2 for split, dataset in splits.items()} == {"train": 25, "val": 5, "test": 5}
    buildings = [building for part in BUILDINGS.values() for building in part]
    assert len(set(buildings)) == 35 == len(buildings)
    for split, dataset in splits.items():
        assert {view.split("/")[0] for view in dataset.views} == set(BUILDINGS[split])
        assert dataset.protocol == splits["train"].protocol


def test_uncertain_pixels_as_background(written):
    ignored, background = (open_split(written["buildings"], uncertain=choice, tasks=("semseg",)).read(0)
                           for choice in ("ignore", "background"))
    assert background.valid["semseg"].all()
    certain = ignored.valid["semseg"]
    assert torch.equal(background.target["semseg"][certain], ignored.target["semseg"][certain])
    assert (background.target["semseg"][~certain] == 0).all() and len(CLASSES) == 17
    assert open_split(written["buildings"], uncertain="background").protocol == "taskonomy-tiny-24x32-background"


def test_some_buildings_are_another_protocol(small):
    dataset = open_split(small, buildings=("beechwood", "allensville", "uvalda"))
    assert len(dataset) == 4 and dataset.protocol == "taskonomy-tiny-24x32-allensville+beechwood+uvalda"
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).read(3).image, dataset.read(3).image)


def test_only_what_is_asked_for_is_needed(small):
    for folder in ("normal", "depth_zbuffer", "keypoints2d"):
        shutil.rmtree(small / "allensville" / folder)
    assert set(open_small(small, ("semseg", "edge_texture")).read(0).target) == {"semseg", "edge_texture"}
    with pytest.raises(InputError, match=r"allensville/depth_zbuffer: got 0 of 2 listed files \(the first missing"):
        open_small(small, ("depth",))


def test_the_facts_name_the_layouts_that_exist():
    choices = typing.get_args(typing.get_type_hints(Taskonomy.Config)["layout"])
    assert {"auto", *ABOUT.layouts} == {"auto", *LAYOUTS} == set(choices)


# -- what goes wrong --------------------------------------------------------------------------------------------


def test_a_download_that_is_not_complete(small, tmp_path_factory):
    with pytest.raises(InputError, match=r"got 2 of 25 buildings \(the first missing one is .*/benevolence/rgb\)"):
        open_split(small)
    (small / f"beechwood/normal/{NAMES[1]}_domain_normal.png").unlink()
    with pytest.raises(InputError, match=r"beechwood/normal: got 1 of 2 listed .*point_10_view_1_domain_normal\.png\)"):
        open_split(small, buildings=("allensville", "beechwood"))
    for path in (small / "beechwood/rgb").iterdir():
        path.rename(path.with_suffix(".jpg"))
    with pytest.raises(InputError, match=r"beechwood/rgb: got no views; needs files called point_P_view_V_domain_rgb"):
        open_split(small, buildings=("beechwood",))
    with pytest.raises(InputError, match=r"a folder of no known layout; needs BUILDING/rgb/ \(buildings\) or"):
        open_split(tmp_path_factory.mktemp("empty"))
    with pytest.raises(InputError, match=r"root of taskonomy \(.*nowhere\): got no such folder"):
        open_split(small / "nowhere")


def test_wrong_buildings(written):
    with pytest.raises(InputError, match=r"got 'alensville'; needs .*nearest: allensville"):
        open_split(written["buildings"], buildings=("alensville",))
    with pytest.raises(InputError, match=r"got none of the test split; needs one of ihlen"):
        open_split(written["buildings"], "test", buildings=("allensville",))


@pytest.mark.parametrize(("kind", "array", "expected"), [
    ("semseg", np.full(SIZE, 18, np.uint8), "got uint8 values up to 18; needs ids from 1 to 17, or 0 where uncertain"),
    ("semseg", np.zeros((*SIZE, 3), np.uint8), "got a picture with 3 channels"),
    ("semseg", np.ones((8, 32), np.uint8), "got a label of 8x32 pixels; needs 24x32"),
    ("depth", np.full(SIZE, 200, np.uint8), "got uint8 values; needs 16 bits per pixel"),
    ("depth", np.full((24, 30), 900, np.uint16), "got a label of 24x30 pixels"),
    ("depth", np.full(SIZE, 2.0, np.float32), "unreadable|float32"),
    ("normals", np.full((20, 32, 3), 90, np.uint8), "got a label of"),
    ("keypoints2d", np.full(SIZE, 2, np.uint8), "got uint8 values; needs 16 bits"),
    ("edge_texture", np.zeros((*SIZE, 4), np.uint8), "got a picture with 4 channels"),
])
def test_wrong_pictures(small, kind, array, expected):
    path = Views(small, "buildings").path(VIEW, kind)
    Image.fromarray(array).save(path, "TIFF" if array.dtype == np.float32 else "PNG")
    with pytest.raises(InputError) as error:
        open_small(small).read(0)
    assert str(path.parent.parent) in str(error.value)
    assert any(part in str(error.value) for part in expected.split("|"))


def test_a_depth_of_zero_is_unknown(small):
    path = Views(small, "buildings").path(VIEW, "depth")
    Image.fromarray(np.array([[0, 1, 64499, 65534, 65535, 512]] * 4, np.uint16)).save(path)
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(Views(small, "buildings").path(VIEW, "image"))
    sample = open_small(small, ("depth",)).read(0)
    assert sample.valid["depth"][0].tolist() == [False, True, True, True, False, True]
    assert sample.target["depth"][0, 5] == 1 and float(sample.target["depth"].max()) < 128


@pytest.fixture(scope="module")
def fuzzed(written, tmp_path_factory) -> Path:
    return copied(written["buildings"] / "allensville", tmp_path_factory.mktemp("fuzz") / "allensville")


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_broken_files_give_an_input_error_or_labels_that_the_loader_can_judge(fuzzed, data):
    kind = data.draw(st.sampled_from(sorted(DOMAINS)))
    path = Views(fuzzed.parent, "buildings").path(VIEW, kind)
    original = path.read_bytes()
    broken = bytearray(original[:data.draw(st.integers(0, len(original)))])
    for _ in range(data.draw(st.integers(0, 3)) if broken else 0):
        broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(bytes(broken))
        sample = open_small(fuzzed.parent).read(0)
    except InputError as error:
        assert VIEW.split("/")[0] in str(error)
    else:
        assert all(sample.valid[task].shape == SIZE and sample.target[task].isfinite().all() for task in TASKS)
    finally:
        path.write_bytes(original)
