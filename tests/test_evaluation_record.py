"""What evaluation/SPLIT.json says of its numbers, so that they are compared with their like only."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import pytest
import torch

from polyptych.datasets.rooms import Rooms
from polyptych.errors import InputError
from polyptych.evaluation import Evaluator, _all_images
from polyptych.evaluation_record import Evaluation
from polyptych.reports.tables import metric_table
from polyptych.run import Run, with_tasks
from polyptych.tasks.depth import Depth
from polyptych.types import Output

OLD = {  # as 0.1.0 wrote it, shortened
    "protocol": "rooms-13-24x32", "split": "test", "images": 3, "skipped": [], "input_size": None,
    "label_size": [24, 32], "batch_size": 2, "processes": 1, "seed": 5, "seconds": 0.25,
    "tasks": {"depth": {
        "headline": "RMSE_per_image", "metrics": {"RMSE_per_image": 2.5, "delta1_per_image": math.nan},
        "trivial": {"RMSE_per_image": 3.0, "delta1_per_image": 0.2}, "accumulation": "image",
        "ignores": "pixels without a label", "options": {}, "higher_is_better":
        {"RMSE_per_image": False, "delta1_per_image": True}, "unit": "m", "note": "", "skill": 0.125, "classes": {}}},
    "scores": {}, "skill": 0.125, "step": 40, "weights": "last",
    "image_list": {"count": 3, "sha256": "2a"}, "protocols": {}, "other_protocols": {},
}


class Flat(torch.nn.Module):
    """Predicts zeros."""

    def __init__(self, channels: dict[str, int]):
        super().__init__()
        self.channels = channels

    def forward(self, image):
        return Output({name: torch.zeros(len(image), c, *image.shape[-2:]) for name, c in self.channels.items()})


@pytest.fixture
def record(small_run: Run) -> Evaluation:
    run = with_tasks(small_run, ["semseg", "depth"])
    run = dataclasses.replace(
        run, dataset=Rooms.Config(size=(24, 32), frames=4, val_frames=2, test_frames=3), size=None,
        batch_size=2, seed=5, tasks={**run.tasks, "depth": Depth.Config(accumulation="image")})
    dataset = run.build_dataset("test")
    tasks = run.build_tasks(dataset.labels)
    network = Flat({name: task.channels for name, task in tasks.items()})
    return Evaluator(run, tasks, torch.device("cpu")).evaluate(network, "test")


def test_every_number_says_where_it_comes_from(record: Evaluation) -> None:
    depth, semseg = record.tasks["depth"], record.tasks["semseg"]
    assert depth.accumulation == "image" and depth.headline == "RMSE_per_image"
    assert set(depth.metrics) == set(depth.trivial) == set(depth.higher_is_better)
    assert all(name.endswith("_per_image") for name in depth.metrics)
    assert semseg.accumulation == "global" and semseg.headline == "mIoU" and "mIoU" in semseg.metrics
    assert semseg.ignores.startswith("pixels without a label, labels outside 0..")
    assert semseg.options == {"absent": "skip", "require_tp": False, "union_unlabeled": False}
    assert record.label_size == (24, 32) and record.input_size is None
    assert (record.batch_size, record.processes, record.seed) == (2, 1, 5)
    assert record.image_ids == [f"test/{index:06d}" for index in range(3)]
    digest = hashlib.sha256(b"test/000000\ntest/000001\ntest/000002").hexdigest()
    assert (record.image_list.count, record.image_list.sha256) == (3, digest)


def test_the_training_log_has_the_tasks_own_names(record: Evaluation) -> None:
    depth = record.tasks["depth"]
    assert depth.own_headline == "RMSE" and depth.own_metrics["RMSE"] == depth.headline_value


def test_it_is_read_as_it_was_written(record: Evaluation, tmp_path: Path) -> None:
    path = record.write(tmp_path)
    assert repr(Evaluation.of_run(tmp_path, "test")) == repr(record)  # some numbers are NaN, which equals nothing
    assert (tmp_path / "evaluation/test.images.txt").read_text().splitlines() == record.image_ids
    assert list(json.loads(path.read_text())) == list(OLD) and not list(tmp_path.glob("evaluation/*.partial"))
    table = metric_table(record)
    assert "seed 5" in table.caption
    assert any(task == "depth" and "accumulation image, ignoring pixels without a label" in note
               for task, note in table.notes)


def test_a_file_of_an_older_version_is_read_and_written_to_the_same_bytes(tmp_path: Path) -> None:
    written = json.dumps(OLD, indent=2) + "\n"
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/test.json").write_text(written)
    assert Evaluation.of_run(tmp_path, "test").write(tmp_path).read_text() == written


def test_null_is_a_number_that_is_not_there() -> None:
    found = Evaluation.read({"tasks": {"a": {"metrics": {"x": None}, "trivial": {"x": 1}}}, "skill": None})
    assert math.isnan(found.tasks["a"].metrics["x"]) and math.isnan(found.skill)
    assert found.input_size is None and found.tasks["a"].trivial == {"x": 1.0}


def test_several_processes_know_all_images(monkeypatch) -> None:
    """Two processes in turn: the sum over processes is that of their tables."""
    ids = [["48x64 test/ä", "48x64 test/2"], ["48x64 test/1", "48x60 test/3"]]
    tables: list[torch.Tensor] = []
    for rank in (0, 1):
        monkeypatch.setattr("polyptych.distributed.world", lambda: 2)
        monkeypatch.setattr("polyptych.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("polyptych.distributed.total", lambda table: tables.append(table) or table)
        _all_images(ids[rank], 4)
    monkeypatch.setattr("polyptych.distributed.total", lambda table: sum(tables))
    found, sizes = _all_images(ids[1], 4)
    assert found == ["test/ä", "test/1", "test/2", "test/3"] and sizes == [(48, 60), (48, 64)]


@pytest.mark.parametrize(("wrong", "field"), [
    ([], "array"), ({}, "tasks"), ({"tasks": 3}, "tasks"), ({"tasks": {"a": {"metrics": {"x": "much"}}}}, "metrics"),
    (OLD | {"image_list": {"count": "three", "sha256": ""}}, "image_list.count"),
])
def test_a_damaged_record_is_refused(wrong: object, field: str) -> None:
    with pytest.raises(InputError, match=rf"test.json: got a field that does not fit .*{field}.*; run `polyptych ev"):
        Evaluation.read(wrong, "test.json")
