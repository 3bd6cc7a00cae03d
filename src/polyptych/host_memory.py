"""Keep the memory of freed CPU tensors, instead of returning it to the operating system.

By default glibc returns large blocks to the system at once and asks for new ones, which the kernel hands out page by
page and fills with zeros. A training step allocates and frees the same few hundred blocks again and again: at 288x384
up to a third of the step of a network with large feature maps is spent there (``benchmarks/network_step.py
--return-memory``).
"""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make the C library keep freed blocks below 2 GiB in the process, for the next tensors.

    The process then stays at its peak size.

    Returns:
        Whether this C library supports it.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    malloc_option = ctypes.CDLL(None).mallopt
    return bool(malloc_option(_MMAP_THRESHOLD, _LARGEST) and malloc_option(_TRIM_THRESHOLD, _LARGEST))
