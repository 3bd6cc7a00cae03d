"""The order of training samples as pure functions of (seed, position): nothing to store, nothing to shuffle."""

from __future__ import annotations

import hashlib
import math


def shuffled(position: int, length: int, seed: int) -> int:
    """The index at ``position`` of an endless stream in which every ``length`` positions are a permutation of the
    dataset, a new one in each epoch.

    A Feistel network over pairs (a, b) with a + rows * b = index: every round is a bijection, so the whole network is
    one, and a single entry of the permutation is found without computing all of it, as an endless dataset requires.
    """
    epoch, index = divmod(position, length)
    rows = math.isqrt(length - 1) + 1
    columns = -(-length // rows)
    while True:
        b, a = divmod(index, rows)
        for turn in range(6):
            a = (a + hashed(seed, epoch, turn, b)) % rows
            b = (b + hashed(seed, epoch, -1 - turn, a)) % columns
        index = a + rows * b
        if index < length:  # there are a few more pairs than indices: repeat until inside
            return index


def hashed(*integers: int) -> int:
    """64 bits that depend on all arguments; the same on every machine."""
    text = ",".join(map(str, integers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
