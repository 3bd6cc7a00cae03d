"""Thinning of a binary map to lines one pixel wide, as MATLAB's ``bwmorph(map, 'thin', Inf)``.

Source: Guo and Hall, CACM 1989, in the form of Lam, Lee and Suen, TPAMI 1992
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Int

from polyptych.native import native


def _removable(code: int, second: bool) -> bool:
    """Whether a set pixel is removed in the first or the second pass over the map.

    Args:
        code: its neighbors as bits, from the lowest: E, NE, N, NW, W, SW, S, SE.
    """
    x = [bool(code >> k & 1) for k in range(8)]
    following = [*x[1:], x[0]]
    crossings = sum(not x[k] and (x[k + 1] or following[k + 1]) for k in (0, 2, 4, 6))
    pairs = sum(x[k] or x[k + 1] for k in (0, 2, 4, 6))
    shifted = sum(x[k] or following[k] for k in (1, 3, 5, 7))
    e, ne, n, nw, w, sw, s, se = x
    corner = ((sw or s or not nw) and w) if second else ((ne or n or not se) and e)
    return crossings == 1 and 2 <= min(pairs, shifted) <= 3 and not corner


_TABLES = np.array([[_removable(code, second) for code in range(256)] for second in (False, True)])


def thin(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Lines one pixel wide with the same connected components and holes; the outside of the map counts as empty."""
    thinned = np.zeros(mask.size, bool)
    thinned[thin_pixels(mask)] = True
    return thinned.reshape(mask.shape)


def thin_pixels(mask: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, " n"]:
    """The pixels of the thinned map, int32, as increasing positions in the flattened map."""
    padded = np.pad(mask, 1)
    flat = padded.ravel()
    return _thin(flat, np.flatnonzero(flat), padded.shape[1], _TABLES).copy()  # without the room for those removed


@native
@no_type_check
def _thin(flat, everywhere, width, tables):
    """Thin a padded, flattened bool map (n), in rows of the given width, in place; positions (m) int32 of what is left
    in the map without its padding.

    A pixel is checked again only after a neighbor was removed, so the cost is proportional to the number of removed
    pixels, not to the area times the number of passes. Arrays are filled one by one: numba takes seconds to compile
    the assignment of a whole row.

    Args:
        everywhere: int64, the positions of all set pixels.
    """
    steps = (1, 1 - width, -width, -width - 1, -1, width - 1, width, width + 1)
    queues = np.empty((2, everywhere.size), np.int64)
    queued = np.zeros((2, flat.size), np.bool_)
    for k in range(everywhere.size):
        for turn in range(2):
            queues[turn, k] = everywhere[k]
            queued[turn, everywhere[k]] = True
    waiting = np.full(2, everywhere.size)
    doomed = np.empty(everywhere.size, np.int64)
    turn = 0
    while waiting[0] + waiting[1] > 0:
        gone = 0
        for k in range(waiting[turn]):
            p = queues[turn, k]
            queued[turn, p] = False
            if flat[p]:
                code = 0
                for bit in range(8):
                    code |= np.int64(flat[p + steps[bit]]) << bit
                if tables[turn, code]:
                    doomed[gone] = p
                    gone += 1
        waiting[turn] = 0
        for k in range(gone):  # remove all pixels of a pass at once
            flat[doomed[k]] = False
        for k in range(gone):
            for bit in range(8):
                p = doomed[k] + steps[bit]
                if flat[p]:
                    for other in range(2):
                        if not queued[other, p]:
                            queued[other, p] = True
                            queues[other, waiting[other]] = p
                            waiting[other] += 1
        turn = 1 - turn
    left = np.empty(everywhere.size, np.int32)
    count = 0
    for p in everywhere:
        if flat[p]:
            left[count] = (p // width - 1) * (width - 2) + p % width - 1
            count += 1
    return left[:count]
