"""A search that is killed or started twice: whole checkpoints or none, and one process at a time."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from polyptych.checkpoint import read_tensors
from polyptych.errors import InputError
from polyptych.folder_lock import LOCK, hold
from polyptych.record import write_json
from polyptych.run import Facts, with_tasks
from polyptych.search.procedure import searching
from polyptych.search.procedure.candidates import Candidate
from polyptych.search.procedure.folder import SearchSetup, begin, discard
from polyptych.search.procedure.networks import LAST, encoder_for, write_inherited
from polyptych.search.procedure.settings import Search
from polyptych.search.procedure.super_encoder import build_supernetwork, encoder_of

HOLD = ("import sys, time; from pathlib import Path; from polyptych.folder_lock import hold\n"
        "with hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)")


def test_an_inherited_checkpoint_is_whole_or_not_there(tmp_path: Path, small_run, monkeypatch) -> None:
    small_run = with_tasks(small_run, ["semseg", "depth"])
    tasks = small_run.build_tasks(small_run.build_dataset("train").labels)
    network = build_supernetwork(small_run, Search(), tasks, pretrained=False)
    policy = encoder_of(network).supermodel.space.all_shared()
    run = replace(small_run, encoder=encoder_for(Candidate("searched-1", "searched", policy)))
    folder = tmp_path / "run"
    with monkeypatch.context() as killed:
        def stop(*_) -> None:
            raise KeyboardInterrupt
        killed.setattr("os.replace", stop)
        killed.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            write_inherited(run, tasks, network, policy, folder)
    assert not (folder / LAST).exists()  # so that the search writes it again
    write_inherited(run, tasks, network, policy, folder)
    whole = (folder / LAST).read_bytes()
    (folder / LAST).unlink()
    (folder / LAST).with_suffix(".tmp").write_bytes(whole[:100])  # what a kill may leave
    write_inherited(run, tasks, network, policy, folder)
    assert read_tensors(folder / LAST)[1]["step"] == 0


def test_one_process_at_a_time(tmp_path: Path, small_run, monkeypatch) -> None:
    monkeypatch.setattr(searching, "hold", partial(hold, patience=0.15))  # it looks twice
    setup = SearchSetup(small_run, Search(), (0,), Facts.of(small_run.build_dataset("train")))
    begin(setup, tmp_path / "s")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        for again in (lambda: searching.search(small_run, Search(), tmp_path / "s"),
                      lambda: searching.resume(tmp_path / "s")):
            with pytest.raises(InputError, match=f"process {holder.pid}"):
                again()
        assert (tmp_path / "s" / "search.json").exists()  # the other process's search is untouched
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize(("change", "place"), [
    (lambda run: replace(run, backbone=replace(run.backbone, freeze="all")), "--backbone.freeze: .*all, in a search"),
    (lambda run: replace(run, backbone=replace(run.backbone, freeze="all", freeze_until=2)), "--backbone.freeze-until"),
    (lambda run: replace(run, loading=replace(run.loading, feature_views=2)), "--loading.feature-views"),
])
def test_a_backbone_whose_copies_cannot_differ_is_refused_at_once(tmp_path: Path, small_run, change, place) -> None:
    with pytest.raises(InputError, match=place):
        searching.search(change(small_run), Search(), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_refused_search_leaves_nothing_behind(tmp_path: Path, small_run) -> None:
    with pytest.raises(InputError, match="no policy meets"):
        searching.search(with_tasks(small_run, ["semseg", "depth"]), Search(budget="params=0.001x"), tmp_path / "s")
    assert not (tmp_path / "s").exists()
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / LOCK).touch()
    setup = SearchSetup(small_run, Search(), (0,), Facts("toy", {}))
    begin(setup, tmp_path / "t")
    write_json(tmp_path / "t" / "costs.json", {})
    discard(tmp_path / "t")
    assert not (tmp_path / "t").exists()
