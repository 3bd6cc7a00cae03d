"""Selection keeps the budget, judges nothing twice, and goes on after an interruption as if there had been none."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyptych.backbones.timm import Timm
from polyptych.search import compile
from polyptych.search.procedure.candidates import Candidate, baselines, distinct, shared_or_own
from polyptych.search.procedure.conflicts import most_conflicting_own
from polyptych.search.procedure.selection import Judged, select
from polyptych.search.procedure.settings import Search
from polyptych.search.space.policy import OWN, SHARED, Policy
from polyptych.search.supermodel.costs import CostTable, measure_costs
from polyptych.search.supermodel.model import Supermodel


@cache
def small(space: str = "tree", tasks: int = 3) -> tuple[Supermodel, CostTable]:
    torch.manual_seed(0)
    found = compile(Timm.Config(model="test_resnet").build(), tuple("abcd"[:tasks]), space=space)
    return found, measure_costs(found, (32, 32))


@cache
def multiply_adds(policy: Policy, space: str) -> int:
    supermodel, table = small(space, len(policy.tasks))
    return table.cost(supermodel, policy).multiply_adds


def use(policy: Policy, limit: float, space: str = "tree") -> float:
    shared = small(space, len(policy.tasks))[0].space.all_shared()
    return multiply_adds(policy, space) / multiply_adds(shared, space) / limit


def sharing(policy: Policy) -> float:
    """A score with one best policy: everything of each task's own."""
    return sum(choice == OWN for row in policy.choices for choice in row) + policy.choices[0].count(OWN) / 10


@given(st.integers(0, 1000), st.floats(1.3, 3.0), st.sampled_from(["tree", "partition"]))
@settings(max_examples=3, deadline=None)
def test_every_judged_policy_keeps_the_budget_and_is_of_the_space(seed: int, limit: float, space: str) -> None:
    supermodel, _ = small(space)
    seen: list[Policy] = []

    def judge(policy: Policy) -> float:
        seen.append(policy)
        return sharing(policy)

    judged = select(supermodel.space, lambda p: use(p, limit, space) <= 1, judge, 6, seed)
    assert len(seen) == len(set(seen)) == len(judged.scores)
    for policy in seen:
        supermodel.space.validate(policy)
        assert use(policy, limit, space) <= 1
    best = judged.best(3)
    assert [judged.scores[p] for p in best] == sorted(judged.scores.values(), reverse=True)[:3]


def test_evolution_finds_what_random_draws_do_not() -> None:
    """By a clear score, with the same number of judged policies."""
    supermodel, _ = small("automtl")
    space, random = supermodel.space, Random(0)
    evolved = select(space, lambda policy: True, sharing, 60, 0)
    drawn = max(sharing(space.draw(random).canonical()) for _ in range(60))
    assert max(evolved.scores.values()) > drawn


def test_an_interrupted_selection_ends_like_a_whole_one() -> None:
    supermodel, _ = small()
    starts = [supermodel.space.all_shared(), supermodel.space.all_own()]
    whole = select(supermodel.space, lambda p: use(p, 2) <= 1, sharing, 12, 5, starts)
    half = Judged(dict(list(whole.scores.items())[:7]))
    again: list[Policy] = []

    def judge(policy: Policy) -> float:
        again.append(policy)
        return sharing(policy)

    resumed = select(supermodel.space, lambda p: use(p, 2) <= 1, judge, 12, 5, starts, half)
    assert list(resumed.scores.items()) == list(whole.scores.items())
    assert again == list(whole.scores)[7:]


def test_a_small_space_is_judged_whole() -> None:
    """Two tasks, seven units in a row, no skips: they part before one of them or never."""
    found = compile(Timm.Config(model="test_resnet").build(), ("a", "b"), skip=False)
    judged = select(found.space, lambda policy: True, sharing, 100, 0)
    assert len(judged.scores) == len(found.units) + 1
    assert set(judged.scores) == {policy.canonical() for _, policy in found.space.baselines()}


def test_conflicting_units_become_own_as_far_as_the_budget_goes() -> None:
    supermodel, _ = small("partition")
    count = len(supermodel.units)
    scores = [0.0] * count
    scores[count - 1], scores[2] = 0.5, 0.9
    free = most_conflicting_own(supermodel.space, scores, lambda policy: True)
    assert set(free.choices) == {(OWN,) * 3}
    only_last = most_conflicting_own(supermodel.space, scores, lambda p: use(p, 1.4, "partition") <= 1)
    assert only_last.choices[-1] == (OWN,) * 3 and only_last.choices[2] == (SHARED,) * 3
    assert use(only_last, 1.4, "partition") <= 1
    two = most_conflicting_own(supermodel.space, scores, lambda p: sum(OWN in row for row in p.choices) <= 2)
    assert [i for i, row in enumerate(two.choices) if OWN in row] == [2, count - 1]


def test_baselines_are_there_keep_the_budget_and_repeat_nothing(monkeypatch) -> None:
    monkeypatch.setattr("polyptych.search.procedure.candidates.DRAWS", 60)
    supermodel, _ = small()
    found = distinct(list(baselines(supermodel, Search(random=3), lambda p: use(p, 1.5), [0.1] * len(supermodel.units),
                                    0)))
    kinds = [candidate.kind for candidate in found]
    assert kinds.count("bottom") == len(supermodel.units) - 1
    assert {"single": 1, "shared": 1, "tree": 3, "op": 3, "conflict": 1}.items() <= {
        kind: kinds.count(kind) for kind in kinds}.items()
    for candidate in found:
        supermodel.space.check_fit(candidate.policy)
        if candidate.kind in ("tree", "conflict"):
            assert use(candidate.policy, 1.5) <= 1
        if candidate.kind == "tree":
            assert use(candidate.policy, 1.5) >= 0.6  # much of it: policies of this small space are few
    trees = [c.policy for c in found if c.kind == "tree"]
    assert len(set(trees)) == 3
    own = [c.policy.canonical().choices for c in found if not c.same_as and c.kind != "single"]
    assert len(own) == len(set(own))
    repeated = distinct([Candidate("x", "searched", supermodel.space.all_shared()), *found])
    assert next(c for c in repeated if c.kind == "shared").same_as == "x"


def test_shared_or_own_covers_everything_between() -> None:
    supermodel, _ = small("partition")
    shares = [sum(row.count(OWN) for row in shared_or_own(supermodel.space, Random(i)).choices) for i in range(60)]
    assert min(shares) <= 2 and max(shares) >= 3 * len(supermodel.units) - 2


@pytest.mark.parametrize(("options", "said"), [
    ({"candidates": 0}, "--candidates: got 0; needs 1 or more"),
    ({"baselines": ("singel",)}, "--baselines: got 'singel'"),
    ({"budget": "flps=1x"}, "--budget: got 'flps'"),
    ({"policy_steps": 0}, "--policy-steps: got 0"),
])
def test_options_that_cannot_be(options: dict, said: str) -> None:
    with pytest.raises(ValueError) as error:
        Search(**options)
    assert said in str(error.value)


def test_budgets_by_default() -> None:
    assert Search().limits.text == "flops=1.5x" and not Search(space="automtl").limits.limits
    assert not Search(budget="none").limits.limits


@pytest.mark.parametrize("worst", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_a_number_is_never_among_the_best(worst: float) -> None:
    policies = [Policy(("a", "b"), ("u",), ((choice, "own"),), "0") for choice in ("shared", "own", "skip", "b")]
    for at in range(4):
        scores = [0.3, 0.1, 0.4, 0.2]
        scores[at] = worst
        best = Judged(dict(zip(policies, scores, strict=True))).best(4)
        assert best[-1] is policies[at]
        assert [scores[policies.index(p)] for p in best[:3]] == sorted((s for s in scores if s != worst and s == s),
                                                                      reverse=True)
