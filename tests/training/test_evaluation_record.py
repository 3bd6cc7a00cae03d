"""What evaluation/SPLIT.json says of its numbers, so that they are compared with their like only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch

from polyptych.datasets.rooms import Rooms
from polyptych.errors import InputError
from polyptych.evaluation import Evaluator, _all_images, finished_record
from polyptych.reports.tables import Evaluation, metric_table
from polyptych.run import Run, with_tasks
from polyptych.tasks.depth import Depth
from polyptych.types import Output


class Flat(torch.nn.Module):
    """Predicts zeros."""

    def __init__(self, channels: dict[str, int]):
        super().__init__()
        self.channels = channels

    def forward(self, image):
        return Output({name: torch.zeros(len(image), c, *image.shape[-2:]) for name, c in self.channels.items()})


@pytest.fixture
def record(small_run: Run) -> dict:
    run = with_tasks(small_run, ["semseg", "depth"])
    run = dataclasses.replace(
        run, dataset=Rooms.Config(size=(24, 32), frames=4, val_frames=2, test_frames=3), size=None,
        batch_size=2, seed=5, tasks={**run.tasks, "depth": Depth.Config(accumulation="image")})
    dataset = run.build_dataset("test")
    tasks = run.build_tasks(dataset.labels)
    network = Flat({name: task.channels for name, task in tasks.items()})
    measured = Evaluator(run, tasks, torch.device("cpu")).evaluate(network, "test")
    assert measured["image_ids"] == [f"test/{index:06d}" for index in range(3)]
    assert "RMSE" in measured["tasks"]["depth"]["metrics"]  # the log of the training has the tasks' own names
    return finished_record(measured)


def test_every_number_says_where_it_comes_from(record: dict) -> None:
    depth, semseg = record["tasks"]["depth"], record["tasks"]["semseg"]
    assert depth["accumulation"] == "image" and depth["headline"] == "RMSE_per_image"
    assert set(depth["metrics"]) == set(depth["trivial"]) == set(depth["higher_is_better"])
    assert all(name.endswith("_per_image") for name in depth["metrics"])
    assert semseg["accumulation"] == "global" and semseg["headline"] == "mIoU" and "mIoU" in semseg["metrics"]
    assert semseg["ignores"].startswith("pixels without a label, labels outside 0..")
    assert semseg["options"] == {"absent": "skip", "require_tp": False, "union_unlabeled": False}
    assert record["label_size"] == [24, 32] and record["input_size"] is None
    assert (record["batch_size"], record["processes"], record["seed"]) == (2, 1, 5)
    digest = hashlib.sha256(b"test/000000\ntest/000001\ntest/000002").hexdigest()
    assert record["image_list"] == {"count": 3, "sha256": digest}
    assert record["protocols"] == {} and record["other_protocols"] == {}  # nobody publishes on these rooms


def test_the_record_is_read_by_the_reports(record: dict) -> None:
    found = Evaluation.read(json.loads(json.dumps(record)))
    assert found.image_list.count == 3 and found.seed == 5 and found.label_size == (24, 32)
    table = metric_table(found)
    assert "seed 5" in table.caption
    assert any(task == "depth" and "accumulation image, ignoring pixels without a label" in note
               for task, note in table.notes)


def test_several_processes_know_all_images(monkeypatch) -> None:
    """Two processes in turn: the sum over processes is that of their tables."""
    ids = [["48x64 test/ä", "48x64 test/2"], ["48x64 test/1", "48x60 test/3"]]
    tables: list[torch.Tensor] = []
    for rank in (0, 1):
        monkeypatch.setattr("polyptych.distributed.world", lambda: 2)
        monkeypatch.setattr("polyptych.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("polyptych.distributed.total", lambda table: tables.append(table) or table)
        _all_images(ids[rank], 4, torch.device("cpu"))
    monkeypatch.setattr("polyptych.distributed.total", lambda table: sum(tables))
    found, sizes = _all_images(ids[1], 4, torch.device("cpu"))
    assert found == ["test/ä", "test/1", "test/2", "test/3"] and sizes == [[48, 60], [48, 64]]


def test_a_damaged_record_is_refused(record: dict, tmp_path: Path) -> None:
    record["image_list"] = {"count": "three", "sha256": ""}
    with pytest.raises(InputError, match="image_list"):
        Evaluation.read(record, tmp_path / "test.json")
