"""Winograd's convolution is the convolution: values and gradients against torch's, and when it is taken."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from polyptych.ops import winograd
from polyptych.ops.winograd import Convolution3x3, convolve, pays, together

SIDES = st.integers(1, 19)


def problem(batch, channels, width, size, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, *size, dtype=dtype, generator=generator)
    weight = torch.randn(width, channels, 3, 3, dtype=dtype, generator=generator) / 3
    return x, weight, torch.randn(batch, width, *size, dtype=dtype, generator=generator)


def results(function, x, weight, gradient):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = function(x, weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), gradient)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.tuples(SIDES, SIDES), st.sampled_from([1, 4000]),
       st.booleans(), st.integers(0, 99))
def test_values_and_gradients(batch, channels, width, size, cache, last, seed) -> None:
    x, weight, gradient = problem(batch, channels, width, size, seed=seed)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "CACHE", cache)  # one row of tiles at a time, or a few
        found = results(convolve, x, weight, gradient)
    plain = results(lambda x, w: F.conv2d(x, w, padding=1), x, weight, gradient)
    for value, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-11)
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    assert found[0].is_contiguous(memory_format=layout)


def test_in_float32_as_exact_as_promised() -> None:
    x, weight, gradient = problem(2, 160, 144, (37, 50), torch.float32)
    exact = results(lambda x, w: F.conv2d(x, w, padding=1), x.double(), weight.double(), gradient.double())
    for value, expected in zip(results(convolve, x, weight, gradient), exact, strict=True):
        assert (value - expected).abs().max() < 5e-6 * expected.abs().max()


def test_gradients_of_gradients() -> None:
    x, weight, _ = problem(1, 2, 2, (5, 6))
    assert torch.autograd.gradgradcheck(convolve, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_one_gradient_alone(wanted) -> None:
    x, weight, gradient = problem(2, 3, 4, (9, 11))
    both = dict(zip(("x", "weight"), results(convolve, x, weight, gradient)[1:], strict=True))
    inputs = {"x": x.detach(), "weight": weight.detach()}
    inputs[wanted].requires_grad_()
    convolve(**inputs).backward(gradient)
    torch.testing.assert_close(inputs[wanted].grad, both[wanted])


def test_when_it_is_taken() -> None:
    x, weight, _ = problem(2, 128, 128, (44, 48), torch.float32)
    assert pays(x, weight)
    assert not pays(x.double(), weight.double()) and not pays(x[:, :64], weight[:, :64]) and not pays(x, weight[:64])
    assert not pays(x[:1, :, :40], weight) and not pays(x[:0], weight)  # few tiles
    with torch.no_grad():
        assert not pays(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not pays(x, weight)


def test_what_is_validated_is_computed_by_torch() -> None:
    torch.manual_seed(0)
    layer, x = Convolution3x3(128, 160), torch.randn(3, 128, 27, 30)
    plain = nn.Conv2d(128, 160, 3, padding=1)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), plain(x))
    trained, expected = layer.train()(x), plain(x)
    assert not torch.equal(trained, expected)
    torch.testing.assert_close(trained, expected, rtol=1e-5, atol=1e-5)


def test_batches_of_gradients_and_torch_func() -> None:
    torch.manual_seed(0)
    layer, x = Convolution3x3(128, 128), torch.randn(2, 128, 40, 48, requires_grad=True)
    gradients = torch.randn(3, 2, 128, 40, 48)
    found, expected = (torch.autograd.grad(y, (x, layer.weight), gradients, is_grads_batched=True)
                       for y in (layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1)))
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-4)
    mapped = torch.func.vmap(layer)(torch.stack([x, 2 * x]).detach())
    torch.testing.assert_close(mapped[0], layer.eval()(x).detach(), rtol=1e-5, atol=1e-5)


def test_a_backward_pass_under_autocast_stays_exact() -> None:
    x, weight, gradient = problem(2, 128, 128, (40, 48), torch.float32)
    expected = results(convolve, x, weight, gradient)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = convolve(x, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(y, (x, weight), gradient)
    assert torch.equal(found[0], expected[1]) and torch.equal(found[1], expected[2])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [4, 128])
def test_several_at_once(width, bias) -> None:
    torch.manual_seed(0)
    layers, x = [Convolution3x3(128, width, bias) for _ in range(3)], torch.randn(2, 128, 36, 37)
    for found, layer in zip(together(x, layers), layers, strict=True):
        torch.testing.assert_close(found, F.conv2d(x, layer.weight, layer.bias, padding=1), rtol=1e-5, atol=1e-5)
