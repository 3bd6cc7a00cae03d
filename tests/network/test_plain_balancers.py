"""Equal and fixed weights: gradients by hand, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyptych.balancers.equal import Equal
from polyptych.balancers.fixed import Fixed
from polyptych.errors import InputError
from polyptych.types import Output

STANDARD = {"semseg": 1.0, "normals": 10.0, "boundaries": 50.0}


def gradient(balancer, scale=1.0):
    """Losses are <g_t, w>, so the gradient of w is the weighed sum of the g_t."""
    network = nn.Linear(3, 1, bias=False)
    rows = {"semseg": torch.tensor([1.0, 0, 0]), "normals": torch.tensor([0, 1.0, 0]),
            "boundaries": torch.tensor([0, 0, 1.0])}
    losses = {task: (network.weight[0] * row).sum() for task, row in rows.items()}
    weights = balancer.backward(losses, network, Output({}), scale)
    return weights, network.weight.grad[0].tolist()


def test_equal():
    weights, grad = gradient(Equal.Config().build(standard_weights=STANDARD))
    assert weights == dict.fromkeys(STANDARD, 1.0) and grad == [1, 1, 1]


def test_fixed_takes_customary_weights_where_none_is_named():
    weights, grad = gradient(Fixed.Config(weights={"boundaries": 2.5}).build(standard_weights=STANDARD))
    assert weights == {"semseg": 1.0, "normals": 10.0, "boundaries": 2.5} and grad == [1, 10, 2.5]


@pytest.mark.parametrize("scale", [8.0, torch.tensor(8.0)])
def test_scale_multiplies_gradients_not_weights(scale):
    for balancer in (Equal.Config(), Fixed.Config()):
        weights, grad = gradient(balancer.build(standard_weights=STANDARD), scale)
        assert grad == [8 * weights[task] for task in STANDARD]


def test_gradients_add_to_what_is_there():
    network = nn.Linear(1, 1, bias=False)
    network.weight.grad = torch.tensor([[5.0]])
    Equal.Config().build(standard_weights={"a": 1.0}).backward({"a": network.weight.sum()}, network, Output({}))
    assert network.weight.grad.item() == 6


@pytest.mark.parametrize(("weights", "said"), [
    ({"semsag": 1.0}, "balancer.weights: got a weight for 'semsag'; needs one of boundaries, normals, semseg "
                      "(nearest: semseg)"),
    ({"normals": -1.0}, "balancer.weights of 'normals': got -1.0; needs a finite number of at least 0"),
    ({"normals": float("nan")}, "got nan"),
    ({"normals": float("inf")}, "got inf"),
    (dict.fromkeys(STANDARD, 0.0), "got 0 for every task"),
])
def test_refusals(weights, said):
    with pytest.raises(InputError) as error:
        Fixed.Config(weights=weights).build(standard_weights=STANDARD)
    assert said in str(error.value)
