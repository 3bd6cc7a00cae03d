from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from nyuv2_files import TRAIN, damage, write_folder
from polyptych.data._contours import contours, contours_across_void
from polyptych.datasets._holdout import hold_out, numbered_runs
from polyptych.datasets._nyuv2.classes import COLORS, FORTY_TO_THIRTEEN, NAMES
from polyptych.datasets._nyuv2.layouts._base import CATALOG
from polyptych.datasets._nyuv2.scenes import TEST as TESTED
from polyptych.datasets._nyuv2.scenes import TRAIN as TRAINED
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.errors import InputError

TASKS = ("semseg", "depth", "normals", "boundaries")


def open_split(root: Path, split: str = "train", tasks: tuple[str, ...] = TASKS, **options) -> NYUv2:
    return NYUv2(NYUv2.Config(root=root, **options), split=split, tasks=tasks)


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """The layout `frames` in miniature; not to be changed by a test."""
    root = tmp_path_factory.mktemp("frames")
    CATALOG.load("frames").write_fixture(root)
    return root


@pytest.fixture
def mtan(tmp_path) -> Path:
    CATALOG.load("mtan").write_fixture(tmp_path)
    return tmp_path


def test_boundaries_are_derived_where_none_are_stored(tmp_path, frames):
    CATALOG.load("survey").write_fixture(tmp_path)
    assert open_split(tmp_path).labels["boundaries"].note == "as stored in the dataset"
    shutil.rmtree(tmp_path / "edge")
    folder, others = open_split(tmp_path, validation=0.0), open_split(frames, validation=0.0)
    assert folder.labels["boundaries"].note == "derived from the segmentation"
    for index in range(len(folder)):
        a, b = folder.read(index), others.read(index)
        assert torch.equal(a.target["boundaries"], b.target["boundaries"]) and a.target["boundaries"].any()
        assert torch.equal(a.valid["boundaries"], b.valid["boundaries"])


def test_mtan_names_its_frames_by_their_official_split(mtan):
    assert open_split(mtan, classes=13, validation=0.0).read(1).info.id == "train/1"
    assert open_split(mtan, "test", classes=13).read(0).info.id == "val/0"


def test_thirteen_classes_from_forty(frames):
    root = frames
    forty, thirteen = (open_split(root, classes=classes, tasks=("semseg",)).read(0) for classes in (40, 13))
    mapped = torch.from_numpy(FORTY_TO_THIRTEEN)[forty.target["semseg"]].long()
    valid = forty.valid["semseg"]
    assert torch.equal(thirteen.target["semseg"][valid], mapped[valid])
    assert torch.equal(thirteen.valid["semseg"], valid)


def test_class_tables():
    assert [len(NAMES[n]) for n in (13, 40)] == [13, 40] == [len(set(COLORS[n])) for n in (13, 40)]
    pairs = {"wall": "wall", "floor mat": "floor", "sofa": "sofa", "desk": "table", "blinds": "window", "door": "wall",
             "refrigerator": "furniture", "television": "tv", "otherfurniture": "furniture", "otherprop": "objects",
             "ceiling": "ceiling", "books": "books", "picture": "picture", "bed": "bed", "chair": "chair"}
    for forty, thirteen in pairs.items():
        assert NAMES[13][FORTY_TO_THIRTEEN[NAMES[40].index(forty)]] == thirteen


def test_void_seams_become_one_contour_and_large_void_stays_unknown():
    labels = np.zeros((60, 80), int)
    labels[:, 40:] = 1
    labeled = np.ones((60, 80), bool)
    labeled[:, 38:42] = False  # a seam
    labeled[30:, 60:] = False  # an object that nobody labeled
    edge, valid = contours_across_void(labels, labeled, reach=4)
    assert (edge & valid).sum(1).tolist() == [1] * 60
    assert set(np.flatnonzero((edge & valid).any(0))) <= {38, 39, 40}
    assert valid[:, 36:44].all() and not valid[31:, 61:].any() and not valid[28, 70] and valid[20, 70]
    edge, valid = contours_across_void(labels, np.ones_like(labeled), reach=4)
    assert np.array_equal(edge, contours(labels)) and valid.all()
    assert not np.any(contours_across_void(labels, np.zeros_like(labeled), reach=4))


# -- the split ------------------------------------------------------------------------------------------------


def held_out(frames: list[str], share: float) -> set[str]:
    return hold_out(numbered_runs(frames), share)


def test_val_is_made_of_whole_runs():
    g = np.random.default_rng(0)
    frames = [f"{i:04d}" for i in range(1, 1450) if (i // 7 + g.integers(0, 2) * (i % 7 == 0)) % 3]
    val = held_out(frames, 0.1)
    assert 0.08 < len(val) / len(frames) < 0.12
    for a, b in itertools.pairwise(frames):
        if int(b) == int(a) + 1:
            assert (a in val) == (b in val)
    assert held_out(frames, 0.1) == val
    thirds = [sum(int(frame) * 3 // 1450 == third for frame in val) for third in range(3)]
    assert min(thirds) > len(val) / 6  # spread over the collection


@pytest.mark.parametrize(("frames", "expected"), [
    (["0003"], set()),
    (["0003", "0004"], {"0004"}),
    ([f"{i:04d}" for i in range(3, 23)], {"0021", "0022"}),
    (TRAIN, {"0010"}),
    ([f"train/{i}" for i in range(10)], {"train/9"}),
])
def test_val_of_small_sets(frames, expected):
    assert held_out(frames, 0.1) == expected
    assert held_out(frames, 0.0) == set()


def test_blocks_where_names_are_no_official_numbers():
    frames = [f"train/{i}" for i in range(795)]
    val = held_out(frames, 0.1)
    assert len(val) == 80 and {int(frame.split("/")[1]) // 40 for frame in val} != {0, 1}
    assert all(len([f for f in val if int(f.split("/")[1]) // 40 == block]) in (0, 40) for block in range(20))


def test_splits_do_not_overlap(frames):
    train, val, test = (set(map(int, open_split(frames, split).frames)) for split in ("train", "val", "test"))
    assert train | val == set(TRAINED) and not train & val and val and test == set(TESTED)
    with pytest.raises(InputError, match=r"val split of .*: got no frames; needs at least one"):
        open_split(frames, "val", validation=0.0)


# -- what goes wrong --------------------------------------------------------------------------------------------


def test_missing_root(tmp_path):
    with pytest.raises(InputError, match=r"root of nyuv2 \(.*nowhere\): got no such folder"):
        open_split(tmp_path / "nowhere")


def test_unknown_layout_says_what_was_looked_for(tmp_path):
    (tmp_path / "stuff").mkdir()
    with pytest.raises(InputError) as error:
        open_split(tmp_path)
    for part in ("a folder of no known layout", "images/ and gt_sets/ (folder)", "train/image/", "seg40/", "(frames)"):
        assert part in str(error.value)
    write_folder(tmp_path / "NYUD_MT")
    with pytest.raises(InputError, match=r"did you mean .*NYUD_MT\?"):
        open_split(tmp_path)
    with pytest.raises(InputError, match=r"got a folder without train/image/ and .*needs the layout 'mtan'"):
        open_split(tmp_path / "NYUD_MT", layout="mtan", classes=13)


def test_half_copied_folder(tmp_path):
    root = write_folder(tmp_path)
    (root / "depth/0007.npy").unlink()
    (root / "depth/0008.npy").unlink()
    with pytest.raises(InputError, match=r"depth: got 3 of 5 listed files \(the first missing one is .*/0007\.npy\)"):
        open_split(root, validation=0.0)
    assert len(open_split(root, validation=0.0, tasks=("semseg",))) == 5  # only what is asked for is needed
    shutil.rmtree(root / "normals")
    with pytest.raises(InputError, match="task 'normals': got dataset nyuv2, which has no labels for it"):
        open_split(root, tasks=("normals",))


def test_missing_list(tmp_path):
    root = write_folder(tmp_path)
    (root / "gt_sets/train.txt").unlink()
    with pytest.raises(InputError, match=r"gt_sets/train\.txt: got no such file"):
        open_split(root)


def test_forty_classes_are_not_in_mtan(mtan):
    with pytest.raises(InputError, match=r"got 40 with the layout 'mtan'; needs 13, .*; set classes to 13"):
        open_split(mtan)


def test_validation_share_out_of_range(mtan):
    with pytest.raises(InputError, match=r"validation of nyuv2: got 1\.5; needs a share from 0 to below 1"):
        open_split(mtan, classes=13, validation=1.5)


@pytest.mark.parametrize(("file", "how", "message"), [
    ("images/0003.jpg", "truncate", r"images/0003\.jpg: got an unreadable file .*truncated"),
    ("images/0003.jpg", "text", r"images/0003\.jpg: got an unreadable file"),
    ("segmentation/0003.png", "truncate", r"segmentation/0003\.png: got an unreadable file"),
    ("segmentation/0003.png", "class", r"0003\.png: got class id 57; needs whole numbers from 1 to 40, or 0 where"),
    ("segmentation/0003.png", "small", r"0003\.png: got a label of 46x64 pixels; needs the size of its image, "),
    ("segmentation/0003.png", "color", r"0003\.png: got a picture with 3 channels; needs one channel"),
    ("depth/0003.npy", "truncate", r"depth/0003\.npy: got an unreadable file"),
    ("depth/0003.npy", "empty", r"depth/0003\.npy: got an unreadable file"),
    ("depth/0003.npy", "objects", r"depth/0003\.npy: got an unreadable file .*allow_pickle"),
    ("normals/0003.npy", "large", r"normals/0003\.npy: got components up to .*needs components from -1 to 1"),
    ("normals/0003.npy", "small", r"normals/0003\.npy: got a label of 46x64 pixels"),
])
def test_damaged_files_are_named(tmp_path, file, how, message):
    root = write_folder(tmp_path)
    dataset = open_split(root, validation=0.0)
    damage(root / file, how)
    with pytest.raises(InputError, match=message):
        dataset.read(0)
    assert dataset.read(1)


@pytest.mark.parametrize(("file", "how", "message"), [
    ("train/label/0.npy", "class", r"train/label/0\.npy: got class id 57; needs whole numbers from 0 to 12, or -1"),
    ("train/label/0.npy", "half", "got class id 3.5; needs whole numbers from 0 to 12"),
    ("train/image/0.npy", "large", r"train/image/0\.npy: got values from .*needs values from 0 to 1"),
])
def test_damaged_mtan_files_are_named(mtan, file, how, message):
    dataset = open_split(mtan, classes=13, validation=0.0)
    damage(mtan / file, how)
    with pytest.raises(InputError, match=message):
        dataset.read(0)


def test_wrong_variable_in_a_mat_file(tmp_path):
    CATALOG.load("astmt").write_fixture(root := tmp_path)
    savemat(root / "segmentation/0003.mat", {"labels": np.zeros((48, 64))})
    with pytest.raises(InputError, match=r"segmentation/0003\.mat: got .*needs the variable 'segmentation'"):
        open_split(root, validation=0.0).read(0)


def test_holes_in_depth_are_unknown(tmp_path):
    root = write_folder(tmp_path)
    depth = np.full((48, 64), 2.0, np.float64)
    depth[0, :4] = [0, -1, np.nan, 3]
    np.save(root / "depth/0003.npy", depth)
    sample = open_split(root, validation=0.0, tasks=("depth",)).read(0)
    assert sample.valid["depth"][0, :4].tolist() == [False, False, False, True]
    assert sample.target["depth"][0, :4].tolist() == [0, 0, 0, 3] and int(sample.valid["depth"].sum()) == 48 * 64 - 3


# -- real frames ------------------------------------------------------------------------------------------------


def make_layout(data: Path, layout: str, out: Path) -> Path:
    subprocess.run([sys.executable, data / "make_layouts.py", layout, out, "--count", "3"], check=True, timeout=100)
    return out


@pytest.mark.data
def test_real_split(real_data):
    splits = {split: open_split(real_data / "nyuv2", split, ("depth",)) for split in ("train", "val", "test")}
    assert {split: len(dataset) for split, dataset in splits.items()} == {"train": 717, "val": 78, "test": 654}
    assert splits["val"].frames[:4] == ["0019", "0020", "0058", "0120"]  # the rule must never change
    assert splits["test"].protocol == "nyuv2-40-480x640-frames"


@pytest.mark.data
def test_real_folder_agrees_with_frames(real_data, tmp_path):
    folder = open_split(make_layout(real_data, "folder", tmp_path), validation=0.0)
    frames = open_split(real_data / "nyuv2", validation=0.0)
    for index in range(3):
        a, b = folder.read(index), frames.read(index)
        assert a.info == b.info and torch.equal(a.image, b.image)
        for task in ("semseg", "depth"):
            assert torch.equal(a.target[task], b.target[task]) and torch.equal(a.valid[task], b.valid[task])
        assert torch.allclose(a.target["normals"], b.target["normals"], atol=1e-4)
        # The folder's own contours run along both sides of every seam, ours along its middle.
        single, double = b.target["boundaries"][b.valid["boundaries"]].sum(), a.target["boundaries"].sum()
        assert 0.1 < single / double < 0.6


@pytest.mark.data
def test_real_mtan_agrees_with_frames(real_data, tmp_path):
    mtan = open_split(make_layout(real_data, "mtan", tmp_path), "test", classes=13)
    frames = open_split(real_data / "nyuv2", "test", classes=13)
    assert mtan.protocol == "nyuv2-13-288x384-mtan"
    for index in range(3):
        a, b = mtan.read(index), frames.read(index)
        assert a.image.shape == (3, 288, 384)
        small = torch.nn.functional.interpolate(b.image[None].float(), (288, 384), mode="bilinear", antialias=True)[0]
        assert (a.image.float() - small).abs().mean() < 6
        nearest = torch.nn.functional.interpolate(b.target["depth"][None, None], (288, 384), mode="nearest-exact")[0, 0]
        assert torch.isclose(a.target["depth"], nearest).float().mean() > 0.9
        assert abs(a.valid["semseg"].float().mean() - b.valid["semseg"].float().mean()) < 0.01
