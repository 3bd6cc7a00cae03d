"""Ctrl-C and SIGTERM: finish the step, save, and say how to go on."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; everything is saved."""


class StopFlag:
    """Set by Ctrl-C or SIGTERM; the loop looks at it after every step. A second Ctrl-C stops at once."""

    asked = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Within, a signal sets the flag instead of ending the program."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
