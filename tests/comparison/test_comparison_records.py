"""Finished runs as small files: the same table without the folders, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from comparison_runs import pretend_finished, two_tasks

from polyptych import component
from polyptych.comparison import compare as comparing
from polyptych.comparison import worker
from polyptych.comparison.compare import compare
from polyptych.comparison.grid import Entry, Grid, make_grid
from polyptych.comparison.records import Record, essence
from polyptych.comparison.results import collect
from polyptych.comparison.worker import Request, work
from polyptych.decoders.heads import Heads
from polyptych.errors import InputError
from polyptych.record import read_json
from polyptych.run import Run
from polyptych.training import NOT_FINITE

pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture
def base(small_run) -> Run:
    return two_tasks(small_run)


@pytest.fixture
def free(monkeypatch) -> None:
    """Nothing is measured and no network is shown."""
    monkeypatch.setattr(comparing, "network_cost", lambda *arguments, **named: None)


def recorded(grid: Grid, **numbers) -> Grid:
    """Records as if all had been trained, and no folder."""
    for index, entry in enumerate(grid.entries):
        pretend_finished(entry, 40.0 + index, 0.5 + 0.1 * index, **numbers)
        Record.of_folder(entry.folder, entry.method.network, entry.method.balancer).write(entry.record)
        shutil.rmtree(entry.folder)
    return grid


def change(entry: Entry, **values) -> None:
    data = json.loads(entry.record.read_text())
    entry.record.write_text(json.dumps(data | values))


def test_records_alone_make_the_table_of_the_folders(base: Run, tmp_path: Path, free) -> None:
    grid = make_grid(base, tmp_path / "a", ["shared"], [], [0, 1])
    for index, entry in enumerate(grid.entries):
        pretend_finished(entry, 40.0 + index, 0.5 + 0.1 * index)
    expected = collect(grid.entries, {})
    recorded(make_grid(base, tmp_path / "b", ["shared"], [], [0, 1], tmp_path / "records"))
    found = compare(base, tmp_path / "c", networks=["shared"], seeds=[0, 1], records=tmp_path / "records")
    assert [(m.metrics, m.delta_mtl, m.training_seconds) for m in found.methods] == [
        (m.metrics, m.delta_mtl, m.training_seconds) for m in expected.methods]
    assert found.machines == expected.machines and found.commits == expected.commits
    page = (tmp_path / "c" / "comparison.html").read_text()
    assert 'href="../records/shared--fixed--seed1.json"' in page and not (tmp_path / "c" / "runs").exists()
    again = compare(base, tmp_path / "d", networks=["shared"], seeds=[0, 1], records=tmp_path / "records")
    assert again == found and (tmp_path / "d" / "comparison.md").read_text() == (
        tmp_path / "c" / "comparison.md").read_text()


def test_a_trained_run_leaves_a_small_record_and_no_weights(base: Run, tmp_path: Path) -> None:
    first, second = make_grid(base, tmp_path, ["single"], [], [3, 4], tmp_path / "records").entries
    for entry in (first, second):
        work(Request.of(entry))
        assert entry.finished and not (entry.folder / "report.html").exists()
    assert first.record.stat().st_size < 20_000
    record = Record.read(first.record)
    assert record.test == read_json(first.folder / "evaluation" / "test.json")
    assert record.test["tasks"]["depth"]["trivial"]
    assert record.val["split"] == "val" and record.choices(first.record).seed == 3
    assert [point["step"] for point in record.curve] == [2] and set(record.curve[0]["headlines"]) == {"semseg", "depth"}
    assert record.numerics == {"polyptych": component.NUMERICS} and record.machine["cores"]
    assert record.processor_seconds > 0 and record.seconds > 0
    assert len(record.resampled["headlines"]["depth"]) == 100
    before = first.record.read_bytes()
    record.write(first.record)
    assert first.record.read_bytes() == before  # the same record, the same bytes
    # The first seed is shown in the page; of the others no weights stay.
    assert (first.folder / "checkpoints" / "last.safetensors").exists()
    assert not (second.folder / "checkpoints").exists() and (second.folder / "metrics.jsonl").exists()
    assert str(tmp_path) not in first.record.read_text()


def test_a_run_that_was_tested_gets_its_record_without_training(base: Run, tmp_path: Path, monkeypatch) -> None:
    entry = make_grid(base, tmp_path, ["single"], [], [0], tmp_path / "records").entries[0]
    pretend_finished(entry, 1.0, 1.0)
    monkeypatch.setattr(worker, "train", lambda *_, **__: pytest.fail("trained again"))
    work(Request.of(entry))
    assert Record.read(entry.record).test["tasks"]["semseg"]["metrics"]["mIoU"] == 1.0


@pytest.mark.parametrize("got", [NOT_FINITE, "a full disk"])
def test_a_trial_that_diverges_is_a_result(base: Run, tmp_path: Path, monkeypatch, got: str) -> None:
    def diverge(run: Run, folder: Path, **_) -> None:
        pretend_finished(entry, 1.0, 1.0)
        shutil.rmtree(entry.folder / "evaluation")
        raise InputError("task 'depth', step 3", got, "finite losses", "lower it")

    entry = replace(make_grid(base, tmp_path, ["single"], [], [0], tmp_path / "records").entries[0], trial=True)
    monkeypatch.setattr(worker, "train", diverge)
    if got != NOT_FINITE:
        with pytest.raises(InputError, match="a full disk"):
            work(Request.of(entry))
        assert not entry.record.exists()
        return
    work(Request.of(entry))
    record = Record.read(entry.record)
    assert record.error == "a loss that is not finite at task 'depth', step 3" and record.skill == float("-inf")


def test_what_does_not_decide_the_numbers_may_differ(base: Run, tmp_path: Path) -> None:
    recorded(make_grid(base, tmp_path / "a", ["shared"], [], [0], tmp_path / "records"))
    elsewhere = replace(base, loading=replace(base.loading, workers=3, cache=tmp_path / "cache"),
                        monitoring=replace(base.monitoring, log_every=7),
                        execution=replace(base.execution, device="cuda:1"))
    found = make_grid(elsewhere, tmp_path / "b", ["shared"], [], [0], tmp_path / "records")
    assert all(entry.finished for entry in found.entries)
    here, there = (replace(base, backbone=replace(base.backbone, weights=Path(place) / "net.safetensors"))
                   for place in ("/here", "/there"))
    assert essence(here) == essence(there) != essence(base)


@pytest.mark.parametrize(("edit", "said"), [
    (lambda entry: change(entry, record=2), "got a record of format 2; needs a record of format 1"),
    (lambda entry: entry.record.write_text("{}"), "got a file that is no record"),
    (lambda entry: entry.record.write_text("{"), "got a file that is not JSON"),
    (lambda entry: change(entry, seconds="long"), "got a field that does not fit"),
    (lambda entry: change(entry, run=Record.read(entry.record).run | {"steps": 9}),
     "got the record of another run (steps is 9); needs steps 2"),
    (lambda entry: change(entry, run=Record.read(entry.record).run | {"seed": 9}),
     "got the record of another run (seed is 9); needs seed 0"),
    (lambda entry: change(entry, numerics={"polyptych": component.NUMERICS - 1}),
     f"got numbers of generation {component.NUMERICS - 1} of polyptych; needs generation {component.NUMERICS}"),
    (lambda entry: change(entry, numerics={"polyptych": component.NUMERICS, "decoder heads": 3}),
     "got numbers of generation 3 of decoder heads; needs generation 1"),
])
def test_records_that_do_not_belong_here_are_refused(base: Run, tmp_path: Path, edit, said: str) -> None:
    grid = recorded(make_grid(base, tmp_path, ["shared"], [], [0], tmp_path / "records"))
    edit(grid.entries[0])
    with pytest.raises(InputError) as caught:
        make_grid(base, tmp_path, ["shared"], [], [0], tmp_path / "records")
    assert said in str(caught.value) and str(caught.value).startswith(str(grid.entries[0].record))
    assert "\n" not in str(caught.value)


def test_code_that_moved_one_decoder_trains_only_its_rows_again(base: Run, tmp_path: Path, monkeypatch) -> None:
    records = tmp_path / "records"
    recorded(make_grid(base, tmp_path, ["shared", "shared+pad_net"], [], [0], records))
    monkeypatch.setattr(Heads, "numerics", 2)
    with pytest.raises(InputError, match=r"single--fixed--seed0\.json: got numbers of generation 1 of decoder heads"):
        make_grid(base, tmp_path, ["shared", "shared+pad_net"], [], [0], records)
    for path in records.glob("*--fixed--seed0.json"):
        if "pad_net" not in path.name:
            path.unlink()
    grid = make_grid(base, tmp_path, ["shared", "shared+pad_net"], [], [0], records)
    assert [entry.finished for entry in grid.entries] == [False, False, True]


def test_a_run_begun_by_other_code_does_not_go_on_into_a_record(base: Run, tmp_path: Path) -> None:
    entry = make_grid(base, tmp_path, ["single"], [], [0], tmp_path / "records").entries[0]
    pretend_finished(entry, 1.0, 1.0)
    path = entry.folder / "environment.json"
    path.write_text(json.dumps(read_json(path) | {"numerics": {"polyptych": component.NUMERICS + 1}}))
    with pytest.raises(InputError, match="seed0: got numbers of generation"):
        make_grid(base, tmp_path, ["single"], [], [0], tmp_path / "records")


def test_protocols_and_images_are_not_mixed(base: Run, tmp_path: Path) -> None:
    grid = recorded(make_grid(base, tmp_path, ["shared"], [], [0, 1], tmp_path / "records"))
    changed = grid.entries[3]
    test = Record.read(changed.record).test
    for other, said in (({"protocol": "rooms-2-48x64"}, "numbers of protocol rooms-2-48x64"),
                        ({"images": 5}, "numbers on 5 test images")):
        change(changed, test=test | other)
        with pytest.raises(InputError, match=said) as caught:
            collect(grid.entries, {})
        assert str(caught.value).startswith(str(changed.record))
