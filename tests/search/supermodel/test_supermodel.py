"""The supermodel and the compact network against one network per task, and against each other: bit for bit."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from itertools import product
from random import Random

import pytest
import torch
from reference import single_networks
from small import FAST, SEVERAL, SPACES, TASKS, Everything, build, equal, image, perturb, rest, slow, tensors
from torch import nn

from polyptych.errors import InputError
from polyptych.search import OWN, SHARED, SKIP, compile, extract

spaces = pytest.mark.parametrize("space", SPACES)
SLOW = slow(SEVERAL[len(FAST):])


def draws(supermodel, number, seed=0):
    random = Random(seed)
    return [supermodel.space.draw(random) for _ in range(number)]


def assert_as_single(network, supermodel, policy, x, got):
    """Bit for bit; where branches are left out to rounding, because a sum with zeros may have another memory format
    than what it was added to, and convolutions sum in another order then."""
    branches = any(SKIP in row and unit.skip.kind == "branch"
                   for unit, row in zip(supermodel.units, policy.choices, strict=True))
    for task, single in single_networks(network, supermodel, policy).items():
        expected = single(x)
        same = torch.allclose(got[task], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert same if branches else torch.equal(got[task], expected), task


@pytest.mark.parametrize("name", [
    *(name for name in FAST if name != "test_convnext"), *rest(["test_convnext"]), *SLOW])
@torch.no_grad()
def test_all_shared_and_all_own_are_the_network(name):
    network, supermodel = build(name, "tree")
    x = image(supermodel, 2)
    expected = network(x)
    for policy in (supermodel.space.all_shared(), supermodel.space.all_own(), supermodel.space.bottom_shared(3)):
        for model in (lambda image, policy=policy: supermodel(image, policy), extract(supermodel, policy)):
            assert equal(model(x), [expected] * 3)


@pytest.mark.parametrize(("name", "space"), [
    *(("test_resnet", space) for space in SPACES), ("test_vit", "automtl"),
    *rest(("test_vit", space) for space in SPACES if space != "automtl"),
    *(pytest.param(name, space, marks=pytest.mark.slow) for name in FAST[2:] for space in SPACES)])
@torch.no_grad()
def test_equals_a_network_per_task(name, space):
    """P3: fresh weights everywhere, both ways to compute them; every node of the graph is in one of the spaces."""
    network, supermodel = build(name, space)
    policies = draws(supermodel, 4)
    perturb(supermodel, policies)
    x = image(supermodel, 2)
    for policy in policies:
        got = supermodel(x, policy)
        assert_as_single(network, supermodel, policy, x, got)
        assert equal(extract(supermodel, policy)(x), got)


@pytest.mark.slow
@spaces
@pytest.mark.parametrize("name", SEVERAL)
@torch.no_grad()
def test_twenty_policies_for_every_family_and_space(name, space):
    network, supermodel = build(name, space)
    policies = draws(supermodel, 20)
    perturb(supermodel, policies)
    x = image(supermodel)
    for i, policy in enumerate(policies):
        got = supermodel(x, policy)
        assert equal(extract(supermodel, policy)(x), got)
        if i < 4:
            assert_as_single(network, supermodel, policy, x, got)


@pytest.mark.parametrize("granularity", ["op", "stage"])
@torch.no_grad()
def test_trees_of_other_granularities(granularity):
    network, supermodel = build("test_efficientnet", "tree", granularity=granularity)
    policies = draws(supermodel, 4)
    perturb(supermodel, policies)
    x = image(supermodel)
    for policy in policies:
        got = supermodel(x, policy)
        assert equal(extract(supermodel, policy)(x), got)
        assert equal([got[t] for t in TASKS], [n(x) for n in single_networks(network, supermodel, policy).values()])


@spaces
def test_gradients_are_those_of_a_network_per_task(space):
    """P4: in training mode and double precision, with weights that several tasks use on different features."""
    network, supermodel = build("test_resnet", space)
    network.double(), supermodel.double()
    policy = draws(supermodel, 6)[-1]
    perturb(supermodel, [policy])
    singles = single_networks(network, supermodel, policy)
    compact = extract(supermodel, policy)
    x = image(supermodel, 4, dtype=torch.float64)
    weights = torch.rand(3, 4, 1000, dtype=torch.float64)
    for model in (supermodel, compact, *singles.values()):
        model.train()
        model.zero_grad()
    results = {"super": supermodel(x, policy), "compact": compact(x), "single": {t: n(x) for t, n in singles.items()}}
    for result in results.values():
        sum((result[task] * weight).sum() for task, weight in zip(TASKS, weights, strict=True)).backward()
    assert all(torch.allclose(results["super"][t], results["single"][t], rtol=1e-9) for t in TASKS)
    tight = dict(compact.body.named_parameters(remove_duplicate=False))
    loose = dict(supermodel.banks.named_parameters(remove_duplicate=False))
    checked = 0
    for i, unit in enumerate(supermodel.units):
        replaced = unit.skip is not None and unit.skip.kind != "branch"  # by another module, where it is left out
        for target in unit.targets:
            users: dict[str, list] = {}
            for task in TASKS:
                users.setdefault(bank_of(policy, unit, i, target, task), []).append(task)
            for (bank, tasks), (name, _) in product(users.items(), parameters(network, target)):
                used = [t for t in tasks if policy.choice(i, t) != SKIP or (replaced and target in unit.norms)]
                if not used:
                    continue
                expected = torch.stack([dict(singles[t].named_parameters())[name].grad for t in used]).sum(0)
                for got in (loose[f"{bank}.{name}"], tight[f"{bank}.{name}".removeprefix("backbone.")]):
                    assert torch.allclose(got.grad, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))
                    checked += 1
    assert checked > 40


def parameters(root, target):
    return [(name, p) for name, p in root.named_parameters(remove_duplicate=False)
            if name == target or name.startswith(f"{target}.")]


def bank_of(policy, unit, i, target, task):
    choice = policy.choice(i, task)
    if choice == OWN or (policy.norms == "task" and target in unit.norms):
        return f"copies.own_{task}"
    return "backbone" if choice in (SHARED, SKIP) else f"copies.group_{choice}"


@pytest.mark.parametrize("name", ["test_resnet", *rest(["test_vit"]), *slow(FAST[2:])])
@torch.no_grad()
def test_the_trunk_is_computed_once(name):
    """P5: calls of modules. Shared by all: once each; own: once per task; in between: once per group."""
    network, supermodel = build(name, "tree")
    modules = dict(network.named_modules())
    for count in (0, 4, len(supermodel.units)):
        policy = supermodel.space.bottom_shared(count)
        compact = extract(supermodel, policy)
        for model, run in ((supermodel, lambda x, p=policy: supermodel(x, p)), (compact, compact)):
            calls: Counter = Counter()
            handles = [module.register_forward_hook(lambda *_, path=path, calls=calls: calls.update([path]))
                       for path, module in model.named_modules()]
            run(image(supermodel))
            for handle in handles:
                handle.remove()
            for i, unit in enumerate(supermodel.units):
                for target in {str(n.target) for n in supermodel.capture.graph.nodes} & set(unit.targets):
                    if target not in modules:
                        continue
                    where = [f"{home}{bank}{target}" for home in ("body.", "banks.backbone.", "banks.", "")
                             for bank in ("", *(f"copies.own_{task}." for task in TASKS))]
                    assert [calls[path] for path in where if path in calls] == [1] * (1 if i < count else 3), target


def test_random_trees_compute_no_bank_twice():
    _, supermodel = build("test_resnet", "tree", tasks=("a", "b", "c", "d"))
    for policy in draws(supermodel, 20):
        plan = supermodel.plan(policy)
        assert all(len(steps) == 1 for steps in plan.banks.values())


@torch.no_grad()
def test_every_stream_has_its_own_statistics():
    """The same weights on the features of different tasks: two sets of running statistics, one of weights."""
    network, supermodel = build("test_resnet", "partition", tasks=("a", "b"))
    rows = [(SHARED, SHARED), (OWN, OWN)] + [(SHARED, SHARED)] * (len(supermodel.units) - 2)
    policy = supermodel.space.policy(rows)
    perturb(supermodel, [policy])
    supermodel.train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        supermodel(torch.rand(4, 3, 64, 64, generator=generator), policy)
    compact = extract(supermodel, policy)
    state = compact.body.state_dict()
    later = [name for name in state if name.startswith("streams") and name.endswith("running_mean")]
    assert later and all(name.startswith("streams.shared-b.") for name in later)
    for name in later:
        path = name.removeprefix("streams.shared-b.")
        assert not torch.equal(state[name], state[path])
        assert state[name.replace("running_mean", "weight")].data_ptr() == state[
            path.replace("running_mean", "weight")].data_ptr()
    supermodel.eval(), compact.eval()
    x = image(supermodel)
    assert equal(compact(x), supermodel(x, policy))
    means = [b for n, b in supermodel.banks.backbone.named_buffers() if n.endswith("layer4.0.bn1.running_mean")]
    assert torch.equal(means[0], dict(network.named_buffers())["layer4.0.bn1.running_mean"])  # that of all together


@torch.no_grad()
def test_statistics_of_a_tree_in_training():
    """One stream per bank: a step in training leaves the statistics that a network per task would have."""
    network, supermodel = build("test_resnet", "tree")
    policy = supermodel.space.bottom_shared(4)
    perturb(supermodel, [policy])
    singles = single_networks(network, supermodel, policy)
    compact = extract(supermodel, policy).train()
    x = image(supermodel, 4)
    compact(x)
    buffers = dict(compact.body.named_buffers())
    for task, single in singles.items():
        single.train()(x)
        for name, buffer in single.named_buffers():
            own = f"copies.own_{task}.{name}"
            assert torch.equal(buffers.get(own, buffers.get(name)), buffer), name


@torch.no_grad()
def test_weights_may_be_loaded_before_or_after():
    network, supermodel = build("test_resnet", "tree")
    other, _ = build("test_resnet", "tree", seed=5)
    supermodel.backbone.load_state_dict(other.state_dict())
    x = image(supermodel)
    for policy in (supermodel.space.all_shared(), supermodel.space.all_own()):  # copies are made when first used
        assert equal(supermodel(x, policy), [other(x)] * 3)
    assert network is supermodel.backbone
    names = [n.removeprefix("banks.backbone.") for n in supermodel.state_dict() if n.startswith("banks.backbone.")]
    assert names == list(other.state_dict())


@torch.no_grad()
def test_copies_begin_again():
    """Between phases: the same parameters, with what the backbone has learned."""
    network, supermodel = build("test_resnet", "partition")
    supermodel.materialize()
    perturb(supermodel, [supermodel.space.all_own()])
    rows = [(SHARED,) * 3, (OWN,) * 3, *[(SHARED,) * 3] * (len(supermodel.units) - 2)]
    supermodel(image(supermodel), supermodel.space.policy(rows))  # makes streams
    before = dict(supermodel.named_parameters())
    for parameter in network.parameters():
        parameter.mul_(1.1)
    x = image(supermodel)
    for policy in (supermodel.space.all_own(), supermodel.space.policy(rows)):
        assert not equal(supermodel(x, policy), [network(x)] * 3)
    supermodel.renew()
    for policy in (supermodel.space.all_own(), supermodel.space.policy(rows)):
        assert equal(supermodel(x, policy), [network(x)] * 3)
    assert all(before[name] is p for name, p in supermodel.named_parameters())


@torch.no_grad()
def test_results_have_the_structure_of_the_network():
    network = Everything().eval()
    supermodel = compile(network, ("a", "b"), granularity="op").eval()
    x = image(supermodel)
    expected = network(x)
    policy = supermodel.space.draw(Random(1))
    for got in (supermodel(x, policy), extract(supermodel, policy)(x)):
        assert list(got) == ["a", "b"]
        for task in got:
            assert list(got[task]) == list(expected) and got[task]["pair"]._fields == ("fine", "coarse")
            assert equal(got[task], expected)


@torch.no_grad()
def test_a_copy_is_independent():
    _, supermodel = build("test_resnet", "tree")
    policies = draws(supermodel, 2)
    perturb(supermodel, policies)
    x = image(supermodel)
    expected = [supermodel(x, policy) for policy in policies]
    twin = deepcopy(supermodel)
    compact = extract(supermodel, policies[0])
    for parameter in supermodel.parameters():
        parameter.zero_()
    assert all(equal(twin(x, policy), y) for policy, y in zip(policies, expected, strict=True))
    assert equal(compact(x), expected[0])
    assert not equal(supermodel(x, policies[0]), expected[0])


@torch.no_grad()
def test_materialize_makes_everything_that_is_ever_used():
    for space in SPACES:
        _, supermodel = build("test_resnet", space)
        supermodel.materialize()
        before = {name for name, _ in supermodel.named_parameters()}
        for policy in draws(supermodel, 10):
            supermodel(image(supermodel), policy)
        assert {name for name, _ in supermodel.named_parameters()} == before


def test_a_network_without_weights_is_refused():
    with pytest.raises(InputError, match="no weights that its result depends on"):
        compile(nn.Sequential(nn.ReLU()), TASKS)


def test_one_task_alone():
    network, supermodel = build("test_resnet", "tree", tasks=("only",))
    policy = supermodel.space.draw(Random(0))
    assert isinstance(extract(supermodel, policy), nn.Module)
    with torch.no_grad():
        x = image(supermodel)
        assert equal(supermodel(x, supermodel.space.all_shared()), [network(x)])
        assert len(tensors(supermodel(x, policy))) == 1


class Pooled(nn.Module):
    """As in MViT: what follows a residual branch asks the branch for its size, in one way or another."""

    def __init__(self, ask: str):
        super().__init__()
        self.ask = ask
        self.stem, self.branch = nn.Conv2d(3, 4, 3, 2, 1), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.end = nn.Conv2d(4, 5, 1)

    def forward(self, image):
        x = self.stem(image)
        _, _, *before = x.shape
        branch = self.branch(x)
        if self.ask == "shape":
            height, width = branch.shape[-2:]
        elif self.ask == "size":
            height, width = branch.size(2), branch.size(-1)
        elif self.ask == "list":  # no living tensor is asked: a value that is the same stands in, as another type
            height, width = [side * 1 for side in branch.shape[2:]]
        else:
            height, width = branch.flatten(2).shape[-1] // before[1], before[1]
        x = (x + branch).flatten(2)
        return self.end(x.unflatten(2, (height, width)))


@pytest.mark.parametrize("ask", ["shape", "size", "list", "number"])
@torch.no_grad()
def test_a_branch_that_is_only_asked_for_its_size_is_not_computed(ask):
    network = Pooled(ask).eval()
    supermodel = compile(network, ("a", "b")).eval()
    assert supermodel.capture.any_size
    at = next(i for i, unit in enumerate(supermodel.units) if unit.skip is not None)
    some = supermodel.space.all_shared().with_choices({(at, 0): "skip"})
    both = some.with_choices({(at, 1): "skip"})
    compact = extract(supermodel, both)
    assert not any("branch" in name for name, _ in compact.named_parameters())
    for size in ((64, 64), (33, 47), (96, 20)):
        x = torch.rand(2, 3, *size)
        result = supermodel(x, both)
        bypassed = network.end(network.stem(x))
        assert all(torch.equal(result[task], bypassed) for task in "ab") and equal(compact(x), result)
        one = supermodel(x, some)
        assert torch.equal(one["a"], bypassed) and torch.equal(one["b"], network(x))
        assert equal(extract(supermodel, some)(x), one)


@torch.no_grad()
def test_a_size_that_only_the_branch_has_keeps_it():
    class Own(Pooled):
        def forward(self, image):
            x = self.stem(image)
            branch = self.branch(x)
            wide = torch.nn.functional.pad(branch, (0, 3))
            return self.end((x + branch) * wide.shape[-1])

    network = Own("").eval()
    supermodel = compile(network, ("a", "b")).eval()
    at = next(i for i, unit in enumerate(supermodel.units) if unit.skip is not None)
    policy = supermodel.space.all_shared().with_choices({(at, 0): "skip", (at, 1): "skip"})
    x = torch.rand(1, 3, 20, 33)
    x1 = network.stem(x)
    assert torch.equal(supermodel(x, policy)["a"], network.end(x1 * (x1.shape[-1] + 3)))


@pytest.mark.parametrize("training", [True, False])
def test_every_layer_keeps_its_mode(training):
    """An evaluated backbone gives an evaluated supermodel and compact network, and frozen norms stay frozen."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))
    network.train(training)
    network[1].eval()
    supermodel = compile(network, ("a", "b"))
    compact = extract(supermodel, supermodel.space.all_own())
    assert supermodel.training is compact.training is compact.body.training is training
    for task in "ab":
        modes = {name.rpartition(f"own_{task}.")[2]: module.training for name, module in compact.body.named_modules()
                 if f"own_{task}." in name}
        assert modes["1"] is False and modes["2.1"] is training and modes["2.0"] is training
    assert compact.train().body.training and not compact.eval().body.training


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "script", "traced"])
@pytest.mark.filterwarnings("ignore")
def test_old_weight_norms_and_torchscript_are_copied_whole(kind):
    torch.manual_seed(0)
    inside = nn.Conv2d(4, 4, 3, padding=1)
    if kind in ("weight_norm", "spectral_norm"):
        inside = getattr(torch.nn.utils, kind)(inside)
    else:
        inside = nn.Sequential(inside, nn.ReLU())
        inside = torch.jit.script(inside) if kind == "script" else torch.jit.trace(inside, torch.rand(1, 4, 8, 8))
    network = nn.Sequential(nn.Conv2d(3, 4, 1), inside, nn.Conv2d(4, 5, 1)).eval()
    supermodel = compile(network, ("a", "b"))
    if kind in ("script", "traced"):
        assert [(c.path, c.layers, c.reason) for c in supermodel.capture.closed] == [
            ("1", 1, "it is compiled (TorchScript)")]
    x, policy = torch.rand(1, 3, 9, 9), supermodel.space.all_own()
    expected = network(x)
    compact = extract(supermodel, policy)
    assert torch.equal(supermodel(x, policy)["b"], expected) and torch.equal(compact(x)["a"], expected)
    compact(x)["a"].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in compact.named_parameters() if "own_a" in name)
