"""The selective scan in blocks of steps, forward and backward, without keeping its states.

Layout: p sequences of l positions, d channels, n states, k paths. A path is an order of the positions; inputs of a step
are gathered from, and outputs added to, the positions that the path visits at that step. Blocks have the axes (m k s p
...): m steps, k paths, s segments, p sequences.

Why blocks: the recurrence is sequential, and a loop in Python over single steps is dominated by the overhead of calls
and by memory traffic. A block is a number of consecutive steps of some rows. Everything that a step needs besides the
previous state, exp(dt A) and dt B u, is computed for all steps of a block at once; only one operation per step, h = f h
+ g, is sequential. Rows are independent, so a block has few enough rows that its arrays stay in the cache, and enough
rows that the arithmetic of a step outweighs the overhead of its call.

If there are too few rows for this, or a device needs more parallelism, the steps are cut into segments that run in
parallel, twice: first from state zero, which together with the decay over the segment determines how the segment
transforms the state before it; then from the actual state that the previous segments produce.

The gradient is also a scan, from the last step to the first. With e the gradient of y and g that of the states,

    g_i = C_i e_i + f_(i+1) g_(i+1)                           f = exp(dt A)
    du_i = dt_i sum_n g_i B_i                                 dB_i = sum_d g_i dt_i u_i
    ddt_i = u_i sum_n g_i B_i + sum_n A g_i f_i h_(i-1)       dC_i = sum_d h_i e_i
    dA = sum_i dt_i g_i f_i h_(i-1)

The states of a block are recomputed from the state before it, the only one that is stored. (They cannot be recovered
backward from the last one, because f underflows.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from jaxtyping import Float, Int
from torch import Tensor

STEPS, STEPS_IN_TRAINING = 32, 64  # of a block; training stores one state per block
LANES = 8192  # states of the rows of a block: enough to outweigh the call; all steps fit the cache
LEAST_LANES = 256  # below this, segments run in parallel
LEAST_IN_TRAINING, SHARE_IN_TRAINING = 512, 256  # lanes; arrays of a block stay small relative to all states of a scan
LEAST_CHANNELS = 32  # of a block, contiguous in memory
MANY_LANES = 2**14  # of one path: without gradients, single steps are then faster than blocks
ON_DEVICE = 2**22  # lanes; calls cost more there, and all rows run at once


@dataclass(frozen=True)
class Shape:
    """How a scan is cut into blocks.

    Attributes:
        paths, sequences, length, channels, per_row: k, p, l, d, n.
        segments: number of segments that run in parallel.
        steps: steps of a segment in one block.
        at_once: number of paths, sequences and channels in a block (which includes all segments).
    """

    paths: int
    sequences: int
    length: int
    channels: int
    per_row: int
    segments: int
    steps: int
    at_once: tuple[int, int, int]

    @property
    def segment(self) -> int:
        return -(-self.length // self.segments)

    @property
    def starts(self) -> range:
        """The first step of every block, relative to its segment."""
        return range(0, self.segment, self.steps)

    @property
    def states(self) -> tuple[int, ...]:
        """Shape of the array of the states before every block."""
        return len(self.starts), self.paths, self.segments, self.sequences, self.per_row, self.channels

    def rows(self) -> Iterator[tuple[slice, slice, slice]]:
        """Paths, sequences and channels of the rows that are processed together."""
        for starts in product(*(range(0, n, few) for n, few in zip((self.paths, self.sequences, self.channels),
                                                                   self.at_once, strict=True))):
            k, p, d = (slice(start, start + few) for start, few in zip(starts, self.at_once, strict=True))
            yield k, p, d


def shape_of(dt: Float[Tensor, "k p l d"], a: Float[Tensor, "k p n d"], training: bool, segments: int | None = None,
             steps: int | None = None, lanes: int | None = None) -> Shape:
    """Choose the cut for these shapes and their device; given values are used as they are."""
    (k, p, length, d), n = dt.shape, a.shape[2]
    rows, on_device = k * p * d * n, dt.device.type != "cpu"
    if segments is None:
        # With s segments, 2 l / s + s operations are sequential; more than sqrt(2 l) segments gain nothing.
        segments = max(1, min((ON_DEVICE if on_device else LEAST_LANES) // max(rows, 1), int((2 * length) ** 0.5)))
    steps = max(1, min(steps or (STEPS_IN_TRAINING if training else STEPS), -(-length // segments)))
    if lanes is None and on_device:
        lanes = ON_DEVICE
    elif lanes is None:
        lanes = min(LANES, max(LEAST_IN_TRAINING, rows * length // (SHARE_IN_TRAINING * steps))) if training else LANES
    lanes //= n * segments
    channels = min(d, max(lanes, LEAST_CHANNELS))
    paths = max(1, min(k, lanes // channels))
    sequences = max(1, min(p, lanes // (channels * paths)))
    return Shape(k, p, length, d, n, segments, steps, (paths, sequences, channels))


def forward(u: Float[Tensor, "p l d"], dt: Float[Tensor, "k p l d"], a: Float[Tensor, "k p n d"],
            b: Float[Tensor, "k p l n"], c: Float[Tensor, "k p l n"], order: Int[Tensor, "k l"], shape: Shape,
            keep: bool) -> tuple[Float[Tensor, "p l d"], Tensor | None]:
    """The sum over the paths, and, with ``keep``, the states before every block."""
    if not keep and u.device.type == "cpu" and shape.sequences * shape.per_row * shape.channels >= MANY_LANES:
        return _step_by_step(u, dt, a, b, c, order), None
    y = torch.zeros_like(u, memory_format=torch.contiguous_format)
    kept = u.new_empty(shape.states) if keep else None
    for paths, some, few in shape.rows():
        walk = Walk(order[paths], shape)
        rows = Rows(u[some, :, few], dt[paths, some, :, few], a[paths, some, :, few], b[paths, some], c[paths, some],
                    walk)
        total = torch.zeros_like(rows.u)
        state = rows.entries()
        for number, start in enumerate(shape.starts):
            if kept is not None:
                kept[number, paths, :, some, :, few] = state
            block = rows.block(start, state)
            walk.add(total, start, _over_states(walk.each(rows.c, start), block.states))
            state = block.states[-1].clone()  # the next block overwrites it
        y[some, :, few] += total.transpose(0, 1)
    return y, kept


def _step_by_step(u: Float[Tensor, "p l d"], dt: Float[Tensor, "k p l d"], a: Float[Tensor, "k p n d"],
                  b: Float[Tensor, "k p l n"], c: Float[Tensor, "k p l n"], order: Int[Tensor, "k l"]
                  ) -> Float[Tensor, "p l d"]:
    """The plain recurrence, in place. If the rows of one path outweigh the calls of a step, blocks gain nothing."""
    u = _positions_first(u)
    y = torch.zeros_like(u)
    for k, positions in enumerate(order.tolist()):
        lengths, into, out = (_positions_first(x[k]) for x in (dt, b, c))
        steps = [part.unbind() for part in (lengths[:, :, None], (lengths * u)[:, :, None], into[..., None],
                                            out[:, :, None], y[:, :, None])]
        state, decay = torch.zeros_like(a[k]), torch.empty_like(a[k])
        for i in positions:
            length, x, b_i, c_i, y_i = (part[i] for part in steps)
            torch.mul(length, a[k], out=decay).exp_()
            state.mul_(decay).addcmul_(x, b_i)
            y_i.baddbmm_(c_i, state)
    return y.transpose(0, 1).contiguous()


def backward(gradient: Float[Tensor, "p l d"], u: Float[Tensor, "p l d"], dt: Float[Tensor, "k p l d"],
             a: Float[Tensor, "k p n d"], b: Float[Tensor, "k p l n"], c: Float[Tensor, "k p l n"],
             order: Int[Tensor, "k l"], kept: Tensor, shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of u, dt, a, b and c."""
    du, db, dc = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (u, b, c))
    ddt, da = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (dt, a))
    for paths, some, few in shape.rows():
        walk = Walk(order[paths], shape)
        rows = Rows(u[some, :, few], dt[paths, some, :, few], a[paths, some, :, few], b[paths, some], c[paths, some],
                    walk)
        outgoing = _positions_first(gradient[some, :, few])
        own_du, own_ddt, own_db, own_dc = (torch.zeros_like(x) for x in (rows.u, rows.dt, rows.b, rows.c))
        own_da = torch.zeros_like(rows.a)
        carry = rows.exits(outgoing)
        for number, start in reversed(list(enumerate(shape.starts))):
            before = kept[number, paths, :, some, :, few]
            block, e = rows.block(start, before), walk.shared(outgoing, start)
            g, carry = rows.adjoint(start, e, block.decay, carry)
            walk.add_each(own_dc, start, _over_channels(e, block.states))
            walk.add_each(own_db, start, _over_channels(block.x, g))
            dx = _over_states(block.b, g)
            walk.add(own_du, start, dx * block.dt)
            g.mul_(block.decay)
            g[0].mul_(before)
            g[1:].mul_(block.states[:-1])
            through_decay = torch.mul(g, rows.a, out=block.decay).sum(-2)
            walk.add_each(own_ddt, start, dx * block.u + through_decay)
            own_da += torch.mul(g, block.dt[..., None, :], out=block.decay).sum(0)
        du[some, :, few] += own_du.transpose(0, 1)
        ddt[paths, some, :, few] = own_ddt.transpose(1, 2)
        da[paths, some, :, few] = own_da.sum(1)
        db[paths, some] += own_db.transpose(1, 2)
        dc[paths, some] += own_dc.transpose(1, 2)
    return du, ddt, da, db, dc


def _over_states(weights: Float[Tensor, "m k s p n"], states: Float[Tensor, "m k s p n d"]
                 ) -> Float[Tensor, "m k s p d"]:
    return torch.matmul(weights[..., None, :], states).squeeze(-2)


def _over_channels(weights: Float[Tensor, "m k s p d"], states: Float[Tensor, "m k s p n d"]
                   ) -> Float[Tensor, "m k s p n"]:
    return torch.matmul(weights[..., None, :], states.mT).squeeze(-2)


def _positions_first(x: Float[Tensor, "... p l c"]) -> Float[Tensor, "... l p c"]:
    """A copy with positions first, so that gathering a position reads one contiguous row."""
    return x.transpose(-3, -2).contiguous()


class Walk:
    """The positions that the blocks visit.

    Steps beyond the end of the last segment visit the last position: their inputs are set to zero, and they add
    nothing.
    """

    def __init__(self, order: Int[Tensor, "k l"], shape: Shape):
        k, length = order.shape
        self.shape, missing = shape, shape.segment * shape.segments - length
        filled = torch.cat([order, order[:, -1:].expand(k, missing)], dim=1) if missing else order
        self.positions = filled.view(k, shape.segments, shape.segment).transpose(1, 2).contiguous().unbind()
        self.inside = None
        if missing:
            inside = torch.arange(filled.shape[1], device=order.device) < length
            self.inside = inside.view(shape.segments, shape.segment).t()

    def _visited(self, start: int) -> list[Int[Tensor, " ms"]]:
        """The positions of each path, step by step."""
        return [positions[start:start + self.shape.steps].flatten() for positions in self.positions]

    def _masked(self, x: Float[Tensor, "m k s p c"], start: int) -> Float[Tensor, "m k s p c"]:
        if self.inside is None:
            return x
        return x * self.inside[start:start + self.shape.steps, None, :, None, None]

    def _gathered(self, parts: list[Float[Tensor, "l p c"]], start: int) -> Float[Tensor, "m k s p c"]:
        blocks = [x.index_select(0, places) for x, places in zip(parts, self._visited(start), strict=True)]
        joined = torch.stack(blocks, dim=1) if len(blocks) > 1 else blocks[0].unsqueeze(1)  # (m s) k p c
        return self._masked(joined.unflatten(0, (-1, self.shape.segments)).transpose(1, 2), start)

    def shared(self, x: Float[Tensor, "l p c"], start: int) -> Float[Tensor, "m k s p c"]:
        """Gather an input that all paths share."""
        return self._gathered([x] * len(self.positions), start)

    def each(self, x: Float[Tensor, "k l p c"], start: int) -> Float[Tensor, "m k s p c"]:
        """Gather an input that each path has for itself."""
        return self._gathered(list(x), start)

    def add(self, total: Float[Tensor, "l p c"], start: int, block: Float[Tensor, "m k s p c"]) -> None:
        self._added([total] * len(self.positions), start, block)

    def add_each(self, total: Float[Tensor, "k l p c"], start: int, block: Float[Tensor, "m k s p c"]) -> None:
        self._added(list(total), start, block)

    def _added(self, totals: list[Float[Tensor, "l p c"]], start: int, block: Float[Tensor, "m k s p c"]) -> None:
        parts = self._masked(block, start).unbind(1)
        for total, places, part in zip(totals, self._visited(start), parts, strict=True):
            total.index_add_(0, places, part.flatten(0, 1))


@dataclass
class Block:
    """Inputs and states of a block: the ``decay`` during each step, and the ``states`` after it. ``x`` is dt u."""

    dt: Float[Tensor, "m k s p d"]
    u: Float[Tensor, "m k s p d"]
    x: Float[Tensor, "m k s p d"]
    b: Float[Tensor, "m k s p n"]
    decay: Float[Tensor, "m k s p n d"]
    states: Float[Tensor, "m k s p n d"]


class Rows:
    """Rows that are processed together, with memory for the arrays of one block, which the next block overwrites."""

    def __init__(self, u: Float[Tensor, "p l d"], dt: Float[Tensor, "k p l d"], a: Float[Tensor, "k p n d"],
                 b: Float[Tensor, "k p l n"], c: Float[Tensor, "k p l n"], walk: Walk):
        self.u, self.dt, self.b, self.c = (_positions_first(x) for x in (u, dt, b, c))
        self.walk = walk
        self.a = a[:, None].repeat(1, walk.shape.segments, 1, 1, 1)  # (k s p n d)
        self.room = [u.new_empty(walk.shape.steps, *self.a.shape) for _ in range(2)]
        self.room_of_adjoint: Tensor | None = None

    def decay(self, dt: Float[Tensor, "m k s p d"]) -> Float[Tensor, "m k s p n d"]:
        return torch.mul(dt[..., None, :], self.a, out=self.room[0][:len(dt)]).exp_()

    def block(self, start: int, state: Float[Tensor, "k s p n d"]) -> Block:
        """Compute a block from the state before it."""
        dt, u, b = self.walk.each(self.dt, start), self.walk.shared(self.u, start), self.walk.each(self.b, start)
        x, decay = dt * u, self.decay(dt)
        states = torch.mul(x[..., None, :], b[..., None], out=self.room[1][:len(dt)])
        for f, h in zip(decay.unbind(), states.unbind(), strict=True):
            state = h.addcmul_(f, state)
        return Block(dt, u, x, b, decay, states)

    def adjoint(self, start: int, e: Float[Tensor, "m k s p d"], decay: Float[Tensor, "m k s p n d"],
                carry: Float[Tensor, "k s p n d"]) -> tuple[Float[Tensor, "m k s p n d"], Float[Tensor, "k s p n d"]]:
        """The gradient with respect to the state after every step, and with respect to the state before the block."""
        if self.room_of_adjoint is None:
            self.room_of_adjoint = torch.empty_like(self.room[0])
        g = torch.mul(self.walk.each(self.c, start)[..., None], e[..., None, :], out=self.room_of_adjoint[:len(e)])
        backwards = g.unbind()[::-1]
        later = backwards[0].add_(carry)
        for f, h in zip(decay.unbind()[:0:-1], backwards[1:], strict=True):
            later = h.addcmul_(f, later)
        return g, decay[0] * later

    def over_segment(self) -> Float[Tensor, "k s p n d"]:
        """The decay of a state over each whole segment."""
        total = torch.zeros_like(self.a[..., 0, :])
        for start in self.walk.shape.starts:
            total += self.walk.each(self.dt, start).sum(0)
        return (total[..., None, :] * self.a).exp()

    def entries(self) -> Float[Tensor, "k s p n d"]:
        """The state before each segment."""
        state = torch.zeros_like(self.a)
        if self.walk.shape.segments == 1:
            return state
        for start in self.walk.shape.starts:
            state = self.block(start, state).states[-1].clone()
        before, left = torch.zeros_like(state), self.over_segment()
        for i, j in pairwise(range(self.walk.shape.segments)):
            before[:, j] = state[:, i] + left[:, i] * before[:, i]
        return before

    def exits(self, gradient: Float[Tensor, "l p d"]) -> Float[Tensor, "k s p n d"]:
        """The gradient with respect to the state after each segment, from all later segments."""
        carry = torch.zeros_like(self.a)
        if self.walk.shape.segments == 1:
            return carry
        for start in reversed(self.walk.shape.starts):
            decay = self.decay(self.walk.each(self.dt, start))
            carry = self.adjoint(start, self.walk.shared(gradient, start), decay, carry)[1]
        after, left = torch.zeros_like(carry), self.over_segment()
        for j, i in pairwise(reversed(range(self.walk.shape.segments))):
            after[:, i] = carry[:, j] + left[:, j] * after[:, j]
        return after
