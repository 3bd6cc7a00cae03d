"""The selective scan of state space models, along four paths over a map.

A row (one channel of one sequence) has n states. At every step i the states decay according to the length dt of the
step, the input is added, and the output is read from them:

    h_i = exp(dt_i A) h_(i-1) + dt_i B_i u_i        h_0 = 0
    y_i = C_i . h_i + D u_i

dt is positive and separate for each row, A is negative, and B and C are shared by the channels of a sequence. Because
dt, B and C depend on the input, the scan is not a convolution and cannot be computed by FFT.

Source: Gu, Dao, arXiv 2312.00752 (Mamba); Liu et al., NeurIPS 2024, arXiv 2401.10166 (four paths over a map)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from polyptych.ops import _selective_scan_blocks as blocks
from polyptych.ops import exporting, without_autocast

Method = Literal["auto", "blocks", "plain"]

PATHS = 4  # row by row, column by column, and both of them backwards
CHUNK = 16  # steps that the exported form unrolls


def selective_scan_over_map(
        u: Float[Tensor, "b t l d"], dt: Float[Tensor, "4 b t l d"], a: Float[Tensor, "4 t n d"],
        b: Float[Tensor, "4 b t l n"], c: Float[Tensor, "4 b t l n"], skip: Float[Tensor, "4 t d"],
        size: tuple[int, int], *, method: Method = "auto") -> Float[Tensor, "b t l d"]:
    """The sum of four scans that read the positions of a map row by row, column by column, and both backwards.

    All arguments and the result list positions row by row, whatever the path: only the scan itself follows the path,
    block by block, so that no transposed or flipped copy of a map is made.

    Arithmetic is float32 at least, also under autocast. Time is linear in the number of positions. No exponent is
    positive, so steps of any length are safe: an underflow only means that the past is forgotten.

    Args:
        u: the maps of t tasks, flattened.
        dt, a, b, c, skip: those of each path and task; a and skip are the same for the whole batch.
        size: height and width of the maps, l = h w.
        method: ``blocks`` works through blocks of steps that fit a processor's cache and keeps, for the backward pass,
            only the states between blocks, from which all others are recomputed, so memory is a small fraction of all
            states. ``plain`` consists of standard operations without a loop over the steps, for exporters and second
            derivatives. ``auto`` is ``plain`` while a graph is exported, else ``blocks``.
    """
    there, back = paths(*size, u.device)
    batch, tasks = u.shape[:2]
    flat = u.flatten(0, 1)
    rates = a[:, None].expand(-1, batch, -1, -1, -1).flatten(1, 2)
    scanned = _scan(flat, dt.flatten(1, 2), rates, b.flatten(1, 2), c.flatten(1, 2), there, back, method)
    return (scanned.unflatten(0, (batch, tasks)) + u * skip.sum(0)[:, None]).to(u.dtype)


def paths(height: int, width: int, device: torch.device) -> tuple[Int[Tensor, "4 l"], Int[Tensor, "4 l"]]:
    """For each path, the positions (numbered row by row) in the order of visits, and the inverse: the step at which
    each position is visited."""
    step = torch.arange(height * width, device=device)
    columns, visited = (step.reshape(shape).t().flatten() for shape in ((height, width), (width, height)))
    last = height * width - 1
    return (torch.stack([step, columns, last - step, columns.flip(0)]),
            torch.stack([step, visited, last - step, last - visited]))


def multiply_adds(u: tuple[int, ...], dt: tuple[int, ...], a: tuple[int, ...], *_: Any, out_shape: Any = None,
                  **__: Any) -> int:
    """Operations of a scan, two per multiply-add, from the shapes of its arguments (:func:`_scan`). There are four
    products per state: dt A, the decayed state, B u, C h. The literature counts 9 operations: these 8 and the
    exponential.
    """
    (paths, sequences, length, channels), states = dt, a[2]
    return 8 * paths * sequences * length * channels * states


def _scan(u: Float[Tensor, "p l d"], dt: Float[Tensor, "k p l d"], a: Float[Tensor, "k p n d"],
          b: Float[Tensor, "k p l n"], c: Float[Tensor, "k p l n"], there: Int[Tensor, "k l"],
          back: Int[Tensor, "k l"], method: Method) -> Float[Tensor, "p l d"]:
    """The sum over k paths of the scans of p sequences, without the skipping term, in float32 at least."""
    kind = torch.promote_types(u.dtype, torch.float32)
    with without_autocast(u.device):
        inputs = [x.to(kind) for x in (u, dt, a, b, c)]
        if method == "plain" or (method == "auto" and exporting()):
            return _walked(inputs, there, back)
        training = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        y: Tensor = blocked_scan(*inputs, there, training)[0]
        return y


# -- blocks, as operators that autograd, compilers and the counter of multiply-adds know -------------------------------

_INPUTS = "Tensor u, Tensor dt, Tensor a, Tensor b, Tensor c, Tensor order"


@torch.library.custom_op("polyptych::selective_scan", mutates_args=(), schema=f"({_INPUTS}, bool training) -> "
                         "(Tensor, Tensor)")
def blocked_scan(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, order: Tensor, training: bool
                 ) -> tuple[Tensor, Tensor]:
    """The result, and the states before every block (empty unless ``training``)."""
    shape = blocks.shape_of(dt, a, training)
    y, states = blocks.forward(u, dt, a, b, c, order, shape, training)
    return y, u.new_empty(0) if states is None else states


@torch.library.custom_op("polyptych::selective_scan_backward", mutates_args=(),
                         schema=f"(Tensor gradient, {_INPUTS}, Tensor states) "
                                "-> (Tensor, Tensor, Tensor, Tensor, Tensor)")
def _blocked_backward(gradient: Tensor, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, order: Tensor,
                      states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return blocks.backward(gradient, u, dt, a, b, c, order, states, blocks.shape_of(dt, a, True))


@blocked_scan.register_fake
def _(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, order: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    shape = blocks.shape_of(dt, a, True).states if training else (0,)
    return torch.empty_like(u, memory_format=torch.contiguous_format), u.new_empty(shape)


@_blocked_backward.register_fake
def _(gradient: Tensor, u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, order: Tensor, states: Tensor
      ) -> tuple[Tensor, ...]:
    u, dt, a, b, c = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, dt, a, b, c))
    return u, dt, a, b, c


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], output[1])


def _differentiate(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, order, states = ctx.saved_tensors
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a gradient that will be differentiated
        wanted = [x for x in inputs if x.requires_grad]
        y = _walked(inputs, order, order.argsort(-1))
        found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
        return *(next(found) if x.requires_grad else None for x in inputs), None, None
    return *_blocked_backward(gradient, *inputs, order, states), None, None


blocked_scan.register_autograd(_differentiate, setup_context=_keep)


# -- the form in ordinary operations -----------------------------------------------------------------------------------


def _walked(inputs: Sequence[Tensor], there: Tensor, back: Tensor) -> Tensor:
    """Scan the sequences along all paths at once, and sum over the paths."""
    u, dt, a, b, c = inputs
    k = dt.shape[0]

    def along(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.index_select(1, order) for x, order in zip(parts, there.unbind(), strict=True)])

    walked = _in_chunks(along([u] * k), along(dt.unbind()), a.flatten(0, 1), along(b.unbind()), along(c.unbind()))
    parts = zip(walked.unflatten(0, (k, -1)).unbind(), back.unbind(), strict=True)
    return torch.stack([x.index_select(1, order) for x, order in parts]).sum(0)


def _in_chunks(u: Float[Tensor, "p l d"], dt: Float[Tensor, "p l d"], a: Float[Tensor, "p n d"],
               b: Float[Tensor, "p l n"], c: Float[Tensor, "p l n"]) -> Float[Tensor, "p l d"]:
    """The recurrence in two levels, in a number of operations that does not depend on the length.

    All chunks of a few steps run in parallel from state zero. The effect of a chunk on the state before it is a decay
    and an addition, (f, g), and consecutive effects compose to the same form: (f2 f1, f2 g1 + g2). This is associative,
    so doubling spans combines all chunks in log2 rounds (a parallel prefix scan). Then the chunks run again, from the
    states found.
    """
    length = u.shape[1]
    chunks = (length + CHUNK - 1) // CHUNK
    if not isinstance(length, int):
        # While torch.export traces, a number that may be 1 becomes a case of its own: the program would refuse
        # lengths of one chunk, and those that end within one. Two chunks are always more than one.
        chunks += 1

    steps = torch.arange(chunks * CHUNK, device=u.device)

    def cut(x: Tensor) -> Tensor:  # by indexing, which exports alike whether or not the end is padded
        return x.index_select(1, steps.clamp(max=length - 1)).reshape(x.shape[0], chunks, CHUNK, x.shape[2])

    inside = (steps < length).to(dt.dtype).reshape(chunks, CHUNK, 1)
    dt, b, c, x = cut(dt) * inside, cut(b), cut(c), cut(dt * u) * inside  # steps of length zero leave states alone
    rates = a[:, None]

    def step(i: int, state: Tensor) -> Tensor:
        return (dt[:, :, i, None] * rates).exp() * state + b[:, :, i, :, None] * x[:, :, i, None]

    end = torch.zeros_like(x[:, :, 0, None] * rates)
    for i in range(CHUNK):
        end = step(i, end)
    decay = (dt.sum(2)[:, :, None] * rates).exp()
    # In front, a chunk that changes nothing: what would reach back beyond the first chunk composes with it. Reaching
    # back is indexing: padding by 2^23 chunks, in the last of an export's rounds, would take gigabytes.
    end, decay = F.pad(end, (0, 0, 0, 0, 1, 0)), F.pad(decay, (0, 0, 0, 0, 1, 0), value=1.0)
    place = torch.arange(chunks + 1, device=u.device)
    rounds = (chunks - 1).bit_length() if isinstance(chunks, int) else 24  # enough for any size in an export
    for number in range(rounds):
        earlier = (place - 2**number).clamp(min=0)
        end = end + decay * end.index_select(1, earlier)
        decay = decay * decay.index_select(1, earlier)
    state, read = end[:, :-1], []
    for i in range(CHUNK):
        state = step(i, state)
        read.append((c[:, :, i, :, None] * state).sum(2))
    return torch.stack(read, dim=2).reshape(x.shape[0], chunks * CHUNK, x.shape[3])[:, :length]
