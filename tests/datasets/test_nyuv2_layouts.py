"""Every layout of NYUv2 on disk holds the same rooms: they must read alike, whole, and say what is wrong, damaged."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from copying import copied
from polyptych.datasets._nyuv2.about import ABOUT
from polyptych.datasets._nyuv2.classes import COLORS, FORTY_TO_THIRTEEN, NAMES
from polyptych.datasets._nyuv2.layouts._base import CATALOG as NYUV2_LAYOUTS
from polyptych.datasets._nyuv2.layouts.official import OfficialLayout
from polyptych.datasets._nyuv2.official_labels import LAST_LABEL, TO_FORTY
from polyptych.datasets._nyuv2.scenes import SIZE, TEST, TRAIN, recorded_scene
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.errors import InputError
from polyptych.tasks._base import CATALOG

LAYOUTS = NYUV2_LAYOUTS.fixtures()
TASKS = ("semseg", "depth", "normals", "boundaries")
PACKINGS = ("astmt", "survey", "invpt")
MAT = "nyu_depth_v2_labeled.mat"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """Every layout; not to be changed by a test."""
    roots = {name: tmp_path_factory.mktemp(name) for name in LAYOUTS}
    for name, write in LAYOUTS.items():
        write(roots[name])
    return roots


def open_split(root: Path, split: str = "train", tasks: tuple[str, ...] = TASKS, **options) -> NYUv2:
    return NYUv2(NYUv2.Config(root=root, **options), split=split, tasks=tasks)


def classes_of(layout: str) -> int:
    return 13 if layout == "mtan" else 40


def angles(a: torch.Tensor, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos((a.permute(1, 2, 0).numpy() * b).sum(-1).clip(-1, 1)))


# -- whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_layout_gives_the_rooms_that_were_written(written, layout, split):
    dataset = open_split(written[layout], split, classes=classes_of(layout), layout=layout, validation=0.0)
    numbers = TRAIN if split == "train" else TEST
    assert len(dataset) == len(numbers)
    assert dataset.protocol == f"nyuv2-{classes_of(layout)}-48x64-{layout}"
    for index, number in enumerate(numbers):
        sample, room = dataset.read(index), recorded_scene(number, SIZE)
        known, labeled = room.normals.any(-1), room.ids > 0
        assert np.array_equal(sample.image.permute(1, 2, 0), room.image)
        assert np.array_equal(sample.valid["semseg"], labeled)
        ids = room.ids[labeled] - 1
        assert np.array_equal(sample.target["semseg"].numpy()[labeled],
                              FORTY_TO_THIRTEEN[ids] if layout == "mtan" else ids)
        assert np.array_equal(sample.valid["depth"], known if layout == "mtan" else np.ones(SIZE, bool))
        depth = sample.target["depth"].numpy()
        assert np.allclose(depth[known], room.depth[known], atol=0.04 if layout == "frames" else 0)
        for task in TASKS:
            assert CATALOG.load(task).Config().build(labels=dataset.labels[task]).fault(
                sample.target[task], sample.valid[task]) is None
        if layout != "frames":  # those of the compressed frames are a third of the size
            assert np.array_equal(sample.valid["normals"], known) or layout == "astmt"  # JPEG blurs the rim
            off = angles(sample.target["normals"], room.normals)[known & sample.valid["normals"].numpy()]
            assert np.quantile(off, 0.9) < 4 if layout == "astmt" else off.max() < 1
        if layout in PACKINGS:
            assert np.array_equal(sample.target["boundaries"].numpy() == 1, room.edge)


def test_the_packings_of_the_same_rooms_are_the_same_arrays(written):
    splits = {packing: open_split(written[packing], layout=packing) for packing in PACKINGS}
    for index in range(len(splits["survey"])):
        astmt, survey, invpt = (splits[packing].read(index) for packing in PACKINGS)
        for other in (astmt, invpt):
            assert torch.equal(other.image, survey.image) and other.info == survey.info
            for task in ("semseg", "depth", "boundaries"):
                assert torch.equal(other.target[task], survey.target[task]), task
                assert torch.equal(other.valid[task], survey.valid[task]), task
        assert torch.allclose(invpt.target["normals"], survey.target["normals"], atol=0.01)


def test_auto_finds_the_layout_and_a_packing_can_be_insisted_on(written):
    for layout, root in written.items():
        found = open_split(root, classes=13).protocol.rpartition("-")[2]
        assert found == ("folder" if layout in PACKINGS else layout)
    with pytest.raises(InputError, match=r"without images/, gt_sets/, segmentation/\*\.mat and .*needs the layout 'a"):
        open_split(written["survey"], layout="astmt")


def test_the_facts_name_the_layouts_that_exist():
    choices = typing.get_args(typing.get_type_hints(NYUv2.Config)["layout"])
    assert {"auto", *ABOUT.layouts} == {"auto", *LAYOUTS} == set(choices)
    assert all(facts.counts in ({}, {"train": 795, "test": 654}) for facts in ABOUT.layouts.values())


def test_a_fixture_is_the_same_every_time(written, tmp_path):
    LAYOUTS["adashare"](tmp_path)
    for path in tmp_path.rglob("*.*"):
        assert path.read_bytes() == (written["adashare"] / path.relative_to(tmp_path)).read_bytes(), path


def test_background_as_a_class_of_its_own(written):
    for layout in ("astmt", "official"):
        forty, more = (open_split(written[layout], classes=n, tasks=("semseg",)) for n in (40, 41))
        a, b = forty.read(0), more.read(0)
        assert b.valid["semseg"].all() and not a.valid["semseg"].all()
        assert torch.equal(b.target["semseg"], torch.where(a.valid["semseg"], a.target["semseg"] + 1, 0))
        names = more.labels["semseg"].classes
        assert len(names) == 41 and names[:2] == ("background", "wall") and len(set(COLORS[41])) == 41
    for layout in ("adashare", "frames"):
        with pytest.raises(InputError, match=rf"got 41 with the layout '{layout}'; needs 40 or 13"):
            open_split(written[layout], classes=41)


def test_894_labels():
    assert TO_FORTY.shape == (LAST_LABEL + 1,) and TO_FORTY[0] == 0 and set(TO_FORTY[1:]) == set(range(1, 41))
    official = {21: "wall", 11: "floor", 4: "ceiling", 5: "chair", 3: "cabinet", 19: "table", 28: "door", 83: "sofa",
                157: "bed", 1: "otherprop", 894: "otherprop"}
    assert {label: NAMES[40][TO_FORTY[label] - 1] for label in official} == official


def test_depth_of_the_sensor(written):
    dataset = open_split(written["official"], tasks=("depth",), raw_depth=True)
    sample, room = dataset.read(0), recorded_scene(TRAIN[0], SIZE)
    assert dataset.protocol == "nyuv2-40-48x64-official-raw" and dataset.labels["depth"].note
    assert np.array_equal(sample.valid["depth"], room.raw > 0) and not sample.valid["depth"].all()
    assert np.array_equal(sample.target["depth"], room.raw)
    with pytest.raises(InputError, match=r"raw_depth of nyuv2: got the layout 'folder' .*needs the layout 'offic"):
        open_split(written["survey"], raw_depth=True)


def test_crops(tmp_path):
    OfficialLayout.write_fixture(tmp_path, (480, 640))
    whole = open_split(tmp_path, tasks=TASKS).read(0)
    for crop, rows, columns in (("toolbox", (45, 471), (41, 601)), ("gupta", (46, 470), (41, 600))):
        dataset = open_split(tmp_path, crop=crop)
        sample = dataset.read(0)
        size = (rows[1] - rows[0] + 1, columns[1] - columns[0] + 1)  # MATLAB counts from 1, the last is included
        assert size in ((427, 561), (425, 560)) and sample.info.native == sample.info.content == size
        assert dataset.protocol == f"nyuv2-40-{size[0]}x{size[1]}-official-{crop}"
        assert torch.equal(sample.image, whole.image[:, rows[0] - 1:rows[1], columns[0] - 1:columns[1]])
        for task in TASKS:
            window = (..., slice(rows[0] - 1, rows[1]), slice(columns[0] - 1, columns[1]))
            assert torch.equal(sample.target[task], whole.target[task][window])
            assert torch.equal(sample.valid[task], whole.valid[task][window])


def test_nothing_to_crop(written):
    with pytest.raises(InputError, match=r"crop of nyuv2: got 'gupta' with frames of 48x64; needs whole frames"):
        open_split(written["official"], crop="gupta")


def test_official_frames_reach_worker_processes(written):
    dataset = open_split(written["official"])
    here = [dataset.read(index).target["depth"] for index in range(len(dataset))]
    loader = torch.utils.data.DataLoader(range(len(dataset)), batch_size=None, num_workers=2,
                                         collate_fn=lambda index: dataset.read(index).target["depth"],
                                         multiprocessing_context="fork")
    assert all(torch.equal(a, b) for a, b in zip(here, loader, strict=True))
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.read(1).target["depth"], here[1])


def test_official_without_normals(written, tmp_path):
    for name in (MAT, "splits.mat"):
        shutil.copy(written["official"] / name, tmp_path)
    assert set(open_split(tmp_path, tasks=("semseg",)).labels) == {"semseg", "depth", "boundaries"}


# -- damaged ----------------------------------------------------------------------------------------------------


def damaged(root: Path, **options) -> str:
    """The one line that opening and reading the first frame says."""
    with pytest.raises(InputError) as error:
        open_split(root, validation=0.0, **options).read(0)
    assert str(root) in str(error.value) and "\n" not in str(error.value)
    return str(error.value).replace(str(root), "ROOT")


def copy_of(written: dict[str, Path], layout: str, tmp_path: Path) -> Path:
    return copied(written[layout], tmp_path / "copy")


@pytest.mark.parametrize(("name", "change", "expected"), [
    ("images", lambda x: x.astype(np.float32), "'images' as float32 of shape"),
    ("images", lambda x: x[:, :2], "'images' of shape (8, 2, 64, 48)"),
    ("images", lambda x: x[0], "'images' as uint8 of shape (3, 64, 48); needs an array with 4 axes"),
    ("images", lambda x: None, "needs the variable 'images'"),
    ("depths", lambda x: x[:, :-1], "'depths' of shape (8, 63, 48); needs 8 frames of 48x64 pixels"),
    ("depths", lambda x: x[:4], "'depths' of shape (4, 64, 48); needs 8 frames"),
    ("depths", lambda x: x.astype(np.uint16), "'depths' as uint16"),
    ("labels", lambda x: x + np.uint16(890), "(labels, frame 0003): got labels from 890 to"),
    ("labels", lambda x: x.astype(np.int16) - np.int16(900), "(labels, frame 0003): got labels from -900"),
    ("labels", lambda x: None, "task 'semseg': got dataset nyuv2, which has no labels for it"),
])
def test_a_wrong_variable_in_the_official_file(written, tmp_path, name, change, expected):
    root = copy_of(written, "official", tmp_path)
    with h5py.File(root / MAT, "r+") as file:
        array = change(file[name][:])
        del file[name]
        if array is not None:
            file[name] = array
    with pytest.raises(InputError) as error:
        open_split(root, validation=0.0).read(0)
    assert expected in str(error.value)


@pytest.mark.parametrize("number", [0, -3, 1.5, np.nan, np.inf, "a"])
def test_wrong_splits(written, tmp_path, number):
    root, numbers = copy_of(written, "official", tmp_path), np.array([[number]])
    savemat(root / "splits.mat", {"trainNdxs": numbers, "testNdxs": numbers})
    assert "ROOT/splits.mat: got 'trainNdxs' with other values; needs official numbers" in damaged(root)


def test_splits_of_more_frames_than_there_are(written, tmp_path):
    root = copy_of(written, "official", tmp_path)
    savemat(root / "splits.mat", {"trainNdxs": np.array([[3], [900]]), "testNdxs": np.array([[1]])})
    assert f"{MAT}: got 1 of 2 listed files (the first missing one is ROOT/{MAT}/images[0900])" in damaged(root)
    (root / "splits.mat").unlink()
    assert damaged(root).startswith("ROOT/splits.mat: got ")


@pytest.mark.parametrize(("text", "expected"), [
    ("[1, 2", "ROOT/nyu_v2_3task.json: got an unreadable file"),
    ('{"train": [["a", "b"]], "test": []}', "ROOT/nyu_v2_3task.json: got an unreadable file"),
    ('{"train": []}', "got an index without 'test'"),
    ('{"train": [["../a", "b", "c", "d"]], "test": []}', "got the path '../a'; needs paths inside"),
    ('{"train": [["a.png", "b", "c", "d"]], "test": []}', "got 0 of 1 listed files"),
])
def test_a_wrong_index(written, tmp_path, text, expected):
    root = copy_of(written, "adashare", tmp_path)
    (root / "nyu_v2_3task.json").write_text(text)
    assert expected in damaged(root)


def test_an_index_that_promises_more(written, tmp_path):
    root = copy_of(written, "adashare", tmp_path)
    index = json.loads((root / "nyu_v2_3task.json").read_text())
    index["train"].append([f"{folder}/0009.png" for folder in ("img", "seg", "normal_mask", "depth")])
    (root / "nyu_v2_3task.json").write_text(json.dumps(index))
    assert "ROOT/img: got 6 of 7 listed files (the first missing one is ROOT/img/0009.png)" in damaged(root)


@pytest.mark.parametrize(("layout", "file", "array", "expected"), [
    ("survey", "depth/0003.npy", np.full(SIZE, 2000, np.uint16), "got depth as uint16; needs meters"),
    ("survey", "depth/0003.npy", np.full((3, *SIZE), 2.0), "needs real numbers of shape (h, w)"),
    ("survey", "depth/0003.npy", np.full(SIZE, 2j), "got complex128 of shape"),
    ("survey", "depth/0003.npy", np.full((20, 64), 2.0), "got a label of 20x64 pixels; needs the size of its image"),
    ("survey", "normals/0003.npy", np.zeros((0, 64, 3)), "needs floating point of shape (h, w, 3)"),
    ("survey", "normals/0003.npy", np.full((*SIZE, 3), np.inf), "got components up to inf"),
    ("survey", "edge/0003.npy", np.full(SIZE, 255, np.uint8), "got values from 255 to 255; needs 0 without an edge"),
    ("survey", "edge/0003.npy", np.full(SIZE, np.nan), "got values from nan to nan"),
    ("survey", "edge/0003.npy", np.full(SIZE, -1, np.int8), "got values from -1 to -1"),
    ("invpt", "edge/0003.png", np.eye(*SIZE, dtype=np.uint8), "got values from 0 to 1; needs 0 without an edge"),
    ("invpt", "segmentation/0003.png", np.full(SIZE, 41, np.uint8), "got class id 41"),
    ("adashare", "seg/0003.png", np.full(SIZE, 40, np.uint8), "got class id 40; needs whole numbers from 0 to 39, or"),
    ("mtan", "train/label/0.npy", np.full(SIZE, -2), "got class id -2"),
    ("mtan", "train/label/0.npy", np.full(SIZE, np.nan), "got class id nan"),
    ("mtan", "train/image/0.npy", np.full((*SIZE, 3), 2, np.uint8), "got uint8 of shape"),
    ("mtan", "train/image/0.npy", np.zeros((0, 3, 3)), "got float64 of shape (0, 3, 3)"),
    ("mtan", "train/depth/0.npy", np.full(SIZE, 3), "got depth as int64; needs meters"),
])
def test_wrong_arrays(written, tmp_path, layout, file, array, expected):
    root = copy_of(written, layout, tmp_path)
    np.save(root / file, array) if file.endswith(".npy") else Image.fromarray(array).save(root / file)
    message = damaged(root, classes=classes_of(layout), layout=layout)
    assert message.startswith(f"ROOT/{file}: ") and expected in message


@pytest.mark.parametrize("name", ["segmentation", "depth"])
def test_wrong_mat_variables(written, tmp_path, name):
    root = copy_of(written, "astmt", tmp_path)
    for wrong in (np.array([{"a": 1}], object), np.array(["text"]), np.full(SIZE, 77.5) * 1j):
        savemat(root / f"{name}/0003.mat", {name: wrong})
        assert damaged(root).startswith(f"ROOT/{name}/0003.mat: got ")


def test_nan_depth_is_unknown_in_every_layout(written, tmp_path):
    for layout, file in (("survey", "depth/0003.npy"), ("adashare", "depth/0003.npy"), ("mtan", "train/depth/0.npy")):
        root = copied(written[layout], tmp_path / layout)
        depth = np.load(root / file)
        depth[4:6] = np.nan
        np.save(root / file, depth)
        sample = open_split(root, classes=13, validation=0.0).read(0)
        assert not sample.valid["depth"][4:6].any() and sample.target["depth"].isfinite().all()
    root = copied(written["official"], tmp_path / "official")
    with h5py.File(root / MAT, "r+") as file:
        file["depths"][2, :, 4:6] = np.nan
    sample = open_split(root, validation=0.0).read(0)
    assert not sample.valid["depth"][4:6].any() and sample.valid["depth"][6:].all()


FILES = {
    "survey": ("images/0003.jpg", "segmentation/0003.png", "depth/0003.npy", "normals/0003.npy", "edge/0003.npy",
               "gt_sets/train.txt"),
    "astmt": ("segmentation/0003.mat", "depth/0003.mat", "normals/0003.jpg", "edge/0003.png"),
    "mtan": ("train/image/0.npy", "train/label/0.npy", "train/depth/0.npy", "train/normal/0.npy"),
    "official": (MAT, "splits.mat", "normals/0002.png"),
    "adashare": ("nyu_v2_3task.json", "img/0003.png", "seg/0003.png", "normal_mask/0003.png", "depth/0003.npy"),
    "frames": ("train.txt", "images/0003.jpg", "seg40/0003.png", "depth/0003.webp", "normals/0003.jpg"),
}


@pytest.mark.parametrize("layout", FILES)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_broken_files_give_an_input_error_or_labels_that_the_loader_can_judge(written, layout, data):
    """Cut anywhere, or with some bytes overwritten: never another exception."""
    root = written[layout]
    path = root / data.draw(st.sampled_from(FILES[layout]))
    original = path.read_bytes()
    cut = data.draw(st.integers(0, len(original) - 1))
    # HDF5 trusts the addresses inside a file and SciPy its type codes, to the point of a crash: only the beginning of
    # these is overwritten.
    last = 7 if path.suffix == ".mat" else len(original) - 1
    places = data.draw(st.lists(st.integers(0, last), min_size=1, max_size=4))
    broken = bytearray(original)
    for place in places:
        broken[place] ^= data.draw(st.integers(1, 255))
    try:
        path.write_bytes(original[:cut] if data.draw(st.booleans()) else bytes(broken))
        dataset = open_split(root, classes=classes_of(layout), layout=layout, validation=0.0)
        sample = dataset.read(0)
    except InputError as error:
        assert str(root) in str(error)
    else:
        for task in TASKS:
            assert sample.target[task].shape[-2:] == sample.valid[task].shape == sample.image.shape[-2:]
    finally:
        path.write_bytes(original)


# -- real frames ------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_frames_agree_in_every_layout(real_data, tmp_path):
    for layout in ("folder", "official"):
        subprocess.run([sys.executable, real_data / "make_layouts.py", layout, tmp_path / layout, "--count", "3"],
                       check=True, timeout=100)
    frames = open_split(real_data / "nyuv2", validation=0.0)
    folder = open_split(tmp_path / "folder", validation=0.0)
    official = open_split(tmp_path / "official", tasks=("semseg", "depth", "boundaries"), validation=0.0)
    thirteen = open_split(tmp_path / "official", tasks=("semseg",), classes=13, validation=0.0)
    cropped = open_split(tmp_path / "official", tasks=("depth",), crop="gupta", validation=0.0)
    assert len(official) == 3 and official.protocol == "nyuv2-40-480x640-official"
    for index in range(3):
        a, b, c = frames.read(index), folder.read(index), official.read(index)
        assert torch.equal(a.image, c.image)
        for task in ("semseg", "depth"):
            assert torch.equal(a.target[task], c.target[task]) and torch.equal(a.valid[task], c.valid[task]), task
            assert torch.equal(b.target[task], c.target[task]), task
        assert torch.equal(a.target["boundaries"], c.target["boundaries"])  # both derived from the segmentation
        seen = c.valid["semseg"]
        assert np.array_equal(thirteen.read(index).target["semseg"][seen], FORTY_TO_THIRTEEN[c.target["semseg"][seen]])
        assert torch.equal(cropped.read(index).target["depth"], a.target["depth"][45:470, 40:600])


@pytest.mark.data
def test_the_crop_of_gupta_is_the_one_of_published_files(real_data):
    published = np.asarray(Image.open(real_data / "fixtures/nyu_depth2hha/1.png").convert("RGB"), float)
    dataset = open_split(real_data / "nyuv2", "test", tasks=("depth",), crop="gupta")
    ours = dataset.read(0).image.permute(1, 2, 0).double().numpy()
    assert dataset.frames[0] == "0001" and published.shape == ours.shape == (425, 560, 3)
    error = {(dy, dx): np.abs(np.roll(ours, (dy, dx), (0, 1)) - published)[5:-5, 5:-5].mean()
             for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    assert min(error, key=error.get) == (0, 0) and error[0, 0] < 6
