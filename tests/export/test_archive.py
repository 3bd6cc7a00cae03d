"""Archives that torch.export.load would execute are refused before it sees them."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import pytest

from polyptych.errors import InputError
from polyptych.export.archive import clean
from polyptych.export.runtime import ExportedModel


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def rewritten(source, target, change):
    """The archive with one of its members put through ``change(name, bytes)``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))
    return target


def program(edit):
    def change(name, data):
        if name != "models/model.json":
            return data
        record = json.loads(data)
        edit(record)
        return json.dumps(record).encode()

    return change


def nodes(record):
    return record["graph_module"]["graph"]["nodes"]


def rename_input(record, name="x, y=__import__('os').system('true')"):
    record["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = name


def expression(record, text="__import__('os').getpid()"):
    found = [value for value in walk(record) if "expr_str" in value]
    found[0]["expr_str"] = text


def walk(value):
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(item)


HOSTILE = {
    "operator": lambda r: nodes(r)[0].update(target="torch.serialization.os.system"),
    "file": lambda r: nodes(r)[0].update(target="torch.ops.aten.from_file.default"),
    "long operator": lambda r: nodes(r)[0].update(target="torch.ops.aten.add.Tensor.__globals__"),
    "input": rename_input,
    "expression": expression,
    "attribute": lambda r: expression(r, "s0.evalf"),
    "power": lambda r: expression(r, "9**9**9**9"),
    "specification": lambda r: r["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec='[1, {"__enum__": true, "fqn": "os:system"}]'),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_program(case, torch_file, tmp_path):
    path = rewritten(torch_file, tmp_path / "model.pt2", program(HOSTILE[case]))
    with pytest.raises(InputError, match="nothing of it was executed"):
        ExportedModel.open(path)


def test_guards_notes_and_sample_inputs_are_left_out(torch_file, tmp_path):
    def edit(record):
        record["guards_code"] = ["__import__('os').abort()"]
        nodes(record)[0]["metadata"] = {"stack_trace": "__import__('os').abort()"}

    def change(name, data):
        if name.startswith("data/sample_inputs"):
            return pickle.dumps(Bomb(tmp_path / "exploded"))
        return program(edit)(name, data)

    _, data = clean(rewritten(torch_file, tmp_path / "model.pt2", change))
    assert b"abort" not in data and b"exploded" not in data
    ExportedModel.open(tmp_path / "model.pt2")
    assert not (tmp_path / "exploded").exists()


def test_pickled_weights(torch_file, tmp_path):
    def change(name, data):
        if name == "data/weights/model_weights_config.json":
            record = json.loads(data)
            next(iter(record["config"].values()))["use_pickle"] = True
            return json.dumps(record).encode()
        if name.startswith("data/weights/weight_") or name.startswith("data/sample_inputs"):
            return pickle.dumps(Bomb(tmp_path / "exploded"))
        return data

    with pytest.raises(InputError, match="pickled"):
        ExportedModel.open(rewritten(torch_file, tmp_path / "model.pt2", change))
    assert not (tmp_path / "exploded").exists()


def test_a_name_twice_and_a_foreign_archive(torch_file, tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(torch_file.read_bytes())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning):
        archive.writestr(archive.namelist()[0], b"")
    with pytest.raises(InputError, match="twice"):
        ExportedModel.open(path)
    foreign = io.BytesIO()
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("a/data.pkl", b"")
    path.write_bytes(foreign.getvalue())
    with pytest.raises(InputError, match="metadata"):
        ExportedModel.open(path)
