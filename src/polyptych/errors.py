"""The one error for bad input of a user: it names the place, what came, what is needed, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

MOST_SHOWN = 600  # characters of what came


class InputError(ValueError):
    """Input from outside is wrong. The command line prints the message as one line and exits with code 2.

    Args:
        where: the place: a file, a flag, a field of run.json.
        got: what came.
        needs: what is needed there.
        do: what the user can do about it.
    """

    where: str
    got: str
    needs: str
    do: str
    missing: tuple[Path, ...] = ()
    """All missing files, if the error is about missing files."""

    def __init__(self, where: object, got: str, needs: str, do: str):
        self.where, self.got, self.needs, self.do = str(where), got, needs, do
        super().__init__(_one_line(f"{where}: got {_shortened(got)}; needs {needs}; {do}"))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str, str]]:
        # Data-loading workers pickle the error for the main process; the default would pass only the message.
        return type(self), (self.where, self.got, self.needs, self.do)


def _one_line(text: str) -> str:
    """The text with line breaks and control characters, which names from files may hold, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shortened(text: str) -> str:
    """The text, its middle left out if it is long: a field of a file may hold a megabyte."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN // 2]} ... {text[-MOST_SHOWN // 2:]}"


def first_line(error: BaseException) -> str:
    """The first line of a library's error, short enough for one line of ours."""
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def nearest(name: str, choices: Iterable[str]) -> str:
    """The part of an error that lists valid names, the nearest first: ``'ema_net' (nearest) or one of ...``."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    listing = ", ".join(choices) or "(none)"
    return f"one of {listing} (nearest: {', '.join(close)})" if close else f"one of {listing}"
