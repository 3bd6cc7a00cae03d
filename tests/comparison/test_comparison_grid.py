"""The grid: what is in it, where it goes, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from comparison_runs import pretend_finished, two_tasks

from polyptych.balancers.equal import Equal
from polyptych.comparison.grid import Grid, check_parts, make_grid, reference_run, run_name
from polyptych.decoders.pad_net import PADNet
from polyptych.encoders.single import Single
from polyptych.errors import InputError
from polyptych.record import decode, first_difference
from polyptych.run import Run

NETWORKS = ["shared", "shared+heads:head=aspp"]


@pytest.fixture
def base(small_run) -> Run:
    return two_tasks(small_run)


def grid(base: Run, out: Path, networks=NETWORKS, balancers=("fixed", "equal"), seeds=(0, 1)) -> Grid:
    return make_grid(base, out, list(networks), list(balancers), list(seeds))


def test_the_reference_comes_first_with_every_seed(base: Run, tmp_path: Path) -> None:
    found = grid(base, tmp_path)
    assert [(m.network, m.balancer, m.reference) for m in found.methods] == [
        ("single", "fixed", True), ("shared", "fixed", False), ("shared", "equal", False),
        ("shared+heads:head=aspp", "fixed", False), ("shared+heads:head=aspp", "equal", False)]
    assert [entry.seed for entry in found.of(found.methods[0])] == [0, 1]
    assert found.methods[0].run == replace(base, encoder=Single.Config())
    assert len({str(entry.folder).lower() for entry in found.entries}) == len(found.entries) == 10


def test_a_reference_that_was_asked_for_is_not_trained_twice(base: Run, tmp_path: Path) -> None:
    found = grid(base, tmp_path, ["shared", "single+heads"], ["equal", "fixed"])
    assert found.methods[0].network == "single+heads" and found.methods[0].balancer == "fixed"
    assert len(found.methods) == 4


def test_the_reference_trains_every_task_as_if_alone(base: Run) -> None:
    """A balancer whose weights depend on the other tasks would tie the reference's tasks together."""
    assert reference_run(replace(base, balancer=Equal.Config())).balancer == Equal.Config()
    assert reference_run(base).balancer == base.balancer


def test_the_reference_of_a_refining_decoder_has_plain_heads(base: Run, tmp_path: Path) -> None:
    """Networks per task whose decoder lets the tasks read each other are not single-task networks."""
    refining = replace(base, decoder=PADNet.Config())
    found = grid(refining, tmp_path, ["single", "shared"], ["fixed"])
    assert [(m.network, m.reference) for m in found.methods] == [
        ("single+heads", True), ("single", False), ("shared", False)]
    chosen = grid(refining, tmp_path, ["shared", "single+heads:head=aspp", "single+heads:head=fpn"], ["fixed"])
    assert [(m.network, m.reference) for m in chosen.methods] == [
        ("single+heads:head=aspp", True), ("shared", False), ("single+heads:head=fpn", False)]


def test_without_names_the_recipe_is_compared_with_its_reference(base: Run, tmp_path: Path) -> None:
    found = make_grid(base, tmp_path, [], [], [3])
    assert [method.run.encoder.name for method in found.methods] == ["single", "shared"]
    assert [entry.run.seed for entry in found.entries] == [3, 3]


def test_the_plan_is_recorded_so_that_each_run_can_be_rebuilt(base: Run, tmp_path: Path) -> None:
    found = grid(base, tmp_path)
    found.record(tmp_path)
    record = json.loads((tmp_path / "plan.json").read_text())
    for written, entry in zip(record["runs"], found.entries, strict=True):
        assert decode(Run, written["run"], "plan.json") == entry.run and tmp_path / written["folder"] == entry.folder


def test_run_names_are_safe_and_tell_every_method_apart(base: Run, tmp_path: Path) -> None:
    texts = ['fixed:weights={"semseg":1}', 'fixed:weights={"semseg":2}', 'fixed:weights={"depth":0.25}',
             "fixed", "equal"]
    names = [run_name(method, 0) for method in grid(base, tmp_path, ["shared"], texts).methods]
    assert len(set(map(str.lower, names))) == len(names)
    assert all(not set(name) & set('\\/:*?"<>|{} ') and len(name) < 140 for name in names)


@pytest.mark.parametrize(("change", "parts"), [
    ({"seeds": (0, 1, 0)}, ["--seeds: got 0 twice"]),
    ({"seeds": ()}, ["--seeds: got no seed"]),
    ({"networks": ["shared", "shared"]}, ["--networks: got shared twice"]),
    ({"networks": ["shared", "shared+heads"]}, ["which are the same"]),
    ({"networks": ["shard"]}, ["nearest: shared"]),
])
def test_a_plan_that_does_not_hold_together_is_refused(base: Run, tmp_path: Path, change: dict, parts: list) -> None:
    with pytest.raises(InputError) as caught:
        grid(base, tmp_path, **change)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_folder_of_another_run_is_refused_with_the_first_difference(base: Run, tmp_path: Path) -> None:
    entry = grid(base, tmp_path).entries[3]
    pretend_finished(entry, 10, 1)
    assert grid(base, tmp_path).entries[3].finished
    changed = replace(base, optimizer=replace(base.optimizer, learning_rate=0.5))
    with pytest.raises(InputError) as caught:
        grid(changed, tmp_path)
    said = str(caught.value)
    rate = base.optimizer.learning_rate
    assert f"{entry.folder}: got a run of another recipe (optimizer.learning_rate is {rate})" in said
    assert "needs optimizer.learning_rate 0.5; choose another --out" in said
    assert first_difference(base, base) is None


def test_parts_that_cannot_be_built_are_refused_before_training(base: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"decoder\.width: got -1"):
        check_parts(grid(base, tmp_path, ["heads:width=-1"]))
    with pytest.raises(InputError, match="a weight for 'parts'"):
        check_parts(grid(base, tmp_path, ["shared"], ['fixed:weights={"parts":1}']))
