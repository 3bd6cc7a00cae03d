"""Derived normals and the prepared folder: what is written is what the dataset says, and it is written whole or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polyptych.data.preparation import derivation, derived
from polyptych.data.preparation.conversion import convert
from polyptych.data.preparation.facts import configure, fixtures
from polyptych.data.preparation.normals import METHOD, PlaneFit
from polyptych.datasets._nyuv2.camera import intrinsics
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.datasets.prepared import Prepared
from polyptych.datasets.rooms import Rooms
from polyptych.errors import InputError
from polyptych.types import Intrinsics

LENS, FIT = Intrinsics(52.0, 52.0, 31.5, 23.5), PlaneFit(window=5, stride=1)
TASKS = ("semseg", "depth", "normals", "boundaries")


@pytest.fixture
def official(tmp_path: Path) -> NYUv2.Config:
    """The official layout without normals."""
    return write("official", tmp_path / "official")


def write(layout: str, root: Path) -> NYUv2.Config:
    root.mkdir()
    fixtures("nyuv2")[layout](root)
    for path in (root / "normals").iterdir():
        path.unlink()
    (root / "normals").rmdir()
    return NYUv2.Config(root=root)


@pytest.mark.parametrize(("layout", "suffix"), [("official", ".png"), ("folder", ".npy")])
def test_derived_normals_are_read_by_the_dataset(tmp_path: Path, layout: str, suffix: str) -> None:
    config = write(layout, tmp_path / layout)
    assert derivation.lacks_normals(config)
    done: list[tuple[int, int]] = []
    folder = derivation.derive_normals(config, FIT, LENS, lambda n, of: done.append((n, of)))
    assert done == [(n, 8) for n in range(1, 9)] and not derivation.lacks_normals(config)
    assert folder == config.root / "normals" and len(list(folder.glob(f"*{suffix}"))) == 8
    for split in ("train", "val", "test"):
        dataset = config.build(split=split, tasks=("normals",))
        depth = config.build(split=split, tasks=("depth",))
        for index in range(len(dataset)):
            sample, source = dataset.read(index), depth.read(index)
            expected, found = derivation.normals_from_depth(
                source.target["depth"].numpy(), source.valid["depth"].numpy(), LENS, FIT)
            assert torch.equal(sample.valid["normals"], torch.from_numpy(found))
            cosine = (sample.target["normals"].numpy() * expected).sum(0)[found]
            assert found.any() and np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.6


def test_how_they_were_derived_is_recorded(official: NYUv2.Config) -> None:
    folder = derivation.derive_normals(official, FIT, LENS)
    record = json.loads((folder / "derived.json").read_text())
    assert record["method"] == METHOD and record["parameters"]["window"] == 5
    assert record["intrinsics"] == {"fx": 52.0, "fy": 52.0, "cx": 31.5, "cy": 23.5}
    assert (record["frames"], record["size"]) == (8, [48, 64]) and record["from"] == "nyuv2-40-48x64-official"
    said = derived.note(folder)
    assert METHOD in said and "window: 5" in said and "fx: 52.0" in said and "published" in said
    assert derived.note(official.root) == ""


def test_an_altered_record_is_refused(official: NYUv2.Config) -> None:
    (official.root / "derived.json").write_text('{"method": "magic"}')
    with pytest.raises(InputError, match=r"derived\.json"):
        derived.note(official.root)


def test_a_failure_leaves_no_half_folder(official: NYUv2.Config) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derivation.derive_normals(official, FIT, LENS, stop)
    assert {path.name for path in official.root.iterdir()} == {"nyu_depth_v2_labeled.mat", "splits.mat"}
    derivation.derive_normals(official, FIT, LENS)


def test_an_existing_folder_is_left_alone(official: NYUv2.Config) -> None:
    (official.root / "normals").mkdir()
    Image.new("RGB", (64, 48)).save(official.root / "normals/note.png")
    with pytest.raises(InputError, match="a folder that exists"):
        derivation.derive_normals(official, FIT, LENS)
    assert [path.name for path in (official.root / "normals").iterdir()] == ["note.png"]


def test_the_camera_follows_the_crops() -> None:
    whole, toolbox, gupta = (intrinsics(size) for size in ((480, 640), (427, 561), (425, 560)))
    assert (whole.cx - toolbox.cx, whole.cy - toolbox.cy) == (40, 44)
    assert (whole.cx - gupta.cx, whole.cy - gupta.cy) == (40, 45)
    assert whole.fx == toolbox.fx == gupta.fx
    with pytest.raises(InputError, match="288x384"):
        intrinsics((288, 384))


def test_find_camera_looks_at_a_frame(official: NYUv2.Config) -> None:
    with pytest.raises(InputError, match="48x64"):
        derivation.find_camera(official)


@pytest.mark.parametrize("name", ["cityscapes", "taskonomy"])
def test_other_datasets_lack_nothing(tmp_path: Path, name: str) -> None:
    next(iter(fixtures(name).values()))(tmp_path)
    assert not derivation.lacks_normals(configure(name, tmp_path))


# -- the prepared folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> NYUv2.Config:
    root = tmp_path_factory.mktemp("survey")
    fixtures("nyuv2")["survey"](root)
    return NYUv2.Config(root=root)


def test_at_its_own_size_the_labels_are_those_of_the_dataset(survey: NYUv2.Config, tmp_path: Path) -> None:
    convert(survey, tmp_path / "out", TASKS)
    for split in ("train", "val", "test"):
        original, prepared = survey.build(split=split, tasks=TASKS), at(tmp_path / "out", split, TASKS)
        assert len(prepared) == len(original)
        for index in range(len(original)):
            a, b = original.read(index), prepared.read(index)
            assert a.info == b.info and torch.equal(a.image, b.image)
            for task in TASKS:
                assert torch.equal(a.valid[task], b.valid[task])
                torch.testing.assert_close(torch.where(a.valid[task], a.target[task], 0), b.target[task], rtol=1e-3,
                                           atol=1e-3, msg=task)


def test_resized_labels_keep_their_meaning(survey: NYUv2.Config, tmp_path: Path) -> None:
    manifest = convert(survey, tmp_path / "out", TASKS, (24, 32))
    original, prepared = survey.build(split="train", tasks=TASKS), at(tmp_path / "out", "train", TASKS)
    a, b = original.read(0), prepared.read(0)
    assert b.image.shape == (3, 24, 32) and b.info.native == (24, 32)
    assert abs(a.image.float().mean() - b.image.float().mean()) < 2
    for task in TASKS:
        assert b.valid[task].shape == (24, 32)
    assert set(b.target["semseg"].unique().tolist()) <= set(a.target["semseg"].unique().tolist())
    before, after = (sample.target["depth"][sample.valid["depth"]] for sample in (a, b))
    assert before.min() - 0.01 <= after.min() <= after.max() <= before.max() + 0.01
    lengths = b.target["normals"].norm(dim=0)[b.valid["normals"]]
    assert lengths.numel() and (lengths - 1).abs().max() < 0.01
    assert manifest.protocol == prepared.protocol == "nyuv2-40-48x64-folder-prepared-24x32" != original.protocol
    assert "24x32" in prepared.labels["depth"].note
    assert prepared.labels["semseg"].classes == original.labels["semseg"].classes


def test_some_of_the_tasks_can_be_read(survey: NYUv2.Config, tmp_path: Path) -> None:
    convert(survey, tmp_path / "out", ("semseg", "depth"))
    assert at(tmp_path / "out", "val", ("depth",)).read(0).target.keys() == {"depth"}
    with pytest.raises(InputError, match="no labels for it"):
        at(tmp_path / "out", "val", ("normals",))


def test_labels_that_are_no_maps_survive(tmp_path: Path) -> None:
    tasks = ("keypoints", "depth")
    config = Rooms.Config(size=(48, 64), frames=3, val_frames=1, test_frames=1)
    convert(config, tmp_path / "out", tasks, (24, 32))
    a, b = config.build(split="train", tasks=tasks), at(tmp_path / "out", "train", tasks)
    assert len(b) == 3
    for index in range(3):
        points, half = a.read(index).target["keypoints"], b.read(index).target["keypoints"]
        seen = points[..., 2] > 0  # nobody knows where the others are
        torch.testing.assert_close((points[..., :2][seen] + 0.5) / 2 - 0.5, half[..., :2][seen])
        assert torch.equal(seen, half[..., 2] > 0)


def test_kinds_of_tasks_survive(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        Image.new("RGB", (32, 24)).save(tmp_path / f"images/{number}.png")
        Image.new("L", (32, 24), number % 2).save(tmp_path / f"labels/{number}.png")
    (tmp_path / "dataset.toml").write_text(
        'image = "images/{id}.png"\n[splits]\ntest = 0.2\nval = 0.2\n'
        '[tasks.material]\ntask = "semseg"\nfiles = "labels/{id}.png"\nclasses = ["wood", "glass"]\n')
    convert(configure("folder", tmp_path), tmp_path / "out", ("material",))
    assert Prepared.Config(root=tmp_path / "out").kinds() == {"material": "semseg"}
    prepared = at(tmp_path / "out", "train", ("material",))
    assert prepared.labels["material"].classes == ("wood", "glass")
    assert {int(prepared.read(index).target["material"].max()) for index in range(len(prepared))} <= {0, 1}


def test_refusals(survey: NYUv2.Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a size of the same aspect ratio"):
        convert(survey, tmp_path / "stretched", TASKS, (32, 32))
    with pytest.raises(InputError, match="positive height"):
        convert(survey, tmp_path / "none", TASKS, (0, 32))
    fixtures("decathlon")["devkit"](tmp_path)
    with pytest.raises(InputError, match="by weight"):
        convert(configure("decathlon", tmp_path), tmp_path / "weighed", ("dtd",), (72, 72))
    convert(survey, tmp_path / "out", ("depth",))
    with pytest.raises(InputError, match="a folder with a prepared dataset"):
        convert(survey, tmp_path / "out", ("depth",))


def test_an_unfinished_folder_is_refused_and_can_be_finished(survey: NYUv2.Config, tmp_path: Path) -> None:
    def stop(split: str, done: int, total: int) -> None:
        if split == "val":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(survey, tmp_path / "out", ("depth",), progress=stop)
    with pytest.raises(InputError, match=r"prepared\.json: got no such file"):
        at(tmp_path / "out", "train", ("depth",))
    splits: list[str] = []
    convert(survey, tmp_path / "out", ("depth",), progress=lambda split, *_: splits.append(split))
    assert set(splits) == {"val", "test"}  # train was finished
    assert len(at(tmp_path / "out", "train", ("depth",))) == 5


def test_a_damaged_copy_is_refused(survey: NYUv2.Config, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(survey, out, ("depth",))
    path = next(out.glob("*train*/depth.bin"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"depth.bin: got \d+ bytes"):
        at(out, "train", ("depth",))
    record = json.loads((out / "prepared.json").read_text())
    record["files"] = {"../../etc/passwd": 1}
    (out / "prepared.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="files inside the folder"):
        at(out, "train", ("depth",))


def at(root: Path, split: str, tasks: tuple[str, ...]) -> Prepared:
    return Prepared.Config(root=root).build(split=split, tasks=tasks)
