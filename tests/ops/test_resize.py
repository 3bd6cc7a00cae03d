"""Resampling maps: bilinear, with a gradient in the layout of the map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polyptych.ops.resize import resize


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(6, 8), (3, 4), (5, 9)])
def test_is_bilinear_and_so_is_its_gradient(layout: torch.memory_format, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 3, 4, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    mine, plain = resize(x, size), F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    assert torch.equal(mine, plain)
    downstream = torch.randn_like(plain)
    assert torch.equal(*(torch.autograd.grad(y, x, downstream)[0] for y in (mine, plain)))


def test_gradients_keep_the_layout_of_the_map() -> None:
    x = torch.randn(2, 3, 3, 4).to(memory_format=torch.channels_last).requires_grad_()
    (gradient,) = torch.autograd.grad(resize(x, (6, 8)), x, torch.randn(2, 3, 6, 8))
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    assert not gradient.is_contiguous()


def test_the_right_size_is_returned_as_it_is() -> None:
    x = torch.randn(1, 2, 3, 4)
    assert resize(x, (3, 4)) is x
