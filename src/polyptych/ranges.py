"""Checks the range of a numeric option where it is set, not where a bad value would do harm."""

from __future__ import annotations

import math

from polyptych.errors import InputError

LARGEST_SIDE = 32768
"""Largest height or width, in pixels, of a network's input: a typo should not fill the memory."""


def check_range(place: str, value: float, least: float = -math.inf, most: float = math.inf, *, below: bool = False,
                do: str = "choose a value in this range") -> None:
    """Refuse a number outside a range. Infinity and NaN are outside every range.

    Args:
        place: the option, for instance ``--clip``.
        below: the upper limit itself is outside too.
        do: what the user can do about it.

    Raises:
        InputError: naming the option, its value and the range.
    """
    too_large = value >= most if below else value > most
    if math.isfinite(value) and not value < least and not too_large:
        return
    if isinstance(value, int) and not math.isfinite(most):
        raise InputError(place, str(value), f"{least:g} or more", do)
    words = [f"of at least {least:g}"] if math.isfinite(least) else []
    words += [f"{'below' if below else 'of at most'} {most:g}"] if math.isfinite(most) else []
    kind = "a number" if math.isfinite(value) else "a finite number"
    raise InputError(place, f"{value:g}", f"{kind} {' and '.join(words)}".strip(), do)
