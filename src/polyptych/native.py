"""Functions that numba compiles.

They have ``@no_type_check`` because numba must see the plain function, whereas tests add a type checker to all others.
Their docstrings state shapes and types instead.

Functions that call each other are in the same file, because numba recompiles the functions of a file that changed, but
does not check the files of the functions they call.
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
