"""Soft policies against the sums that they stand for, hard ones as their limit, gradients against differences."""

from __future__ import annotations

from random import Random

import pytest
import torch
from small import FAST, SPACES, build, equal, image, perturb, scramble, slow
from torch import nn

from polyptych.search import OWN, SHARED, SKIP, compile
from polyptych.search.supermodel.soft_choices import Logits, Mixer, gumbel_softmax

TWO = ("a", "b")


def one_hot(policy, choices):
    return [torch.tensor([[float(choice == name) for name in names] for choice in row])
            for row, names in zip(policy.choices, choices, strict=True)]


def soft(mixer, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(len(mixer.supermodel.tasks), len(c), generator=generator, dtype=dtype).softmax(-1)
            for c in mixer.choices]


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 6, 3, 1, 1)

    def forward(self, x):
        return self.two(torch.relu(self.norm(self.one(x))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, 1, 1), nn.Conv2d(8, 4, 3, 1, 1)
        self.norm, self.end = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.norm(self.two(torch.relu(self.one(x))))
        return self.end(torch.relu(x))


def prepared(network, space, **options):
    torch.manual_seed(0)
    scramble(network)
    supermodel = compile(network.double(), TWO, space=space, **options).eval()
    supermodel.materialize()
    with torch.no_grad():
        for p in [*supermodel.banks.copies.parameters(), *supermodel.banks.projections.parameters()]:
            p.add_(0.3 * torch.randn_like(p))
        for b in supermodel.banks.copies.buffers():
            if b.is_floating_point():
                b.add_(0.1 * torch.rand_like(b))
    return supermodel


@torch.no_grad()
def test_operations_as_in_automtl():
    """conv -> sum of the branches -> the task's own BatchNorm."""
    supermodel = prepared(Plain(), "automtl")
    banks, mixer, x = supermodel.banks, Mixer(supermodel), image(supermodel, 2, dtype=torch.float64)
    weights = soft(mixer)
    got = mixer(x, weights)
    for t, task in enumerate(TWO):
        shared, own = banks.backbone, getattr(banks.copies, f"own_{task}")
        projection = banks.projections[task]["one"]
        u, v = weights[0][t], weights[1][t]
        y = u[0] * shared.one(x) + u[1] * own.one(x) + u[2] * projection(x)
        y = torch.relu(own.norm(y))
        y = v[0] * shared.two(y) + v[1] * own.two(y) + v[2] * y
        assert torch.allclose(got[task], y, atol=1e-12)


@torch.no_grad()
def test_residual_branches():
    """A region is mixed where its ways join: with the branch, with a copy of it, without it."""
    supermodel = prepared(Residual(), "partition")
    banks, mixer, x = supermodel.banks, Mixer(supermodel), image(supermodel, 2, dtype=torch.float64)
    assert [unit.skip is not None for unit in supermodel.units] == [False, True, False]
    assert mixer.choices == ((SHARED, OWN), (SHARED, OWN, SKIP), (SHARED, OWN))
    weights = soft(mixer)
    got = mixer(x, weights)
    for t, task in enumerate(TWO):
        shared, own = banks.backbone, getattr(banks.copies, f"own_{task}")
        u, v, w = (table[t] for table in weights)
        e = u[0] * shared.stem(x) + u[1] * own.stem(x)
        branch = [m.norm(m.two(torch.relu(m.one(e)))) for m in (shared, own)]
        y = torch.relu(v[0] * (e + branch[0]) + v[1] * (e + branch[1]) + v[2] * e)
        assert torch.allclose(got[task], w[0] * shared.end(y) + w[1] * own.end(y), atol=1e-12)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["test_resnet", *slow(FAST[1:])])
@torch.no_grad()
def test_one_hot_weights_are_a_hard_policy(name, space):
    _, supermodel = build(name, space, tasks=TWO)
    supermodel.double()
    policies = [supermodel.space.draw(Random(seed)) for seed in range(3)]
    perturb(supermodel, [*policies, *supermodel.space.corners()])
    mixer, x = Mixer(supermodel), image(supermodel, dtype=torch.float64)
    for policy in policies:
        mixed, hard = mixer(x, one_hot(policy, mixer.choices)), supermodel(x, policy)
        assert all(torch.allclose(mixed[task], hard[task], rtol=1e-10, atol=1e-12) for task in TWO)


def test_gradients_of_logits():
    supermodel = prepared(Residual(), "partition")
    mixer, x = Mixer(supermodel), image(supermodel, dtype=torch.float64)[:, :, :9, :9]
    tables = [torch.randn(2, len(c), dtype=torch.float64, requires_grad=True) for c in mixer.choices]

    def loss(*tables):
        return sum(y.square().mean() for y in mixer(x, [table.softmax(-1) for table in tables]).values())

    assert torch.autograd.gradcheck(loss, tables)


def test_straight_through():
    """Values of the chosen policy, gradients of the soft one."""
    supermodel = prepared(Residual(), "partition")
    mixer, x = Mixer(supermodel), image(supermodel, dtype=torch.float64)
    logits = Logits(supermodel)
    weights = logits.sample(1.0, hard=True, generator=torch.Generator().manual_seed(0))
    assert all(set(table.detach().flatten().tolist()) == {0.0, 1.0} for table in weights)
    rows = [tuple(names[i] for i in table.argmax(-1).tolist()) for names, table in
            zip(logits.choices, weights, strict=True)]
    got = mixer(x, weights)
    expected = supermodel(x, supermodel.space.policy(rows))
    assert all(torch.allclose(got[task], expected[task], atol=1e-12) for task in TWO)
    sum(y.square().mean() for y in got.values()).backward()
    assert all(table.grad is not None and table.grad.abs().max() > 0 for table in logits.tables)
    assert all(torch.allclose(table.grad.sum(-1), torch.zeros(2), atol=1e-6) for table in logits.tables)


def test_gumbel_softmax_draws_by_the_probabilities():
    logits = torch.tensor([[0.0, 1.0, -1.0]]).expand(20_000, 3)
    hard = gumbel_softmax(logits, 0.7, hard=True, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(hard.mean(0), logits[0].softmax(-1), atol=0.01)
    cool, warm = (gumbel_softmax(logits, t, generator=torch.Generator().manual_seed(0)) for t in (0.1, 50.0))
    assert torch.equal(cool.argmax(-1), hard.argmax(-1)) and (warm - 1 / 3).abs().max() < 0.2
    assert torch.allclose(warm.sum(-1), torch.ones(20_000))


def test_logits_are_no_part_of_the_supermodel():
    _, supermodel = build("test_vit", "tree", tasks=TWO)
    logits = Logits(supermodel)
    assert not {id(p) for p in supermodel.parameters()} & {id(p) for p in logits.parameters()}
    assert all(not table.any() for table in logits.tables)
    assert all(torch.allclose(p.sum(-1), torch.ones(2)) and p.std() < 1e-6 for p in logits.uniform())
    for seed in range(5):
        supermodel.space.validate(logits.draw(Random(seed)))
    with torch.no_grad():
        for table in logits.tables:
            table[:, 1] = 500  # own, as good as surely
        logits.tables[0][:, 0] = 900
    assert logits.draw(Random(0)) == supermodel.space.bottom_shared(1)


@torch.no_grad()
def test_what_tasks_have_in_common_is_computed_once():
    """Pinned units have one choice, so that all tasks see the same there."""
    network, supermodel = build("test_resnet", "tree", tasks=TWO, pinned={"layer2.0": SHARED})
    supermodel.materialize()
    mixer, calls = Mixer(supermodel), []
    for path in ("conv1.0", "layer1.0.conv1", "layer2.0.conv2", "layer3.0.conv1"):
        network.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.append(path))
    mixer(image(supermodel), soft(mixer, dtype=torch.float32))
    assert calls.count("conv1.0") == calls.count("layer1.0.conv1") == calls.count("layer2.0.conv2") == 1
    assert calls.count("layer3.0.conv1") == 1  # two tasks see the same there too
    calls.clear()
    one = mixer(image(supermodel), soft(mixer, dtype=torch.float32), tasks=("b",))
    assert list(one) == ["b"] and equal(
        [one["b"]], [mixer(image(supermodel), soft(mixer, dtype=torch.float32))["b"]])
