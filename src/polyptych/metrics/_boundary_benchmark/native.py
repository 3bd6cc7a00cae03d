"""Functions that numba compiles.

They carry ``@no_type_check`` because numba must see the plain function: tests put a type checker behind every other
one. Their docstrings state shapes and types instead.

Functions that call each other stand in one file: numba compiles anew what stands in a file that changed, and does not
look at the files of what is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def native(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile at the first call; later processes load what the first one compiled."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        return njit(nogil=True)(function)
