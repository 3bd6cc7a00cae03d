"""Compact networks: what they cost, that they travel (state dicts, pickles, exports), and that nothing dead is left."""

from __future__ import annotations

import io
import pickle
from copy import deepcopy
from random import Random

import pytest
import timm
import torch
from small import FAST, SEVERAL, SPACES, Everything, build, equal, image, perturb, slow, tensors

from polyptych.profiling.operators import count
from polyptych.search import OWN, SHARED, SKIP, compile, extract
from polyptych.search.space.anchors import tensors_of
from polyptych.search.space.policy import groups


def multiply_adds(module, x, *arguments):
    return count(module, lambda: module(x, *arguments))[0].total


def numbers(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", ["test_resnet", *slow(SEVERAL[1:])])
def test_multiply_adds(name):
    """P6. All shared: those of one backbone. All own: of three. Trees: between, and never more than the sum of the
    units' shares; the first N shared: as the units before and after say."""
    network, supermodel = build(name, "tree")
    x = image(supermodel)
    one = multiply_adds(network, x)
    space = supermodel.space
    assert multiply_adds(extract(supermodel, space.all_shared()), x) == one
    assert multiply_adds(extract(supermodel, space.all_own()), x) == 3 * one
    seen = []
    for n in (0, len(supermodel.units) // 2, len(supermodel.units) - 1, len(supermodel.units)):
        policy = space.bottom_shared(n)
        seen.append(multiply_adds(extract(supermodel, policy), x))
        assert multiply_adds(supermodel, x, policy) == seen[-1]  # the supermodel shares as much while it trains
    assert seen == sorted(seen, reverse=True) and seen[0] > seen[-2] > seen[-1]
    random = Random(0)
    for _ in range(3):
        drawn = multiply_adds(extract(supermodel, space.draw(random)), x)
        assert drawn <= 3 * one


def test_random_choices_per_operation_save_no_computation():
    """AutoMTL's space with norms per task: three passes, whatever is shared, but for the first convolution."""
    network, supermodel = build("test_resnet", "automtl", skip=False)
    x, random = image(supermodel), Random(0)
    one = multiply_adds(network, x)
    for _ in range(3):
        policy = supermodel.space.draw(random)
        compact = extract(supermodel, policy)
        assert multiply_adds(compact, x) >= 2.9 * one and numbers(compact) < 3 * numbers(network)
    first = supermodel.units.all[0]
    policy = supermodel.space.all_shared()
    shared = supermodel.plan(policy).trunk
    assert {str(supermodel.plan(policy).steps[i].node.target) for i in shared} == {first.targets[0]}


@pytest.mark.parametrize("space", SPACES)
def test_number_of_parameters(space):
    """P6: of each unit as many copies as there are sets of weights in use, and the projections."""
    network, supermodel = build("mobilenetv3_small_050" if space == "tree" else "test_resnet", space)
    random = Random(1)
    for _ in range(4):
        policy = supermodel.space.draw(random)
        expected = 0
        for unit, row in zip(supermodel.units, policy.choices, strict=True):
            norms = sum(p.numel() for t in unit.norms for p in tensors_of(network, t))
            users = row.count(OWN) + len(groups(row))
            if policy.norms == "task":
                expected += users * (unit.parameters - norms) + len(row) * norms
            elif unit.skip is None or unit.skip.kind == "branch":
                after = [t for t in unit.norms if unit.skip and SKIP in row and after_join(supermodel, unit, t)]
                assert not after
                expected += users * unit.parameters
            if unit.skip is not None and unit.skip.projection is not None:
                expected += row.count(SKIP) * numbers(unit.skip.projection.build())
        assert numbers(extract(supermodel, policy)) == expected


def after_join(supermodel, unit, target):
    names = [node.name for node in supermodel.capture.graph.nodes]
    places = {str(node.target): i for i, node in enumerate(supermodel.capture.graph.nodes)}
    return places[target] > names.index(unit.skip.node)


@pytest.mark.parametrize("name", FAST)
@torch.no_grad()
def test_nothing_dead_is_left(name):
    """P10: every module and parameter of a compact network is used for its result, and none belongs to the search."""
    _, supermodel = build(name, "tree" if name != "test_resnet" else "automtl")
    policy = supermodel.space.draw(Random(2))
    compact = extract(supermodel, policy)
    calls = set()
    for path, module in compact.named_modules():
        module.register_forward_hook(lambda *_, path=path: calls.add(path))
    with torch.enable_grad():
        sum(y.square().sum() for y in tensors(compact(image(supermodel)))).backward()
    assert all(p.grad is not None for p in compact.parameters())
    holders = {path for path, module in compact.named_modules() if any(True for _ in module.parameters(recurse=False))}
    plain = {str(node.target) for node in compact.body.graph.nodes if node.op == "get_attr"}
    inside = {f"body.{path}".rpartition(".")[0] for path in plain}
    assert holders - inside - {"body"} <= calls
    kinds = {type(module).__module__ for module in compact.modules()}
    assert not any(kind.startswith("polyptych.search") and kind not in (
        "polyptych.search.supermodel.extraction", "polyptych.search.supermodel.weights") for kind in kinds)
    skipped = supermodel.space.policy([(SKIP if u.skip is not None and u.skip.kind == "branch" else SHARED,) * 3
                                       for u in supermodel.units])
    gone = {t for u in supermodel.units if u.skip is not None and u.skip.kind == "branch" for t in u.targets
            if not after_join(supermodel, u, t)}
    state = extract(supermodel, skipped).body.state_dict()
    assert gone or name in ("test_resnet", "test_efficientnet")
    assert not any(key == t or key.startswith(f"{t}.") for key in state for t in gone)


@pytest.mark.parametrize("space", ["automtl", "tree", *slow(("partition", "skip_only"))])
@torch.no_grad()
def test_state_dicts_and_pickles(space):
    """P7: names of the backbone for what is shared, copies under theirs, everything to bytes and back."""
    network, supermodel = build("test_resnet", space)
    policy = supermodel.space.draw(Random(4))
    perturb(supermodel, [policy])
    compact = extract(supermodel, policy)
    x = image(supermodel)
    expected = compact(x)
    state = compact.state_dict()
    assert all(n.startswith(("body.copies.", "body.streams.", "body.projections."))
               or n.removeprefix("body.") in network.state_dict() for n in state)
    _, other = build("test_resnet", space, seed=9)
    empty = extract(other, policy)
    assert not equal(empty(x), expected)
    empty.load_state_dict(state)
    assert equal(empty(x), expected)
    assert equal(pickle.loads(pickle.dumps(compact))(x), expected) and equal(deepcopy(compact)(x), expected)
    with io.BytesIO() as file:
        torch.save(compact, file)
        file.seek(0)
        assert equal(torch.load(file, weights_only=False)(x), expected)


@torch.no_grad()
def test_buffers_are_saved_if_the_backbone_saves_them():
    class Shifts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)
            self.register_buffer("saved", torch.rand(4, 1, 1))
            self.register_buffer("derived", torch.rand(4, 1, 1), persistent=False)

        def forward(self, x):
            return self.conv(x) * self.saved + self.derived + torch.full((4, 1, 1), 0.5)

    network = Shifts().eval()
    supermodel = compile(network, ("a", "b"), granularity="op").eval()
    compact = extract(supermodel, supermodel.space.all_own())
    assert {n for n in compact.state_dict() if "copies" not in n} == {"body.saved"}
    assert len(list(compact.buffers())) == 3 and equal(compact(image(supermodel)), [network(image(supermodel))] * 2)


@pytest.mark.parametrize("name", ["test_resnet", *slow(FAST[1:])])
@torch.no_grad()
def test_export(name):
    """P7: torch.export of the compact network gives the same, and knows nothing of this package."""
    _, supermodel = build(name, "tree")
    policy = supermodel.space.draw(Random(3))
    perturb(supermodel, [policy])
    compact = extract(supermodel, policy)
    x = image(supermodel, 2)
    program = torch.export.export(compact, (x,))
    assert equal(program.module()(x), compact(x))
    assert "polyptych" not in str(program.graph)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv3_small_050"])
@torch.no_grad()
def test_torch_compile(name):
    _, supermodel = build(name, "tree")
    policy = supermodel.space.draw(Random(3))
    perturb(supermodel, [policy])
    compact = extract(supermodel, policy)
    x = image(supermodel, 2)
    compiled = torch.compile(compact, backend="aot_eager", fullgraph=True)
    assert all(torch.allclose(a, b, atol=1e-5, rtol=1e-5) for a, b in zip(
        tensors(compiled(x)), tensors(compact(x)), strict=True))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "everything"])
@torch.no_grad()
def test_no_value_is_written_after_it_was_read(name):
    """P8: the compact network with every value cloned."""
    torch.manual_seed(0)
    network = (Everything() if name == "everything" else timm.create_model(name)).eval()
    supermodel = compile(network, ("a", "b"), granularity="op", space="automtl").eval()
    policy = supermodel.space.draw(Random(0))
    perturb(supermodel, [policy])
    compact = extract(supermodel, policy)
    x = image(supermodel)
    expected = compact(x)

    class Cloning(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            return value.clone() if isinstance(value, torch.Tensor) else value

    flat = Cloning(compact.body).run(x)
    assert equal(list(flat)[:len(tensors(expected))], tensors(expected))


def test_cost_is_a_sum_over_steps():
    """P6, exactly: multiply-adds of a plan from those of each step alone."""
    network, supermodel = build("test_resnet", "partition")
    x, random = image(supermodel), Random(5)
    by_node = count(network, lambda: network(x))[0].by_module
    for _ in range(4):
        policy = supermodel.space.draw(random)
        predicted = sum(by_node.get(str(step.node.target), 0) for step in supermodel.plan(policy).steps
                        if step.node.op == "call_module")
        assert predicted == multiply_adds(extract(supermodel, policy), x)


@torch.no_grad()
def test_weights_may_be_given_away():
    """Without copies: the encoder builds its network so, and uses no more memory than it needs."""
    network, supermodel = build("test_resnet", "tree")
    policy = supermodel.space.bottom_shared(3)
    x = image(supermodel)
    expected = supermodel(x, policy)
    compact = extract(supermodel, policy, share_weights=True)
    assert equal(compact(x), expected)
    assert compact.body.get_submodule("conv1.0").weight is network.conv1[0].weight
    assert compact.body.get_submodule("copies.own_a.fc").weight is not network.fc.weight
