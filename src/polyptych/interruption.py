"""Ctrl-C and SIGTERM: finish the step, save, and say how to continue."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; everything is saved."""


class StopFlag:
    """Set by Ctrl-C or SIGTERM; the loop checks it after every step. A second Ctrl-C stops at once."""

    asked = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


@contextlib.contextmanager
def raise_on_signal(advice: str) -> Iterator[None]:
    """Within this context a signal raises :class:`Interrupted` with the advice at once: for work that would start over
    anyway, so that there is nothing to save."""

    flag = StopFlag()

    def interrupt(number: int, frame: FrameType | None) -> None:
        flag.asked = True
        raise Interrupted(advice)

    with _handled(interrupt):
        try:
            yield
        except RuntimeError:  # the signal also ended a loading process, which is noticed on the way out
            if not flag.asked:
                raise
            raise Interrupted(advice) from None


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Within this context a signal sets the flag instead of ending the program."""
    flag = StopFlag()
    with _handled(flag.ask):
        yield flag


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
