"""Policies as data, and the spaces that they come from."""

from __future__ import annotations

import itertools
import json
from functools import cache
from random import Random

import pytest
import timm
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SPACES

from polyptych.errors import InputError
from polyptych.search.capture.capturing import capture
from polyptych.search.space.policy import OWN, SHARED, SKIP, Compilation, Policy, groups
from polyptych.search.space.spaces import make_space
from polyptych.search.space.units import find_units


@cache
def units(name="test_resnet", granularity="region"):
    return find_units(capture(timm.create_model(name).eval()), granularity)


@cache
def space(kind="tree", number=3, name="test_vit", granularity="region", **options):
    return make_space(kind, units(name, granularity), tuple("abcdefg"[:number]), Compilation(granularity), **options)


kinds = st.sampled_from(SPACES)
some = settings(max_examples=40, deadline=None)


@some
@given(kinds, st.integers(1, 5), st.integers(0, 2**30), st.sampled_from(["op", "region"]))
def test_draws_and_changes_are_of_the_space(kind, number, seed, granularity):
    chosen, random = space(kind, number, granularity=granularity), Random(seed)
    policy = chosen.draw(random)
    for _ in range(6):
        chosen.validate(policy)
        assert policy.canonical() == policy or kind in ("automtl", "skip_only")
        assert chosen.nearest(policy.choices) == policy
        policy = chosen.mutate(policy, random)


@some
@given(kinds, st.integers(0, 2**30))
def test_json_and_back(kind, seed):
    policy = space(kind).draw(Random(seed))
    text = json.dumps(policy.encode())
    assert Policy.decode(json.loads(text)) == policy


def test_a_file(tmp_path):
    policy = space("tree").draw(Random(0))
    policy.write(tmp_path / "policy.json")
    assert Policy.read(tmp_path / "policy.json") == policy
    with pytest.raises(InputError, match="no such file"):
        Policy.read(tmp_path / "other.json")


@some
@given(st.integers(0, 2**30), st.integers(2, 5))
def test_a_tree_only_splits(seed, number):
    chosen = space("tree", number)
    policy = chosen.draw(Random(seed))
    for unit, row in enumerate(policy.choices):
        for members in groups(row).values():
            for before in chosen.units.all[unit].before:
                done = {(policy.choices[before][i], i if policy.choices[before][i] == OWN else 0) for i in members}
                assert len(done) == 1


def test_a_group_that_parted_before_is_not_of_the_tree():
    chosen = space("tree", 2)
    rows = [(SHARED, SHARED)] * 3 + [(OWN, OWN)] + [(SHARED, SHARED)] * (len(chosen.units) - 4)
    with pytest.raises(InputError, match=r"units.blocks.1.mlp: a group of tasks that parted at blocks.1.attn"):
        chosen.validate(chosen.policy(rows))
    space("partition", 2).validate(space("partition", 2).policy(rows))
    assert chosen.nearest(rows) == chosen.bottom_shared(3)
    chosen.validate(chosen.nearest(rows))
    skipped = [(SHARED, SHARED), (SKIP, SHARED), *[(SHARED, SHARED)] * (len(chosen.units) - 2)]
    with pytest.raises(InputError, match=r"units.blocks.0.mlp: a group of tasks that parted at blocks.0.attn"):
        chosen.validate(chosen.policy(skipped))
    both = [(SHARED, SHARED), (SKIP, SKIP), *[(SHARED, SHARED)] * (len(chosen.units) - 2)]
    chosen.validate(chosen.policy(both))


@pytest.mark.parametrize("kind", SPACES)
def test_draws_are_many_and_changes_reach_far(kind):
    chosen, random = space(kind), Random(0)
    assert len({chosen.draw(random) for _ in range(60)}) > 40
    policy, seen = chosen.all_shared(), set()
    for _ in range(300):
        policy = chosen.mutate(policy, random)
        seen.add(policy)
    assert len(seen) > 150
    changed = {(i, c) for p in seen for i, row in enumerate(p.choices) for c in row}
    assert {i for i, _ in changed} == set(range(len(chosen.units)))
    expected = {SHARED, SKIP} if kind == "skip_only" else {SHARED, OWN, SKIP}
    assert {c for _, c in changed} >= expected


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_number_of_distinct_policies_at_an_operation(tasks):
    """3^T - T 2^(T-1): a lone task that shares has a copy of its own."""
    one = space("automtl", tasks, "test_resnet", "op")
    rest = [(SHARED,) * tasks] * (len(one.units) - 1)
    rows = itertools.product((SHARED, OWN, SKIP), repeat=tasks)
    distinct = {one.policy([row, *rest]).canonical() for row in rows}
    assert len(distinct) == 3**tasks - tasks * 2 ** (tasks - 1)


def test_canonical_names():
    chosen = space("partition", 4)
    rest = [(SHARED,) * 4] * (len(chosen.units) - 1)
    for row, plain in [(("x", "y", "x", "y"), (SHARED, "b", SHARED, "b")), (("x", "y", "z", OWN), (OWN,) * 4),
                       ((SKIP, "b", "b", SKIP), (SKIP, SHARED, SHARED, SKIP)), ((SHARED, OWN, OWN, OWN), (OWN,) * 4)]:
        assert chosen.policy([row, *rest]).canonical().choices[0] == plain


def test_choices():
    assert space("automtl", 2, "test_resnet", "op").choices(0) == (SHARED, OWN, SKIP)
    assert space("tree", 5).choices(1) == (SHARED, "b", OWN, SKIP)
    assert space("tree", 2).choices(0) == (SHARED, OWN)  # the embedding cannot be left out
    assert space("skip_only", 2).choices(1) == (SHARED, SKIP) and space("skip_only", 2).choices(0) == (SHARED,)
    assert space("tree", 2, skip=False).choices(1) == (SHARED, OWN)
    assert space("tree", 2, "test_resnet", "op").choices(0) == (SHARED, OWN)  # no projections


def test_pinned_units():
    units_ = units("test_vit")
    tasks, how = ("a", "b", "c"), Compilation()
    pinned = make_space("tree", units_, tasks, how, pinned={"blocks.1.attn": SHARED, "blocks.5.*": OWN})
    for seed in range(20):
        policy = pinned.draw(Random(seed))
        pinned.validate(policy)
        pinned.validate(pinned.mutate(policy, Random(seed)))
        for name, row in zip(units_.names, policy.choices, strict=True):
            if name.startswith(("patch", "blocks.0", "blocks.1.attn")):
                assert set(row) == {SHARED}
            if name.startswith(("blocks.5", "head")):
                assert set(row) == {OWN}
    with pytest.raises(InputError, match=r"blocks.1.attn.a: 'own', but the unit is pinned to 'shared'"):
        pinned.validate(space("partition").bottom_shared(3))
    free = make_space("automtl", units_, tasks, how, pinned={"blocks.1.attn": OWN})
    assert free.choices(3) == (OWN,) and free.choices(1) == (SHARED, OWN, SKIP)
    with pytest.raises(InputError, match=r"'blocks.0.attn' to 'own' and to 'shared'"):
        make_space("tree", units_, tasks, how, pinned={"blocks.0.attn": OWN, "blocks.1.attn": SHARED})
    with pytest.raises(InputError, match="matches no unit"):
        make_space("tree", units_, tasks, how, pinned={"layer*": OWN})
    with pytest.raises(InputError, match="can be left out"):
        make_space("tree", units_, tasks, how, pinned={"head": SKIP})


def test_baselines():
    chosen = space("tree")
    found = dict(chosen.baselines())
    assert list(found) == ["all-own", *(f"bottom-{n}" for n in range(1, 14)), "all-shared"]
    for policy in found.values():
        chosen.validate(policy)
    assert set(found["bottom-2"].choices[1]) == {SHARED} and set(found["bottom-2"].choices[2]) == {OWN}
    assert found["all-shared"].choices == ((SHARED,) * 3,) * 14


def test_what_is_refused():
    chosen = space("tree", 2)
    policy = chosen.all_shared()
    with pytest.raises(InputError, match="units of another network"):
        space("tree", 2, "test_resnet").validate(policy)
    with pytest.raises(InputError, match="the tasks a, b; needs a, b, c"):
        space("tree", 3).validate(policy)
    with pytest.raises(InputError, match=r"units.head: got skip"):
        chosen.validate(policy.with_choices({(13, 0): SKIP}))
    with pytest.raises(InputError, match="only shared, own, and skip"):
        space("automtl", 2).validate(policy.with_choices({(1, 0): "b"}))
    with pytest.raises(InputError, match="own, where every unit is shared or skipped"):
        space("skip_only", 2).validate(policy.with_choices({(1, 0): OWN}))
    with pytest.raises(InputError, match="cannot be left out"):
        space("tree", 2, skip=False).validate(policy.with_choices({(1, 0): SKIP, (1, 1): SKIP}))
    for tasks in ((), ("a", "a"), ("a.b",)):
        with pytest.raises(InputError, match="tasks"):
            make_space("tree", units(), tasks, Compilation())
    with pytest.raises(InputError, match=r"'trees'.*nearest: tree"):
        make_space("trees", units(), ("a",), Compilation())


@pytest.mark.parametrize(("change", "message"), [
    ({"format": 2}, "format"), ({"tasks": []}, "tasks"), ({"tasks": ["a", "a"]}, "each name once"),
    ({"units": []}, "units"), ({"units": {"conv1": {"a": SHARED}}}, r"units.conv1.*a choice for each of a, b, c"),
    ({"granularity": "layer"}, "op, region, stage"), ({"norms": "batch"}, "stream or task"), ({"whole": "x"}, "whole"),
    ({"size": [1]}, "size"), ({"size": [-1, 4]}, "size"), ({"size": [True, 4]}, "size"),
    ({"space": "nope"}, "automtl"), ({"any_size": 1}, "true or false"), ({"graph": 3}, "graph"),
    ({"spce": "x"}, "spce"), ({"units": {"conv1": {"a": "", "b": OWN, "c": OWN}}}, r"units.conv1.a")])
def test_files_that_are_no_policies(change, message):
    data = space("tree").all_shared().encode() | change
    with pytest.raises(InputError, match=message):
        Policy.decode(data, "policy.json")
    with pytest.raises(InputError, match="an object"):
        Policy.decode([data], "policy.json")


@pytest.mark.parametrize(("edit", "said"), [
    (lambda units: {"tail" if name == "head" else name: row for name, row in units.items()}, "the unit 'tail'"),
    (lambda units: {name: row for name, row in units.items() if name != "head"}, "no choices for the unit 'head'"),
    (lambda units: dict(reversed(units.items())), "the units in another order")])
def test_an_edited_file_names_the_unit(edit, said):
    data = space("tree").all_shared().encode()
    with pytest.raises(InputError, match=f"{said}.*needs the 14 units of this network, in its order"):
        space("tree").validate(Policy.decode(data | {"units": edit(data["units"])}))


def test_tasks_in_another_order():
    policy = space("tree").draw(Random(3))
    turned = policy.for_tasks(("c", "a", "b"))
    for unit in range(len(policy.units)):
        assert all(turned.choice(unit, task) == policy.choice(unit, task) for task in policy.tasks)
    with pytest.raises(InputError, match=r"choices for a, b, c; needs choices for a, b"):
        policy.for_tasks(("a", "b"))
