"""The user's own files: every type of file and label, splits, and labels that are missing."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from copying import copied
from folder_files import KINDS, TASKS, by_id, one_image, only_label, open_split
from polyptych.datasets._folder.fixture import DESCRIPTION, IDS, LAYOUTS, TEST
from polyptych.datasets._folder.patterns import Pattern
from polyptych.datasets._folder.splits import Splits
from polyptych.datasets.folder import Folder
from polyptych.errors import InputError
from polyptych.run import Run
from polyptych.tasks._base import CATALOG
from polyptych.training import train


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    LAYOUTS["toml"](folder)
    return folder


@pytest.fixture
def root(whole, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return copied(whole, tmp_path / "mine")


def test_every_label_is_what_the_file_holds(whole):
    samples = by_id(whole)
    assert set(samples) == set(IDS) and {s for s in samples if s in TEST} == set(TEST)
    seen = dict.fromkeys(TASKS, 0)
    for name, sample in samples.items():
        for task in sample.target:
            seen[task] += 1
        if "semseg" in sample.target:
            stored = np.array(Image.open(whole / f"classes/{name}.png"))
            assert np.array_equal(sample.valid["semseg"], stored != 0)
            assert np.array_equal(sample.target["semseg"], np.array([0] * 8 + [1, 1] + [2] * 12)[stored])
        if "material" in sample.target:
            stored = np.array(Image.open(whole / f"materials/{name}.webp"))[..., 0]
            assert np.array_equal(sample.valid["material"], stored != 0)
            assert np.array_equal(sample.target["material"], stored == 160)
        if "depth" in sample.target:
            stored = np.array(Image.open(whole / f"depth/{name}.png"))
            assert np.array_equal(sample.valid["depth"], (stored > 0) & (stored < 65535))
            assert np.allclose(sample.target["depth"] * 1000, np.where(stored < 65535, stored, 0), atol=1e-3)
        if "normals" in sample.target:
            stored = np.load(whole / f"normals/{name}.npz")["normals"].transpose(2, 0, 1)
            assert np.allclose(sample.target["normals"], stored * np.array([1, -1, -1])[:, None, None], atol=1e-6)
            assert np.array_equal(sample.valid["normals"], stored.any(0))
        if "boundaries" in sample.target:
            stored = np.array(Image.open(whole / f"edges/{name}.tif"))
            assert np.array_equal(sample.target["boundaries"], stored == 1)
            assert np.array_equal(sample.valid["boundaries"], stored != 2)
        if "keypoints" in sample.target and len(sample.target["keypoints"]):
            assert sample.target["keypoints"][0, :, 2].tolist() == [1, 1, 0]
        if "classification" in sample.target:
            assert f"{name},{('sunny', 'rainy')[int(sample.target['classification'])]}" in (
                whole / "weather.csv").read_text()
    assert set(seen.values()) == {9}  # one in four is missing, of every task


def test_labels_satisfy_their_tasks(whole):
    dataset = open_split(whole, "test")
    tasks = {name: CATALOG.load(KINDS[name]).Config().build(labels=dataset.labels[name]) for name in TASKS}
    for sample in map(dataset.read, range(len(dataset))):
        for name in sample.target:
            assert tasks[name].fault(sample.target[name], sample.valid[name]) is None
            assert sample.target[name].dtype == tasks[name].empty(sample.info.native).dtype
            assert sample.valid[name].shape == sample.image.shape[1:]
    assert dataset.config.kinds() == KINDS
    assert dataset.labels["keypoints"].skeleton == ((0, 1), (0, 2)) and dataset.labels["keypoints"].mirror == ((1, 2),)


def test_the_protocol_is_that_of_the_description(whole, root):
    assert open_split(whole).protocol == open_split(root).protocol and open_split(root).protocol.startswith("folder-")
    (root / "dataset.toml").write_text(DESCRIPTION.replace('"mm"', '"m"'))
    assert open_split(whole).protocol != open_split(root).protocol
    (root.parent / "mine.toml").write_text(DESCRIPTION)
    moved = Folder.Config(root=root, description=root.parent / "mine.toml").build(split="test", tasks=("depth",))
    assert moved.protocol == open_split(whole).protocol and moved.ids == list(TEST)


@pytest.mark.usefixtures("without_plots")
def test_a_run_with_missing_labels_and_two_segmentations(small_run: Run, whole, tmp_path):
    run = replace(small_run, dataset=Folder.Config(root=whole), size=(32, 40), steps=2,
                  tasks={name: CATALOG.load(kind).Config() for name, kind in KINDS.items()})
    train(run, tmp_path / "run")
    result = json.loads((tmp_path / "run/evaluation/test.json").read_text())
    assert result["images"] == 3 and result["protocol"].startswith("folder-") and set(result["tasks"]) == set(TASKS)
    for line in map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines()):
        assert line["event"] != "train" or all(np.isfinite(loss) for loss in line["losses"].values())


@pytest.mark.parametrize("suffix", ["npy", "npz", "mat", "h5", "png", "tif", "v7.3.mat"])
def test_file_types(tmp_path, suffix):
    depth = np.arange(1, 25, dtype=np.uint16).reshape(4, 6)
    path, key = tmp_path / f"depth-a.{suffix}", {}
    if suffix == "npy":
        np.save(path, depth)
    elif suffix == "npz":
        np.savez(path, depth=depth, other=depth[:2])
        key = {"key": "depth"}
    elif suffix == "mat":
        savemat(path, {"depth": depth})
    elif suffix in ("h5", "v7.3.mat"):
        with h5py.File(path, "w", userblock_size=512 if suffix != "h5" else 0) as file:
            file["a/depth"] = depth.T if suffix != "h5" else depth
        if suffix != "h5":
            with path.open("r+b") as file:
                file.write(b"MATLAB 7.3 MAT-file")
        key = {"key": "a/depth"}
    else:
        Image.fromarray(depth).save(path)
    target, valid = only_label(one_image(tmp_path, "depth", f"depth-{{id}}.{suffix}", **key))
    assert torch.equal(target, torch.from_numpy(depth.astype(np.float32))) and valid.all()


def test_depth_from_disparity(tmp_path):
    stored = np.array([[0, 1, 2], [257, 512, 65535]], np.uint16)
    Image.fromarray(stored).save(tmp_path / "a.disp.png")
    target, valid = only_label(one_image(tmp_path, "depth", "{id}.disp.png", (2, 3), unit="disparity", scale=1 / 256,
                                    offset=-1 / 256, baseline=0.2, focal=2000.0, maximum=500.0))
    expected = 0.2 * 2000 / ((stored.astype(float)[1] - 1) / 256)
    assert valid.tolist() == [[False] * 3, [True] * 3]  # not known; infinitely far; beyond the maximum
    assert np.allclose(target[1], expected)


def test_inverse_depth_and_responses(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0, 257, 65535]], np.uint16))
    target, valid = only_label(one_image(tmp_path, "inverse_depth", "{id}.npy", (1, 3), scale=1 / 65535,
                                         invalid=[65535]))
    assert np.allclose(target, [[0, 257 / 65535, 0]]) and valid.tolist() == [[True, True, False]]
    target, valid = only_label(one_image(tmp_path, "edge_texture", "{id}.npy", (1, 3), scale=2 / 65535, offset=-1.0))
    assert np.allclose(target, [[-1, 257 * 2 / 65535 - 1, 1]]) and valid.all()
    with pytest.raises(InputError, match=r"a value of 257 \(2 such pixels\); needs values from -1 to 1"):
        only_label(one_image(tmp_path, "keypoints2d", "{id}.npy", (1, 3)))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_normals_of_every_number_type_and_axis(tmp_path, kind):
    normals = np.random.default_rng(0).normal(size=(4, 6, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    stored = normals.astype(np.float32) if kind is np.float32 else (
        np.rint((normals + 1) / 2 * np.iinfo(kind).max).astype(kind))
    stored[0, 0] = 0
    np.save(tmp_path / "a.npy", stored if kind is np.uint8 else stored.transpose(2, 0, 1))
    target, valid = only_label(one_image(tmp_path, "normals", "{id}.npy", axes=["-y", "z", "x"]))
    expected = np.stack([-normals[..., 1], normals[..., 2], normals[..., 0]])
    assert not valid[0, 0] and int(valid.sum()) == 23
    assert np.abs(target.numpy() - expected)[:, valid].max() < 0.01
    assert torch.allclose(target.square().sum(0)[valid], torch.ones(23))


def test_binary_maps_from_dark_lines(tmp_path):
    Image.fromarray(np.array([[0, 100], [200, 255]], np.uint8)).convert("RGB").save(tmp_path / "a.edge.png")
    target, valid = only_label(one_image(tmp_path, "boundaries", "{id}.edge.png", (2, 2), threshold=127.5, invert=True,
                                    ignore=[200]))
    assert target.tolist() == [[1, 1], [0, 0]] and valid.tolist() == [[True, True], [False, True]]


def test_keypoints_from_arrays(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.5, 2, 1], [np.nan, 0, 0]]))
    target, _ = only_label(one_image(tmp_path, "keypoints", "{id}.npy", classes=["head", "hand"]))
    assert target.tolist() == [[[1.5, 2, 1], [0, 0, 0]]]
    np.save(tmp_path / "a.npy", np.array([[np.nan, 2, 1], [0, 0, 0]]))
    with pytest.raises(InputError, match="a keypoint that is not finite"):
        only_label(one_image(tmp_path, "keypoints", "{id}.npy", classes=["head", "hand"]))
    with pytest.raises(InputError, match=r"shape \(1, 2, 3\); needs \(1, 3\) or \(persons, 1, 3\)"):
        only_label(one_image(tmp_path, "keypoints", "{id}.npy", classes=["head"]))


def test_classes_by_folder(tmp_path):
    for name in ("images/cat/1.jpg", "images/dog/1.jpg", "images/dog/2.jpg", "images/other/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4)).save(tmp_path / name)
    (tmp_path / "dataset.toml").write_text(
        'image = "images/{id}.jpg"\n[splits]\ntest = "other/"\nval = 0\n'
        '[tasks.classification]\nclasses = ["cat", "dog"]')
    samples = by_id(tmp_path, ("classification",), ("train", "test"))
    assert {name: int(s.target["classification"]) for name, s in samples.items() if s.target} == {
        "cat/1": 0, "dog/1": 1, "dog/2": 1}
    assert "other/1" in samples
    (tmp_path / "dataset.toml").write_text(
        'image = "images/{id}.jpg"\n[tasks.classification]\nclasses = ["horse", "cow"]')
    with pytest.raises(InputError, match=r"no image in a folder .* \(the first is 'cat/1'\).* set `table`"):
        open_split(tmp_path, "train", ("classification",))


def test_label_files_among_the_images_are_no_images(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (6, 4)).save(tmp_path / f"{name}.png")
        Image.fromarray(np.ones((4, 6), np.uint16)).save(tmp_path / f"{name}_depth.png")
    Image.new("RGB", (6, 4)).save(tmp_path / ".hidden.png")
    (tmp_path / "dataset.toml").write_text(
        'image = "{id}.png"\n[splits]\ntest = 0\nval = 0\n[tasks.depth]\nfiles = "{id}_depth.png"')
    assert open_split(tmp_path, "train", ("depth",)).ids == ["a", "b", "c"]


names = st.lists(st.text("ab/-.", min_size=1, max_size=6), min_size=1, max_size=40, unique=True)


@given(names, st.floats(0, 0.5), st.floats(0, 0.5))
def test_shares_split_every_sample_once(samples, val, test):
    parts = {split: Splits(val=val, test=test).of(split, samples, Path(), "x") for split in ("train", "val", "test")}
    together = [sample for part in parts.values() for sample in part]
    assert sorted(together) == sorted(samples)
    assert parts == {split: Splits(val=val, test=test).of(split, set(samples), Path(), "x") for split in parts}
    for split, share in (("val", val), ("test", test)):
        assert abs(len(parts[split]) - share * len(samples)) <= 1


def test_val_is_carved_out_of_a_listed_train_split(tmp_path):
    (tmp_path / "train.txt").write_text("# my list\n" + "\n".join(f"{i} x" for i in range(20)))
    samples = [f"{i} x" for i in range(30)]
    splits = Splits(train="train.txt", val=0.25, test=None)
    parts = {name: splits.of(name, samples, tmp_path, "x") for name in ("train", "val", "test")}
    assert [len(parts[name]) for name in ("train", "val", "test")] == [15, 5, 10]
    assert set(parts["train"]) | set(parts["val"]) == set(samples[:20]) and parts["test"] == sorted(samples[20:])


@given(st.text("ab_.-", min_size=1, max_size=8).filter(lambda name: not name.startswith(".")),
       st.sampled_from(["{id}.png", "x/{id}_a.png", "x/{id}/{id}.png", "{id}/label.png"]))
def test_a_pattern_finds_what_it_expects(name, text):
    pattern = Pattern(text, "here")
    with tempfile.TemporaryDirectory() as folder:
        path = pattern.expected(Path(folder), name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert pattern.find(Path(folder)) == {name: path}
