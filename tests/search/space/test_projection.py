"""The projection of a strided convolution that is left out, in the memory format that training uses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polyptych.search.space.skips import Projection


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(3, 16, (2, 2)), (4, 16, (2, 1)), (16, 8, (1, 1))])
def test_it_is_a_strided_convolution_and_its_gradients_are_right_with_channels_last(inputs, outputs, stride) -> None:
    torch.manual_seed(0)
    projection = Projection(inputs, outputs, stride).build().to(memory_format=torch.channels_last)
    x = torch.rand(2, inputs, 17, 16)
    last = x.to(memory_format=torch.channels_last).requires_grad_()
    x.requires_grad_()
    weight = projection[0].weight.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    expected = F.batch_norm(F.conv2d(x, weight, stride=stride), None, None, training=True)
    gradient = torch.randn(expected.shape)
    for _ in range(20):  # what is wrong with torch's own shows after some
        projection.zero_grad()
        last.grad = None
        found = projection(last)
        found.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(projection[0].weight.grad, weight.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(last.grad, x.grad, rtol=1e-3, atol=1e-4)
    assert [name for name, _ in projection.named_parameters()] == ["0.weight", "1.weight", "1.bias"]
