"""Functions in captured graphs: pure forms of in-place operations, and the check that a fact from tracing still holds.

Compact networks call these functions without the search, so this file imports nothing of the search.
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
    """A copy of ``values`` after ``values[index] = item``."""
    copy = values.clone()
    copy[index] = item
    return copy


def filled(values: Tensor, other: Any) -> Tensor:
    """The result of ``values.copy_(other)`` or ``values.fill_(other)`` as a new tensor."""
    return torch.empty_like(values).copy_(other) if isinstance(other, Tensor) else torch.full_like(values, other)


@has_side_effect  # or torch.fx would delete it as dead code: nothing reads its result
def require(value: Any, expected: Any, place: str) -> None:
    """Check that a fact on which the structure of the graph rests still holds.

    Raises:
        InputError: it does not, because the network was captured for another image size.
    """
    if value != expected:
        value = tuple(value) if isinstance(value, tuple) else value
        raise InputError(place, f"{value} where the network was captured with {expected}",
                         "an image of a size for which it has the same structure",
                         "capture it again at this size, or let it run as one piece (any_size=True)")
