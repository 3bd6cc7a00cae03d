"""Labels that follow from others, colors by name, and files of floating-point numbers."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyptych.datasets._folder.colors import voc_color
from polyptych.datasets._folder.description import read_description
from polyptych.datasets.folder import Folder
from polyptych.errors import InputError

IDS = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2], [2, 2, 2, 255]], np.uint8)
SEMSEG = '[tasks.semseg]\nfiles = "{id}.lab.png"\nclasses = ["wall", "cat", "floor"]\n'


def read(folder: Path, text: str, task: str, **arrays):
    """Target and mask of one task of the only image, of the size of the first array; arrays become files a.NAME.png."""
    size = next(iter(arrays.values())).shape[:2]
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / "a.jpg")
    for name, array in arrays.items():
        Image.fromarray(array).save(folder / f"a.{name}.png")
    (folder / "dataset.toml").write_text(f'image = "{{id}}.jpg"\n[splits]\nval = 0\ntest = 0\n{text}')
    sample = Folder.Config(root=folder).build(split="train", tasks=(task,)).read(0)
    return sample.target[task].numpy(), sample.valid[task].numpy()


def test_boundaries_follow_from_classes(tmp_path) -> None:
    labels = np.repeat(np.repeat(IDS, 20, 0), 20, 1)
    labels[:40, 38:42] = 255  # the seam that annotators leave
    target, valid = read(tmp_path, SEMSEG + '[tasks.boundaries]\nfrom = "semseg"\nseam = 8', "boundaries", lab=labels)
    assert target.dtype == np.float32 and set(np.unique(target)) == {0, 1}
    assert target[10].nonzero()[0].tolist() == [39]  # one contour in the middle of the seam
    assert target[39, :35].all() and not target[60:].any()
    assert valid[:40].all() and not valid[70, 70]  # deep in what nobody labeled


def test_boundaries_follow_from_instances(tmp_path) -> None:
    instances = np.zeros((4, 6), np.uint16)
    instances[:, :2], instances[:, 2:4] = 700, 1000
    target, valid = read(tmp_path, '[tasks.boundaries]\nfrom = "instances"\nfiles = "{id}.ins.png"', "boundaries",
                         ins=instances)
    assert valid.all() and target[0].tolist() == [0, 1, 0, 1, 0, 0]
    colors = np.zeros((4, 6, 3), np.uint8)
    colors[:, 3:, 2] = 9  # ids of COCO panoptic differ in any channel
    assert read(tmp_path, '[tasks.boundaries]\nfrom = "instances"\nfiles = "{id}.ins.png"', "boundaries",
                ins=colors)[0][0].tolist() == [0, 0, 1, 0, 0, 0]


def test_saliency_follows_from_classes(tmp_path) -> None:
    target, valid = read(tmp_path, SEMSEG + '[tasks.saliency]\nfrom = "semseg"\nclasses = ["cat"]', "saliency", lab=IDS)
    assert np.array_equal(target, IDS == 1) and np.array_equal(valid, IDS != 255)


@pytest.mark.parametrize("camera", ["focal = [40.0, 40.0]", "field_of_view = 61.9275"])
def test_normals_follow_from_depth(tmp_path, camera: str) -> None:
    depth = np.full((36, 48), 2000, np.uint16)  # a wall in front of the camera
    depth[:12, :12] = 0
    text = '[tasks.depth]\nfiles = "{id}.dep.png"\nunit = "mm"\n[tasks.normals]\nfrom = "depth"\nwindow = 7\n'
    target, valid = read(tmp_path, text + camera, "normals", dep=depth)
    assert valid[20:30, 20:30].all() and not valid[:12, :12].any()
    assert np.allclose(target[:, valid], np.array([0, 0, -1])[:, None], atol=1e-4)


FAULTS = {
    '[tasks.boundaries]\nfrom = "semsg"': r"tasks\.boundaries\.from: got 'semsg'; needs .*semseg",
    '[tasks.normals]\nfrom = "depth"\nfocal = [1.0, 1.0]': r"tasks\.normals\.from: .*a task of the kind depth",
    '[tasks.saliency]\nfrom = "semseg"\nclasses = ["dog"]': r"tasks\.saliency\.classes: got 'dog'",
    '[tasks.saliency]\nfrom = "semseg"\nclasses = []': r"saliency\.classes: got none",
    '[tasks.depth]\nfrom = "semseg"': "labels of the kind depth; needs a kind that can be derived",
    '[tasks.boundaries]\nfrom = "semseg"\nfiles = "x/{id}.png"': r"tasks\.boundaries\.files: got an unknown field",
    '[tasks.boundaries]\nfrom = "semseg"\nseam = -1': r"seam: got -1",
}


@pytest.mark.parametrize("text", FAULTS)
def test_what_cannot_be_derived_is_refused(tmp_path, text: str) -> None:
    task = text.partition("]")[0].removeprefix("[tasks.")
    with pytest.raises(InputError, match=FAULTS[text]) as caught:
        read(tmp_path, SEMSEG + text, task, lab=IDS)
    assert "\n" not in str(caught.value)


def test_the_camera_is_stated_once(tmp_path) -> None:
    text = '[tasks.depth]\nfiles = "{id}.dep.png"\n[tasks.normals]\nfrom = "depth"\n'
    for camera in ("", "focal = [1.0, 1.0]\nfield_of_view = 60.0"):
        with pytest.raises(InputError, match=r"either focal = .* or field_of_view"):
            read(tmp_path, text + camera, "normals", dep=IDS)


# -- colors ------------------------------------------------------------------------------------------------


def test_the_palette_of_voc() -> None:
    assert [voc_color(index) for index in (0, 1, 2, 15, 20, 255)] == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]]


def test_a_voc_mask_as_palette_or_as_colors(tmp_path) -> None:
    palette = Image.fromarray(IDS, "P")
    palette.putpalette([value for index in range(256) for value in voc_color(index)])
    for encoding, picture in (("ids", palette), ("colors", palette.convert("RGB"))):
        text = SEMSEG + f'colors = "voc"\nencoding = "{encoding}"\nignore_colors = [[224, 224, 192]]'
        picture.save(tmp_path / "a.lab.png")
        target, valid = read(tmp_path, text, "semseg", other=IDS)
        assert np.array_equal(valid, IDS != 255) and np.array_equal(target[valid], IDS[IDS != 255])


def test_colors_from_a_file(tmp_path) -> None:
    (tmp_path / "label_colors.txt").write_text("64 128 64\tAnimal\n192 0 128\t\tArch\n")
    colors = np.array([[[64, 128, 64], [192, 0, 128]]], np.uint8)
    text = '[tasks.semseg]\nfiles = "{id}.lab.png"\nencoding = "colors"\ncolors = "label_colors.txt"\n'
    assert read(tmp_path, text, "semseg", lab=colors)[0].tolist() == [[0, 1]]
    assert read(tmp_path, text + 'classes = ["Arch", "Animal"]', "semseg", lab=colors)[0].tolist() == [[1, 0]]
    with pytest.raises(InputError, match=r"no color of 'Arc'.*Arch"):
        read(tmp_path, text + 'classes = ["Arc", "Animal"]', "semseg", lab=colors)
    with pytest.raises(InputError, match=r"colors: got 'gone\.txt', and no such file"):
        read(tmp_path, text.replace("label_colors", "gone"), "semseg", lab=colors)


# -- floating-point files ----------------------------------------------------------------------------------


def write_exr(path: Path, **channels) -> None:
    package = pytest.importorskip("OpenEXR")
    package.File({}, channels).write(str(path))


def depth_of(folder: Path, name: str, options: str = "") -> np.ndarray:
    return read(folder, f'[tasks.depth]\nfiles = "{name}"\n{options}', "depth", other=np.zeros((3, 4), np.uint8))[0]


VALUES = np.linspace(1, 12, 12, dtype=np.float32).reshape(3, 4)


def test_depth_in_exr(tmp_path) -> None:
    write_exr(tmp_path / "a.exr", Z=VALUES)
    assert np.array_equal(depth_of(tmp_path, "{id}.exr"), VALUES)
    write_exr(tmp_path / "a.exr", **{"V.Depth.Z": VALUES, "V.Combined.R": 0 * VALUES})
    assert np.array_equal(depth_of(tmp_path, "{id}.exr", 'key = "V.Depth.Z"'), VALUES)
    with pytest.raises(InputError, match=r"2 channels; needs the name of a channel.*V\.Depth\.Z"):
        depth_of(tmp_path, "{id}.exr")
    write_exr(tmp_path / "a.exr", **{"V.Depth.Z": VALUES.astype(np.float16)})
    assert np.array_equal(depth_of(tmp_path, "{id}.exr"), VALUES)
    write_exr(tmp_path / "a.exr", R=VALUES, G=VALUES, B=VALUES)  # gray, as Blender writes a viewer node
    assert np.array_equal(depth_of(tmp_path, "{id}.exr"), VALUES)


def test_normals_in_exr(tmp_path) -> None:
    write_exr(tmp_path / "a.exr", **{"N.X": 0 * VALUES, "N.Y": 0 * VALUES, "N.Z": VALUES / VALUES, "D.Z": VALUES})
    text = '[tasks.normals]\nfiles = "{id}.exr"\nkey = "N"\naxes = ["x", "-y", "-z"]'
    target, valid = read(tmp_path, text, "normals", other=np.zeros((3, 4), np.uint8))
    assert valid.all() and np.array_equal(target, np.broadcast_to(np.array([0, 0, -1])[:, None, None], (3, 3, 4)))


def test_damaged_exr_and_no_package(tmp_path, monkeypatch) -> None:
    (tmp_path / "a.exr").write_bytes(b"v/1\x01" + bytes(60))
    if pytest.importorskip("OpenEXR"):
        with pytest.raises(InputError, match=r"a\.exr: got an unreadable file"):
            depth_of(tmp_path, "{id}.exr")
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(InputError, match=r"the package OpenEXR; pip install 'polyptych\[formats\]'"):
        depth_of(tmp_path, "{id}.exr")


@pytest.mark.parametrize("order", ["<", ">"])
def test_depth_in_pfm(tmp_path, order: str) -> None:
    rows = VALUES[::-1].astype(f"{order}f4").tobytes()
    header = f"Pf\n4 3\n{'-1.0' if order == '<' else '1.0'}\n".encode()
    (tmp_path / "a.pfm").write_bytes(header + rows)
    assert np.array_equal(depth_of(tmp_path, "{id}.pfm"), VALUES)
    for content in (header + rows[:-1], b"P6\n4 3\n255\n", b""):
        (tmp_path / "a.pfm").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.pfm: got an unreadable file"):
            depth_of(tmp_path, "{id}.pfm")


# -- the page ----------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs/own-data-formats.md").read_text()
TABLES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("table", TABLES)
def test_every_table_of_the_page_is_understood(tmp_path, table: str) -> None:
    (tmp_path / "classes.txt").write_text("background\naeroplane\n")
    (tmp_path / "label_colors.txt").write_text("64 128 64\tAnimal\n192 0 128\tArch\n")
    (tmp_path / "person_keypoints.json").write_text(json.dumps({"images": [], "annotations": [], "categories": [
        {"id": 1, "name": "person", "keypoints": ["left_eye", "right_eye"]}]}))
    source = {"semseg": '[tasks.semseg]\nfiles = "{id}.png"\nclasses = ["person", "dog"]\n',
              "depth": '[tasks.depth]\nfiles = "{id}.npy"\n'}
    origin = (re.findall('from = "(.*)"', table) or [""])[0]
    (tmp_path / "dataset.toml").write_text(f'image = "{{id}}.jpg"\n{source.get(origin, "")}{table}')
    spec = read_description(tmp_path / "dataset.toml", tmp_path)
    for name, labels in spec.tasks.items():
        labels.info(tmp_path, spec.where(name))


def test_the_normals_of_the_page(tmp_path) -> None:
    """A wall that faces the camera, and a floor, in the three conventions that the page lists."""
    rows = re.findall(r"^\| x right.*?(\d+ \d+ \d+) \| `(\[.*?\])`", PAGE, re.MULTILINE)
    floors = ((128, 0, 128), (128, 255, 128), (128, 0, 128))
    assert len(rows) == 3
    for (wall, axes), floor in zip(rows, floors, strict=True):
        picture = np.array([[[int(value) for value in wall.split()], floor]], np.uint8)
        target, _ = read(tmp_path, f'[tasks.normals]\nfiles = "{{id}}.nor.png"\naxes = {axes}', "normals", nor=picture)
        assert np.allclose(target[:, 0], np.array([[0, 0], [0, -1], [-1, 0]]), atol=0.01)
