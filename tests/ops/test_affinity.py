"""Cross-task affinity: every method against the paper's formula, and that against loops and the published layout."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyptych.ops import _affinity_autograd, _affinity_convolved, _affinity_grid, affinity
from polyptych.ops._affinity_grid import Grid
from polyptych.ops.affinity import affinity_diffusion, cross_task_affinity, operations
from polyptych.profiling.memory import peak

METHODS = ("linear", "streamed")


def inputs(*, h=3, w=4, sources=2, targets=2, c=4, d=3, k=3, shared=False, batch=2, dtype=torch.float64, seed=0
           ) -> list[Tensor]:
    """Features of unit length, values, kernel and bias, all of which want gradients."""
    torch.manual_seed(seed)
    kernels = () if shared else (targets,)
    made = [F.normalize(torch.randn(batch, sources, c, h, w, dtype=dtype), dim=2),
            torch.randn(batch, targets, d, h, w, dtype=dtype),
            torch.randn(*kernels, h * w, sources, k, k, dtype=dtype), torch.randn(*kernels, h * w, dtype=dtype)]
    return [x.requires_grad_() for x in made]


def with_gradients(x: list[Tensor], **options) -> list[Tensor]:
    y = cross_task_affinity(*x, **options)
    return [y, *torch.autograd.grad(y, [a for a in x if a.requires_grad], downstream(y))]


def downstream(y: Tensor) -> Tensor:
    """The same gradient of ``y`` in every precision."""
    return torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y.dtype)


def distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``b``."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def test_materialized_is_the_formula_in_loops() -> None:
    for shared in (False, True):
        g, v, kernel, bias = (x.detach() for x in inputs(shared=shared, c=2, d=2, batch=1))
        y = torch.zeros_like(v)
        positions = [(a, b) for a in range(3) for b in range(4)]
        for t in range(2):
            weight, offset = (kernel, bias) if shared else (kernel[t], bias[t])
            for i, (iy, ix) in enumerate(positions):
                for py, px in positions:
                    mixed = offset[i].item()
                    for s in range(2):
                        for u in range(3):
                            for q in range(3):
                                ny, nx = py + u - 1, px + q - 1
                                if 0 <= ny < 3 and 0 <= nx < 4:
                                    mixed += float(weight[i, s, u, q] * (g[0, s, :, iy, ix] @ g[0, s, :, ny, nx]))
                    y[0, t, :, iy, ix] += mixed * v[0, t, :, py, px]
        assert distance(cross_task_affinity(g, v, kernel, bias, method="materialized"), y) < 1e-14


@pytest.mark.parametrize("method", ["materialized", *METHODS])
def test_equals_the_published_layout(method: str) -> None:
    """EMA-Net's order of things: one affinity map for every position and task, interleaved as the input channels of a
    convolution with one group per position; the same matrix for all tasks."""
    h, w, tasks = 5, 6, 3
    g, v, kernel, bias = (x.detach() for x in inputs(h=h, w=w, sources=tasks, targets=tasks, shared=True))
    n = h * w
    maps = [(g[:, t].flatten(2).transpose(1, 2) @ g[:, t].flatten(2)).view(-1, n, h, w) for t in range(tasks)]
    convolution = torch.nn.Conv2d(n * tasks, n, 3, padding=1, groups=n).double()
    convolution.weight.data, convolution.bias.data = kernel, bias
    mixed = convolution(torch.stack(maps, dim=2).flatten(1, 2)).flatten(2)
    expected = [(mixed @ v[:, t].flatten(2).transpose(1, 2)).transpose(1, 2).view_as(v[:, t]) for t in range(tasks)]
    assert distance(cross_task_affinity(g, v, kernel, bias, method=method), torch.stack(expected, dim=1)) < 1e-12


sizes = st.sampled_from([(1, 1), (1, 5), (3, 2), (7, 5), (2, 9), (6, 6)])


@settings(max_examples=80, deadline=None)
@given(method=st.sampled_from([*METHODS, "products"]), size=sizes, targets=st.integers(1, 5),
       other=st.none() | st.integers(1, 5), k=st.sampled_from([1, 3, 5]), shared=st.booleans(),
       batch=st.integers(1, 2), single=st.booleans(), bias_learns=st.booleans(), seed=st.integers(0, 999))
def test_methods_equal_materialized(method, size, targets, other, k, shared, batch, single, bias_learns, seed) -> None:
    """In values and in gradients of every input, in both precisions. In float32 ``linear`` is computed by convolutions
    on a CPU; "products" are the matrix products that it takes elsewhere."""
    x = inputs(h=size[0], w=size[1], sources=other or targets, targets=targets, c=5, d=4, k=k, shared=shared,
               batch=batch, seed=seed, dtype=torch.float32 if single else torch.float64)
    x[3].requires_grad_(bias_learns)
    limit = 1e-5 if single else 1e-10
    expected = with_gradients([a.detach().double().requires_grad_(a.requires_grad) for a in x], method="materialized")
    with pytest.MonkeyPatch.context() as patch:
        if method == "products":
            patch.setattr(_affinity_convolved, "is_preferred", lambda features: False)
        found = with_gradients(x, method="linear" if method == "products" else method)
    for mine, reference in zip(found, expected, strict=True):
        # A gradient that is zero but for rounding (one position, one channel) has no relative error.
        assert distance(mine, reference) < limit or float((mine - reference).detach().norm()) < limit


@pytest.mark.parametrize("method", METHODS)
def test_blocks_of_any_length_give_the_same(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(h=5, w=7, shared=True)
    expected = with_gradients(x, method="materialized")

    def tiny(grid, samples, per_position, device, *, share=1):
        return ((slice(sample, sample + 1), slice(start, min(start + 4, grid.span)))
                for sample in range(samples) for start in range(0, grid.span, 4))

    module = getattr(_affinity_autograd, method)
    monkeypatch.setattr(module, "blocks", tiny)
    for mine, reference in zip(with_gradients(x, method=method), expected, strict=True):
        assert distance(mine, reference) < 1e-12


@pytest.mark.parametrize("shared", [False, True])
def test_blocks_of_convolutions_of_any_length_give_the_same(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _affinity_convolved.is_preferred(torch.zeros(1)), "this build of torch has no oneDNN"
    x = inputs(h=5, w=7, shared=shared, dtype=torch.float32)
    exact = with_gradients([a.detach().double().requires_grad_() for a in x], method="materialized")
    monkeypatch.setattr(_affinity_convolved, "BLOCK", 4 * 2 * 9 * 4)  # four positions
    for mine, reference in zip(with_gradients(x, method="linear"), exact, strict=True):
        assert distance(mine, reference) < 1e-5


def test_blocks_cover_every_position_once() -> None:
    grid = Grid(40, 50, 3)
    for device in ("cpu", "cuda"):
        seen = torch.zeros(3, grid.span, dtype=torch.int)
        for samples, positions in _affinity_grid.blocks(grid, 3, 30_000, torch.device(device)):
            seen[samples, positions] += 1
        assert (seen == 1).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shared", [False, True])
def test_gradients_are_derivatives(method: str, shared: bool) -> None:
    x = inputs(h=1, w=3, c=2, d=1, batch=1, shared=shared)
    assert torch.autograd.gradcheck(lambda *a: cross_task_affinity(*a, method=method), x)
    assert torch.autograd.gradgradcheck(lambda *a: cross_task_affinity(*a, method=method), x, fast_mode=True)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_need_not_be_contiguous(method: str) -> None:
    x = inputs(h=4, w=5)
    strided = [a.detach().transpose(-1, -2).contiguous().transpose(-1, -2).requires_grad_() for a in x[:2]]
    strided += [a.detach().flip(0).flip(0).transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
                for a in x[2:]]
    for mine, reference in zip(with_gradients(strided, method=method), with_gradients(x, method=method), strict=True):
        assert distance(mine, reference) < 1e-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_sums_in_float32(method: str, dtype: torch.dtype) -> None:
    x = inputs(h=24, w=32, dtype=torch.float32, c=16, d=16, batch=1)
    half = [a.detach().to(dtype).requires_grad_() for a in x]
    exact = with_gradients([a.detach().double().requires_grad_() for a in half], method="materialized")
    for mine, reference in zip(with_gradients(half, method=method), exact, strict=True):
        assert mine.dtype == dtype
        assert distance(mine, reference) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_products(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path that CUDA takes, with its product (bfloat16 factors, float32 sums) imitated."""
    monkeypatch.setattr(affinity, "_precision", lambda *inputs: torch.bfloat16)

    def product(a: Tensor, b: Tensor) -> Tensor:
        assert a.dtype == b.dtype == torch.bfloat16
        return torch.bmm(a.float(), b.float())

    for module in (_affinity_grid, _affinity_autograd.linear, _affinity_autograd.streamed):
        monkeypatch.setattr(module, "product", product)
    x = inputs(h=24, w=32, dtype=torch.float32, c=16, d=16, batch=2)
    exact = with_gradients([a.detach().double().requires_grad_() for a in x], method="materialized")
    for mine, reference in zip(with_gradients(x, method=method), exact, strict=True):
        assert mine.dtype == torch.float32
        assert distance(mine, reference) < 1e-2


@pytest.mark.parametrize("method", ["materialized", *METHODS])
def test_autocast_on_the_cpu_changes_nothing(method: str) -> None:
    """Its sums would be rounded to bfloat16."""
    x = inputs(h=6, w=8, dtype=torch.float32)
    expected = with_gradients(x, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = cross_task_affinity(*x, method=method)
    mine = [y, *torch.autograd.grad(y, x, downstream(y))]
    assert all(torch.equal(a, b) for a, b in zip(mine, expected, strict=True))


def test_auto_takes_the_method_with_fewer_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    apply = affinity.Gather.apply
    monkeypatch.setattr(affinity.Gather, "apply", lambda *a: taken.append(a[3]) or apply(*a))
    for h, w, c in ((3, 3, 16), (3, 3, 1), (20, 30, 2), (6, 6, 8), (9, 9, 8)):
        x = inputs(h=h, w=w, c=c, d=c)
        cost = operations(h * w, sources=2, targets=2, channels=c, value_channels=c, k=3)
        y = cross_task_affinity(*x)
        assert taken.pop() == min(cost, key=cost.get)
        assert distance(y, cross_task_affinity(*x, method="materialized")) < 1e-12
    at_paper_size = {n: operations(n, sources=3, targets=3, channels=128, value_channels=128, k=3)
                     for n in (9 * 12, 18 * 24, 36 * 48, 72 * 96)}
    assert [min(cost, key=cost.get) for cost in at_paper_size.values()] == ["streamed"] * 2 + ["linear"] * 2


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="2 x 2"):
        cross_task_affinity(*inputs(k=2))


@pytest.mark.parametrize("method", METHODS)
def test_memory_grows_linearly(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of forward and backward pass together: four times the positions, at most four times the bytes."""
    def small(grid, samples, per_position, device, *, share=1):
        return ((slice(0, samples), slice(start, min(start + 64, grid.span))) for start in range(0, grid.span, 64))

    monkeypatch.setattr(getattr(_affinity_autograd, method), "blocks", small)
    bytes_at = {}
    for h, w in ((16, 24), (32, 48)):
        x = inputs(h=h, w=w, sources=1, targets=1, c=4, d=4, batch=1, dtype=torch.float32)
        bytes_at[h * w] = peak(lambda x=x: with_gradients(x, method=method), torch.device("cpu"))
    few, many = bytes_at.values()
    assert many < 4.2 * few
    assert many < 4 * 1536**2  # bytes of one float32 matrix of all pairs


@pytest.fixture
def unchecked() -> Iterator[None]:
    """The package as users run it: without the type checks of these tests, which torch cannot trace."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shared", [False, True])
def test_export_agrees(shared: bool, unchecked: None) -> None:
    class Layer(torch.nn.Module):
        def forward(self, *x: Tensor) -> Tensor:
            return cross_task_affinity(*x, method="auto")

    x = tuple(a.detach() for a in inputs(h=5, w=6, shared=shared))
    exported = torch.export.export(Layer(), x)
    assert distance(exported.module()(*x), cross_task_affinity(*x, method="materialized")) < 1e-12
    traced = torch.jit.trace(Layer(), x, check_trace=False)
    assert distance(traced(*x), cross_task_affinity(*x, method="materialized")) < 1e-12
    called = {str(node.target) for node in exported.run_decompositions().graph.nodes if node.op == "call_function"}
    assert all(name.startswith("aten.") for name in called)


COMPILED = """
import torch, test_affinity as t
x = t.inputs(h=4, w=5, batch=1, dtype=torch.{dtype})
y = torch.compile(t.cross_task_affinity, fullgraph=True)(*x, method="{method}")
mine = [y, *torch.autograd.grad(y, x, t.downstream(y))]
for a, b in zip(mine, t.with_gradients(x, method="materialized"), strict=True):
    assert t.distance(a, b) < {limit}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("method", METHODS)
def test_compiled_equals_eager(method: str, dtype: str, limit: float) -> None:
    """In a process of its own, without the type checks of these tests, which torch cannot trace."""
    script = COMPILED.format(method=method, dtype=dtype, limit=limit)
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent, check=True)


def diffused(features: Tensor, values: Tensor, weights: Tensor) -> Tensor:
    """PAP-Net's diffusion with every matrix written out."""
    results = []
    for sources, x in zip(features, values.flatten(2), strict=True):
        mixed = torch.zeros(x.shape[1], x.shape[1], dtype=x.dtype)
        for weight, source in zip(weights, sources.flatten(2), strict=True):
            unit = source / source.norm(dim=0)
            a = (1 + unit.T @ unit) / 2
            mixed += weight * a / a.sum(1, keepdim=True)
        results.append((mixed @ x.T).T)
    return torch.stack(results).view_as(values)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 4)])
def test_diffusion_is_its_equation(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    features, values = torch.randn(2, 3, 4, *size).double(), torch.randn(2, 5, *size).double()
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    assert distance(affinity_diffusion(features, values, weights=weights), diffused(features, values, weights)) < 1e-12


def test_diffusion_averages_and_learns() -> None:
    """A constant stays what it is, a feature of length zero does no harm, and all inputs get gradients."""
    torch.manual_seed(0)
    features = torch.randn(1, 2, 3, 4, 4).double()
    features[:, :, :, 1, 1] = 0
    y = affinity_diffusion(features, torch.full((1, 2, 4, 4), 7.0).double(), weights=torch.tensor([0.5, 0.5]))
    assert torch.allclose(y, torch.full_like(y, 7.0))
    x = [torch.randn(1, 2, 3, 2, 2).double().requires_grad_(), torch.randn(1, 2, 2, 2).double().requires_grad_(),
         torch.rand(2).double().requires_grad_()]
    assert torch.autograd.gradcheck(lambda f, v, w: affinity_diffusion(f, v, weights=w), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_diffusion_in_half_precision(dtype: torch.dtype) -> None:
    features, values = torch.randn(1, 1, 8, 60, 80).to(dtype), 100 * torch.rand(1, 4, 60, 80).to(dtype)
    exact = affinity_diffusion(features.double(), values.double(), weights=torch.ones(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = affinity_diffusion(features, values, weights=torch.ones(1))
    assert y.dtype == dtype and math.isclose(distance(y, exact), 0, abs_tol=2 * torch.finfo(dtype).eps)


def test_a_zero_vector_has_a_bounded_gradient() -> None:
    """A position where every channel is cut off by a ReLU."""
    features = torch.randn(1, 1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    features[..., 1, 2] = 0
    features.requires_grad_()
    values = torch.rand(1, 2, 3, 5, generator=torch.Generator().manual_seed(1))
    affinity_diffusion(features, values, weights=torch.ones(1)).square().sum().backward()
    assert features.grad is not None and features.grad.abs().max() < 1e7
