"""What the engine refuses: a level that would do nothing, options out of range, losses without a graph."""

from __future__ import annotations

import pytest
import torch
from small_network import (
    TASKS,
    ConstantGram,
    ConstantRows,
    Small,
    build,
    losses_of,
    problem,
    step,
)
from torch import nn

from polyptych.errors import InputError
from polyptych.types import Output


class Apart(Small):
    """Nothing is shared."""

    def forward(self, x):
        return Output({"a": self.a(torch.cat([x, x], 1)), "b": self.b(torch.cat([x, x], 1)),
                       "c": self.c(torch.cat([x, x[:, :1]], 1))})


class Chained(Small):
    def forward(self, x):
        fine = self.first(x).tanh()
        coarse = self.second(fine)
        return Output({"a": self.a(coarse), "b": self.b(coarse), "c": self.c(fine)}, shared=(fine, coarse))


@pytest.mark.parametrize(("network", "level", "said"), [
    (Apart(), "parameters", "--balancer.level: got parameters, but no trainable parameter is shared by two tasks; "
                            "needs a shared trunk; choose --encoder shared, unfreeze the trunk, or take "
                            "--balancer equal"),
    (Apart(), "layer", "no trainable parameter is shared"),
    (Apart(), "representation", "no trainable parameter is shared"),
    (Chained(), "representation", "Output.shared: got a tensor that was computed from another of its tensors; "
                                  "needs tensors that branch off the trunk; return `x.view_as(x)`"),
])
def test_a_level_that_would_do_nothing_is_refused(network, level, said) -> None:
    balancer = build(ConstantGram, level=level)
    image, target = torch.randn(2, 3, 8, 8), {}
    output = network(image)
    with pytest.raises(InputError) as error:
        balancer.backward({task: output.final[task].sum() for task in TASKS}, network, output)
    assert said in str(error.value) and not target


def test_a_frozen_trunk_is_no_representation_and_the_method_goes_on_with_what_is_shared() -> None:
    network, image, target = problem()
    for part in (network.first, network.norm, network.second):
        part.requires_grad_(False)
    balancer = build(ConstantGram, level="representation")
    step(balancer, network, image, target)
    assert balancer.level != "representation" and balancer.remark


def test_losses_alone_have_no_representation() -> None:
    network, image, target = problem()
    losses, _ = losses_of(network, image, target)
    with pytest.raises(InputError, match=r"Output.shared"):
        build(ConstantGram, level="representation").backward(losses, network)


def test_further_refusals() -> None:
    network, image, target = problem()
    for options, said in [({"every": 0}, "--balancer.every: got 0"), ({"clip_shared": -1.0}, "--balancer.clip-shared")]:
        with pytest.raises(InputError, match=said):
            ConstantGram.Config(**options)
    with pytest.raises(InputError, match=r"--balancer.level: got layer"):
        ConstantRows.Config(level="layer")
    balancer = build(ConstantRows)
    balancer.splits = 3
    with pytest.raises(InputError, match=r"--accumulate: got 2; needs a multiple of 3"):
        step(balancer, network, image, target, parts=2)
    with pytest.raises(InputError, match=r"needs the bare network"):
        build(ConstantGram).backward({}, nn.parallel.DistributedDataParallel.__new__(
            nn.parallel.DistributedDataParallel))
    losses, _ = losses_of(network, image, target)
    with pytest.raises(InputError, match=r"nothing to differentiate for b"):
        build(ConstantGram).backward({**losses, "b": torch.zeros(())}, network)
