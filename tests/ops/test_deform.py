"""Deformable convolution: torchvision's operator and ours, and both against loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyptych.errors import InputError
from polyptych.ops.deform import deformable_convolution


def written_out(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor, stride: int, padding: int,
                dilation: int) -> Tensor:
    batch, channels, h, w = x.shape
    out, inside, kh, kw = weight.shape
    groups, taps = mask.shape[1] // (kh * kw), kh * kw
    y = bias.view(1, -1, 1, 1).repeat(batch, 1, *offset.shape[2:]).clone()

    def pixel(b: int, c: int, row: int, column: int) -> float:
        return float(x[b, c, row, column]) if 0 <= row < h and 0 <= column < w else 0.0

    for b in range(batch):
        for row in range(offset.shape[2]):
            for column in range(offset.shape[3]):
                for c in range(channels):
                    group = c // (channels // groups)
                    for tap in range(taps):
                        dy, dx = (float(offset[b, 2 * (group * taps + tap) + i, row, column]) for i in (0, 1))
                        v = row * stride - padding + (tap // kw) * dilation + dy
                        u = column * stride - padding + (tap % kw) * dilation + dx
                        top, left = math.floor(v), math.floor(u)
                        value = sum((1 - abs(v - i)) * (1 - abs(u - j)) * pixel(b, c, i, j)
                                    for i in (top, top + 1) for j in (left, left + 1))
                        value *= float(mask[b, group * taps + tap, row, column])
                        for o in range(out):
                            if o // (out // (channels // inside)) == c // inside:
                                y[b, o, row, column] += weight[o, c % inside, tap // kw, tap % kw] * value
    return y


@st.composite
def cases(draw):
    groups = draw(st.sampled_from([1, 2]))
    offset_groups = draw(st.sampled_from([1, 2, 4]))
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 2)]))
    stride, padding, dilation = draw(st.integers(1, 2)), draw(st.integers(0, 2)), draw(st.integers(1, 2))
    h, w = draw(st.integers(5, 7)), draw(st.integers(5, 8))
    rows, columns = ((n + 2 * padding - dilation * (k - 1) - 1) // stride + 1
                     for n, k in zip((h, w), kernel, strict=True))
    torch.manual_seed(draw(st.integers(0, 1000)))
    x = torch.randn(2, 4, h, w, dtype=torch.float64)
    scale = draw(st.sampled_from([0.3, 3.0, 30.0]))
    offset = scale * torch.randn(2, 2 * offset_groups * kernel[0] * kernel[1], rows, columns, dtype=torch.float64)
    if draw(st.booleans()):
        offset = offset.round()
    weight = torch.randn(4, 4 // groups, *kernel, dtype=torch.float64)
    mask = torch.rand(2, offset_groups * kernel[0] * kernel[1], rows, columns, dtype=torch.float64)
    return (x, offset, weight, torch.randn(4, dtype=torch.float64), mask), (stride, padding, dilation)


def run(tensors, options, method: str) -> Tensor:
    stride, padding, dilation = options
    return deformable_convolution(*tensors, stride=stride, padding=padding, dilation=dilation, method=method)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_both_ways_agree_in_values_and_gradients(case) -> None:
    tensors, options = case
    gradients = {}
    for method in ("compiled", "plain"):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = run(leaves, options, method)
        torch.manual_seed(5)
        gradients[method] = (y.detach(), *torch.autograd.grad((y * torch.randn_like(y)).sum(), leaves))
    for one, other in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@settings(max_examples=5, deadline=None)
@given(cases())
def test_both_ways_are_the_formula(case) -> None:
    expected = written_out(*case[0], *case[1])
    for method in ("compiled", "plain"):
        torch.testing.assert_close(run(*case, method), expected, rtol=1e-10, atol=1e-10)


def test_float32_agrees_far_from_the_origin() -> None:
    torch.manual_seed(0)
    x, offset = torch.randn(1, 8, 90, 120), 20 * torch.randn(1, 16, 90, 120)
    weight = torch.randn(8, 8, 1, 1) / 8
    one, other = (deformable_convolution(x, offset, weight, method=method) for method in ("compiled", "plain"))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_no_offset_is_a_convolution() -> None:
    x, weight = torch.randn(2, 4, 6, 7), torch.randn(5, 4, 3, 3)
    for method in ("auto", "compiled", "plain"):
        y = deformable_convolution(x, torch.zeros(2, 18, 6, 7), weight, padding=1, method=method)
        torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight, padding=1), rtol=1e-5, atol=1e-5)


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


def test_offsets_of_another_size() -> None:
    with pytest.raises(InputError, match="offsets of 4x5"):
        deformable_convolution(torch.zeros(1, 4, 5, 5), torch.zeros(1, 2, 4, 5), torch.zeros(2, 4, 1, 1))


def test_an_exported_model_runs(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra: pip install 'polyptych[export]'")
    pytest.importorskip("onnxscript", reason="needs the extra: pip install 'polyptych[export]'")

    class Module(torch.nn.Module):
        def forward(self, x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
            return deformable_convolution(x, offset, weight, padding=1)

    inputs = torch.randn(2, 4, 6, 7), 4 * torch.randn(2, 36, 6, 7), torch.randn(3, 4, 3, 3)
    torch.onnx.export(Module(), inputs, tmp_path / "deform.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "deform.onnx", providers=["CPUExecutionProvider"])
    names = [put.name for put in session.get_inputs()]
    found, = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
    torch.testing.assert_close(torch.from_numpy(found), Module()(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("offsets", "masks", "said"), [
    (5, None, "5 offset channels"), (6, None, "6 offset channels"), (4, 3, "3 mask channels")])
def test_shapes_that_do_not_fit(offsets: int, masks: int | None, said: str) -> None:
    mask = None if masks is None else torch.zeros(1, masks, 5, 5)
    with pytest.raises(InputError, match=said):
        deformable_convolution(torch.zeros(1, 4, 5, 5), torch.zeros(1, offsets, 5, 5), torch.zeros(2, 4, 1, 1),
                               mask=mask)
