"""What `polyptych data verify` and training say of data that can be read and are most likely not what was meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyptych.cli import main
from polyptych.data.preparation.inspection import Inspection, doubts
from polyptych.data.preparation.verification import Fault, merged, verify
from polyptych.datasets.folder import Folder
from polyptych.reports.label_sheet import WIDTH

SIZE = (8, 10)
CLASSES = '[tasks.semseg]\nfiles = "lab/{id}.png"\nclasses = ["a", "b", "c"]'
SPLITS = '[splits]\ntrain = "train/"\nval = "val/"\ntest = "test/"'
IDS = [f"{split}/{number}" for split in ("train", "val", "test") for number in range(3)]


def make(root: Path, task: str, label) -> Path:
    """A folder with three images in each split; ``label(split, number)`` is the array of each label."""
    for index, sample in enumerate(IDS):
        split, number = sample.split("/")
        for folder, array in (("img", np.full((*SIZE, 3), 10 * index, np.uint8)), ("lab", label(split, int(number)))):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{sample}.png")
    (root / "dataset.toml").write_text(f'image = "img/{{id}}.png"\n{SPLITS}\n{task}')
    return root


def save(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(path)


def doubted(root: Path) -> list[str]:
    return verify(Folder.Config(root=root)).doubts


def full(value: int, kind=np.uint8) -> np.ndarray:
    return np.full(SIZE, value, kind)


def mixed(split: str, number: int, *classes: int) -> np.ndarray:
    return np.resize(np.array(classes, np.uint8), SIZE)


def test_nothing_is_doubted_in_good_data(tmp_path: Path) -> None:
    root = make(tmp_path, CLASSES, lambda split, number: mixed(split, number, 0, 1, 2))
    found = verify(Folder.Config(root=root))
    assert found.doubts == []
    facts = found.inspections["train"].tasks["semseg"]
    assert facts.images == 3 and facts.seen.tolist() == [3, 3, 3] and abs(facts.shares.sum() - 1) < 1e-9


def test_classes_that_do_not_occur(tmp_path: Path) -> None:
    root = make(tmp_path, CLASSES, lambda split, number: mixed(split, number, 0, 1 if split == "test" else 0))
    said = doubted(root)
    assert "semseg: 'c' in no image of any split" in said
    assert "semseg: 'b' in no image of train: cannot be learned" in said
    assert "semseg: 'b' in no image of val: cannot be measured there" in said


def test_rare_and_dominant_classes(tmp_path: Path) -> None:
    def label(split: str, number: int) -> np.ndarray:
        array = np.zeros((60, 80), np.uint8)
        array[0, 0:2] = 1, 2
        return array

    for sample in IDS:
        (tmp_path / "img" / sample).parent.mkdir(parents=True, exist_ok=True)
    root = make(tmp_path, CLASSES, label)
    for index, sample in enumerate(IDS):
        Image.fromarray(np.full((60, 80, 3), index, np.uint8)).save(root / "img" / f"{sample}.png")
    said = " ".join(doubted(root))
    assert "rare in train: b (0.02%, 3 images), c (0.02%, 3 images)" in said and "'a' is 100.0% of" in said


VALUES = {
    "normals in BGR": ('[tasks.normals]\nfiles = "lab/{id}.png"\naxes = ["x", "-y", "-z"]',
                       lambda s, n: np.full((*SIZE, 3), (255, 128, 128), np.uint8), "in another order, such as BGR"),
    "millimeters as meters": ('[tasks.depth]\nfiles = "lab/{id}.png"', lambda s, n: full(240 + n), "is the unit right"),
    "relative depth": ('[tasks.depth]\nfiles = "lab/{id}.png"\nscale = 0.003', lambda s, n: mixed(s, n, 9, 99, 255),
                       "all within a meter"),
    "a constant": ('[tasks.depth]\nfiles = "lab/{id}.png"', lambda s, n: full(7), "the same depth everywhere, 7 m"),
    "a sentinel": ('[tasks.depth]\nfiles = "lab/{id}.png"', lambda s, n: mixed(s, n, 3, 3, 3, 250), "as `invalid`"),
    "no label": ('[tasks.depth]\nfiles = "lab/{id}.png"', lambda s, n: mixed(s, n, *[0] * 78, 3, 4), "have a label"),
    "normals of OpenGL": ('[tasks.normals]\nfiles = "lab/{id}.png"',
                          lambda s, n: np.full((*SIZE, 3), (128, 128, 255), np.uint8), "point away from the camera"),
    "white background": ('[tasks.boundaries]\nfiles = "lab/{id}.png"', lambda s, n: mixed(s, n, 255, 255, 255, 0),
                         "set invert = true"),
    "threshold": ('[tasks.saliency]\nfiles = "lab/{id}.png"\nthreshold = 127.5', lambda s, n: mixed(s, n, 0, 1),
                  "no positive pixel"),
}


@pytest.mark.parametrize("case", VALUES)
def test_ranges_that_look_wrong(case: str, tmp_path: Path) -> None:
    task, label, message = VALUES[case]
    said = doubted(make(tmp_path, task, label))
    assert len(said) == 1 and message in said[0] and "\n" not in said[0]


def test_pictures_in_two_splits(tmp_path: Path) -> None:
    root = make(tmp_path, CLASSES, lambda split, number: mixed(split, number, 0, 1, 2))
    picture = Image.open(root / "img/train/1.png")
    picture.save(root / "img/test/0.png", compress_level=1)  # other bytes, the same pixels
    (said,) = doubted(root)
    assert said.startswith("1 image of train also in test (the same pixels: 'train/1' and 'test/0')")


def test_near_copies_in_two_splits(tmp_path: Path) -> None:
    """The same photo in another size, as JPEG, a little brighter; not another photo of the same place."""
    root = make(tmp_path, CLASSES, lambda split, number: mixed(split, number, 0, 1, 2))
    random = np.random.default_rng(0)
    place = np.kron(random.integers(40, 200, (6, 8, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    other = np.roll(place, 10, axis=1)
    for sample, array in (("train/0", place), ("train/1", other), ("val/0", place), ("test/2", other)):
        noise = random.normal(0, 2, array.shape)
        Image.fromarray((array + noise).clip(0, 255).astype(np.uint8)).save(root / "img" / f"{sample}.png")
        save(root / "lab" / f"{sample}.png", np.resize(np.array([0, 1, 2], np.uint8), array.shape[:2]))
    picture = Image.open(root / "img/val/0.png").resize((160, 120))
    picture.save(root / "img/val/0.jpg", quality=80)
    Image.open(root / "img/val/0.jpg").save(root / "img/val/0.png")
    save(root / "lab/val/0.png", np.resize(np.array([0, 1, 2], np.uint8), (120, 160)))
    said = doubted(root)
    assert [words[:70] for words in said] == [
        "1 image of train nearly the same as one of val ('train/0' and 'val/0'): c"[:70],
        "1 image of train nearly the same as one of test ('train/1' and 'test/2'):"[:70]]


def test_a_class_that_is_ignored(tmp_path: Path) -> None:
    """Masks of 0 and 255, and nobody said that 255 is a class."""
    task = '[tasks.semseg]\nfiles = "lab/{id}.png"\nclasses = ["ground", "house"]'
    root = make(tmp_path, task, lambda split, number: mixed(split, number, 0, 0, 255))
    assert any("only 'ground' occurs, and 32% of the pixels have no label" in words and "ids = [0, 255]" in words
               for words in doubted(root))
    (root / "dataset.toml").write_text((root / "dataset.toml").read_text() + "\nids = [0, 255]\n")
    assert doubted(root) == []


def test_equal_faults_are_one_row(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    root = make(tmp_path, CLASSES, lambda split, number: np.zeros((4, 5), np.uint8))
    assert len(verify(Folder.Config(root=root)).faults) == 9
    assert main(["data", "verify", "folder", "--root", str(root)]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "and 8 more" in said and said.count("4x5") == 1 and "8x10 (height x width)" in said
    some = [Fault("a", "the id 7 (3 such pixels)", "x"), Fault("b", "the id 7 (12 such pixels)", "x"),
            Fault("c", "y", "x")]
    assert [(fault.where, count) for fault, count in merged(some)] == [("a", 2), ("c", 1)]


def test_the_nearest_name_is_said(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    root = make(tmp_path, CLASSES, lambda split, number: mixed(split, number, 0, 1, 2))
    (root / "lab/val/2.png").rename(root / "lab/val/002.png")
    assert main(["data", "verify", "folder", "--root", str(root)]) == 2
    assert "('val/002'; the image 'val/2' has none)" in " ".join(capsys.readouterr().out.split())


def test_a_sheet_of_samples(tmp_path: Path, capsys) -> None:
    root = make(tmp_path / "d", CLASSES, lambda split, number: mixed(split, number, 0, 1, 2))
    sheet = tmp_path / "out/sheet.png"
    assert main(["data", "verify", "folder", "--root", str(root), "--pictures", str(sheet)]) == 0
    assert "9 samples with their labels" in capsys.readouterr().out
    width, height = Image.open(sheet).size
    assert 2 * 240 < width <= WIDTH and height > 4 * 150  # two samples beside each other


def test_an_inspection_of_nothing() -> None:
    assert list(doubts({"train": Inspection({}, {})})) == [] and Inspection({}, {}).in_words() == ""
