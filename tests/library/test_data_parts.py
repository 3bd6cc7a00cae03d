"""Data both ways: ours in any loader, yours in our training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import polyptych
from polyptych import cli
from polyptych.datasets.python import Python
from polyptych.run import read_run, with_tasks

SOURCE = '''
import numpy as np, polyptych
from PIL import Image
from torch.utils.data import Dataset

class Mine(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        random = np.random.default_rng(index)
        ids = random.integers(0, 3, (32, 48)).astype(np.uint8)
        ids[:4] = 255
        return {"photo": Image.fromarray(ids * 80), "mask": Image.fromarray(ids),
                "distance": random.random((32, 48), np.float32) + 1 if index else None}

def mine(split):
    tasks = {"areas": polyptych.task("semseg", classes=["a", "b", "c"], ignored=255), "depth": polyptych.task("depth")}
    columns = {"image": "photo", "areas": "mask", "depth": "distance"}
    return None if split == "test" else polyptych.samples(Mine(), tasks, columns=columns)

def other(split):
    return Mine()
'''


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "my_data.py").write_text(SOURCE)
    return f"{tmp_path / 'my_data.py'}:mine"


def test_our_data_in_any_loader() -> None:
    data = polyptych.dataset("rooms", "train", ["semseg", "keypoints"], size=(32, 48), augment=polyptych.Augment(),
                             frames=4)

    def epoch(seed: int) -> list[polyptych.Batch]:
        torch.manual_seed(seed)
        return list(DataLoader(data, batch_size=2, shuffle=True, collate_fn=data.collate))

    first, again, other = epoch(0), epoch(0), epoch(1)
    assert len(first) == 2 and first[0].image.shape == (2, 3, 32, 48) and first[0].image.dtype == torch.uint8
    assert all(torch.equal(x.image, y.image) for x, y in zip(first, again, strict=True))
    assert not all(torch.equal(x.image, y.image) for x, y in zip(first, other, strict=True))
    plain = polyptych.dataset("rooms", "val", ["semseg"], size=(16, 24), val_frames=2)
    assert len(list(plain)) == 2 and plain[0].image.shape == (3, 16, 24)
    assert plain[0].target["semseg"].shape == plain[0].info.native


def test_your_data_in_our_training(source, small_run, tmp_path) -> None:
    run = replace(small_run, dataset=Python.Config(source=source), size=(32, 48), steps=1)
    folder = tmp_path / "run"
    polyptych.train(with_tasks(run, ["areas", "depth"]), folder, end=lambda folder, say: folder)
    kept, facts = read_run(folder)
    assert kept.dataset == run.dataset and facts.labels["areas"].classes == ("a", "b", "c")
    network = polyptych.load(folder).network
    assert {task: x.shape[1] for task, x in network(torch.rand(1, 3, 32, 48)).items()} == {"areas": 3, "depth": 1}


@pytest.mark.parametrize("before", [False, True])
def test_the_command_line_asks_the_data_for_the_kinds_of_tasks(source, before, monkeypatch) -> None:
    """Wherever the option stands that says where the data are."""
    runs: list = []
    monkeypatch.setattr("polyptych.training.train", lambda run, folder: runs.append(run))
    place, tasks = ["--dataset.source", source], ["--tasks", "areas,depth"]
    assert cli.main(["train", "rooms", "--dataset", "python", *(place + tasks if before else tasks + place)]) == 0
    assert {name: config.name for name, config in runs[0].tasks.items()} == {"areas": "semseg", "depth": "depth"}
    assert runs[0].dataset == Python.Config(source=source)


def test_items_become_samples(source) -> None:
    data = polyptych.dataset("python", "train", ["areas", "depth"], source=source)
    assert len(data) == 4 and data.tasks["areas"].channels == 3
    sample = data[1]
    assert sample.image.shape == (3, 32, 48) and sample.info.id == "train/1"
    assert sample.target["areas"].dtype == torch.int64
    assert not sample.valid["areas"][:4].any() and sample.valid["areas"][4:].all() and sample.valid["depth"].all()
    assert "depth" not in data[0].target and not data.collate([data[0]]).valid["depth"].any()


@pytest.mark.parametrize("image", [np.zeros((6, 8, 3), np.uint8), torch.zeros(3, 6, 8), np.zeros((6, 8, 3), np.float64),
                                   Image.new("L", (8, 6)), Image.new("RGBA", (8, 6))])
def test_images_of_every_form(image) -> None:
    vectors = np.tile(np.array([0, 0, -1], np.float32), (6, 8, 1))
    data = polyptych.samples([(image, {"normals": vectors})], {"normals": polyptych.task("normals", ignored=0)})
    sample = data.read(0, ("normals",), "train")
    assert sample.image.shape == sample.target["normals"].shape == (3, 6, 8) and sample.valid["normals"].all()


@pytest.mark.parametrize("item, said", [
    ({"depth": 1}, "no 'image'"), ([1, 2], "a mapping"), ({"image": np.zeros((6, 8))}, "shape"),
    ({"image": np.full((6, 8, 3), 2.5)}, "values from 2.5"), ({"image": np.zeros((6, 8, 3), np.int64)}, "int64"),
    ({"image": "photo.jpg"}, "an array"),
    ({"image": np.zeros((6, 8, 3), np.uint8), "depth": np.ones((6, 8, 1, 1))}, "depth")])
def test_a_wrong_item_is_named(item, said) -> None:
    with pytest.raises(polyptych.InputError, match=f"item 0 of the train split.*{said}"):
        polyptych.samples([item], {"depth": polyptych.task("depth")}).read(0, ("depth",), "train")


@pytest.mark.parametrize("change, said", [
    (lambda source: "", "FILE.py:FUNCTION"), (lambda source: source.replace(":mine", ":nobody"), "'nobody'"),
    (lambda source: source.replace(":mine", ":other"), "polyptych.samples"),
    (lambda source: source.replace("my_data", "your_data"), "no file"), (lambda source: "no_such:mine", "no_such")])
def test_a_wrong_source_is_named(source, change, said) -> None:
    with pytest.raises(polyptych.InputError, match=said):
        polyptych.dataset("python", "train", ["depth"], source=change(source))
