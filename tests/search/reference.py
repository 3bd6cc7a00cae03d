"""What a policy means, without graphs: one deep copy of the backbone per task, its weights replaced unit by unit."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from polyptych.search.space.policy import OWN, SHARED, SKIP


def single_networks(network: nn.Module, supermodel, policy) -> dict[str, nn.Module]:
    """A network for every task, whose weights are those that the policy gives it.

    Copies are looked up by their names in the supermodel's state dict. A residual branch is left out by letting its
    last layer give zeros, a convolution by putting another module in its place.
    """
    state = supermodel.banks.state_dict()
    networks = {}
    for task in policy.tasks:
        own = deepcopy(network)
        for unit, row in zip(supermodel.units, policy.choices, strict=True):
            choice = row[policy.tasks.index(task)]
            for target in unit.targets:
                bank = {OWN: f"own_{task}", SHARED: "", SKIP: ""}.get(choice, f"group_{choice}")
                if policy.norms == "task" and target in unit.norms:
                    bank = f"own_{task}"
                if bank:
                    load(own, target, state, f"copies.{bank}.")
            if choice == SKIP:
                leave_out(own, supermodel, unit, task)
        networks[task] = own
    return networks


@torch.no_grad()
def load(network: nn.Module, target: str, state, prefix: str) -> None:
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    names = [name for name in tensors if name == target or name.startswith(f"{target}.")]
    assert names
    for name in names:
        if prefix + name in state:
            tensors[name].copy_(state[prefix + name])


@torch.no_grad()
def leave_out(network: nn.Module, supermodel, unit, task: str) -> None:
    nodes = list(supermodel.capture.graph.nodes)
    if unit.skip.kind != "branch":
        conv = next(node.target for node in nodes if node.name == unit.skip.node)
        place, _, name = conv.rpartition(".")
        other = nn.Identity() if unit.skip.projection is None else deepcopy(
            supermodel.banks.projections[task][unit.skip.node])
        setattr(network.get_submodule(place), name, other)
        return
    end = next(i for i, node in enumerate(nodes) if node.name == unit.skip.node)
    last = [node.target for node in nodes[:end] if node.op == "call_module" and node.target in unit.targets]
    scales = [t for t in unit.targets if t.endswith(("gamma", ".ls", ".ls1", ".ls2"))]
    target = scales[-1] if scales else last[-1]
    for name, parameter in network.named_parameters():
        if name == target or name.startswith(f"{target}."):
            parameter.zero_()
