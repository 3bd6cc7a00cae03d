"""Several parts in one stream, in proportion to weights, as a pure function of the position."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

from polyptych.data.order import hashed
from polyptych.errors import InputError, nearest

Order = Callable[[int, int], int]
"""Maps (position, seed) to an index in one part."""


class Interleaving:
    """An endless stream in which every part has its share of every window.

    The parts are the leaves of a balanced binary tree. At a node, position q goes left if round(q w) increases there,
    with w the left side's share. The number of earlier positions on that side is then known in closed form, which makes
    the stream stateless: a run can resume at any position. In any window of the stream a side's count differs from its
    share by at most 1 at every node, so a part's count differs from its share by at most the depth of the tree,
    ceil(log2(parts)).

    Args:
        weights: positive; only their proportions matter. Taken as the decimal numbers they print as, so that
            0.1 and 0.9 are exactly 1 to 9.
    """

    def __init__(self, weights: Sequence[float]):
        exact = [Fraction(repr(float(weight))) for weight in weights]
        scale = math.lcm(*(weight.denominator for weight in exact))
        self._sums = [0, *itertools.accumulate(int(weight * scale) for weight in exact)]

    def place(self, position: int) -> tuple[int, int]:
        """The part at ``position``, and how many earlier positions belong to it."""
        low, high = 0, len(self._sums) - 1
        while high - low > 1:
            middle = (low + high) // 2
            left, whole = self._sums[middle] - self._sums[low], self._sums[high] - self._sums[low]
            # round(q w) in whole numbers: floor(q w + 1/2), exact for positions of any size, which floats are not.
            before, after = ((2 * q * left + whole) // (2 * whole) for q in (position, position + 1))
            if after > before:
                high, position = middle, before
            else:
                low, position = middle, position - before
        return low, position


class Mixture:
    """Parts one after the other under one index, and the stream that mixes them.

    Args:
        lengths: number of samples of each part.
        weights: weight of each part in the stream.
        orders: the order of samples within each part.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], orders: Sequence[Order]):
        self._starts = [0, *itertools.accumulate(lengths)]
        self._orders = orders
        self._interleaving = Interleaving(weights)

    def __len__(self) -> int:
        return self._starts[-1]

    def locate(self, index: int) -> tuple[int, int]:
        """The part that an index lies in, and the index there."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        part = bisect_right(self._starts, index) - 1  # the last part that starts here; others are empty
        return part, index - self._starts[part]

    def index_at(self, position: int, seed: int) -> int:
        """The index at a position of the stream; each part goes through its own epochs, with a seed of its own."""
        part, ordinal = self._interleaving.place(position)
        return self._starts[part] + self._orders[part](ordinal, hashed(seed, part))


def checked_weights(given: Mapping[str, float], parts: Iterable[str], where: str) -> list[float]:
    """The weight of each part; 1 by default.

    Raises:
        InputError: a weight of an unknown part, or one that is not a positive number.
    """
    parts = list(parts)
    for name, weight in given.items():
        if name not in parts:
            raise InputError(f"{where}: weight of '{name}'", "an unknown name", nearest(name, parts),
                             "use one of these names")
        if not (0 < weight < math.inf):
            raise InputError(f"{where}: weight of '{name}'", f"{weight:g}", "a number above 0",
                             "leave the part out if it should not occur")
    return [given.get(name, 1.0) for name in parts]
