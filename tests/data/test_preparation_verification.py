"""Verification finds every damaged or missing file of a dataset, names it once, and is content with a whole one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from copying import copied
from polyptych.data.preparation.facts import configure, fixtures, with_files
from polyptych.data.preparation.verification import Verification, verify
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.errors import InputError

LAYOUTS = [(name, layout) for name in with_files() for layout in fixtures(name)]


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "nyuv2"
    root.mkdir()
    fixtures("nyuv2")["survey"](root)
    return root


@pytest.fixture
def root(survey: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return copied(survey, tmp_path / "nyuv2")


def faults(root: Path, **options) -> list[str]:
    return [fault.where for fault in verify(NYUv2.Config(root=root), subset=True, **options).faults]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_miniatures_are_whole_and_recognized(tmp_path: Path, name: str, layout: str) -> None:
    fixtures(name)[layout](tmp_path)
    options = {"classes": 13} if (name, layout) == ("nyuv2", "mtan") else {}
    config = type(configure(name))(root=tmp_path, **options)
    done: list[tuple[int, int]] = []
    found = verify(config, subset=True, progress=lambda n, of: done.append((n, of)))
    assert found.faults == [] and found.protocol and found.tasks
    assert set(found.counts) == {"train", "val", "test"}
    total = sum(found.counts.values())
    assert found.opened == total and done == [(n, total) for n in range(1, total + 1)]
    family = {"astmt": "folder", "survey": "folder", "invpt": "folder"}
    assert found.layout == ("" if "layout" not in vars(config) else family.get(layout, layout))


def test_counts_are_compared_with_those_published(survey: Path) -> None:
    found = verify(NYUv2.Config(root=survey))
    assert found.official == {"train": (6, 795), "test": (2, 654)}
    assert [(fault.got, fault.needs) for fault in found.faults] == [
        ("6 images", "795, as published"), ("2 images", "654, as published")]


def test_our_test_is_the_official_val_where_there_is_one(tmp_path: Path) -> None:
    fixtures("pascal_context")["pascal_mt"](tmp_path)
    found: Verification = verify(configure("pascal_context", tmp_path), subset=True)
    assert found.official["val"] == (found.counts["test"], 5105)
    assert found.official["train"] == (found.counts["train"] + found.counts["val"], 4998)


def test_every_damaged_file_is_named_once(root: Path) -> None:
    damaged = {root / "depth/0003.npy": b"", root / "segmentation/0003.png": b"text", root / "images/0001.jpg": b"x",
               root / "normals/0008.npy": (root / "normals/0008.npy").read_bytes()[:-100]}
    for path, content in damaged.items():
        path.write_bytes(content)
    assert sorted(faults(root)) == sorted(map(str, damaged))


def test_values_that_a_task_does_not_allow_are_found(root: Path) -> None:
    np.save(root / "depth/0005.npy", np.full((48, 64), np.inf, np.float32))
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(root / "segmentation/0006.png")
    np.save(root / "normals/0002.npy", np.zeros((40, 64, 3), np.float32))
    found = faults(root)
    assert len(found) == 3 and any("0005" in where for where in found)
    assert {str(root / "segmentation/0006.png"), str(root / "normals/0002.npy")} <= set(found)


def test_missing_files_of_several_tasks_do_not_hide_each_other(root: Path) -> None:
    (root / "depth/0004.npy").unlink()
    (root / "edge/0001.npy").unlink()
    (root / "segmentation/0007.png").write_bytes(b"damaged")
    found = verify(NYUv2.Config(root=root), subset=True)
    said = [f"{fault.where} {fault.got}" for fault in found.faults]
    assert any("0004.npy" in line for line in said) and any("0001.npy" in line for line in said)
    assert any("0007.png" in line for line in said)  # still opened, with the tasks that can be


def test_quick_opens_some_of_a_long_split(root: Path) -> None:
    for kind in ("images", "segmentation", "depth", "normals", "edge"):
        original = next((root / kind).glob("0003.*"))
        for number in range(100, 160):
            (root / kind / f"{number:04d}{original.suffix}").hardlink_to(original)
    names = (root / "gt_sets/train.txt").read_text()
    (root / "gt_sets/train.txt").write_text(names + "".join(f"{number:04d}\n" for number in range(100, 160)))
    found = verify(NYUv2.Config(root=root, validation=0.5), subset=True, quick=True)
    assert max(found.counts.values()) > 20
    assert found.opened == sum(min(count, 20) for count in found.counts.values())


def test_tasks_can_be_chosen(root: Path) -> None:
    (root / "depth/0003.npy").write_bytes(b"")
    assert faults(root, tasks=("semseg", "normals")) == []
    assert faults(root, tasks=("semseg", "depth")) == [str(root / "depth/0003.npy")]
    assert faults(root, tasks=("semseg", "keypoints")) == ["task 'keypoints'"]


def test_no_dataset_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        verify(NYUv2.Config(root=tmp_path / "nothing"))
    with pytest.raises(InputError, match="no known layout"):
        verify(NYUv2.Config(root=tmp_path))


@pytest.mark.data
def test_real_frames_are_whole(real_data: Path, monkeypatch) -> None:
    monkeypatch.setattr("polyptych.data.preparation.verification._SAMPLE", 8)
    found = verify(NYUv2.Config(root=real_data / "nyuv2"), quick=True)
    assert found.faults == [] and found.layout == "frames"
    assert found.official == {"train": (795, 795), "test": (654, 654)}
