"""From a folder that nobody has described to a report and an exported network, with the commands of the page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from own_data_files import DESCRIPTION, IDS, SIZE, save, write_garden
from polyptych import cli
from polyptych.datasets._folder.describing import describe
from polyptych.datasets._folder.fixture import CLOTHES, LAYOUTS
from polyptych.datasets.folder import Folder
from polyptych.errors import InputError
from polyptych.recipes._own_data import kept_reasons, own_data
from polyptych.run import read_run, require_data

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"
SHORT = ["--steps", "2", "--size", "64", "64", "--backbone.model", "test_resnet", "--backbone.weights", "None",
         "--monitoring.examples", "1"]


def blocks() -> list[list[list[str]]]:
    """The commands of every block of the page's first section, as words."""
    section = PAGE.read_text().partition("\n## ")[2].partition("\n## ")[0]
    return [[shlex.split(line, comments=True) for line in block.splitlines()]
            for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)]


@pytest.mark.parametrize("name", ["street", "clothing"])
def test_three_commands_lead_to_a_report_and_an_onnx_file(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """As they are printed; only the training is shortened, of a tiny network."""
    monkeypatch.chdir(tmp_path)
    fixture, commands = next((one[0], two) for one, two in zip(blocks(), blocks()[1:], strict=False)
                             if one[0][3:5] == ["folder", name])
    assert len(commands) == 3
    for words in (fixture, *commands):
        assert words[0] == "polyptych"
        assert cli.main(words[1:] + (SHORT if words[1] == "train" else [])) == 0
    said = capsys.readouterr().out
    assert f"{name}: chosen from the data" in said and "steps: as asked: 2" in " ".join(said.split())
    run = Path("runs") / name
    assert (run / "model.onnx").stat().st_size > 1e5
    report = (run / "report.html").read_text()
    assert f"<title>{name} " in report and f"semseg on {name} with" in report and "Chosen from the data" in report
    record = json.loads((run / "run.json").read_text())
    assert record["run"]["dataset"]["root"] == str(tmp_path / name)
    assert json.loads((run / "evaluation/test.json").read_text())["protocol"].startswith(f"{name}-")
    if name == "clothing":
        assert record["facts"]["labels"]["semseg"]["classes"] == list(CLOTHES)
        return
    # The folder moved: one option finds it again, for good.
    monkeypatch.chdir(shutil.move("street", tmp_path / "moved"))
    run = tmp_path / run
    assert cli.main(["evaluate", str(run)]) == 2
    option = re.search(r"`polyptych evaluate \S+ (--dataset\.root) DIR`", capsys.readouterr().err)[1]
    assert cli.main(["evaluate", str(run), option, "."]) == 0
    assert read_run(run)[0].dataset.root == tmp_path / "moved"
    require_data(run, None, "evaluate")
    (tmp_path / "moved/dataset.toml").write_text((tmp_path / "moved/dataset.toml").read_text() + "note = \"other\"\n")
    assert cli.main(["evaluate", str(run), option, "."]) == 2
    assert "other data" in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path: Path, capsys) -> None:
    write_garden(tmp_path)
    assert cli.main(["data", "describe", str(tmp_path)]) == 2
    assert "exists" in capsys.readouterr().err and (tmp_path / "dataset.toml").read_text() == DESCRIPTION
    assert cli.main(["data", "describe", str(tmp_path / "photos" / "none")]) == 2
    assert cli.main(["data", "describe", str(tmp_path / "photos")]) == 2
    assert "without labels" in capsys.readouterr().err


def opened(root: Path) -> Folder:
    """The folder by its first description."""
    (root / "dataset.toml").write_text(describe(root).text)
    config = Folder.Config(root=root)
    return Folder(config, split="train", tasks=tuple(config.kinds()))


def test_the_first_description_of_the_garden_reads_as_its_own(tmp_path: Path) -> None:
    write_garden(tmp_path)
    (tmp_path / "dataset.toml").unlink()
    data = opened(tmp_path)
    assert data.config.kinds() == {"semseg": "semseg", "depth": "depth"} and set(data.images) == set(IDS)
    text = (tmp_path / "dataset.toml").read_text()
    assert 'unit = "mm"  # guess' in text and 'test = "test.txt"  # 2 images' in text
    assert "0 (" in text and "%)" in text  # ids and their shares


def test_the_first_description_of_every_kind_of_file(tmp_path: Path) -> None:
    LAYOUTS["toml"](tmp_path)
    (tmp_path / "dataset.toml").unlink()
    data = opened(tmp_path)
    assert set(data.config.kinds()) == {"semseg", "materials", "depth", "normals", "boundaries", "saliency"}
    assert all(data.labelled(task) for task in data.tasks)
    for index in range(len(data)):
        data.read(index)


@pytest.mark.parametrize(("photo", "mask", "pattern"), [
    ("{}.jpg", "{}_mask.png", "{id}_mask.png"),
    ("photos/{}.JPG", "masks/{}.png", "masks/{id}.png"),
    ("rgb/img_{}.jpg", "gt/mask_{}.png", "gt/mask_{id}.png"),
    ("leftImg8bit/a_{}_leftImg8bit.png", "gtFine/a_{}_labelIds.png", "gtFine/{id}_labelIds.png"),
    ("images/training/{}.jpg", "annotations/training/{}.png", "annotations/{split}/{id}.png"),
    ("monday/{}.jpg", "monday/{}_label.png", "monday/{id}_label.png"),
])
def test_patterns_that_are_found(photo: str, mask: str, pattern: str, tmp_path: Path) -> None:
    for number, name in enumerate(IDS):
        noise = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
        suffix = Path(photo).suffix
        save((tmp_path / photo.format(name)).with_suffix(suffix.lower()), noise)
        (tmp_path / photo.format(name)).with_suffix(suffix.lower()).rename(tmp_path / photo.format(name))
        ids = np.zeros(SIZE, np.uint8)
        ids[:8], ids[8:16] = 2, 1
        save(tmp_path / mask.format(name), ids)
    data = opened(tmp_path)
    assert data.description.tasks["semseg"].files == pattern
    assert data.labelled("semseg") == len(data) > 0 and set(data.labels) == {"semseg"}


def test_numbers_that_mean_no_label_and_binary_masks(tmp_path: Path) -> None:
    write_garden(tmp_path)
    for number, name in enumerate(IDS):
        ids = np.full(SIZE, 255, np.uint8)
        ids[:8], ids[8:20] = 3, 1 + number % 2
        save(tmp_path / f"masks/{name}.png", ids)
        save(tmp_path / f"person/{name}.png", np.where(ids == 3, 255, 0).astype(np.uint8))
    (tmp_path / "dataset.toml").unlink()
    data = opened(tmp_path)
    assert data.labels["semseg"].classes == ("class 1", "class 2", "class 3")
    assert not data.read(0).valid["semseg"][-1, -1]
    assert data.labels["person"].classes == ("background", "foreground")
    assert data.read(0).target["person"][0, 0] == 1


def test_choices_follow_the_data(tmp_path: Path) -> None:
    write_garden(tmp_path)
    run = own_data(tmp_path)
    assert run.recipe == "garden" and list(run.tasks) == ["semseg", "depth"] and run.size == (64, 64)
    assert run.select == "best" and run.augment.mirror and run.batch_size == 2
    assert set(run.reasons) == {"tasks", "backbone", "size", "batch_size", "steps", "balancer", "augment", "select"}
    asked = kept_reasons(run, replace(run, steps=7, augment=replace(run.augment, hue=0.0)))
    assert asked.reasons["steps"] == "as asked: 7" and asked.reasons["augment"] == "as asked: augment.hue 0.0"
    assert asked.reasons["size"] == run.reasons["size"]
    text = DESCRIPTION.replace('"plant"', '"left plant"').replace('val = ["val.txt"]', "val = 0")
    (tmp_path / "dataset.toml").write_text(text)
    run = own_data(tmp_path)
    assert not run.augment.mirror and run.select == "last"
    assert "left plant" in run.reasons["augment"]


@pytest.mark.parametrize(("lines", "ids"), [
    ("/x/y/photos/0001.jpg\n", ["0001"]), ("photos/0001\n0002.jpg 1\n", ["0001", "0002"]),
    ("C:\\data\\0003.jpg,C:\\data\\0003.png\n", ["0003"])])
def test_lines_of_lists(lines: str, ids: list[str], tmp_path: Path) -> None:
    write_garden(tmp_path)
    (tmp_path / "val.txt").write_text(lines)
    assert Folder.Config(root=tmp_path).build(split="val", tasks=()).ids == ids
    (tmp_path / "val.txt").write_text(lines + f"{ids[0]}\n")
    with pytest.raises(InputError, match="one image"):
        Folder.Config(root=tmp_path).build(split="val", tasks=())


def test_wrong_places_are_said(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "no/such"]) == 2 and "no such folder" in capsys.readouterr().err
    assert cli.main(["train", "nyu2"]) == 2 and "nyuv2" in capsys.readouterr().err
