"""Configs to JSON and back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyptych.decoders._base import Decoder
from polyptych.decoders.heads import Heads
from polyptych.errors import InputError
from polyptych.record import decode, encode, read_json
from polyptych.tasks._base import Task
from polyptych.tasks.depth import Depth


@dataclass(frozen=True, kw_only=True)
class Inner:
    number: int = 3
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Outer:
    decoder: Decoder.Config = field(default_factory=Heads.Config)
    tasks: dict[str, Task.Config] = field(default_factory=lambda: {"depth": Depth.Config()})
    inner: Inner = field(default_factory=Inner)
    size: tuple[int, int] | None = None
    kind: Literal["a", "b"] = "a"
    path: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    names: tuple[str, ...] = ()


@given(st.builds(
    Outer, inner=st.builds(Inner, number=st.integers(), share=st.floats(allow_nan=False, allow_infinity=False)),
    size=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)), kind=st.sampled_from("ab"),
    path=st.none() | st.just(Path("some/where")), weights=st.dictionaries(st.text(), st.floats(0, 9)),
    names=st.lists(st.text()).map(tuple), decoder=st.just(Heads.Config()), tasks=st.just({"depth": Depth.Config()})))
def test_round_trip(value: Outer) -> None:
    import json

    assert decode(Outer, json.loads(json.dumps(encode(value))), "here") == value


def test_a_component_carries_its_name_and_options() -> None:
    assert encode(Heads.Config(head="fpn"))["name"] == "heads"
    assert decode(Decoder.Config, {"name": "heads", "head": "fpn"}, "x") == Heads.Config(head="fpn")


@pytest.mark.parametrize(("record", "message"), [
    ({"innner": {}}, "here.innner: got an unknown field; needs one of decoder, inner, kind, names, path, size, tasks, "
                     "weights (nearest: inner); rename or remove it"),
    ({"inner": {"number": "three"}}, "here.inner.number: got 'three'; needs a whole number; "
                                     "write a value of this type"),
    ({"inner": 5}, "here.inner: got 5; needs an object"),
    ({"kind": "c"}, "here.kind: got 'c'"),
    ({"size": [1]}, "here.size: got [1]; needs a list of 2, each a whole number or nothing; "
                    "write a value of this type"),
    ({"names": "a"}, "here.names: got 'a'; needs a list, each entry text; write a value of this type"),
    ({"names": ["a", 2]}, "here.names[1]: got ['a', 2]; needs a list, each entry text; write a value of this type"),
    ({"weights": {"a": "b"}}, "needs a table, each entry a number; write a value of this type"),
    ({"decoder": {"name": "headz"}}, "decoder 'headz': got an unknown name; needs one of"),
    ({"decoder": {}}, 'here.decoder: got {}; needs an object with the "name" of a decoder'),
    ({"tasks": {"depth": {"name": "depth", "typo": 1}}}, "here.tasks.depth.typo: got an unknown field"),
])
def test_refusals_name_the_field(record: dict, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        decode(Outer, record, "here")
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_field_without_default_is_named() -> None:
    @dataclass(frozen=True)
    class Strict:
        needed: int

    Strict.__qualname__ = "Strict"
    with pytest.raises(InputError, match=r"here\.needed: got nothing; needs a value; add it"):
        decode(Strict, {}, "here")


def test_broken_json_names_the_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"run": 1,\n oops')
    with pytest.raises(InputError, match=r"run\.json: got a file that is not JSON .*line 2"):
        read_json(path)
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "none.json")


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Heads.Config().head = "fpn"  # type: ignore[misc]
