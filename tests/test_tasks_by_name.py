"""Tasks on the command line: by the name of their kind, or with a name of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polyptych.datasets.decathlon import Decathlon
from polyptych.errors import InputError
from polyptych.recipes.rooms import rooms
from polyptych.run import with_tasks
from polyptych.tasks.semseg import SemanticSegmentation


def test_a_name_may_be_followed_by_its_kind() -> None:
    run = with_tasks(rooms(), ["semseg", "material:semseg"])
    assert list(run.tasks) == ["semseg", "material"]
    assert isinstance(run.tasks["material"], SemanticSegmentation.Config)


def test_a_dataset_may_know_the_kind() -> None:
    run = with_tasks(replace(rooms(), dataset=Decathlon.Config()), ["dtd", "svhn"])
    assert [task.name for task in run.tasks.values()] == ["classification"] * 2


def test_options_stay_unless_the_kind_changes() -> None:
    run = rooms()
    assert with_tasks(run, ["depth"]).tasks["depth"] is run.tasks["depth"]
    assert with_tasks(run, ["depth:semseg"]).tasks["depth"].name == "semseg"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="smeseg"):
        with_tasks(rooms(), ["material:smeseg"])
