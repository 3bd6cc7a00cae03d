"""Deformable convolution: torchvision's operator and ours, and both against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyptych.ops.deform import deformable_convolution


def written_out(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    batch, channels, h, w = x.shape
    groups = offset.shape[1] // 2
    y = bias.view(1, -1, 1, 1).repeat(batch, 1, h, w).clone()

    def pixel(b: int, c: int, row: int, column: int) -> float:
        return float(x[b, c, row, column]) if 0 <= row < h and 0 <= column < w else 0.0

    for b in range(batch):
        for row in range(h):
            for column in range(w):
                for c in range(channels):
                    group = c // (channels // groups)
                    v, u = (at + float(offset[b, 2 * group + i, row, column]) for i, at in enumerate((row, column)))
                    top, left = math.floor(v), math.floor(u)
                    value = sum((1 - abs(v - i)) * (1 - abs(u - j)) * pixel(b, c, i, j)
                                for i in (top, top + 1) for j in (left, left + 1))
                    y[b, :, row, column] += weight[:, c, 0, 0] * value
    return y


@st.composite
def cases(draw):
    h, w = draw(st.integers(5, 7)), draw(st.integers(5, 8))
    torch.manual_seed(draw(st.integers(0, 1000)))
    x = torch.randn(2, 4, h, w, dtype=torch.float64)
    scale = draw(st.sampled_from([0.3, 3.0, 30.0]))
    offset = scale * torch.randn(2, 2 * draw(st.sampled_from([1, 2, 4])), h, w, dtype=torch.float64)
    if draw(st.booleans()):
        offset = offset.round()
    return x, offset, torch.randn(4, 4, 1, 1, dtype=torch.float64), torch.randn(4, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_both_ways_agree_in_values_and_gradients(case) -> None:
    gradients = {}
    for method in ("compiled", "plain"):
        leaves = [t.clone().requires_grad_() for t in case]
        y = deformable_convolution(*leaves, method=method)
        torch.manual_seed(5)
        gradients[method] = (y.detach(), *torch.autograd.grad((y * torch.randn_like(y)).sum(), leaves))
    for one, other in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@settings(max_examples=5, deadline=None)
@given(cases())
def test_both_ways_are_the_formula(case) -> None:
    expected = written_out(*case)
    for method in ("compiled", "plain"):
        torch.testing.assert_close(deformable_convolution(*case, method=method), expected, rtol=1e-10, atol=1e-10)


def test_float32_agrees_far_from_the_origin() -> None:
    torch.manual_seed(0)
    x, offset = torch.randn(1, 8, 90, 120), 20 * torch.randn(1, 16, 90, 120)
    weight = torch.randn(8, 8, 1, 1) / 8
    one, other = (deformable_convolution(x, offset, weight, method=method) for method in ("compiled", "plain"))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_no_offset_is_a_convolution() -> None:
    x, weight = torch.randn(2, 4, 6, 7), torch.randn(5, 4, 1, 1)
    for method in ("auto", "compiled", "plain"):
        y = deformable_convolution(x, torch.zeros(2, 2, 6, 7), weight, method=method)
        torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["auto", "plain"])
def test_bfloat16_keeps_its_type(method: str) -> None:
    x = torch.randn(1, 4, 5, 5).bfloat16()
    y = deformable_convolution(x, torch.zeros(1, 2, 5, 5).bfloat16(), torch.eye(4).bfloat16()[..., None, None],
                               method=method)
    assert y.dtype == torch.bfloat16 and torch.equal(y, x)


def test_an_export_has_no_operator_of_torchvision() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
            return deformable_convolution(x, offset, weight)

    inputs = torch.randn(2, 4, 6, 7), torch.randn(2, 8, 6, 7), torch.randn(3, 4, 1, 1)
    program = torch.export.export(Module(), inputs)
    assert "torchvision" not in str(program.graph)
    torch.testing.assert_close(program.module()(*inputs), Module()(*inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["auto", "plain"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30])
def test_a_place_that_is_nowhere_reads_zero(value: float, axis: int, method: str) -> None:
    x, weight = torch.ones(1, 4, 5, 5), torch.ones(1, 4, 1, 1)
    offset = torch.zeros(1, 2, 5, 5)
    offset[0, axis, 2, 3] = value
    y = deformable_convolution(x, offset, weight, method=method)
    assert y[0, 0, 2, 3] == 0 and y.sum() == 4 * 24


def test_an_exported_model_runs(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'polyptych[export]'")
    pytest.importorskip("onnxscript", reason="needs the extra: pip install 'polyptych[export]'")

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
            return deformable_convolution(x, offset, weight)

    inputs = torch.randn(2, 4, 6, 7), 4 * torch.randn(2, 4, 6, 7), torch.randn(3, 4, 1, 1)
    torch.onnx.export(Module(), inputs, tmp_path / "deform.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "deform.onnx", providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]
    found, = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    torch.testing.assert_close(torch.from_numpy(found), Module()(*inputs), rtol=1e-4, atol=1e-4)
