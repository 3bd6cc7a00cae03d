"""The space of AutoMTL on its three backbones (Zhang, Liu, Guan, NeurIPS 2022), from timm."""

from __future__ import annotations

from random import Random

import pytest
import timm
import torch
from small import TASKS, equal, image, perturb, scramble

from polyptych.search import SHARED, compile, extract
from polyptych.search.space.budget import parse_budget
from polyptych.search.supermodel.costs import measure_costs

BACKBONES = ["resnet34", "mobilenetv2_100", "mnasnet_100"]


def bare(name):
    """Without classifier, as AutoMTL has it."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0, global_pool="").eval()
    scramble(network)
    return network


def test_size_of_the_supermodel():
    """Measured on the authors' code for two tasks: 64.6 million weights."""
    supermodel = compile(bare("resnet34"), ("a", "b"), space="automtl")
    supermodel.materialize()
    assert sum(p.numel() for p in supermodel.parameters()) == pytest.approx(64.6e6, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
@torch.no_grad()
def test_policies_are_drawn_run_and_extracted(name):
    network = bare(name)
    supermodel = compile(network, ("a", "b", "c"), space="automtl").eval()
    x, random = image(supermodel), Random(0)
    assert equal(supermodel(x, supermodel.space.all_shared()), [network(x)] * 3)
    for _ in range(5):
        policy = supermodel.space.draw(random)
        perturb(supermodel, [policy])
        compact = extract(supermodel, policy)
        assert equal(compact(x), supermodel(x, policy))
        assert not equal(compact(x), [network(x)] * 3)
        # With norms per task nothing after the first operation can be common.
        trunk = {str(supermodel.plan(policy).steps[i].node.target) for i in supermodel.plan(policy).trunk}
        assert trunk <= {supermodel.units.all[0].targets[0]}
        assert bool(trunk) == (policy.choices[0] == (SHARED,) * 3)


def test_one_backbone_is_the_unit_of_budgets():
    """With norms per task, sharing every weight costs nearly a backbone per task; 1x is still one backbone."""
    costs = {}
    for space in ("tree", "automtl", "skip_only"):
        supermodel = compile(timm.create_model("resnet18", features_only=True), TASKS, space=space, granularity="op",
                             pinned={"conv1": "own"} if space == "automtl" else None)
        table = measure_costs(supermodel, (64, 64))
        costs[space] = table.cost(supermodel, supermodel.one_backbone())
        if space == "automtl":
            shared = table.cost(supermodel, supermodel.space.all_shared())
            assert shared.multiply_adds > 2.8 * costs[space].multiply_adds
            budget = parse_budget("flops=1x")
            assert not budget.allows(shared, costs[space]) and budget.allows(costs[space], costs[space])
    assert len(set(costs.values())) == 1
    assert costs["tree"].parameters == sum(p.numel() for p in supermodel.backbone.parameters())
