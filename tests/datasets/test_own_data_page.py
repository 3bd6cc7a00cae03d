"""The page "Your own data": its examples are read as it says, its lines come, and its reference is the code's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from own_data_files import SIZE, WRONG, save, write_garden
from polyptych import cli
from polyptych.datasets._folder import reference
from polyptych.datasets.folder import Folder
from polyptych.datasets.mixed import Mixed

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"
IDS = ("0001", "0002", "0003", "0004")
FLAT = np.zeros(SIZE, np.uint8)


def example(title: str) -> str:
    """The description under a heading of the page."""
    section = PAGE.read_text().partition(f"### {title}\n")[2].partition("\n##")[0]
    found = re.search(r"```toml\n(.*?)```", section, re.DOTALL)
    assert found, title
    return found[1]


def described(root: Path, title: str) -> Path:
    (root / "dataset.toml").write_text(example(title))
    return root


def read(root: Path, split: str = "train") -> dict[str, object]:
    config = Folder.Config(root=root)
    dataset = config.build(split=split, tasks=tuple(config.kinds()))
    return {(sample := dataset.read(index)).info.id: sample for index in range(len(dataset))}


def photos(root: Path, pattern: str = "images/{}.jpg", ids=IDS) -> None:
    for name in ids:
        save(root / pattern.format(name), np.zeros((*SIZE, 3), np.uint8))


def with_corner(value: int, corner: int, dtype=np.uint8) -> np.ndarray:
    array = np.full(SIZE, value, dtype)
    array[0, 0] = corner
    return array


def test_masks_beside_images(tmp_path: Path) -> None:
    photos(tmp_path, "photos/{}.jpg")
    for name in IDS:
        save(tmp_path / f"photos/{name}_mask.png", with_corner(1, 255))
    samples = read(described(tmp_path, "Masks beside images"))
    assert samples and set(samples) <= set(IDS)  # no mask is an image
    for sample in samples.values():
        assert sample.target["semseg"][1, 1] == 1 and not sample.valid["semseg"][0, 0]


def test_a_folder_for_each_split(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        photos(tmp_path, split + "/{}.png")
        for number, name in enumerate(IDS):
            save(tmp_path / f"{split}annot/{name}.png", FLAT + number % 2)
    described(tmp_path, "A folder for each split")
    for split in ("train", "val", "test"):
        samples = read(tmp_path, split)
        assert list(samples) == [f"{split}/{name}" for name in IDS]
        assert [int(sample.target["semseg"][0, 0]) for sample in samples.values()] == [0, 1, 0, 1]


def test_lists(tmp_path: Path) -> None:
    photos(tmp_path, "frames/{}.png")
    for name in IDS:
        save(tmp_path / f"labels/{name}_L.png", FLAT)
    (tmp_path / "train.txt").write_text("".join(
        f"/data/CamVid/frames/{name}.png /data/CamVid/labels/{name}_L.png\n" for name in IDS[:3]))
    (tmp_path / "test.txt").write_text("0004.png\n")
    described(tmp_path, "Lists with endings, folders or pairs")
    assert list(read(tmp_path, "test")) == ["0004"]
    assert sorted([*read(tmp_path), *read(tmp_path, "val")]) == list(IDS[:3])


def test_palettes_and_names_from_a_file(tmp_path: Path) -> None:
    photos(tmp_path, "JPEGImages/{}.jpg")
    for name in IDS:
        picture = Image.fromarray(with_corner(2, 255), "P")
        picture.putpalette([7 * index % 256 for index in range(768)])
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        picture.save(tmp_path / f"SegmentationClass/{name}.png")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("0001\n0002\n")
    (lists / "val.txt").write_text("0003\n")
    (tmp_path / "classes.txt").write_text("background\naeroplane\nbicycle\n")
    samples = read(described(tmp_path, "Palettes of VOC, and names of classes from a file"), "test")
    assert list(samples) == ["0003"] and samples["0003"].target["semseg"][1, 1] == 2
    dataset = Folder.Config(root=tmp_path).build(split="test", tasks=())
    assert dataset.labels["semseg"].classes == ("background", "aeroplane", "bicycle")


def test_colors(tmp_path: Path) -> None:
    photos(tmp_path)
    color = np.full((*SIZE, 3), (0, 0, 142), np.uint8)
    color[0, 0] = 0
    for name in IDS:
        save(tmp_path / f"colors/{name}.png", color)
    for sample in read(described(tmp_path, "Colors")).values():
        assert sample.target["semseg"][1, 1] == 1 and not sample.valid["semseg"][0, 0]


def test_two_segmentations(tmp_path: Path) -> None:
    photos(tmp_path)
    for name in IDS:
        save(tmp_path / f"classes/{name}.png", with_corner(22, 0))
        save(tmp_path / f"materials/{name}.png", FLAT + 1)
    for sample in read(described(tmp_path, "Several numbers for one class, and two segmentations")).values():
        assert sample.target["semseg"][1, 1] == sample.target["material"][1, 1] == 1
        assert not sample.valid["semseg"][0, 0]


def test_depth(tmp_path: Path) -> None:
    photos(tmp_path)
    for folder in ("laser",):
        (tmp_path / folder).mkdir()
    for name in IDS:
        save(tmp_path / f"depth/{name}.png", with_corner(2500, 65535, np.uint16))
        np.save(tmp_path / f"laser/{name}.npy", np.full(SIZE, 2.5, np.float32))
        save(tmp_path / f"disparity/{name}.png", np.full(SIZE, 256 * 10, np.uint16))
    for sample in read(described(tmp_path, "Depth: 16-bit millimeters, floats, disparity")).values():
        assert sample.target["depth"][1, 1] == sample.target["laser"][1, 1] == 2.5
        assert not sample.valid["depth"][0, 0]
        assert float(sample.target["stereo"][0, 0]) == pytest.approx(0.54 * 720 / 10)


def test_three_conventions_of_normals(tmp_path: Path) -> None:
    """One floor, seen from above it: its normal points up and a little towards the camera."""
    photos(tmp_path)
    truth = np.array([0.0, -0.8, -0.6], np.float32)  # right, down, forward
    stored = {"opencv": truth, "opengl": truth * (1, -1, -1), "left": truth * (1, -1, 1)}
    for folder, vector in stored.items():
        (tmp_path / folder).mkdir()
        for name in IDS:
            field = np.broadcast_to(vector, (*SIZE, 3)).astype(np.float32)
            if folder == "opengl":
                save(tmp_path / f"{folder}/{name}.png", np.round((field + 1) * 127.5).astype(np.uint8))
            else:
                np.save(tmp_path / f"{folder}/{name}.npy", field)
    for sample in read(described(tmp_path, "Normals in three conventions")).values():
        for task in ("normals", "opengl", "left_handed"):
            torch.testing.assert_close(sample.target[task][:, 0, 0], torch.from_numpy(truth), atol=0.01, rtol=0)


def test_keypoints_and_classes_of_images(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "persons.json").write_text(json.dumps({
        "images": [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate(IDS)],
        "annotations": [{"image_id": number, "category_id": 1, "keypoints": [3, 4, 2, 5, 6, 0]} for number in range(4)],
        "categories": [{"id": 1, "name": "person", "keypoints": ["left hand", "right hand"]}]}))
    for sample in read(described(tmp_path, "Keypoints in COCO's format")).values():
        assert sample.target["keypoints"].tolist() == [[[3, 4, 1], [0, 0, 0]]]
    other = tmp_path / "weather"
    photos(other, ids=[f"{kind}/{name}" for kind in ("sunny", "rainy") for name in IDS])
    for name, sample in read(described(other, "One class for each image")).items():
        assert int(sample.target["classification"]) == name.startswith("rainy")


def test_labels_that_follow_from_others(tmp_path: Path) -> None:
    photos(tmp_path)
    ids = FLAT.copy()
    ids[10:20, 10:20] = 1
    for name in IDS:
        save(tmp_path / f"classes/{name}.png", ids)
        save(tmp_path / f"depth/{name}.png", np.full(SIZE, 2000, np.uint16))
    for sample in read(described(tmp_path, "Labels that follow from others")).values():
        assert torch.equal(sample.target["saliency"].bool(), torch.from_numpy(ids == 1))
        assert sample.target["boundaries"].any() and not sample.target["boundaries"][15, 15]
        assert sample.target["normals"][2, 15, 15] == pytest.approx(-1)  # a wall that faces the camera


def test_several_data_sets(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for root in ("street", "clothing"):
        write_garden(Path(root))
    text = PAGE.read_text().partition("## Several data sets in one run")[2]
    Path("parts.toml").write_text(re.search(r"```toml\n(.*?)```", text, re.DOTALL)[1])
    mixed = Mixed.Config(description=Path("parts.toml")).build(split="train", tasks=("semseg",))
    assert [mixed.read(mixed.index_at(place, 0)).info.id.split("/")[0] for place in range(30)].count("mine") == 20


LINES = dict(re.findall(r"^\| (.+?) \| ``(.+)`` \|$", PAGE.read_text(), re.MULTILINE))


@pytest.mark.parametrize("what", WRONG)
def test_what_is_said_about_a_wrong_description(what: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polyptych.training.Trainer._build_state", lambda self: pytest.fail("a network was built"))
    root = Path("garden")
    write_garden(root)
    WRONG[what](root)
    assert cli.main(["train", "garden"]) == 2
    assert capsys.readouterr().err.removeprefix("polyptych: ").strip() == LINES[what]
    assert not Path("runs").exists()


def test_twenty_ways_stand_on_the_page() -> None:
    assert len(WRONG) >= 20 and LINES.keys() == WRONG.keys()


def test_the_reference_is_that_of_the_code(capsys) -> None:
    """After a change of the keys, write what the comment on the page names between its comments."""
    shown = PAGE.read_text().partition("markdown() -->\n")[2].partition("\n<!-- end")[0]
    assert shown == reference.markdown()
    for section in reference.sections():
        assert all(key.meaning for key in section.keys), section.title
    assert cli.main(["data", "info", "folder"]) == 0
    assert "ignore_colors" in capsys.readouterr().out
