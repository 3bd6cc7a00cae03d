"""From a folder that nobody has described to a report and an exported network, with the commands of the page."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from own_data_files import DESCRIPTION, IDS, SIZE, save, write_garden
from polyptych import cli, locations
from polyptych.datasets._folder.describing import describe
from polyptych.datasets._folder.fixture import CLOTHES, LAYOUTS
from polyptych.datasets.folder import Folder
from polyptych.datasets.mixed import Mixed
from polyptych.errors import InputError
from polyptych.recipes._own_data import asked_for, own_data
from polyptych.run import Facts, read_run, require_data, run_with_data_of, write_run

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"
SHORT = ["--steps", "2", "--size", "64", "64", "--backbone.model", "test_resnet", "--backbone.weights", "None",
         "--monitoring.examples", "1", "--monitoring.trivial-samples", "4"]


def blocks() -> list[list[list[str]]]:
    """The commands of every block of the page's first section, as words."""
    section = PAGE.read_text().partition("\n## ")[2].partition("\n## ")[0]
    return [[shlex.split(line, comments=True) for line in block.splitlines()]
            for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL)]


@pytest.mark.parametrize("name", ["street", pytest.param("clothing", marks=pytest.mark.grid)])
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


def test_folders_of_one_and_of_several_data_sets_move(tmp_path: Path, monkeypatch) -> None:
    """What the record of a run says of its data, and what becomes of it in another place."""
    monkeypatch.chdir(tmp_path)
    old, new = tmp_path / "old", tmp_path / "new"
    for name in ("street", "clothing"):
        write_garden(old / name)
    one = locations.absolute(Folder.Config(root=Path("old/street"), description=Path("old/street/dataset.toml")))
    assert locations.folders(one) == [old / "street"]
    elsewhere = locations.moved(one, new)
    assert elsewhere == Folder.Config(root=new, description=new / "dataset.toml")
    assert locations.same_elsewhere(one, elsewhere)
    assert not locations.same_elsewhere(one, Folder.Config(root=new, description=new / "other.toml"))
    Path("parts.toml").write_text('[parts.a]\nname = "folder"\nroot = "old/street"\n'
                                  '[parts.b]\nname = "folder"\nroot = "old/clothing"\n[weights]\na = 2.0\n')
    mixed = Mixed.Config(description=Path("parts.toml"))
    recorded = locations.absolute(mixed)  # without the file, which may be gone when the run is read
    assert recorded.description is None and recorded.weights == {"a": 2.0}
    assert locations.folders(recorded) == [old / "street", old / "clothing"]
    before = recorded.build(split="train", tasks=("semseg",)).protocol
    old.rename(new)
    moved = locations.moved(recorded, new)
    assert locations.folders(moved) == [new / "street", new / "clothing"]
    assert moved.build(split="train", tasks=("semseg",)).protocol == before
    (new / "clothing").rename(tmp_path / "alone")  # one of them moves by itself
    assert locations.folders(locations.moved(moved, tmp_path / "alone")) == [new / "street", tmp_path / "alone"]


@pytest.fixture
def moved_run(tmp_path: Path) -> tuple[Path, Path]:
    """The record of a run on a folder that is not where it was, and the folder's new place."""
    root, run = tmp_path / "garden", tmp_path / "run"
    write_garden(root)
    chosen = own_data(root)
    run.mkdir()
    write_run(run / "run.json", chosen, Facts.of(chosen.build_dataset("train")))
    return run, root.rename(tmp_path / "elsewhere")


@pytest.mark.parametrize("command", ["evaluate {}", "resume {}", "export {} --quantize static", "compare --from {}"])
def test_every_command_that_opens_the_data_names_the_option(command: str, moved_run: tuple[Path, Path], monkeypatch,
                                                            capsys) -> None:
    run, place = moved_run
    monkeypatch.setattr("polyptych.training.train", lambda *_, **__: (_ for _ in ()).throw(InputError("", "", "", "")))
    words = command.format(run)
    assert cli.main(words.split()) == 2
    said = capsys.readouterr().err
    assert "garden): got no such folder" in said and f"`polyptych {words} --dataset.root DIR`" in said
    assert cli.main([*words.split(), "--dataset.root", str(place / "photos")]) == 2
    assert cli.main([*words.split(), "--dataset.root", str(place)]) == 2  # nothing is trained here
    assert "no such folder" not in capsys.readouterr().err.splitlines()[-1]
    assert read_run(run)[0].dataset.root == place


def test_a_planned_run_finds_moved_data(moved_run: tuple[Path, Path]) -> None:
    """A comparison or a search that is repeated with the new folder goes on with the runs that it has."""
    run, place = moved_run
    recorded = read_run(run)[0]
    planned = dataclasses.replace(recorded, dataset=Folder.Config(root=place))
    assert run_with_data_of(run, planned).dataset.root == place and read_run(run)[0].dataset.root == place
    (place / "dataset.toml").write_text((place / "dataset.toml").read_text().replace("plant", "tree"))
    write_run(run / "run.json", recorded, read_run(run)[1])
    assert run_with_data_of(run, planned).dataset == recorded.dataset  # other data


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


def test_names_from_a_table_of_classes(tmp_path: Path) -> None:
    """CSV files as they come with data: ids and names beside masks, names and colors beside pictures in color. The
    folders of labels, which the pattern of the images fits too, hold no images."""
    palette = np.array([(128, 64, 128), (70, 130, 180), (0, 0, 142)], np.uint8)
    for split in ("train", "val"):
        for number, name in enumerate(IDS):
            ids = np.zeros(SIZE, np.uint8)
            ids[:12], ids[16:24, 4:20] = 1, 2
            noise = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)
            save(tmp_path / f"{split}/{name}.png", noise)
            save(tmp_path / f"{split}_labels/{name}_L.png", palette[ids])
    (tmp_path / "class_dict.csv").write_text("name, r, g, b\nRoad,128,64,128\nSky,70,130,180\nBus,1,2,3\nCar,0,0,142\n")
    data = opened(tmp_path)
    assert len(data) == len(IDS) and data.labelled("semseg") == len(IDS)
    assert data.labels["semseg"].classes == ("Road", "Sky", "Bus", "Car")
    assert data.labels["semseg"].colors[3] == (0, 0, 142) and int(data.read(0).target["semseg"][16, 4]) == 3
    other = tmp_path / "other"
    write_garden(other)
    for path in (other / "masks").iterdir():
        save(path, 10 * (np.array(Image.open(path)) > 0).astype(np.uint8))
    (other / "classes.csv").write_text("id,name\n10,plant\n0,ground\n")
    (other / "dataset.toml").unlink()
    data = opened(other)
    assert data.labels["semseg"].classes == ("plant", "ground") and int(data.read(0).target["semseg"][0, 0]) == 0


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_channels_of_normals(order: str, tmp_path: Path) -> None:
    """A wall that faces the camera a little from the left, x right, y up, z towards it."""
    write_garden(tmp_path)
    shutil.rmtree(tmp_path / "masks")
    shutil.rmtree(tmp_path / "depth")
    vector = np.round((np.array([0.1, 0.3, 0.95]) + 1) * 127.5).astype(np.uint8)
    for name in IDS:
        save(tmp_path / f"normal/{name}.png", np.broadcast_to(vector if order == "rgb" else vector[::-1], (*SIZE, 3)))
    (tmp_path / "dataset.toml").unlink()
    target = opened(tmp_path).read(0).target["normals"][:, 0, 0]
    assert target.numpy() == pytest.approx([0.1, -0.3, -0.95], abs=0.02)


def test_photos_without_colors(tmp_path: Path) -> None:
    write_garden(tmp_path)
    for number, name in enumerate(IDS):
        (tmp_path / f"photos/{name}.jpg").unlink()
        save(tmp_path / f"photos/{name}.png", np.random.default_rng(number).integers(0, 256, SIZE, np.uint8))
    (tmp_path / "dataset.toml").unlink()
    assert opened(tmp_path).read(0).image.shape == (3, *SIZE)


def test_choices_follow_the_data(tmp_path: Path) -> None:
    write_garden(tmp_path)
    run = own_data(tmp_path)
    assert run.recipe == "garden" and list(run.tasks) == ["semseg", "depth"] and run.size == (64, 64)
    assert run.select == "best" and run.augment.mirror and run.batch_size == 2
    assert set(run.reasons) == {"tasks", "backbone", "size", "batch_size", "steps", "balancer", "augment", "select"}
    asked = asked_for(run, dataclasses.replace(run, steps=7, augment=dataclasses.replace(run.augment, hue=0.0)))
    assert asked.reasons["steps"] == "as asked: 7" and asked.reasons["augment"] == "as asked: augment.hue 0.0"
    assert asked.reasons["size"] == run.reasons["size"]
    # What follows from the number of steps follows from the one asked for, unless something else was asked for, too.
    often = dataclasses.replace(run, steps=800, monitoring=dataclasses.replace(run.monitoring, validate_every=9))
    asked = asked_for(run, often)
    assert asked.schedule.warmup == 80 and asked.monitoring.log_every == 20
    assert asked.monitoring.validate_every == 9 and asked.monitoring.save_every == 200
    assert asked_for(run, run) == run
    usual = dataclasses.replace(run, backbone=dataclasses.replace(run.backbone, weights=Path("package:weights")))
    other = asked_for(usual, dataclasses.replace(usual, backbone=dataclasses.replace(usual.backbone, model="test_vit")))
    assert other.backbone.model == "test_vit" and other.backbone.weights is None  # those are weights of another model
    assert other.reasons["backbone"].startswith("as asked: backbone.model test_vit, backbone.weights None")
    assert own_data(tmp_path, tmp_path / "dataset.toml").reasons == run.reasons
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
