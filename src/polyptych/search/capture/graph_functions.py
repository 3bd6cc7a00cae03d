"""Functions that stand in a captured graph: pure forms of what writes in place, and the check of a baked fact.

Nothing here is needed to *search*; compact networks call these functions, so this file imports nothing of the search.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import has_side_effect

from polyptych.errors import InputError

OPERATORS: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul,
    operator.itruediv: operator.truediv, operator.ifloordiv: operator.floordiv, operator.imod: operator.mod,
    operator.ipow: operator.pow, operator.imatmul: operator.matmul, operator.iand: operator.and_,
    operator.ior: operator.or_, operator.ixor: operator.xor, operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
}
"""Augmented assignments and what they compute."""


def with_item(values: Tensor, index: Any, item: Any) -> Tensor:
    """``values[index] = item`` on a copy."""
    copy = values.clone()
    copy[index] = item
    return copy


def filled(values: Tensor, other: Any) -> Tensor:
    """``values.copy_(other)``, ``values.fill_(other)`` on a copy."""
    return torch.empty_like(values).copy_(other) if isinstance(other, Tensor) else torch.full_like(values, other)


@has_side_effect  # or torch.fx would delete it as dead code: nothing reads its result
def require(value: Any, expected: Any, place: str) -> None:
    """What the structure of the graph was made from still holds.

    Raises:
        InputError: it does not: the network was captured for another size of image.
    """
    if value != expected:
        value = tuple(value) if isinstance(value, tuple) else value
        raise InputError(place, f"{value} where the network was captured with {expected}",
                         "an image of a size for which it has the same structure",
                         "capture it again at this size, or let it run as one piece (any_size=True)")
