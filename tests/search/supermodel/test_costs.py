"""The cost of a policy is that of its compact network: parameters, multiply-adds and memory to the last number."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import rest

from polyptych.backbones.timm import Timm
from polyptych.errors import InputError
from polyptych.profiling.memory import peak
from polyptych.profiling.operators import count
from polyptych.search import compile, extract
from polyptych.search.space.budget import PolicyCost, parse_budget
from polyptych.search.supermodel.costs import CostTable, measure_costs

TASKS = ("a", "b", "c")
SPACES = ("tree", "automtl", "partition", "skip_only")
FAMILIES = ("test_efficientnet", "resnet18", "mobilenetv2_100", "swin_tiny_patch4_window7_224", "convnext_atto",
            "mobilevit_xxs", "pvt_v2_b0")


@pytest.mark.parametrize(("model", "space"), [
    *(("test_resnet", space) for space in SPACES), *rest(("test_vit", space) for space in SPACES),
    *(pytest.param(model, space, marks=pytest.mark.slow) for model in FAMILIES for space in SPACES)])
def test_cost_is_that_of_the_compact_network(model: str, space: str) -> None:
    torch.manual_seed(0)
    backbone = Timm.Config(model=model).build()
    searchable = compile(backbone, TASKS, space=space)
    size = (2 * backbone.multiple, backbone.multiple) if backbone.multiple < 100 else (backbone.multiple,) * 2
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    table = measure_costs(searchable, size)
    assert backbone.training and all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    random, image = Random(1), torch.rand(1, 3, *size)
    policies = [searchable.space.all_shared(), searchable.space.all_own()]
    for policy in [*policies, *(searchable.space.draw(random) for _ in range(2))]:
        found, compact = table.cost(searchable, policy), extract(searchable, policy).eval()
        assert found.parameters == sum(p.numel() for p in compact.parameters())
        assert found.multiply_adds == count(compact, lambda compact=compact: compact(image))[0].total
        with torch.no_grad():
            assert found.memory == peak(lambda compact=compact: compact(image), torch.device("cpu"))


def test_shared_is_one_backbone_and_own_is_as_many_as_tasks(tmp_path) -> None:
    backbone = Timm.Config(model="test_resnet").build()
    searchable = compile(backbone, TASKS)
    table = measure_costs(searchable, (64, 96), timed=True, repeats=3, seconds=0.01)
    shared, own = (table.cost(searchable, p) for p in (searchable.space.all_shared(), searchable.space.all_own()))
    image = torch.rand(1, 3, 64, 96)
    assert shared.parameters == sum(p.numel() for p in backbone.parameters())
    assert shared.multiply_adds == count(backbone.eval(), lambda: backbone(image))[0].total
    assert own.parameters == 3 * shared.parameters and own.multiply_adds == 3 * shared.multiply_adds
    assert 0 < shared.latency < own.latency
    table.write(tmp_path / "costs.json")
    assert CostTable.read(tmp_path / "costs.json") == table
    assert table.setting.timed and table.setting.threads == torch.get_num_threads()


def test_a_longer_shared_trunk_never_costs_more() -> None:
    searchable = compile(Timm.Config(model="test_resnet").build(), TASKS)
    table = measure_costs(searchable, (64, 64))
    costs = [table.cost(searchable, policy) for _, policy in searchable.space.baselines()]
    for field in ("parameters", "multiply_adds"):
        values = [getattr(cost, field) for cost in costs]
        assert values == sorted(values, reverse=True)


def test_a_size_that_the_network_does_not_take() -> None:
    searchable = compile(Timm.Config(model="test_vit").build(), TASKS)
    with pytest.raises(InputError, match="--size: got 40 64, which the network does not take"):
        measure_costs(searchable, (40, 64))


ONE = PolicyCost(parameters=10_000_000, multiply_adds=2 * 10**9, memory=2**26, latency=0.02)


@pytest.mark.parametrize(("text", "cost", "allowed"), [
    ("", PolicyCost(10**12, 10**15, 2**40, 1e3), True),
    ("flops=1.5x", PolicyCost(0, 3 * 10**9, 0), True),
    ("flops=1.5x", PolicyCost(0, 3 * 10**9 + 100, 0), False),
    ("params=0.5x,flops=1.5x", PolicyCost(6_000_000, 10**9, 0), False),
    ("params=12M", PolicyCost(12_000_000, 0, 0), True),
    ("memory=64MiB", PolicyCost(0, 0, 2**26), True),
    ("memory=64MB", PolicyCost(0, 0, 2**26), False),
    (" latency = 20 ms ", PolicyCost(0, 0, 0, 0.0201), False),
    ("latency=1x", PolicyCost(0, 0, 0, 0.02), True),
])
def test_budgets(text: str, cost: PolicyCost, allowed: bool) -> None:
    assert parse_budget(text).allows(cost, ONE) is allowed
    assert parse_budget(text).timed == ("latency" in text)


def test_a_cost_is_a_share_of_the_budget_or_without_one_what_it_is() -> None:
    cost = PolicyCost(15_000_000, 3 * 10**9, 0)
    assert parse_budget("params=2x,flops=2G").words(cost, ONE) == "1.50 of the budget"
    assert parse_budget("").words(cost, ONE) == "1.50x the parameters and 1.50x the multiply-adds of one backbone"


@given(st.floats(0.01, 9), st.floats(0.01, 9), st.floats(0.1, 10))
def test_a_budget_is_kept_exactly_if_no_limit_is_passed(params: float, flops: float, factor: float) -> None:
    budget = parse_budget(f"params={params:.6f}x,flops={flops:.6f}x")
    cost = PolicyCost(round(ONE.parameters * factor), round(ONE.multiply_adds * factor), 0)
    expected = max(factor / float(f"{params:.6f}"), factor / float(f"{flops:.6f}"))
    assert budget.use(cost, ONE) == pytest.approx(expected, rel=1e-5)
    if abs(expected - 1) > 1e-5:
        assert budget.allows(cost, ONE) == (expected <= 1)


@pytest.mark.parametrize(("text", "said"), [
    ("flop=1x", "got 'flop'; needs one of flops, latency, memory, params (nearest: flops"),
    ("flops=1.5", ""), ("flops=x", "--budget flops: got 'x'; needs a positive number"),
    ("flops=0x", "'0x'"), ("flops=-1x", "'-1x'"), ("latency=20", "one of the units s, ms, us"),
    ("params=1x,params=2x", "params twice"), ("flops", "--budget flops: got ''"), ("memory=3parsecs", "'3parsecs'"),
])
def test_budgets_that_are_none(text: str, said: str) -> None:
    if not said:  # a bare number is in units of the cost
        assert parse_budget(text).limits[0].value(ONE) == 1.5
        return
    with pytest.raises(InputError) as error:
        parse_budget(text)
    assert said in str(error.value)
