"""The selective scan against the recurrence step by step in float64: values, gradients, memory, exports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from polyptych.ops import _selective_scan_blocks as blocks
from polyptych.ops import selective_scan as scans
from polyptych.ops.selective_scan import paths, selective_scan_over_map
from polyptych.profiling.memory import StorageWatch
from polyptych.profiling.operators import count

CUTS = [{}, {"segments": 3, "steps": 4}, {"segments": 5, "steps": 7, "lanes": 100}, {"lanes": 64, "steps": 5},
        {"steps": 1}]


def inputs(batch=2, tasks=3, size=(5, 7), channels=6, states=4, longest=0.5, dtype=torch.float64) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    length = size[0] * size[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    dt = torch.rand(4, batch, tasks, length, channels, generator=random, dtype=torch.float64) * longest
    a = -16 * torch.rand(4, tasks, states, channels, generator=random, dtype=torch.float64)
    return [normal(batch, tasks, length, channels), dt.to(dtype), a.to(dtype),
            *(normal(4, batch, tasks, length, states) for _ in range(2)), normal(4, tasks, channels)]


def step_by_step(u, dt, a, b, c) -> Tensor:
    """The recurrence (sequence, position, channel); autograd stores every state twice for it."""
    state, read = torch.zeros_like(a), []
    for u_i, dt_i, b_i, c_i in zip(*(x.unbind(1) for x in (u, dt, b, c)), strict=True):
        state = (dt_i[:, None] * a).exp() * state + b_i[..., None] * (dt_i * u_i)[:, None]
        read.append((c_i[..., None] * state).sum(1))
    return torch.stack(read, dim=1)


@contextmanager
def form(method: str) -> Iterator[str]:
    """A method of a scan; ``loop`` is the recurrence in place of the plain form."""
    with pytest.MonkeyPatch.context() as patch:
        if method == "loop":
            patch.setattr(scans, "_in_chunks", step_by_step)
        yield "plain" if method == "loop" else method


def over_map(*arguments, method="auto") -> Tensor:
    with form(method) as chosen:
        return selective_scan_over_map(*arguments, method=chosen)


def selective_scan(u, dt, a, b, c, skip=None, *, method="auto") -> Tensor:
    """One scan of sequences, y for every one."""
    order = torch.arange(u.shape[1], device=u.device)[None]
    with form(method) as chosen:
        scanned = scans._scan(u, dt[None], a[None, None].expand(1, len(u), -1, -1), b[None], c[None], order, order,
                              chosen)
    return scanned.to(u.dtype) if skip is None else (scanned + u * skip).to(u.dtype)


def with_gradients(tensors: list[Tensor], size=(5, 7), method="auto") -> list[Tensor]:
    tensors = [x.clone().requires_grad_() for x in tensors]
    y = over_map(*tensors, size, method=method)
    random = torch.Generator().manual_seed(1)
    direction = torch.randn(y.shape, generator=random, dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, direction)]


def written_out(u, dt, a, b, c, skip, size) -> Tensor:
    """The recurrence, one number at a time but for states, on maps that are turned and flipped as a reader would."""
    height, width = size
    batch, tasks, _, channels = u.shape
    total = torch.zeros_like(u)
    for k in range(4):
        order = [row * width + column for row in range(height) for column in range(width)]
        if k % 2:
            order = [row * width + column for column in range(width) for row in range(height)]
        if k > 1:
            order = order[::-1]
        for i in range(batch):
            for t in range(tasks):
                for d in range(channels):
                    state = torch.zeros_like(a[k, t, :, d])
                    for p in order:
                        state = ((dt[k, i, t, p, d] * a[k, t, :, d]).exp() * state
                                 + dt[k, i, t, p, d] * b[k, i, t, p] * u[i, t, p, d])
                        total[i, t, p, d] += c[k, i, t, p] @ state + skip[k, t, d] * u[i, t, p, d]
    return total


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((x.double() - y).abs().max() / y.abs().max()) for x, y in zip(found, expected, strict=True))


def test_every_form_is_the_recurrence():
    tensors = inputs(batch=1, tasks=2, size=(3, 4), channels=2)
    expected = written_out(*tensors, (3, 4))
    for method in ("loop", "plain", "blocks", "auto"):
        assert relative([over_map(*tensors, (3, 4), method=method)], [expected]) < 1e-14


@pytest.fixture(params=CUTS, ids=str)
def cut(request, monkeypatch):
    """Blocks of these sizes, whatever suits the shapes."""
    original = blocks.shape_of
    monkeypatch.setattr(blocks, "shape_of", lambda dt, a, training: original(dt, a, training, **request.param))


@pytest.mark.parametrize("longest", [0.1, 1.0, 20.0])
def test_values_and_gradients_in_float64(cut, longest):
    tensors = inputs(longest=longest)
    assert relative(with_gradients(tensors, method="blocks"), with_gradients(tensors, method="loop")) < 1e-12


@pytest.mark.parametrize("method", ["blocks", "plain"])
@pytest.mark.parametrize("longest", [0.1, 20.0])
def test_values_and_gradients_in_float32(method, longest):
    size = (37, 29)  # long, and no multiple of anything
    tensors = [x.float() for x in inputs(1, 1, size, 3, 16, longest)]
    exact = with_gradients([x.double() for x in tensors], size, "loop")
    assert relative(with_gradients(tensors, size, method), exact) < 1e-5


def test_many_rows_without_gradients():
    """Enough of them that there are no blocks."""
    tensors = inputs(2, 1, (3, 5), channels=blocks.MANY_LANES // 16, states=16, longest=20.0)
    expected = over_map(*tensors, (3, 5), method="loop")
    assert relative([selective_scan_over_map(*tensors, (3, 5))], [expected]) < 1e-12


def test_a_sequence():
    u, dt, a, b, c, skip = inputs(tasks=1, size=(1, 19))
    arguments = (u[:, 0], dt[0, :, 0], a[0, 0], b[0, :, 0], c[0, :, 0], skip[0, 0])
    expected = selective_scan(*arguments, method="loop")
    for method in ("blocks", "plain"):
        assert relative([selective_scan(*arguments, method=method)], [expected]) < 1e-14
    assert not selective_scan(*arguments[:5]).allclose(expected)  # without the skip


def test_gradients_by_finite_differences():
    u, dt, a, b, c, skip = inputs(1, 1, (2, 3), 2, 2)
    tensors = [x.requires_grad_() for x in (u, dt + 0.1, a, b, c, skip)]
    assert torch.autograd.gradcheck(lambda *x: selective_scan_over_map(*x, (2, 3)), tensors)


def test_second_derivatives():
    tensors = [x.requires_grad_() for x in inputs(1, 1, (2, 3), 2, 2)]

    def of_gradients(method: str) -> list[Tensor]:
        y = over_map(*tensors, (2, 3), method=method)
        first = torch.autograd.grad((y**2).sum(), tensors, create_graph=True)
        return list(torch.autograd.grad(sum((g**2).sum() for g in first), tensors))

    assert relative(of_gradients("blocks"), of_gradients("loop")) < 1e-12


def test_only_what_asks_gets_a_gradient():
    tensors = inputs(1, 1, (3, 4))
    tensors[2].requires_grad_()
    selective_scan_over_map(*tensors, (3, 4)).sum().backward()
    assert tensors[2].grad.abs().sum() > 0 and all(x.grad is None for i, x in enumerate(tensors) if i != 2)


def test_paths_visit_every_position_and_know_when():
    there, back = paths(3, 5, torch.device("cpu"))
    assert torch.equal(there.gather(1, back), torch.arange(15).expand(4, -1))
    assert there[1, :4].tolist() == [0, 5, 10, 1] and torch.equal(there[2:], there[:2].flip(1))


def test_low_precision_is_raised_inside():
    tensors = inputs(longest=1.0)
    expected = over_map(*tensors, (5, 7), method="loop")
    with torch.autocast("cpu", torch.bfloat16):
        found = selective_scan_over_map(*(x.bfloat16() for x in tensors), (5, 7))
        same = selective_scan_over_map(*(x.float() for x in tensors), (5, 7))
    assert found.dtype == torch.bfloat16 and relative([found], [expected]) < 0.05
    assert relative([same], [expected]) < 1e-6


def test_memory_of_training_is_linear_and_a_tenth_of_autograd():
    """What the forward and the backward pass of blocks allocate, all inside them, against autograd over the loop."""
    def peaks(rows: int) -> tuple[int, int]:
        size = (rows, 16)
        tensors = inputs(1, 1, size, 128, 16, dtype=torch.float32)
        u, dt, a, b, c = (x.flatten(1, 2) if x.ndim == 5 else x for x in tensors[:5])
        order = paths(*size, u.device)[0]
        arguments = (u[0], dt, a, b, c, order)
        with StorageWatch() as watch:
            shape = blocks.shape_of(dt, a, True)
            y, kept = blocks.forward(*arguments, shape, True)
            blocks.backward(y, *arguments, kept, shape)
        ours = watch.peak
        with StorageWatch() as watch:
            with_gradients(tensors, size, "loop")
        return ours, watch.peak

    (short, _), (long, loop) = peaks(4), peaks(16)
    assert long < loop / 10
    assert long < 4.5 * short


def test_multiply_adds_are_counted():
    tensors = inputs()
    module = torch.nn.Identity()
    counted = count(module, lambda: selective_scan_over_map(*(x.requires_grad_() for x in tensors), (5, 7)))[0]
    assert counted.total == 4 * 4 * 2 * 3 * 35 * 6 * 4
    assert not [operator for operator in counted.uncounted if operator.kind == "unknown"]


class Scan(torch.nn.Module):
    def forward(self, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
        return selective_scan(u, dt, a, b, c, skip)


def sequence(length: int) -> tuple[Tensor, ...]:
    u, dt, a, b, c, skip = inputs(2, 1, (1, length), 3, 2, 20.0, torch.float32)
    return u[:, 0], dt[0, :, 0], a[0, 0], b[0, :, 0], c[0, :, 0], skip[0, 0]


def program_for_any_length() -> torch.export.ExportedProgram:
    along = {1: torch.export.Dim.DYNAMIC}
    return torch.export.export(Scan(), sequence(40), dynamic_shapes=(along, along, None, along, along, None),
                               strict=False, prefer_deferred_runtime_asserts_over_guards=True)


def test_an_exported_program_takes_any_length(monkeypatch):
    """It was captured on whole chunks; others have a part of one at the end, or less than one. Short ones need little
    memory, though the program has rounds for the longest."""
    monkeypatch.setattr(scans, "CHUNK", 2)
    scan = program_for_any_length().module()
    for long in (1, 2, 3, 4, 5, 40, 43):
        expected = selective_scan(*(x.double() for x in sequence(long)), method="loop")
        with StorageWatch() as watch:
            found = scan(*sequence(long))
        assert relative([found], [expected]) < 1e-5 and watch.peak < 100_000


@pytest.mark.grid
@pytest.mark.parametrize(("chunk", "optimize"), [(2, False), (scans.CHUNK, True)])
def test_a_file_takes_any_length(chunk, optimize, tmp_path, monkeypatch):
    """The graph has all steps of a chunk one by one; an optimizer of graphs looks at each of its nodes many times."""
    monkeypatch.setattr(scans, "CHUNK", chunk)
    path = tmp_path / "scan.onnx"
    torch.onnx.export(program_for_any_length(), dynamo=True, verbose=False, optimize=optimize).save(str(path))
    session = pytest.importorskip("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for long in (1, 7, 40, 333):
        arguments = sequence(long)
        found = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), arguments, strict=True)})[0]
        expected = selective_scan(*(x.double() for x in arguments), method="loop")
        assert relative([torch.from_numpy(found)], [expected]) < 1e-5
