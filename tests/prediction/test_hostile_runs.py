"""Run folders in which anything was changed are refused in one line."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from polyptych.errors import InputError
from polyptych.logbook import read_events
from polyptych.prediction.model import load_network

DROPPED = object()
WRONG: list[Any] = ["", "a\nb", "x", -1, 0, 10**5, 10**12, 10**30, 0.5, float("nan"), float("inf"), True, None, [], {},
                    [1], [["a"]], [10**6, 10**6], {"name": "x"}, DROPPED]


@pytest.fixture
def folder(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "run"))


def changed(folder: Path, place: tuple, value: Any) -> None:
    record = inside = json.loads((folder / "run.json").read_text())
    for key in place[:-1]:
        inside = inside[key]
    if value is DROPPED:
        del inside[place[-1]]
    else:
        inside[place[-1]] = value
    (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(("place", "value", "said"), [
    (("facts", "labels", "depth"), DROPPED, "facts.labels: got no labels of task 'depth'"),
    (("facts", "labels", "semseg", "colors", 0, 1), 300, "colors: got 16 colors for 16 classes, with values up to 300"),
    (("facts", "labels", "semseg", "classes", 0), "a\nb", "classes: got a name with unprintable characters"),
    (("facts", "labels", "semseg", "mirror"), [[0, 99]], "mirror: got a number that no class has"),
    (("run", "size"), [10**6, 10**6], "--size: got 1000000 1000000; needs a height and width from 1 to 32768"),
    (("run", "encoder", "name"), "a\nb", r"encoder 'a\nb': got an unknown name"),
    (("run", "decoder", "width"), 10**12, "run.json: got options from which no network can be built"),
])
def test_the_cause_is_named(folder: Path, place: tuple, value: Any, said: str) -> None:
    changed(folder, place, value)
    with pytest.raises(InputError) as refusal:
        load_network(folder)
    assert said in str(refusal.value) and str(refusal.value).isprintable()


def test_a_number_of_thousands_of_digits(folder: Path) -> None:
    (folder / "run.json").write_text((folder / "run.json").read_text().replace('"seed": 0', f'"seed": {"9" * 5000}'))
    with pytest.raises(InputError, match="a file that is not JSON"):
        load_network(folder)


@pytest.mark.parametrize("name", ["run.json", "checkpoints/last.safetensors", "metrics.jsonl"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match=f"{name}: got a (named pipe|pipe, a socket, or a device)"):
        read_events(folder / name) if name == "metrics.jsonl" else load_network(folder)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    entries = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in entries for place in places(item, (*path, key))]


def test_anything_else(folder: Path) -> None:
    original = (folder / "run.json").read_text()
    cases = [(place, wrong) for place in places(json.loads(original)) for wrong in WRONG]
    for place, wrong in random.Random(0).sample(cases, 120):
        (folder / "run.json").write_text(original)
        changed(folder, place, wrong)
        try:
            load_network(folder)
        except InputError as error:
            assert str(error).isprintable() and len(str(error)) < 2000, (place, wrong)
