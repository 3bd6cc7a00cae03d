"""Networks whose parameters are frozen, unfrozen or first used in training; no whole gradients; wrong losses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gradient_toy import Toy
from method_loop import STANDARD
from small_network import (
    CONSTANTS,
    TASKS,
    ConstantGram,
    ConstantRows,
    Small,
    build,
    gradients,
    losses_of,
    problem,
    rows_of,
    step,
)
from torch import nn

from polyptych.balancers._base import CATALOG
from polyptych.balancers._gradients import GramBalancer
from polyptych.errors import InputError
from polyptych.types import Output

LEVELS = ["parameters", "representation", "layer"]
KINDS = [(ConstantGram, level) for level in LEVELS] + [(ConstantRows, level) for level in LEVELS[:2]]


def check(network, image, target) -> None:
    """The gradients that are there are the weighed sums, and none is missing."""
    rows, found = rows_of_trainable(network, losses_of(network, image, target)[0]), gradients(network)
    assert found.keys() == {name for of_task in rows.values() for name in of_task}
    for name, gradient in found.items():
        expected = sum(w * rows[task][name] for w, task in zip(CONSTANTS, TASKS, strict=True) if name in rows[task])
        torch.testing.assert_close(gradient, expected, msg=name)


def rows_of_trainable(network, losses):
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    found = {task: torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
             for task, loss in losses.items()}
    return {task: {name: g for name, g in zip(named, of_task, strict=True) if g is not None}
            for task, of_task in found.items()}


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("kind", "level"), KINDS)
def test_parameters_that_are_frozen_and_unfrozen(kind, level, parts, prepared) -> None:
    network, image, target = problem()
    balancer = build(kind, level=level)
    network.second.requires_grad_(False)
    for change in (lambda: None, lambda: network.second.requires_grad_(True), lambda: network.c.requires_grad_(False),
                   lambda: network.norm.requires_grad_(False), lambda: network.requires_grad_(True)):
        change()
        if prepared:
            balancer.prepare(network, network(image))
        step(balancer, network, image, target, parts)
        check(network, image, target)


class Growing(Small):
    """A layer of the trunk and one between tasks are used when they are switched on."""

    def __init__(self):
        super().__init__()
        self.late, self.between = nn.Conv2d(6, 6, 1), nn.Conv2d(2, 2, 1)
        self.on = False

    def forward(self, x):
        if not self.on:
            return super().forward(x)
        fine = self.norm(self.first(x)).tanh()
        coarse = self.late(self.second(fine)).tanh()
        cut = (fine.view_as(fine), coarse.view_as(coarse))
        a, c = self.a(cut[1]), self.c(cut[0])[..., ::2, ::2]
        return Output({"a": a + self.between(c), "b": self.b(cut[1]) + self.from_a(a.tanh()), "c": c}, shared=cut)


@pytest.mark.parametrize(("kind", "level"), KINDS)
def test_parameters_that_are_first_used_later(kind, level) -> None:
    """That of the trunk was unused, the one between tasks makes a head of task c a shared one."""
    _, image, target = problem()
    network, balancer = Growing().double(), build(kind, level=level)
    step(balancer, network, image, target)
    check(network, image, target)
    network.on = True
    for _ in range(2):
        step(balancer, network, image, target)
        check(network, image, target)


@pytest.mark.parametrize("kind", [ConstantGram, ConstantRows])
def test_parameters_that_only_a_later_micro_batch_uses(kind) -> None:
    _, image, target = problem()
    network, balancer = Growing().double(), build(kind)
    first, second = slice(0, 2), slice(2, 4)

    def run(part, on):
        network.on = on
        return losses_of(network, image, target, part)

    balancer.accumulate([lambda: run(first, False), lambda: run(second, True)], network)
    found = gradients(network)
    rows = [rows_of(network, run(part, on)[0]) for part, on in ((first, False), (second, True))]
    assert "late.weight" in found and "between.weight" in found
    for name, gradient in found.items():
        expected = sum(w * of_part[task][name] for of_part in rows for w, task in zip(CONSTANTS, TASKS, strict=True)
                       if name in of_part[task])
        torch.testing.assert_close(gradient, expected, msg=name)


def test_a_memory_keeps_the_columns_of_the_parameters_that_stay() -> None:
    toy = Toy()
    balancer = CATALOG.load("moco").Config().build(standard_weights=dict.fromkeys(toy.tasks, 1.0))
    toy.trunk.bias.requires_grad_(False)
    balancer.backward(*(lambda made: (made[0], toy.network, made[1]))(toy.losses(0)))
    before = balancer.memory.clone()
    toy.trunk.bias.requires_grad_(True)
    losses, output = toy.losses(1)
    balancer.follow(toy.network, {task: [loss] for task, loss in losses.items()}, output.shared)
    assert torch.equal(balancer.memory[:, :before.shape[1]], before) and not balancer.memory[:, before.shape[1]:].any()
    balancer.backward(losses, toy.network, output)
    assert toy.trunk.bias.grad.any()


def test_the_last_layer_is_the_one_that_runs_last() -> None:
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})
            self.last, self.first = nn.Linear(4, 4), nn.Linear(4, 4)

    network = Reversed()
    features = network.last(network.first(torch.randn(2, 4)).tanh())
    losses = {task: head(features).sum() for task, head in network.heads.items()}
    balancer = build(ConstantGram, level="layer")
    balancer.backward(losses, network)
    assert balancer.reach.layer[0] is network.last.weight


# -- networks without whole gradients --------------------------------------------------------------------------------


def compiled_step(balancer, compile_parts: bool, prepare: bool):
    network, image, target = problem()
    if prepare:
        balancer.prepare(network, network(image))
    if compile_parts:
        network.first.compile(backend="aot_eager")
        network.second.compile(backend="aot_eager")
    else:
        network.compile(backend="aot_eager")
    step(balancer, network, image, target)
    return network, image, target


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [False, True])
@pytest.mark.parametrize(("kind", "level"), [(ConstantGram, "representation"), (ConstantRows, "representation")])
def test_a_network_that_is_compiled_as_a_whole_has_no_cut(kind, level, prepare) -> None:
    with pytest.raises(InputError, match=r"compile.*parts"):
        compiled_step(build(kind, level=level), False, prepare)


@pytest.mark.slow
def test_a_network_that_is_compiled_as_a_whole_has_parameters() -> None:
    check(*compiled_step(build(ConstantGram), False, True))
    with pytest.raises(InputError, match=r"balancer.prepare\(network, output\)"):
        compiled_step(build(ConstantGram), False, False)


@pytest.mark.slow
def test_a_network_that_is_compiled_in_parts_is_measured_by_its_graph() -> None:
    check(*compiled_step(build(ConstantGram, level="representation"), True, False))


def test_reentrant_checkpointing_is_refused() -> None:
    from torch.utils.checkpoint import checkpoint

    network, image, target = problem()
    convolve = network.second.forward
    network.second.forward = lambda x: checkpoint(convolve, x, use_reentrant=True)
    with pytest.raises(InputError, match=r"use_reentrant=False"):
        step(build(ConstantGram), network, image, target)


SHARDED = """
import os, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from method_loop import Network, STANDARD, batch
from polyptych.balancers._base import CATALOG
from polyptych.balancers._gradients import GramBalancer
from polyptych.errors import InputError
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
for name in CATALOG.names():
    torch.manual_seed(0)
    network = Network().double()
    plain = Network().double()
    plain.load_state_dict(network.state_dict())
    balancer = CATALOG.load(name).Config().build(standard_weights=STANDARD)
    image, target, _ = batch(0)
    if name == "mgda":  # measured before it is sharded: the parameters are others then
        balancer.prepare(network, network(image))
    fully_shard(network, mesh=mesh)
    def losses_of(net):
        output = net(image)
        return {task: (output.final[task] - target[task]).pow(2).mean() for task in STANDARD}, output
    losses, output = losses_of(network)
    try:
        balancer.backward(losses, network, output)
        said = "ran"
    except InputError as error:
        said = "refused" if "fully_shard" in str(error) else str(error)
    expected = "refused" if isinstance(balancer, GramBalancer) else "ran"
    assert said == expected, (name, said)
    if said == "ran":
        other = CATALOG.load(name).Config().build(standard_weights=STANDARD)
        other.seed = balancer.seed
        losses, output = losses_of(plain)
        other.backward(losses, plain, output)
        for one, two in zip(network.parameters(), plain.parameters()):
            assert (one.grad is None) == (two.grad is None)
            if one.grad is not None:
                torch.testing.assert_close(one.grad.full_tensor(), two.grad)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_parameters_are_refused_by_methods_that_compare_gradients(tmp_path: Path) -> None:
    program = tmp_path / "sharded.py"
    program.write_text(SHARDED)
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    made = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           str(program)], timeout=240, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths})
    assert made.returncode == 0, made.stderr[-2000:]


# -- losses ----------------------------------------------------------------------------------------------------------


def problem_of(name):
    toy = Toy(tasks=tuple(STANDARD))
    config = CATALOG.load(name).Config()
    return toy, config.build(standard_weights=dict.fromkeys(toy.tasks, 1.0)), *toy.losses(0)


def passes(balancer, losses, output):
    return [lambda: (losses, output)] * getattr(balancer, "splits", 1)


@pytest.mark.parametrize("name", CATALOG.names())
def test_losses_of_shape_one_are_scalars_for_every_method(name) -> None:
    found = []
    for shape in ((), (1,), (1, 1)):
        toy, balancer, losses, output = problem_of(name)
        balancer.seed = 3
        total, weights = balancer.accumulate(
            passes(balancer, {task: loss.reshape(shape) for task, loss in losses.items()}, output), toy.network)
        assert all(loss.shape == () for loss in total.values())
        found.append(({task: float(w) for task, w in weights.items()}, [p.grad for p in toy.network.parameters()]))
    for weights, of_parameters in found[1:]:
        assert weights == found[0][0]
        assert all(one is two or torch.equal(one, two) for one, two in zip(of_parameters, found[0][1], strict=True))


@pytest.mark.parametrize("name", CATALOG.names())
def test_what_is_no_loss_of_a_task_is_refused_in_one_line_by_every_method(name) -> None:
    toy, balancer, losses, output = problem_of(name)
    wrong = {
        r"the loss of 'depth': got float32 of shape \(2,\)": {**losses, "depth": torch.ones(2)},
        r"the loss of 'depth': got int64 of shape \(\)": {**losses, "depth": torch.tensor(1)},
        r"the loss of 'depth': got float; needs a tensor": {**losses, "depth": 1.0},
        r"losses: got a loss for 'dept'; .*nearest: depth": {**losses, "dept": losses["depth"]},
        r"losses: got no loss for 'depth'": {task: loss for task, loss in losses.items() if task != "depth"},
    }
    for said, given in wrong.items():
        with pytest.raises(InputError, match=said) as error:
            balancer.accumulate(passes(balancer, given, output), toy.network)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"active: got 'dept'"):
        balancer.accumulate(passes(balancer, losses, output), toy.network, active={"dept"})
    assert not any(p.grad is not None for p in toy.network.parameters()) and balancer.steps == 0


def test_imtl_of_losses_alone_needs_no_cut() -> None:
    network, image, target = problem()
    losses, _ = losses_of(network, image, target)
    balancer = CATALOG.load("imtl").Config(balance_gradients=False).build(standard_weights=dict.fromkeys(TASKS, 1.0))
    assert isinstance(balancer, GramBalancer)
    weights = balancer.backward(losses, network)
    assert set(weights.values()) == {1.0} and network.first.weight.grad is not None
