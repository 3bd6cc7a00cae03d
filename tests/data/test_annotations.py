"""`polyptych data convert`: what annotation tools write becomes pictures of ids that the dataset `folder` reads."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyptych.cli import main
from polyptych.data.preparation.annotation_files import FORMATS, Options
from polyptych.data.preparation.annotation_masks import convert_annotations
from polyptych.datasets.folder import Folder
from polyptych.errors import InputError

HEIGHT, WIDTH = 12, 16
CAT, DOG = np.s_[2:8, 3:9], np.s_[5:10, 6:12]  # overlapping rectangles; the dog is in front


def corners(place) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, the last ones still inside."""
    rows, columns = place
    return columns.start, rows.start, columns.stop - 1, rows.stop - 1


def ring(place, outer: bool = False) -> list[list[float]]:
    left, top, right, bottom = corners(place)
    right, bottom = right + outer, bottom + outer
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def encoded(place) -> str:
    content = io.BytesIO()
    Image.fromarray(np.full((place[0].stop - place[0].start, place[1].stop - place[1].start), 255, np.uint8)).save(
        content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def write_labelme(folder: Path) -> Path:
    left, top, *_ = corners(DOG)
    shapes = [{"label": "cat", "points": ring(CAT), "shape_type": "polygon"},
              {"label": "dog", "points": [[left, top], [11, 9]], "shape_type": "mask", "mask": encoded(DOG)},
              {"label": "dog", "points": [[1, 1]], "shape_type": "point"}]
    (folder / "a.json").write_text(json.dumps({"shapes": shapes, "imageHeight": HEIGHT, "imageWidth": WIDTH,
                                               "version": "5.4.1", "imageData": None}))
    return folder


def write_coco(folder: Path) -> Path:
    pytest.importorskip("pycocotools")
    dog = np.zeros((HEIGHT, WIDTH), bool)
    dog[DOG] = True
    flat = dog.T.ravel()
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    cat = [value for point in ring(CAT, outer=True) for value in point]
    annotations = [{"image_id": 7, "category_id": 5, "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs},
                    "area": 30, "iscrowd": 0},
                   {"image_id": 7, "category_id": 3, "segmentation": [cat], "area": 36}]
    (folder / "instances.json").write_text(json.dumps({
        "images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}], "annotations": annotations,
        "categories": [{"id": 5, "name": "dog"}, {"id": 3, "name": "cat"}]}))
    return folder / "instances.json"


def write_panoptic(folder: Path) -> Path:
    ids = np.full((HEIGHT, WIDTH), 70000)
    ids[CAT], ids[DOG] = 300, 5
    (folder / "panoptic").mkdir()
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(
        folder / "panoptic/a.png")
    segments = [{"id": 300, "category_id": 3}, {"id": 5, "category_id": 5}, {"id": 70000, "category_id": 9}]
    (folder / "panoptic.json").write_text(json.dumps({
        "annotations": [{"file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 9, "name": "background"}]}))
    return folder / "panoptic.json"


def write_cvat(folder: Path) -> Path:
    points = ";".join(f"{x},{y}" for x, y in ring(CAT))
    left, top, right, bottom = corners(DOG)
    rows, columns = bottom - top + 1, right - left + 1
    (folder / "annotations.xml").write_text(
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task><labels>'
        "<label><name>cat</name></label><label><name>dog</name></label></labels></task></meta>"
        f'<image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">'
        f'<mask label="dog" z_order="2" rle="0, {rows * columns}" left="{left}" top="{top}" width="{columns}" '
        f'height="{rows}"/><polygon label="cat" z_order="0" points="{points}"/><points label="dog" points="1,1"/>'
        "</image></annotations>")
    return folder / "annotations.xml"


def write_class_pictures(folder: Path) -> Path:
    for name, place in (("cat", CAT), ("dog", DOG)):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[place] = 255
        (folder / "masks/a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / f"masks/a/{name}.png")
    return folder / "masks"


WRITERS = {"labelme": write_labelme, "coco": write_coco, "coco_panoptic": write_panoptic, "cvat": write_cvat,
           "class_pictures": write_class_pictures}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "photos/a.png")
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_every_format_has_a_test() -> None:
    assert set(WRITERS) == set(FORMATS)


@pytest.mark.parametrize("form", WRITERS)
def test_the_folder_reads_what_was_drawn(form: str, data: Path, capsys) -> None:
    source = WRITERS[form](data / "notes")
    assert main(["data", "convert", form, str(source), str(data)]) == 0
    said = capsys.readouterr().out
    text = (data / "dataset.toml").read_text()
    assert 'image = "photos/{id}.png"' in text and "data verify folder" in said
    left_out = {"labelme": "1 x point", "cvat": "1 x points"}
    assert ("left out" in said) == (form in left_out) and left_out.get(form, "") in said
    (data / "dataset.toml").write_text(text.replace("\n[tasks", "\n[splits]\nval = 0\ntest = 0\n[tasks", 1))
    dataset = Folder.Config(root=data).build(split="train", tasks=("semseg",))
    sample, classes = dataset.read(0), dataset.labels["semseg"].classes
    expected = np.full((HEIGHT, WIDTH), classes.index("background"))
    expected[CAT], expected[DOG] = classes.index("cat"), classes.index("dog")
    assert np.array_equal(sample.target["semseg"], expected) and sample.valid["semseg"].all()
    if form == "class_pictures":
        assert not (data / "instances").exists()
    else:
        instances = np.array(Image.open(data / "instances/a.png"))
        assert instances[2, 3] != instances[6, 8] and len(np.unique(instances)) == 3
        edges = Folder.Config(root=data).build(split="train", tasks=("boundaries",)).read(0).target["boundaries"]
        assert edges[4, 8] == 1 and edges[6, 8] == 0


def test_what_is_not_covered_or_not_asked_for(data: Path) -> None:
    source = write_labelme(data / "notes")
    done = convert_annotations("labelme", source, data, Options(classes=("dog",)), unlabeled=True)
    ids = np.array(Image.open(data / "semseg/a.png"))
    assert done.classes == ("dog",) and done.left_out == {"'cat'": 1, "point": 1}
    assert (ids[DOG] == 0).all() and (ids == 0).sum() == 30 and (ids[CAT][:3] == 255).all() and ids[0, 0] == 255


def test_nothing_is_overwritten(data: Path, capsys) -> None:
    source = write_labelme(data / "notes")
    (data / "dataset.toml").write_text("mine")
    assert main(["data", "convert", "labelme", str(source), str(data)]) == 0
    assert (data / "dataset.toml").read_text() == "mine" and 'files = "semseg/{id}.png"' in capsys.readouterr().out
    assert main(["data", "convert", "labelme", str(source), str(data)]) == 2
    assert "semseg: got something that exists" in capsys.readouterr().err


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


FAULTS = {
    "size": ("labelme", "a.json", '"imageHeight": 12', '"imageHeight": 0', r"a\.json: got an image of 0x16 pixels"),
    "no json": ("labelme", "a.json", "{", "", r"a\.json: got an unreadable file"),
    "line": ("labelme", "a.json", "[3, 2], [8, 2], [8, 7], [3, 7]", "[3, 2]", r"shapes\[0\]: got a polygon of 1"),
    "outside": ("labelme", "a.json", "[[6, 5]", "[[14, 5]", r"shapes\[1\]: got a mask of 5x6 pixels"),
    "up": ("coco", "instances.json", "a.png", "../../a.png", r"the image '\.\./\.\./a\.png'; needs the name of a"),
    "category": ("coco", "instances.json", '"category_id": 5', '"category_id": 8', r"annotations\[0\].cat"),
    "runs": ("coco", "instances.json", '"size": [12, 16]', '"size": [16, 12]', r"run lengths of \[16, 12\]"),
    "segment": ("coco_panoptic", "panoptic.json", '"id": 300', '"id": 301', "got the segment 300"),
    "absolute": ("cvat", "annotations.xml", 'name="a.png"', 'name="/tmp/a.png"', "the image '/tmp/a.png'"),
    "entity": ("cvat", "annotations.xml", "<annotations>", "<!DOCTYPE x><annotations>", "XML with a document type"),
    "cut": ("cvat", "annotations.xml", "</annotations>", "", r"annotations\.xml: got an unreadable file"),
    "mask": ("cvat", "annotations.xml", 'rle="0, 30"', 'rle="0, 31"', "a mask of 31 pixels; needs 5x6"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_named_and_leave_nothing_behind(case: str, data: Path) -> None:
    form, name, old, new, message = FAULTS[case]
    source = WRITERS[form](data / "notes")
    edited(data / "notes" / name, old, new)
    with pytest.raises(InputError, match=message) as caught:
        convert_annotations(form, source, data)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in data.iterdir()) == ["notes", "photos"]


def test_sources_that_are_none(data: Path) -> None:
    for form, source, message in (("labelme", data / "gone", "no such file or folder"),
                                  ("labelme", data / "photos", "no JSON file"),
                                  ("class_pictures", data / "photos", "no picture that fits"),
                                  ("labelme2", data, "labelme")):
        with pytest.raises(InputError, match=message):
            convert_annotations(form, source, data)


def test_coco_needs_its_package(data: Path, monkeypatch) -> None:
    source = write_coco(data / "notes")
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(InputError, match=r"the package pycocotools; pip install 'polyptych\[formats\]'"):
        convert_annotations("coco", source, data)
