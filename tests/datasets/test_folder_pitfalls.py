"""What users' folders are like: each of these once gave wrong numbers or advice that did not help."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from folder_files import one_image, only_label, open_split
from polyptych.cli import main
from polyptych.data.preparation.verification import Verification, verify
from polyptych.datasets._base import EmptySplit
from polyptych.datasets.folder import Folder
from polyptych.errors import InputError

SIZE = (4, 6)


def make(folder: Path, ids=("00", "01", "02", "03", "04", "05"), tasks: str = "", splits: str = "") -> Path:
    """A folder of images with labels of two classes."""
    for number, name in enumerate(ids):
        for kind, channels in (("images", 3), ("seg", 1)):
            path = folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            label = np.eye(*SIZE, dtype=np.uint8)
            Image.fromarray(label if channels == 1 else np.full((*SIZE, 3), number, np.uint8)).save(path)
    write_toml(folder, tasks or '[tasks.semseg]\nfiles = "seg/{id}.png"\nclasses = ["a", "b"]', splits)
    return folder


def write_toml(folder: Path, tasks: str, splits: str = "", encoding: str = "utf-8") -> None:
    text = f'image = "images/{{id}}.png"\n[splits]\n{splits}\n{tasks}\n'
    (folder / "dataset.toml").write_text(text, encoding=encoding)


def verified(root: Path) -> Verification:
    return verify(Folder.Config(root=root))


def check(capsys, root: Path) -> tuple[int, str]:
    """Exit code and words of `polyptych data verify`."""
    code = main(["data", "verify", "folder", "--root", str(root)])
    said = capsys.readouterr()
    return code, " ".join((said.out + said.err).split())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_everywhere(tmp_path: Path, encoding: str) -> None:
    root = make(tmp_path / "d")
    tasks = '[tasks.classification]\nclasses = ["x", "y"]\ntable = "t.csv"\n[tasks.keypoints]\nfiles = "p.json"'
    write_toml(root, tasks, 'test = "test.txt"', encoding)
    (root / "test.txt").write_text("00\r\n01\r\n", encoding=encoding)
    (root / "t.csv").write_text("00,x\r\n01,y\r\n", encoding=encoding)
    (root / "p.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "00.png"}, {"id": 2, "file_name": "05.png"}], "annotations": [],
        "categories": [{"id": 1, "keypoints": ["head"]}]}), encoding=encoding)
    test = open_split(root, "test", ("classification", "keypoints"))
    assert test.ids == ["00", "01"] and [int(test.read(i).target["classification"]) for i in (0, 1)] == [0, 1]
    assert test.labelled("keypoints") == 1


def test_names_in_both_forms_of_unicode(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "\u00e9t\u00e9") for form in ("NFC", "NFD"))
    root = make(tmp_path / "d")
    (root / "images/00.png").rename(root / f"images/{decomposed}.png")
    (root / "seg/00.png").rename(root / f"seg/{composed}.png")
    (root / f"{decomposed}.txt").write_text(composed)
    write_toml(root, '[tasks.semseg]\nfiles = "seg/{id}.png"\nclasses = ["a", "b"]', f'test = "{composed}.txt"')
    test = open_split(root, "test", ("semseg",))
    assert test.ids == [composed] and "semseg" in test.read(0).target
    (root / "images").rename(root / decomposed)
    (root / "dataset.toml").write_text((root / "dataset.toml").read_text().replace("images/", f"{composed}/"))
    assert open_split(root, "test", ("semseg",)).ids == [composed]


def test_two_links_to_one_folder_keep_all_ids(tmp_path: Path) -> None:
    root = make(tmp_path / "d", ("one/0", "one/1"))
    for kind in ("images", "seg"):
        (root / kind / "two").symlink_to("one", True)
    assert len(open_split(root, "train", ("semseg",)).images) == 4


@pytest.mark.parametrize(("list_", "said"), [("00\n00\n01", "test.txt, line 2: got '00' a second time"),
                                             ("# all\n00\n\n01\n00 ", "test.txt, line 5: got '00' a second time")])
def test_an_id_twice(tmp_path: Path, list_: str, said: str) -> None:
    root = make(tmp_path / "d", splits='test = "test.txt"')
    (root / "test.txt").write_text(list_)
    with pytest.raises(InputError, match=said):
        open_split(root, "train", ("semseg",))


def test_an_id_in_two_entries_and_an_image_twice(tmp_path: Path) -> None:
    root = make(tmp_path / "d", ("a/0", "a/1", "b/0"), splits='test = ["a/", "test.txt"]')
    (root / "test.txt").write_text("a/1")
    with pytest.raises(InputError, match=r"splits.test: got 'a/1' in two of its entries"):
        open_split(root, "test", ("semseg",))
    write_toml(root, '[tasks.keypoints]\nfiles = "p.json"', "test = 0")
    (root / "p.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "a/0.png"}, {"id": 2, "file_name": "a/0.jpg"}], "annotations": [],
        "categories": [{"id": 1, "keypoints": ["head"]}]}))
    with pytest.raises(InputError, match="two images with the file name 'a/0'"):
        open_split(root, "train", ("keypoints",))


@pytest.mark.parametrize("splits", ["val = 0.0\ntest = 0.3", 'train = "t.txt"\nval = 0\ntest = 0.3'])
def test_a_split_that_is_not_wanted_is_no_fault(capsys, tmp_path: Path, splits: str) -> None:
    root = make(tmp_path / "d", splits=splits)
    (root / "t.txt").write_text("00\n01\n02")
    with pytest.raises(EmptySplit):
        open_split(root, "val", ("semseg",))
    found = verified(root)
    assert found.faults == [] and "val" not in found.counts
    assert f"images {found.counts['train']} none {found.counts['test']}" in check(capsys, root)[1]


def test_labels_are_counted_and_names_that_do_not_meet_are_a_fault(capsys, tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    assert verified(root).doubts == []
    (root / "seg/05.png").rename(root / "seg/5.png")
    code, said = check(capsys, root)
    assert code == 2 and "opened with semseg (5 of 6 labeled)" in said and "'5'" in said and "rename" in said
    (root / "seg/5.png").unlink()
    code, said = check(capsys, root)  # a label may be missing; it is told all the same
    assert code == 0 and "(5 of 6 labeled)" in said and "'05' has none" in said
    assert sum(found["semseg"] for found in verified(root).labelled.values()) == 5


def test_a_label_that_another_pattern_explains_is_no_orphan(tmp_path: Path) -> None:
    root = make(tmp_path / "d", tasks='[tasks.semseg]\nfiles = "seg/{id}.png"\nclasses = ["a", "b"]\n'
                                      '[tasks.saliency]\nfiles = "seg/{id}_mask.png"')
    (root / "seg/05.png").rename(root / "seg/05_mask.png")
    assert verified(root).faults == []


def test_one_class_is_doubted(tmp_path: Path) -> None:
    tasks = '[tasks.semseg]\nfiles = "seg/{id}.png"\nclasses = ["crack"]\nids = [1]\nignore = [0]'
    root = make(tmp_path / "d", tasks=tasks)
    (doubt,) = open_split(root, "train", ("semseg",)).doubts
    assert "'crack' is the only class" in doubt and "\n" not in doubt


@pytest.mark.parametrize(("kind", "options", "doubted"), [
    ("saliency", {}, "threshold = 0.5 makes them positive: set 127.5"), ("saliency", {"threshold": 127.5}, ""),
    ("semseg", {"classes": ["a", "b"]}, "changes stored numbers"), ("depth", {}, "changes stored numbers")])
def test_labels_compressed_with_losses_are_doubted(tmp_path: Path, kind: str, options: dict, doubted: str) -> None:
    Image.fromarray(255 * np.eye(*SIZE, dtype=np.uint8)).save(tmp_path / "a.seg.jpg")
    doubts = " ".join(one_image(tmp_path, kind, "{id}.seg.jpg", **options).doubts)
    assert doubted in doubts and bool(doubted) == bool(doubts)


def test_no_label_values_in_the_type_of_the_data(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.float32([[655.35, 3, -1, 1e20]]))
    target, valid = only_label(one_image(tmp_path, "depth", "{id}.npy", (1, 4), invalid=[655.35, -1, 1e20]))
    assert valid.tolist() == [[False, True, False, False]] and target.tolist() == [[0, 3, 0, 0]]
    np.save(tmp_path / "a.npy", np.float16([[0.1, 3]]))
    for kind, option in (("saliency", "ignore"), ("inverse_depth", "invalid")):
        _, valid = only_label(one_image(tmp_path, kind, "{id}.npy", (1, 2), **{option: [0.1]}))
        assert valid.tolist() == [[False, True]], kind


def turned(folder: Path, orientation: int, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[:4] = 255  # the upper edge as stored
    Image.fromarray(pixels).save(folder / "images/a.png", exif=exif)


def test_images_stand_upright_over_their_labels(tmp_path: Path) -> None:
    """A half turn does not show in the size: 0.1.0 read it upside down."""
    np.save(tmp_path / "a.npy", np.eye(8, 12, dtype=int))
    dataset = one_image(tmp_path, "semseg", "{id}.npy", (8, 12), classes=["a", "b"])
    turned(tmp_path, 3, (8, 12))
    assert dataset.read(0).image[0, :4].max() == 0 and dataset.read(0).image[0, 4:].min() == 255
    turned(tmp_path, 6, (12, 8))
    assert dataset.read(0).image.shape == (3, 8, 12)
    turned(tmp_path, 6, (8, 12))
    with pytest.raises(InputError, match=r"a.npy: got a label of 8x12 pixels; .* EXIF turns it .*12x8 \(height"):
        dataset.read(0)


@pytest.mark.parametrize(("suffix", "advice"), [("json", "data convert labelme"), ("xml", "data convert cvat"),
                                                ("raw", "convert it, for instance")])
def test_files_that_are_not_read_are_refused_at_once(tmp_path: Path, suffix: str, advice: str) -> None:
    (tmp_path / f"a.{suffix}").touch()
    with pytest.raises(InputError, match=rf"a\.{suffix}: got a file of type '\.{suffix}'.*{advice}"):
        one_image(tmp_path, "depth", f"{{id}}.{suffix}")


def test_advice_fits_the_fault(capsys, tmp_path: Path) -> None:
    root = make(tmp_path / "d", tasks='[tasks.depth]\nfiles = "seg/{id}.png"')
    for path in (root / "seg").iterdir():
        Image.fromarray(np.full(SIZE, 3000, np.uint16)).save(path)
    code, said = check(capsys, root)
    assert code == 2 and 'set unit = "mm"' in said and "get these files again" not in said
    Image.fromarray(np.full((2, 3), 3, np.uint16)).save(root / "seg/00.png")
    assert "resize one of them" in check(capsys, root)[1]
