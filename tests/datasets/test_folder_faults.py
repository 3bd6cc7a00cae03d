"""What is said about a user's files and description when they are wrong: one line that names the place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from copying import copied
from folder_files import TASKS, by_id, one_image, only_label, open_split
from polyptych.cli import main
from polyptych.datasets._folder.fixture import DESCRIPTION, IDS, LAYOUTS, TEST
from polyptych.datasets.folder import Folder
from polyptych.errors import InputError


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    LAYOUTS["toml"](folder)
    return folder


@pytest.fixture
def root(whole, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return copied(whole, tmp_path / "mine")


TOML_FAULTS = [
    ('image = "images/{id}.*"', 'imgae = "images/{id}.*"', "dataset.toml: imgae: got an unknown field; needs one of"),
    ('image = "images/{id}.*"', "", "dataset.toml: image: got nothing"),
    ('image = "images/{id}.*"', 'image = "images/*"', "dataset.toml: image: got 'images/*'; needs a path with {id}"),
    ('image = "images/{id}.*"', 'image = "pictures/{id}.jpg"', "pictures/0001.jpg; there is no folder"),
    ('val = 0.2', "val = 2", "splits.val: got 2; needs a share"),
    ('val = 0.2', 'val = "sunday/"', "splits.val: got the folder 'sunday/'"),
    ('val = 0.2', 'val = "tuesday/"', "splits.val: got 'tuesday/03', which is in test too"),
    ('"lists/test.txt"', '"lists/tset.txt"', "splits.test: got 'lists/tset.txt', and there is no file"),
    ('files = "classes/{id}.png"', 'fils = "classes/{id}.png"', "tasks.semseg.fils: got an unknown field"),
    ('files = "classes/{id}.png"', 'files = "classes/{id}.tif"', "tasks.semseg.files: got 'classes/{id}.tif', which"),
    ('["stone", "wood"]', '["stone"]', "tasks.material.colors: got 2 entries; needs 1"),
    ('["stone", "wood"]', '["stone", "stone"]', "tasks.material.classes: got 2 names, 1 different ones"),
    ("[160, 82, 45]", "[90, 90, 90]", "tasks.material.colors: got one value for two classes"),
    ("[160, 82, 45]", "[300, 82, 45]", "tasks.material.colors: got a number outside"),
    ('task = "semseg"', 'task = "semsge"', "tasks.material.task: got 'semsge'"),
    ('task = "semseg"', "", "tasks.material.task: got 'material'"),
    ("[tasks.material]", "[tasks.items]", "tasks.items: got 'items', a name that cannot be a task's"),
    ('unit = "mm"', 'unit = "cm"', "tasks.depth.unit: got 'cm'"),
    ('unit = "mm"', 'unit = "disparity"', "tasks.depth.baseline: got 0"),
    ('"-y", "-z"', '"-y", "-y"', "tasks.normals.axes"),
    ('"map"', '"mop"', "no variable 'mop'; needs the name of a variable: one of map, other (nearest: map)"),
    ("persons.json", "people.json", "people.json: got no such file"),
    ('"left hand", "right hand"', '"left hand", "right foot"', "tasks.keypoints.mirror: got 'right foot'"),
    ('["sunny", "rainy"]', '["sunny"]', "weather.csv, line"),
    ("[tasks.depth]", "[tasks.depth", "got a file that is not TOML"),
]


@pytest.mark.parametrize(("old", "new", "message"), TOML_FAULTS,
                         ids=[new or f"no {old}" for old, new, _ in TOML_FAULTS])
def test_a_wrong_description_is_named(root, old, new, message):
    assert old in DESCRIPTION
    (root / "dataset.toml").write_text(DESCRIPTION.replace(old, new))
    with pytest.raises(InputError) as refusal:
        by_id(root, tuple(name for name in TASKS if f"[tasks.{name}]" in DESCRIPTION.replace(old, new)))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@settings(max_examples=80)
@given(data=st.data())
def test_any_change_of_the_description_is_read_or_refused_in_one_line(whole, tmp_path_factory, data):
    place = data.draw(st.integers(0, len(DESCRIPTION) - 1))
    width = data.draw(st.integers(0, 12))
    text = DESCRIPTION[:place] + data.draw(st.text(max_size=6)) + DESCRIPTION[place + width:]
    path = tmp_path_factory.mktemp("toml") / "mine.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        dataset = Folder.Config(root=whole, description=path).build(split="test", tasks=())
        dataset.read(0)
    except InputError as error:
        assert "mine" in str(error) and "\n" not in str(error)


FILES = {"semseg": "classes/monday/01.png", "material": "materials/monday/01.webp", "depth": "depth/monday/01.png",
         "normals": "normals/monday/02.npz", "boundaries": "edges/monday/01.tif", "saliency": "salient/monday/01.mat",
         "keypoints": "persons.json", "classification": "weather.csv"}


@settings(max_examples=120)
@given(data=st.data())
def test_damaged_labels_never_escape(whole, tmp_path_factory, data):
    task = data.draw(st.sampled_from(TASKS))
    root = tmp_path_factory.getbasetemp() / "damaged"
    if not root.exists():
        copied(whole, root)
    path = root / FILES[task]
    good = (whole / FILES[task]).read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    bad = {"cut": good[:place], "flip": good[:place] + bytes([data.draw(st.integers(0, 255))]) + good[place + 1:],
           "any": data.draw(st.binary(max_size=60)), "text": b"not what it seems"}
    path.write_bytes(bad[data.draw(st.sampled_from(sorted(bad)))])
    try:
        dataset = open_split(root, "train", (task,))
        for index in range(len(dataset)):
            dataset.read(index)
    except InputError as error:
        assert path.name in str(error) or path.parent.name in str(error) or f"tasks.{task}" in str(error)
        assert "\n" not in str(error)
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize(("task", "array", "message"), [
    ("semseg", np.full((4, 6), 57), "a.npy: got the id 57 (24 such pixels)"),
    ("semseg", np.full((4, 6), -1), "the id -1"),
    ("semseg", np.full((4, 6), 0.5), "the id 0.5"),
    ("semseg", np.full((4, 6), np.nan), "the id nan"),
    ("semseg", np.zeros((5, 6), int), "a.npy: got a label of 5x6 pixels; needs the size of its image, 4x6"),
    ("semseg", np.zeros((4, 6, 2), int), "shape (4, 6, 2)"),
    ("semseg", np.array([["x"] * 6] * 4), "a.npy: got <U1"),
    ("semseg", np.array([None]), "a.npy: got an unreadable file"),
    ("depth", np.full((4, 6), -2.0), "a.npy: got a depth of -2 m (24 such pixels)"),
    ("depth", np.full((4, 6), 5000), "a depth of 5000 m"),
    ("normals", np.full((4, 6, 3), 2.0), "a vector of length 3.4641"),
    ("normals", np.zeros((4, 6)), "shape (4, 6)"),
    ("saliency", np.zeros((4, 7)), "a label of 4x7 pixels"),
])
def test_wrong_values_are_named(tmp_path, task, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    options = {"classes": ["x", "y"]} if task == "semseg" else {}
    with pytest.raises(InputError) as refusal:
        only_label(one_image(tmp_path, task, "{id}.npy", **options))
    assert message in str(refusal.value) and "a.npy" in str(refusal.value) and "\n" not in str(refusal.value)


def test_nan_and_infinite_depth_has_no_label(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[np.nan, np.inf], [0.0, 2.0]], np.float32))
    target, valid = only_label(one_image(tmp_path, "depth", "{id}.npy", (2, 2)))
    assert valid.tolist() == [[False, False], [False, True]] and target.isfinite().all()


def test_images_are_checked_too(root):
    path = root / f"images/{TEST[0]}.png"
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(path)
    with pytest.raises(InputError, match=r"03\.png: got a picture of mode I;16; needs eight bits"):
        open_split(root, "test").read(0)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"03\.png: got an unreadable file"):
        open_split(root, "test").read(0)
    path.rename(path.with_suffix(".raw"))
    with pytest.raises(InputError, match=r"a file of type '\.raw'; needs one of \.png"):
        open_split(root, "test").read(0)
    shutil.copy(path.with_suffix(".raw"), path)
    with pytest.raises(InputError, match="two files for 'tuesday/03'"):
        open_split(root, "test")


def test_refusals(root):
    with pytest.raises(InputError, match="neither a root nor a description"):
        Folder.Config().build(split="train", tasks=())
    assert Folder.Config().kinds() == {}
    with pytest.raises(InputError, match="no such folder"):
        Folder.Config(root=root / "none").build(split="train", tasks=())
    with pytest.raises(InputError, match="task 'parts': got dataset folder, which has no labels for it"):
        open_split(root, "train", ("parts",))
    (root / "lists/test.txt").write_text("tuesday/9\n")
    with pytest.raises(InputError, match=r"the id 'tuesday/9', which no image has; needs ids of the 12 images"):
        open_split(root)
    (root / "lists/test.txt").write_text("\n".join(IDS))
    with pytest.raises(InputError, match=r"splits.train: got no images; needs at least one \(12 images were found\)"):
        open_split(root)
    (root / "lists/test.txt").write_text("\n".join(TEST))
    for path in (root / "depth/monday").iterdir():
        path.unlink()
    for name in ("00", "01", "02"):
        (root / f"depth/tuesday/{name}.png").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"tasks.depth: got no label of a training image"):
        open_split(root, "train", ("depth",))
    assert "depth" in open_split(root, "test", ("depth",)).read(0).target


def test_the_command_line_says_what_is_wrong_in_one_line(capsys, root, tmp_path):
    command = ["train", "rooms", "--dataset", "folder", "--tasks", "depth,semseg", "--out", str(tmp_path / "run")]
    assert main([*command, "--dataset.root", str(root / "images")]) == 2
    said = capsys.readouterr().err
    assert "images/dataset.toml: got no such file" in said and said.count("\n") == 1
    (root / f"{FILES['depth']}").write_bytes(b"nothing")
    options = ["--dataset.root", str(root), "--batch-size", "7", "--steps", "1", "--size", "32", "40",
               "--backbone.model", "test_resnet", "--loading.workers", "0"]
    assert main([*command, *options]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "depth/monday/01.png: got an unreadable file" in said[-1] and "Traceback" not in "".join(said)
