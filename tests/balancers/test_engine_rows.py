"""The buffer of gradient rows: parameters of any layout in memory."""

from __future__ import annotations

import pytest
import torch
from small_network import CONSTANTS, TASKS, ConstantGram, ConstantRows, build
from torch import nn

from polyptych.balancers._engine import Rows
from polyptych.errors import InputError


def layouts() -> dict[str, torch.Tensor]:
    """Four by two numbers."""
    random = torch.Generator().manual_seed(0)
    whole = torch.randn(12, 8, generator=random, dtype=torch.float64)
    return {"columns": whole[:4, :2], "rows": whole[::3, :2].contiguous()[:4], "apart": whole[::3, ::4],
            "turned": whole[:2, :4].T, "repeated": whole[:4, :1].expand(4, 2)}


@pytest.mark.parametrize("kind", [ConstantGram, ConstantRows])
@pytest.mark.parametrize("layout", layouts())
@pytest.mark.filterwarnings("error")
def test_every_parameter_gets_its_own_gradient_whatever_its_memory(kind, layout) -> None:
    """Memory with gaps, in another order, or that several numbers share; the parameter behind it keeps its place."""
    network = nn.ParameterDict({"first": layouts()[layout], "second": layouts()["columns"].T.contiguous()[:, :4]})
    x = torch.randn(5, 2, dtype=torch.float64)

    def losses() -> dict[str, torch.Tensor]:
        made = torch.tanh(x @ network["second"]) @ torch.tanh(network["first"] @ x.T)
        return {task: made[k].square().sum() for k, task in enumerate(TASKS)}

    rows = {task: torch.autograd.grad(loss, list(network.values()), retain_graph=True)
            for task, loss in losses().items()}
    build(kind).backward(losses(), network)
    for place, parameter in enumerate(network.values()):
        expected = sum(w * rows[task][place] for w, task in zip(CONSTANTS, TASKS, strict=True))
        torch.testing.assert_close(parameter.grad, expected)


def test_dense_parameters_keep_their_strides() -> None:
    """Fast optimizers want gradients of the same layout."""
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    rows = Rows([weight], 2)
    rows.hand_over()
    assert weight.grad is not None and weight.grad.stride() == weight.stride()


def test_parameters_of_several_types_are_told_what_there_is() -> None:
    with pytest.raises(InputError, match=r"choose --balancer\.level representation or layer, or a balancer"):
        Rows([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2).double())], 2)
